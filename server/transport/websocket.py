"""uvicorn's WebSocket protocol, which closes connections to peers that do not read.

A closing transport waits until everything is sent. A peer that keeps its TCP window shut could make it wait for ever,
so the transport is aborted after `LINGER_SECONDS`.
"""

import asyncio
import logging
import socket
from asyncio.transports import BaseTransport
from collections.abc import Coroutine
from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

LINGER_SECONDS = 2.0
SEND_BUFFER_BYTES = 64 * 1024
"The kernel's buffer, which would otherwise grow to megabytes for each peer that does not read."

UNREAD_PONGS_BYTES = 256 * 1024
"More than uvicorn lets the application buffer."


async def _refuse() -> None:
    raise ClientDisconnected


class SocketProtocol(WebSocketsSansIOProtocol):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # A logger of its own, because each socket logs several lines (see shared/telemetry/logs.py).
        self.logger = self.conn.logger = logging.getLogger("uvicorn.sockets")
        self.conn.debug = self.logger.isEnabledFor(logging.DEBUG)

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        if (connection := transport.get_extra_info("socket")) is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    def send(self, message: ASGISendEvent) -> Coroutine[Any, Any, None]:
        """Raises `ClientDisconnected` also if we closed the socket because its peer did not answer a ping."""
        return _refuse() if self.close_sent else super().send(message)

    def handle_ping(self) -> None:
        """A peer that sends pings and does not read would fill the memory with pongs."""
        if self.transport.get_write_buffer_size() > UNREAD_PONGS_BYTES:
            self.transport.abort()
        else:
            super().handle_ping()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        self._end_soon()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._end_soon()

    def shutdown(self) -> None:
        """May be called again for sockets that have not closed."""
        if not self.transport.is_closing():
            super().shutdown()
        self._end_soon()

    def _end_soon(self) -> None:
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)
