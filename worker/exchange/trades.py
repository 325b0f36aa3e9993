"""The exchange's own trades as a source of past slots: each carries the index price of its moment.

The first trade of a slot is an observation of that slot. The exchange's rows are not in order, a page may hold rows
from outside the range that was asked for, and several trades share a millisecond. So a request begins at a slot that is
still open, and its page, the earliest trades of the range, is sorted here: it decides every slot before its last trade.
"""

import asyncio
import logging
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import httpx

from shared.grid import EPOCH
from shared.storage.missed_slots import MissingRun
from shared.storage.prices import Price, PriceSource
from worker.exchange.background import Background
from worker.exchange.errors import DeribitError, Retry
from worker.exchange.http import get_result, own_clock, parse_instant, parse_price
from worker.exchange.runs import slots_between, split, without
from worker.exchange.source import Known

logger = logging.getLogger(__name__)

PAGE = 1000
"Trades a request, the documented maximum."

SLOT_PAGE = 10
"Trades a request where one slot has more than a page: its first one is wanted alone."

RECENT = timedelta(hours=20)
"The normal host has about the last 24 hours; older trades are asked of the history host."

SETTLE = timedelta(seconds=10)
"The history host is about 5 s behind, so until then a slot without a trade may still get one."

INSTRUMENTS_SECONDS = 86_400.0
INSTRUMENTS_RETRY_SECONDS = 600.0

NO_TRADE = "no trade within the slot"
NO_PERPETUAL = "no perpetual has this index"
NOT_TRADED_YET = "before the perpetual's first day"

_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Perpetual:
    name: str
    created: datetime


class Trade(NamedTuple):
    timestamp: datetime
    sequence: int
    price: Decimal


class Trades:
    """`history_url`: the host that has old trades. Keeps the exchange's list of perpetuals for a day."""

    name = "trades"

    def __init__(
        self,
        http: httpx.AsyncClient,
        history_url: str,
        background: Background,
        now: Callable[[], datetime] = own_clock,
    ) -> None:
        self._http = http
        self._now = now
        self._history_url = history_url
        self._background = background
        self._perpetuals: dict[str, Perpetual] | None = None
        self._listed_at = 0.0
        self._listing = asyncio.Lock()

    async def perpetual(self, ticker: str) -> Perpetual | None:
        """The active perpetual with this index. An old list serves while a new one cannot be read."""
        async with self._listing:
            if self._perpetuals is None or time.monotonic() - self._listed_at > INSTRUMENTS_SECONDS:
                try:
                    self._perpetuals = await self._list_perpetuals()
                except DeribitError as error:
                    if self._perpetuals is None:
                        raise
                    logger.warning("the list of instruments cannot be read, the old one stays: %s", error)
                    self._listed_at += INSTRUMENTS_RETRY_SECONDS
                else:
                    self._listed_at = time.monotonic()
        return self._perpetuals.get(ticker)

    async def known_from(self, ticker: str) -> datetime | None:
        perpetual = await self.perpetual(ticker)
        return perpetual.created if perpetual else None

    async def recall(self, ticker: str, runs: Sequence[MissingRun]) -> AsyncIterator[Known]:
        """Raises `DeribitError`. Each request decides at least one slot."""
        perpetual = await self.perpetual(ticker)
        if perpetual is None:
            yield Known([], list(runs), NO_PERPETUAL)
            return
        before, left = split(runs, perpetual.created)
        if before:
            yield Known([], before, NOT_TRADED_YET)
        is_dense = False  # whether one slot has more trades than a page
        while left:
            slot, interval = left[0].first, left[0].interval
            now = self._now()
            end = slot + interval if is_dense else left[-1].end
            trades, has_more, testnet = await self._page(perpetual, slot, end, SLOT_PAGE if is_dense else PAGE, now)
            if not is_dense and has_more:
                decided = _decided(trades, slot, interval)
                is_dense = trades[-1].timestamp - trades[0].timestamp < interval
            else:
                decided = end
                is_dense = is_dense and has_more
            asked, left = split(left, decided)
            prices, empty = [], list[MissingRun]()
            for run in asked:
                first = _first_trades(run, trades)
                prices += [
                    Price(ticker, trade.price, at, trade.timestamp, PriceSource.RECOVERED, testnet)
                    for at, trade in first.items()
                ]
                empty += _empty(run, first, now - SETTLE)
            yield Known(prices, empty, NO_TRADE)

    async def _page(
        self, perpetual: Perpetual, first: datetime, end: datetime, count: int, now: datetime
    ) -> tuple[list[Trade], bool, bool]:
        """The earliest trades in [first, end), in order; whether there are more; whether it is a test network."""
        method = "get_last_trades_by_instrument_and_time"
        parameters = {
            "instrument_name": perpetual.name,
            "start_timestamp": str(_milliseconds(first)),
            "end_timestamp": str(_milliseconds(end) - 1),
            "count": str(count),
            "sorting": "asc",
        }
        url = "" if first >= now - RECENT else self._history_url
        async with self._background.request(method):
            result, testnet = await get_result(self._http, method, parameters, url)
            if not isinstance(result, dict) or not isinstance(result.get("trades"), list):
                raise DeribitError("BAD_REPLY", "result without trades", retry=Retry.BACKOFF)
            rows, has_more = result["trades"], result.get("has_more")
            if not isinstance(has_more, bool):
                raise DeribitError("BAD_REPLY", "has_more is not a boolean", retry=Retry.BACKOFF)
            read = [trade for row in rows if (trade := _trade(row, perpetual.name)) is not None]
            if rows and not read:
                raise DeribitError("BAD_REPLY", "page without a valid trade", retry=Retry.BACKOFF)
            trades = sorted((trade for trade in read if first <= trade.timestamp < end), key=_order)
            if has_more and not trades:
                raise DeribitError("BAD_REPLY", "page without a trade of its range", retry=Retry.BACKOFF)
        return trades, has_more, testnet

    async def _list_perpetuals(self) -> dict[str, Perpetual]:
        method = "get_instruments"
        async with self._background.request(method):
            result, _ = await get_result(self._http, method, {"currency": "any", "kind": "future"})
            if not isinstance(result, list):
                raise DeribitError("BAD_REPLY", "instruments are not a list", retry=Retry.BACKOFF)
        found: dict[str, Perpetual] = {}
        for entry in result:
            match entry:
                case {
                    "instrument_name": str(name),
                    "price_index": str(index),
                    "settlement_period": "perpetual",
                    "is_active": True,
                    "creation_timestamp": int(created),
                }:
                    perpetual = Perpetual(name, parse_instant(created * 1000))
                    # Of two, the one that goes back further.
                    if index not in found or (created, name) < (_milliseconds(found[index].created), found[index].name):
                        found[index] = perpetual
        return found


def _trade(row: Any, instrument: str) -> Trade | None:
    """One bad row must not make the others useless."""
    match row:
        case {"timestamp": int(milliseconds), "index_price": price} if not isinstance(milliseconds, bool):
            sequence = row.get("trade_seq")
            if row.get("instrument_name", instrument) != instrument:
                return None
            try:
                at = parse_instant(milliseconds * 1000)
                return Trade(at, sequence if isinstance(sequence, int) else 0, parse_price(price))
            except DeribitError:
                return None
    return None


def _order(trade: Trade) -> tuple[datetime, int]:
    return trade.timestamp, trade.sequence


def _first_trades(run: MissingRun, trades: Sequence[Trade]) -> dict[datetime, Trade]:
    """The first trade of each slot that has one. `trades` ascend."""
    first: dict[datetime, Trade] = {}
    low, high = (bisect_left(trades, (bound, -1), key=_order) for bound in (run.first, run.end))
    for trade in trades[low:high]:
        first.setdefault(run.first + (trade.timestamp - run.first) // run.interval * run.interval, trade)
    return first


def _decided(trades: Sequence[Trade], first: datetime, interval: timedelta) -> datetime:
    """The end of what a page decides that is not the last one and begins with the slot `first`.

    Its last millisecond may go on in the next page, with a trade of a lower sequence. A slot whose trades begin in that
    millisecond is asked for again, unless the page has nothing else.
    """
    last = trades[-1].timestamp
    slot = first + (last - first) // interval * interval
    earlier = bisect_left(trades, (last, -1), key=_order)
    if slot > first and (not earlier or trades[earlier - 1].timestamp < slot):
        return slot
    return last + _MILLISECOND


def _empty(run: MissingRun, answered: dict[datetime, Trade], settled: datetime) -> list[MissingRun]:
    """The slots without a trade that had ended by `settled`."""
    ended = slots_between(run, run.first - run.interval, settled - run.interval)
    return without([ended], answered) if ended else []


def _milliseconds(instant: datetime) -> int:
    return (instant - EPOCH) // _MILLISECOND
