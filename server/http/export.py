"""`/export/prices.csv` and `/export/candles.csv`: a whole period as a file, streamed with backpressure.

COPY writes the file, with the digits and instants of GraphQL's answers, and one piece of it is in memory at a time. If
the export fails after its first piece, the connection breaks, so that a truncated file never looks whole.
"""

import asyncio
import logging
import zlib
from collections.abc import Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from server.http.endpoint import refusal
from server.http.negotiation import accepts_gzip
from server.metrics import EXPORT, OK, Metrics
from server.protection.auth import is_authenticated
from server.reads.columns import columns_of
from server.reads.context import Context
from server.schema.candles import Candle
from server.schema.prices import Price, period
from server.schema.scalars import instant, parse_instant
from shared.errors import BadUserInput, RateLimited, ServiceError, StorageUnavailable, Unauthenticated
from shared.storage.candles import CandleInterval, candles
from shared.storage.database import Statement
from shared.storage.prices import prices_in_period
from shared.storage.questions.exports import EVERY_ROW, copy_csv

logger = logging.getLogger(__name__)

MAX_EXPORTS = 4
"At the same time in one process, each with a connection to PostgreSQL of its own."

RETRY_SECONDS = 10
PIECE_BYTES = 16 * 1024
"Before compression, which holds the event loop for 0.1 ms."

MAX_BYTES_PER_SECOND = 12_000_000
"""Of all exports of a process together, before compression: some 130,000 prices. A faster export would take so much CPU
time, here and in PostgreSQL, that other requests wait for it."""

MAX_LATE_SECONDS = 0.01
"That an export makes up for, because a timer is up to a millisecond late."

_GZIP_LEVEL = 1
_MICROSECOND = timedelta(microseconds=1)
_IN_NAMES = "%Y%m%dT%H%M%SZ"
_PRICE = ("ticker", "timestamp", "price", "observed_at", "source", "testnet")
_CANDLE = ("ticker", "start", "open", "high", "low", "close", "samples", "complete")


class File(NamedTuple):
    name: str
    statement: Statement


class Exports:
    """The ASGI application behind both routes; one for each app."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._under_way = 0
        self._pace = Pace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            file = _read(request)
            if self._under_way >= MAX_EXPORTS or request.state.admission.is_full_for_work():
                raise RateLimited(f"Too many exports at once; try again in {RETRY_SECONDS} s.", RETRY_SECONDS)
        except ServiceError as error:
            await self._refuse(request, send, error)
            return
        accepted = b",".join(value for name, value in scope["headers"] if name == b"accept-encoding")
        download = Download(send, file.name, self._pace, is_zipped=accepts_gzip(accepted))
        if request.method == "HEAD":
            await download.finish()
            return
        self._under_way += 1
        try:
            is_whole = await _run_while_connected(copy_csv(request.state.pool, file.statement, download.write), receive)
            if is_whole:
                await download.finish()
                self._metrics.ended(EXPORT, OK)
        except Exception as error:
            if not download.has_begun:
                await self._refuse(request, send, error)
                return
            # Without the end of the answer, uvicorn closes the connection.
            self._metrics.ended(EXPORT, getattr(error, "code", "INTERNAL_SERVER_ERROR"))
            logger.error("an export broke off", exc_info=None if isinstance(error, ServiceError) else error)
        finally:
            self._under_way -= 1

    async def _refuse(self, request: Request, send: Send, error: Exception) -> None:
        self._metrics.ended(EXPORT, getattr(error, "code", "INTERNAL_SERVER_ERROR"))
        headers = {}
        match error:
            case Unauthenticated():
                status, headers = 401, {"WWW-Authenticate": "Bearer"}
            case RateLimited():
                status, headers = 503, {"Retry-After": str(error.retry_after)}
            case StorageUnavailable():
                status = 503
            case ServiceError():
                status = 400
            case _:
                status = 500
        await refusal(error, status, None, headers)(request.scope, request.receive, send)


class Pace:
    """Holds all exports of a process together to `MAX_BYTES_PER_SECOND`."""

    def __init__(self) -> None:
        self._free_at = 0.0

    async def spend(self, length: int) -> None:
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now - MAX_LATE_SECONDS) + length / MAX_BYTES_PER_SECOND
        await asyncio.sleep(self._free_at - now)


class Download:
    """The answer. It begins with its first piece, so that an error before that has a status."""

    def __init__(self, send: Send, name: str, pace: Pace, *, is_zipped: bool) -> None:
        self.has_begun = False
        self._send = send
        self._pace = pace
        self._headers = [
            (b"content-type", b"text/csv; charset=utf-8"),
            (b"content-disposition", f'attachment; filename="{name}"'.encode()),
            (b"cache-control", b"no-store"),
            (b"vary", b"Accept-Encoding"),
            *([(b"content-encoding", b"gzip")] if is_zipped else []),
        ]
        self._zip = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | 16) if is_zipped else None
        self._pending = bytearray()

    async def write(self, data: bytes) -> None:
        """Returns when the connection and the pace allow more."""
        self._pending += data
        while len(self._pending) >= PIECE_BYTES:
            await self._send_piece(is_last=False)
            await self._pace.spend(PIECE_BYTES)

    async def finish(self) -> None:
        await self._send_piece(is_last=True)

    async def _send_piece(self, *, is_last: bool) -> None:
        body = bytes(self._pending[:PIECE_BYTES])
        del self._pending[:PIECE_BYTES]
        if self._zip is not None:
            body = self._zip.compress(body) + (self._zip.flush() if is_last else b"")
        if not self.has_begun:
            self.has_begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})


async def _run_while_connected(work: Coroutine[Any, Any, None], receive: Receive) -> bool:
    """Whether the work was done before the client left. Raises what the work raises."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_until_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        is_done = working.done()
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.wait({working})
    if is_done:
        working.result()
    return is_done


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _read(request: Request) -> File:
    """Raises what queries raise for a missing token or a bad argument."""
    state, given = request.state, request.query_params
    context = Context(state.pool, state.redis, state.settings, is_authenticated(request.scope))
    context.require_token_for_reads()
    accepted = ", ".join(state.settings.tickers)
    ticker = context.ticker(_argument(given, "ticker", accepted))
    from_dt, to_dt = period(_instant(given, "from"), _instant(given, "to"), ("from", "to"))
    # Both statements include the end of their period.
    last, limit = (to_dt - _MICROSECOND, EVERY_ROW) if from_dt < to_dt else (to_dt, 0)
    span = f"{from_dt:{_IN_NAMES}}_{to_dt:{_IN_NAMES}}"
    if request.url.path.endswith("/prices.csv"):
        statement = prices_in_period(ticker, from_dt, last, None, limit)
        return File(f"{ticker}_prices_{span}.csv", _as_text(statement, Price, _PRICE))
    interval = _interval(given)
    statement = candles(ticker, interval, from_dt, last, limit)
    return File(f"{ticker}_candles_{interval}_{span}.csv", _as_text(statement, Candle, _CANDLE))


def _argument(given: Mapping[str, str], name: str, accepted: str) -> str:
    if not given.get(name):
        raise BadUserInput(f"{name} is missing; accepted: {accepted}.")
    return given[name]


def _instant(given: Mapping[str, str], name: str) -> datetime:
    text = _argument(given, name, "an RFC 3339 instant with its offset, such as 2026-01-31T08:00:00Z")
    return instant(parse_instant(text.replace(" ", "+")), name)  # in a URL, a plus sign means a space


def _interval(given: Mapping[str, str]) -> CandleInterval:
    accepted = ", ".join(CandleInterval)
    text = _argument(given, "interval", accepted)
    if text not in CandleInterval.__members__:
        raise BadUserInput(f"interval is {text[:60]!r}; accepted: {accepted}.")
    return CandleInterval[text]


def _as_text(statement: Statement, cls: type, names: Sequence[str]) -> Statement:
    """The columns as GraphQL's answers write them."""
    columns = {column.name: column for column in columns_of(cls).values()}
    written = ", ".join(f"{columns[name].writer.format(name)} as {name}" for name in names)
    return Statement(f"select {written} from ({statement.sql}) as row", statement.parameters)
