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

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from server.protection.turns import Turns
from server.transport.budget import Budgeted

HANDSHAKE_SECONDS = 5.0
"Until the server has answered. `connection_init` has a deadline of its own."

PARSED_AT_ONCE_BYTES = 4 * 1024
"About fifty messages, or a part of one."

HELD_MESSAGE_BYTES = 8 * 1024
LINGER_SECONDS = 2.0
SEND_BUFFER_BYTES = 64 * 1024
"The kernel's buffer, which would otherwise grow to megabytes for each peer that does not read."

UNREAD_PONGS_BYTES = 256 * 1024
"More than uvicorn lets the application buffer."


async def _refuse() -> None:
    raise ClientDisconnected


class SocketProtocol(Budgeted, WebSocketsSansIOProtocol):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._queued = 0
        self._unparsed = bytearray()
        self._parsing: asyncio.Task[None] | None = None
        self._turns: Turns = self.app_state["admission"].turns
        # A logger of its own, because each socket logs several lines (see shared/telemetry/logs.py).
        self.logger = self.conn.logger = logging.getLogger("uvicorn.sockets")
        self.conn.debug = self.logger.isEnabledFor(logging.DEBUG)

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        if (connection := transport.get_extra_info("socket")) is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._made_at = self.loop.time()
        self._deadline = self.loop.call_later(HANDSHAKE_SECONDS, self._end_unless_open)

    @property
    def awaiting_since(self) -> float | None:
        """The loop's time since which the client has not finished its handshake; `None` once it has."""
        return None if self.handshake_complete else self._made_at

    def _end_unless_open(self) -> None:
        if not self.handshake_complete:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop_received()
        super().connection_lost(exc)
        self._deadline.cancel()
        self.release()

    def data_received(self, data: bytes) -> None:
        """A client can send thousands of messages at once, so they are parsed in turns with all others' work."""
        if self._unparsed or len(data) > PARSED_AT_ONCE_BYTES or self._turns.are_due():
            self._unparsed += data
            self.transport.pause_reading()
            if self._parsing is None:
                self._parsing = self.loop.create_task(self._parse_in_turns())
        else:
            super().data_received(data)
        self._count_received()

    async def _parse_in_turns(self) -> None:
        while self._unparsed and not self.transport.is_closing():
            await self._turns.take()
            piece = bytes(self._unparsed[:PARSED_AT_ONCE_BYTES])
            del self._unparsed[:PARSED_AT_ONCE_BYTES]
            super().data_received(piece)
            self._count_received()
        self._parsing = None
        if not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def send_receive_event_to_app(self) -> None:
        self._queued += sum(map(len, self.frames))
        super().send_receive_event_to_app()

    async def receive(self) -> ASGIReceiveEvent:
        message = await super().receive()
        if self._queued and self.queue.empty():
            self._queued = 0
            self._count_received()
        if self._unparsed and not self.transport.is_closing():
            self.transport.pause_reading()  # uvicorn resumes it when the queue is empty
        return message

    def _drop_received(self) -> None:
        """Messages that wait would delay the end of the socket."""
        self._unparsed.clear()
        while not self.queue.empty():
            self.queue.get_nowait()

    def _count_received(self) -> None:
        """Messages that are not complete, or that wait, count towards their client's budget."""
        size = len(self._unparsed) + len(self.conn.reader.buffer) + sum(map(len, self.frames)) + self._queued
        if size <= HELD_MESSAGE_BYTES:
            self.release()
        elif not self.hold(size):
            self.transport.abort()

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
        self._drop_received()
        if not self.transport.is_closing():
            super().shutdown()
        self._end_soon()

    def _end_soon(self) -> None:
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)
