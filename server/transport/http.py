"""What a connection may take: how many there are, how long a request is, and how long it may take to come and to go.

uvicorn waits as long as a client likes, and its parser takes headers of any length. Nothing here is timed request by
request: once a second all connections are looked at.
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
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 6000
"Of one process, WebSockets included, of which there may be 5,000 (see `Limits` in server/subscriptions/websocket.py)."
ACCEPTS_A_TURN = 32
BACKLOG = 2048
MAX_HEADER_BYTES = 64 * 1024
MAX_REQUEST_BYTES = 1024 * 1024
"Of a request that nobody has read to its end: a body of 128 KiB is refused by the view, but trailers have no end."
HEADERS_SECONDS = 10.0
BODY_SECONDS = 30.0
ANSWER_SECONDS = 60.0
KEEP_ALIVE_SECONDS = 75
"Longer than the minute that proxies keep an idle connection, so that it is they who close it."

_SPARE_FILES = 200
"For the database, Redis, the log, and connections that are refused."
_REASONS = {
    408: b"The request took too long to come.",
    413: b"The request is too large.",
    431: b"The request's headers are too large.",
    503: b"There are too many connections; try again later.",
}


class HttpProtocol(HttpToolsProtocol):
    def __init__(
        self, *arguments: Any, most_connections: int = MAX_CONNECTIONS, is_leaving: bool = False, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._is_leaving = is_leaving
        self._most_connections = most_connections
        self._measured: object = None
        self._length = 0
        self._awaited: object = None
        self._awaited_since = 0.0
        self._unread_since: float | None = None
        self._running: RequestResponseCycle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast(Transport, transport))
        if len(self.connections) > self._most_connections:
            self.refuse(503)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        """uvicorn tells the last request. That may be one in the pipeline, while another is being answered."""
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
        """Answer the next request, or the one under way, with `Connection: close`: the client goes when it likes.

        An idle connection that is closed under its client loses the request that is on the way.
        """
        self._is_leaving = True
        if self._last is not None:
            self._last.keep_alive = False

    def is_unread_stream(self) -> bool:
        """An answer whose length was not said beforehand, an event stream's, that the client does not take."""
        cycle = self._last
        return cycle is not None and cycle.chunked_encoding is True and self.transport.get_write_buffer_size() > 0

    @property
    def _last(self) -> RequestResponseCycle | None:
        """What becomes of the last request whose headers are here."""
        return self.cycle  # unlike its type it begins as None

    @property
    def _begun(self) -> object:
        """The last request of which anything is here, `None` where nothing is."""
        return self.scope

    def _measure(self, length: int) -> None:
        """Of a request that is not all here."""
        if self._measured is not self.scope:
            self._measured, self._length = self.scope, 0
        self._length += length
        if self._is_reading_headers():
            if self._length > MAX_HEADER_BYTES:
                self.refuse(431)
        elif self._length > MAX_REQUEST_BYTES:
            self.refuse(413)

    def _is_reading_headers(self) -> bool:
        return self._last is None or self._last.scope is not self.scope

    def is_too_slow(self, now: float) -> bool:
        """To be asked about once a second. `now`: the loop's time."""
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
        """What is to come from the client, if anything is, and for how long one waits."""
        cycle = self._last
        if cycle is None or cycle.response_complete:
            # With that timer it is between two requests, and uvicorn closes it.
            return (self._begun or self, HEADERS_SECONDS) if self.timeout_keep_alive_task is None else (None, 0.0)
        return (cycle, BODY_SECONDS) if cycle.more_body else (None, 0.0)

    def cut_off(self) -> None:
        if self._begun is None:  # nothing was asked: a browser that has connected ahead
            self.transport.close()
        else:
            self.refuse(408)

    def refuse(self, status: int) -> None:
        """Close the connection, with an answer where none has begun and the client can be expected to read one."""
        cycle = self._last
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
    """The same listening sockets, each several times over.

    uvloop accepts one connection of each socket whenever the loop goes round. Where that takes long, new connections
    would wait before the door, where nobody sees them and nobody can be refused.
    """
    loop = asyncio.get_running_loop()
    return [
        await loop.create_server(protocol, sock=socket.socket(fileno=os.dup(listening.fileno())), backlog=BACKLOG)
        for server in servers
        for listening in cast(asyncio.Server, server).sockets
        for _ in range(ACCEPTS_A_TURN - 1)
    ]


def cut_off_slow(connections: Iterable[object], now: float) -> None:
    slow = [one for one in connections if isinstance(one, HttpProtocol) and one.is_too_slow(now)]
    for connection in slow:
        connection.cut_off()
    if slow:
        logger.info("cut off, for their clients are too slow: %d connections", len(slow))


def cut_off_unread_streams(connections: Iterable[object]) -> None:
    """When the process ends: they have no end of their own, so nobody can be waited for to read up to it."""
    for connection in list(connections):
        if isinstance(connection, HttpProtocol) and connection.is_unread_stream():
            connection.transport.abort()


def make_room_for_connections() -> int:
    """Allow the process as many open files as they take, and answer how many there can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + _SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    most = max(wanted - _SPARE_FILES, _SPARE_FILES)
    if most < MAX_CONNECTIONS:
        logger.warning("only %d connections at a time: the process may open no more than %d files", most, wanted)
    return most
