"""The process: uvicorn's server, which drains on SIGTERM and tunes garbage collection."""

import asyncio
import contextvars
import functools
import gc
import logging
import math
import signal
import time
from collections.abc import Callable
from socket import socket
from types import FrameType
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette

from server.transport.http import (
    KEEP_ALIVE_SECONDS,
    MAX_CONNECTIONS,
    HttpProtocol,
    accept_more,
    cut_off_slow,
    cut_off_unread_streams,
)
from server.transport.websocket import LINGER_SECONDS, SocketProtocol

logger = logging.getLogger(__name__)

FINISH_SECONDS = 10
"For requests in hand, once nothing new is taken."


REPEATED_SECONDS = 0.5
"Within it the same signal may come twice: `timeout` sends it to its child and to its process group."


MAX_MESSAGE_BYTES = 128 * 1024


PING_SECONDS = 20


GARBAGE = (10_000, 20, 5)
"""Less often than Python would: with thousands of connections a look at all objects takes a quarter of a second. What
a request leaves is gone without, but a socket that has ended is not: a million objects are some 7,000 sockets'."""


TICKS_A_SECOND = 10


class Server(uvicorn.Server):
    """SIGTERM drains: for a while everything is answered, but /readyz says to go elsewhere. SIGINT ends at once."""

    def __init__(self, config: uvicorn.Config, drain_seconds: float = 0) -> None:
        super().__init__(config)
        self._drain_seconds = drain_seconds
        self._signalled_at: float | None = None
        self._drained_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Not as uvicorn's, which kills itself by the signal in the end: having done as told is exit code 0."""
        now = time.monotonic()
        if self._signalled_at is None:
            self._signalled_at = now
            if sig == signal.SIGTERM and self._drain_seconds and self.started:
                self._drained_at = now + self._drain_seconds
                self._loop.call_soon_threadsafe(self._begin_to_drain, context=contextvars.Context())
            else:
                self.should_exit = True
        elif now - self._signalled_at > REPEATED_SECONDS:
            self.should_exit = self.force_exit = True

    async def startup(self, sockets: list[socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        options = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}

        def protocol() -> asyncio.Protocol:  # looked up each time: draining replaces it
            return cast(Callable[..., asyncio.Protocol], self.config.http_protocol_class)(**options)

        self.servers += await accept_more(self.servers, protocol)
        # The schema and all modules stay for good. To look at them for garbage, again and again, holds the loop 70 ms.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GARBAGE)

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_A_SECOND == 0:
            cut_off_slow(self.server_state.connections, asyncio.get_running_loop().time())
        if self._drained_at is not None and not self.should_exit:
            self._go_on_draining(self._drained_at - time.monotonic())
        return await super().on_tick(counter)

    def _begin_to_drain(self) -> None:
        logger.info("draining for %g s: /readyz says 503, everything else is answered", self._drain_seconds)
        self.config.app.state.is_draining = True  # type: ignore[union-attr]  # ours
        of_new: Any = self.config.http_protocol_class
        self.config.http_protocol_class = functools.partial(of_new, is_leaving=True)  # type: ignore[assignment]
        for connection in self.server_state.connections:
            if isinstance(connection, HttpProtocol):
                connection.leave()

    def _go_on_draining(self, seconds_left: float) -> None:
        if seconds_left <= 0:
            self.should_exit = True
        elif seconds_left <= self._drain_seconds / 2:
            # By now they are sent elsewhere when they come back; one after the other, for whoever has to take them.
            followers = [
                connection
                for connection in self.server_state.connections
                if isinstance(connection, SocketProtocol) and not connection.transport.is_closing()
            ]
            for follower in followers[: math.ceil(len(followers) / max(seconds_left * TICKS_A_SECOND, 1))]:
                follower.shutdown()

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """As uvicorn's, which closes WebSockets with 1012 but would wait for event streams to end by themselves."""
        self.config.app.state.closing.set()  # type: ignore[union-attr]  # ours
        loop = asyncio.get_running_loop()
        unread = loop.call_later(LINGER_SECONDS, cut_off_unread_streams, self.server_state.connections)
        await super().shutdown(sockets)
        unread.cancel()


def create_server(
    app: Starlette, host: str, port: int, most_connections: int = MAX_CONNECTIONS, drain_seconds: float = 0
) -> Server:
    return Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # that is read in server/app.py, by those who need it
            http=functools.partial(HttpProtocol, most_connections=most_connections),  # type: ignore[arg-type]
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=FINISH_SECONDS,
            ws=SocketProtocol,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_ping_interval=PING_SECONDS,
            ws_ping_timeout=PING_SECONDS,
            # Messages are short, and a compressor takes more memory than the rest of a socket.
            ws_per_message_deflate=False,
        ),
        drain_seconds,
    )
