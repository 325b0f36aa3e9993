"""uvicorn's HTTP protocol with limits: the number of connections, the size of a request, and timeouts for slow clients.

uvicorn has no timeouts for requests and answers, and its parser accepts headers of any length. The timeouts here cost
nothing for each request: once a second all connections are checked.
"""

import logging
from asyncio import BaseTransport, Transport
from collections.abc import Iterable
from typing import Any, cast

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from server.transport.budget import AddressLogger, Budgeted
from server.transport.connections import FULL, HEALTH_PATHS, ConnectionTable, Place, refuse_request
from server.transport.upgrades import IgnoringUpgrades

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 64 * 1024
MAX_REQUEST_BYTES = 1024 * 1024
"Of a request that the application does not read to its end. It refuses a body over 128 KiB, but trailers may follow."
HELD_REQUEST_BYTES = 8 * 1024
"An incomplete request that is longer counts towards its client's budget."

HEADERS_SECONDS = 10.0
BODY_SECONDS = 30.0
ANSWER_SECONDS = 60.0
KEEP_ALIVE_SECONDS = 75
"Longer than the usual minute of proxies, so that the proxy closes idle connections, not the server."

_REASONS = {
    408: b"The request took too long to arrive.",
    413: b"The request is too large.",
    431: b"The request's headers are too large.",
    503: FULL,
}


class HttpProtocol(Budgeted, IgnoringUpgrades):
    cycle: RequestResponseCycle | None  # type: ignore[assignment]  # of the last request whose headers are complete
    scope: Any  # of the last request of which any byte has arrived, else `None`

    def __init__(self, *arguments: Any, table: ConnectionTable, is_leaving: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_leaving = is_leaving
        self._table = table
        self._measured: object = None
        self._length = 0
        self._awaited: object = None
        self._awaited_since = 0.0
        self._unread_since: float | None = None
        self._running: RequestResponseCycle | None = None
        self._is_reserved = False
        self._active_at = 0.0

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast(Transport, transport))
        self._active_at = self.loop.time()
        self.logger = AddressLogger(self.logger, self.client)  # type: ignore[assignment]
        place = self._table.place(self.connections, self, len(self.connections), self._active_at)
        self._is_reserved = place is Place.RESERVED
        if place is Place.NONE:
            self.refuse(503)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if self._is_reserved:
            cycle.keep_alive = False
            if cycle.scope["path"] not in HEALTH_PATHS:
                app = cast(ASGI3Application, refuse_request)
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def resume_writing(self) -> None:
        """An export may keep its reader busy for longer than a minute."""
        super().resume_writing()
        self._unread_since = None

    @property
    def awaiting_since(self) -> float | None:
        """The loop's time since which the client has sent no complete request; `None` while one is answered."""
        cycle = self.cycle
        is_waiting = cycle is None or cycle.response_complete or (cycle.more_body and not cycle.response_started)
        return self._active_at if is_waiting else None

    def on_response_complete(self) -> None:
        self._active_at = self.loop.time()
        super().on_response_complete()
        if self.pipeline:  # uvicorn would read more requests than it answers
            self.flow.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """uvicorn notifies only the last request, which may be pipelined behind the one that is running."""
        super().connection_lost(exc)
        self.release()
        self.pipeline.clear()
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
        elif self._measured is not None:  # the request is complete
            self._measured = None
            self.release()
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
        if self._length > HELD_REQUEST_BYTES and not self.hold(min(2 * self._length, MAX_REQUEST_BYTES)):
            self.refuse(503)

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
