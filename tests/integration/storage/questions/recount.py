"""The questions of a price history, answered in plain Python from all rows: one by one, without an index."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from itertools import pairwise

from shared.grid import slot_of
from shared.storage.prices import Price
from tests.reads import Gap

Schedules = Sequence[tuple[datetime, int]]
"(since, interval in seconds) of one ticker, oldest first."

YEAR = timedelta(days=365)


@dataclass(frozen=True)
class Statistics:
    open: Price | None
    close: Price | None
    high: Price | None
    low: Price | None
    change: Decimal | None
    change_percent: Decimal | None
    twap: Decimal | None
    realized_volatility: float | None
    samples: int


def statistics(prices: Sequence[Price], from_dt: datetime, to_dt: datetime, now: datetime) -> Statistics:
    inside = sorted((p for p in prices if from_dt <= p.timestamp < to_dt), key=lambda p: p.timestamp)
    if not inside:
        return Statistics(None, None, None, None, None, None, None, None, 0)
    first, last = inside[0], inside[-1]
    high = next(p for p in inside if p.price == max(q.price for q in inside))
    low = next(p for p in inside if p.price == min(q.price for q in inside))
    end = max(min(to_dt, now), last.timestamp)
    ends = [*(p.timestamp for p in inside[1:]), end]
    with localcontext() as context:
        context.prec = 80
        weighted = sum(
            (p.price * ((e - p.timestamp) // timedelta(microseconds=1)) for p, e in zip(inside, ends, strict=True)),
            Decimal(0),
        )
        length = (end - first.timestamp) // timedelta(microseconds=1)
        twap = weighted / length if length else last.price
        if len(inside) == 1:
            return Statistics(first, last, high, low, None, None, twap, None, 1)
        squares = [math.log(b.price / a.price) ** 2 for a, b in pairwise(inside)]
        volatility = math.sqrt(math.fsum(squares) / ((last.timestamp - first.timestamp) / YEAR))
        change = last.price - first.price
        return Statistics(first, last, high, low, change, 100 * change / first.price, twap, volatility, len(inside))


@dataclass(frozen=True)
class PriceAt:
    at: datetime
    price: Price | None
    gap: Gap | None


def price_at(
    prices: Sequence[Price], schedules: Schedules, gaps: Sequence[Gap], at: datetime, seconds: int | None, now: datetime
) -> PriceAt:
    """`gaps`: all that there are."""
    intervals = [interval for since, interval in schedules if since <= at]
    interval = intervals[-1] if intervals else schedules[0][1] if schedules else 60
    tolerance = timedelta(seconds=2 * interval if seconds is None else seconds)
    reached = [p for p in prices if at - tolerance <= p.timestamp <= at]
    if reached:
        return PriceAt(at, max(reached, key=lambda p: p.timestamp), None)
    slots = []
    untils = [since for since, _ in [*schedules, (datetime.max.replace(tzinfo=UTC), 0)]][1:]
    for (since, interval), until in zip(schedules, untils, strict=True):
        step = timedelta(seconds=interval)
        slot = slot_of(min(at, until - timedelta(microseconds=1)), step)
        slot = min(slot, slot_of(now, step) - step)
        if slot >= max(since, at - tolerance):
            slots.append(slot)
    newest = max(slots, default=None)
    return PriceAt(at, None, next((g for g in gaps if newest and g.from_dt <= newest < g.to_dt), None))
