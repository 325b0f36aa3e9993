"""The process: uvicorn's server, which drains on SIGTERM, and tuned garbage collection."""

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

from server.transport.connections import MAX_CONNECTIONS, ConnectionTable, accept_more
from server.transport.http import KEEP_ALIVE_SECONDS, HttpProtocol, abort_unread_streams, close_slow
from server.transport.websocket import LINGER_SECONDS, SocketProtocol

logger = logging.getLogger(__name__)

FINISH_SECONDS = 10
"For open requests, once the server accepts no new ones."

REPEATED_SECONDS = 0.5
"Within it a second signal is ignored, because `timeout` sends one to its child and one to the process group."

MAX_MESSAGE_BYTES = 128 * 1024
PING_SECONDS = 20

GC_THRESHOLDS = (5_000, 5, 40)
"""Requests leave no cycles; a closed socket leaves about 140 objects. So a full collection, which takes 0.25 s with
thousands of connections, runs once in about 7,000 closed sockets. The younger ones take under 10 ms."""

TICKS_PER_SECOND = 10
"How often uvicorn calls `on_tick`."


class Server(uvicorn.Server):
    """SIGTERM drains: for `drain_seconds` requests are still answered, but /readyz says 503. SIGINT ends at once."""

    def __init__(self, config: uvicorn.Config, drain_seconds: float = 0) -> None:
        super().__init__(config)
        self._drain_seconds = drain_seconds
        self._signalled_at: float | None = None
        self._drained_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Unlike uvicorn, which re-raises the signal at the end, this lets the process exit with 0."""
        now = time.monotonic()
        if self._signalled_at is None:
            self._signalled_at = now
            if sig == signal.SIGTERM and self._drain_seconds and self.started:
                self._drained_at = now + self._drain_seconds
                self._loop.call_soon_threadsafe(self._start_draining, context=contextvars.Context())
            else:
                self.should_exit = True
        elif now - self._signalled_at > REPEATED_SECONDS:
            self.should_exit = self.force_exit = True

    async def startup(self, sockets: list[socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        options = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}

        def protocol() -> asyncio.Protocol:  # reads the class at each call, because draining replaces it
            return cast(Callable[..., asyncio.Protocol], self.config.http_protocol_class)(**options)

        self.servers += await accept_more(self.servers, protocol)
        # The schema and all modules live until the end. Each full collection would spend 70 ms on them.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_PER_SECOND == 0:
            close_slow(self.server_state.connections, asyncio.get_running_loop().time())
        if self._drained_at is not None and not self.should_exit:
            self._drain(self._drained_at - time.monotonic())
        return await super().on_tick(counter)

    def _start_draining(self) -> None:
        logger.info("draining for %g s: /readyz says 503, all other requests are answered", self._drain_seconds)
        self.config.app.state.is_draining = True  # type: ignore[union-attr]  # ours
        protocol: Any = self.config.http_protocol_class
        self.config.http_protocol_class = functools.partial(protocol, is_leaving=True)  # type: ignore[assignment]
        for connection in self.server_state.connections:
            if isinstance(connection, HttpProtocol):
                connection.leave()

    def _drain(self, seconds_left: float) -> None:
        if seconds_left <= 0:
            self.should_exit = True
        elif seconds_left <= self._drain_seconds / 2:
            # By now the proxy sends reconnecting clients elsewhere. Close sockets gradually, to spread that load.
            sockets = [
                connection
                for connection in self.server_state.connections
                if isinstance(connection, SocketProtocol) and not connection.transport.is_closing()
            ]
            for connection in sockets[: math.ceil(len(sockets) / max(seconds_left * TICKS_PER_SECOND, 1))]:
                connection.shutdown()

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """uvicorn closes WebSockets with 1012, but would wait for event streams until they end by themselves."""
        self.config.app.state.closing.set()  # type: ignore[union-attr]  # ours
        loop = asyncio.get_running_loop()
        abort = loop.call_later(LINGER_SECONDS, abort_unread_streams, self.server_state.connections)
        await super().shutdown(sockets)
        abort.cancel()


def create_server(
    app: Starlette, host: str, port: int, max_connections: int = MAX_CONNECTIONS, drain_seconds: float = 0
) -> Server:
    return Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # server/app.py reads them, behind the compiled queries that do not need them
            http=functools.partial(HttpProtocol, table=ConnectionTable(max_connections)),  # type: ignore[arg-type]
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=FINISH_SECONDS,
            ws=SocketProtocol,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_ping_interval=PING_SECONDS,
            ws_ping_timeout=PING_SECONDS,
            # Messages are short, and a compressor needs more memory than the rest of a socket.
            ws_per_message_deflate=False,
        ),
        drain_seconds,
    )
