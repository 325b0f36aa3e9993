"""uvicorn's HTTP protocol with limits: the number of connections, the size of a request, and timeouts for slow clients.

uvicorn has no timeouts for requests and answers, and its parser accepts headers of any length. The timeouts here cost
nothing for each request: once a second all connections are checked.
"""

import asyncio
import logging
import os
import resource
import socket
from asyncio import BaseTransport, Transport
from collections.abc import Callable, Iterable
from typing import Any, cast

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from server.transport.upgrades import IgnoringUpgrades

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 6000
"Of one process, with its up to 5,000 WebSockets (see `Limits` in server/subscriptions/websocket.py)."
ACCEPTS_PER_ITERATION = 32
BACKLOG = 2048
MAX_HEADER_BYTES = 64 * 1024
MAX_REQUEST_BYTES = 1024 * 1024
"Of a request that the application does not read to its end. It refuses a body over 128 KiB, but trailers may follow."
HEADERS_SECONDS = 10.0
BODY_SECONDS = 30.0
ANSWER_SECONDS = 60.0
KEEP_ALIVE_SECONDS = 75
"Longer than the usual minute of proxies, so that the proxy closes idle connections, not the server."

_SPARE_FILES = 200
"For PostgreSQL, Redis, the log, and connections that are being refused."
_REASONS = {
    408: b"The request took too long to arrive.",
    413: b"The request is too large.",
    431: b"The request's headers are too large.",
    503: b"Too many connections; try again later.",
}


class HttpProtocol(IgnoringUpgrades):
    cycle: RequestResponseCycle | None  # type: ignore[assignment]  # of the last request whose headers are complete
    scope: Any  # of the last request of which any byte has arrived, else `None`

    def __init__(
        self, *arguments: Any, max_connections: int = MAX_CONNECTIONS, is_leaving: bool = False, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._is_leaving = is_leaving
        self._max_connections = max_connections
        self._measured: object = None
        self._length = 0
        self._awaited: object = None
        self._awaited_since = 0.0
        self._unread_since: float | None = None
        self._running: RequestResponseCycle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast(Transport, transport))
        if len(self.connections) > self._max_connections:
            self.refuse(503)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        """uvicorn notifies only the last request, which may be pipelined behind the one that is running."""
        super().connection_lost(exc)
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        if len(data) > MAX_HEADER_BYTES:  # the loop reads up to 256 KiB at once
            for begin in range(0, len(data), MAX_HEADER_BYTES):
                if self.transport.is_closing() or self.transport.get_protocol() is not self:
                    return
                self.data_received(data[begin : begin + MAX_HEADER_BYTES])
            return
        super().data_received(data)
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.scope is not self.scope:
            self._measure(len(data))
        if self._is_leaving and cycle is not None:
            cycle.keep_alive = False

    def leave(self) -> None:
        """Answer the running or next request with `Connection: close`.

        Closing an idle connection at once could lose a request that is on its way.
        """
        self._is_leaving = True
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def _measure(self, length: int) -> None:
        """Count the bytes of a request that is not complete."""
        if self._measured is not self.scope:
            self._measured, self._length = self.scope, 0
        self._length += length
        if self.cycle is None or self.cycle.scope is not self.scope:  # still in the headers
            if self._length > MAX_HEADER_BYTES:
                self.refuse(431)
        elif self._length > MAX_REQUEST_BYTES:
            self.refuse(413)

    def resume_writing(self) -> None:
        """The client has read nearly all of what was written: an export may keep it busy for longer than a minute."""
        super().resume_writing()
        self._unread_since = None

    def is_too_slow(self, now: float) -> bool:
        """Call it about once a second. `now`: the loop's time."""
        if not self.transport.get_write_buffer_size():
            self._unread_since = None
        elif self._unread_since is None:
            self._unread_since = now
        elif now - self._unread_since > ANSWER_SECONDS:
            return True
        awaited, seconds = self._awaits()
        if awaited is not self._awaited:
            self._awaited, self._awaited_since = awaited, now
        return awaited is not None and now - self._awaited_since > seconds

    def _awaits(self) -> tuple[object, float]:
        """What the client has yet to send, or `None`, and for how many seconds the server waits for it."""
        cycle = self.cycle
        if self.transport.is_closing():  # it has only to read the rest of the answer
            return None, 0.0
        if cycle is None or cycle.response_complete:
            # While uvicorn's keep-alive timer runs, the connection is idle, and uvicorn closes it.
            return (self.scope or self, HEADERS_SECONDS) if self.timeout_keep_alive_task is None else (None, 0.0)
        return (cycle, BODY_SECONDS) if cycle.more_body else (None, 0.0)

    def time_out(self) -> None:
        if self.scope is None:  # an unused connection that a browser opened in advance
            self.transport.close()
        else:
            self.refuse(408)

    def refuse(self, status: int) -> None:
        """Close the connection, with an answer if none has begun and the client is likely to read it."""
        cycle = self.cycle
        is_answering = cycle is not None and (
            cycle.response_started if cycle.scope is self.scope else not cycle.response_complete
        )
        if is_answering or self.pipeline or self.transport.get_write_buffer_size():
            self.transport.abort()
        elif not self.transport.is_closing():
            reason = _REASONS[status]
            self.transport.write(
                b"%scontent-type: text/plain; charset=utf-8\r\nx-content-type-options: nosniff\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (STATUS_LINE[status], len(reason), reason)
            )
            self.transport.close()


async def accept_more(
    servers: Iterable[asyncio.AbstractServer], protocol: Callable[[], asyncio.Protocol]
) -> list[asyncio.Server]:
    """Add duplicates of the listening sockets.

    uvloop accepts one connection for each listening socket in an iteration of the loop. With iterations of 5 ms, 300
    simultaneous connections are accepted in 0.12 s instead of 2.7 s; admission control cannot see them before.
    """
    loop = asyncio.get_running_loop()
    return [
        await loop.create_server(protocol, sock=socket.socket(fileno=os.dup(listening.fileno())), backlog=BACKLOG)
        for server in servers
        for listening in cast(asyncio.Server, server).sockets
        for _ in range(ACCEPTS_PER_ITERATION - 1)
    ]


def close_slow(connections: Iterable[object], now: float) -> None:
    slow = [one for one in connections if isinstance(one, HttpProtocol) and one.is_too_slow(now)]
    for connection in slow:
        connection.time_out()
    if slow:
        logger.info("closed %d connections of slow clients", len(slow))


def abort_unread_streams(connections: Iterable[object]) -> None:
    """At shutdown: a chunked answer, such as an event stream, that its client does not read would never end."""
    for one in [one for one in connections if isinstance(one, HttpProtocol)]:
        if one.cycle and one.cycle.chunked_encoding is True and one.transport.get_write_buffer_size():
            one.transport.abort()


def raise_file_limit() -> int:
    """Raise the limit of open files for `MAX_CONNECTIONS`; return how many connections it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + _SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    connections = max(wanted - _SPARE_FILES, _SPARE_FILES)
    if connections < MAX_CONNECTIONS:
        logger.warning("at most %d connections, because the process may open only %d files", connections, wanted)
    return connections
