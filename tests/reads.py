"""The statements of the query fields, run and read as plain values."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from shared.storage import candles, coverage, gaps, prices
from shared.storage.candles import CandleInterval
from shared.storage.coverage import Coverage, coverage_of
from shared.storage.database import Pool, Statement, fetch
from shared.storage.missed_slots import GapReason
from shared.storage.prices import Price, price_of


@dataclass(frozen=True, slots=True)
class Candle:
    ticker: str
    start: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    samples: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Gap:
    from_dt: datetime
    to_dt: datetime
    missing: int
    reason: GapReason
    detail: str | None


async def rows_of(pool: Pool, statement: Statement) -> list[Any]:
    return await fetch(pool, statement.sql, *statement.parameters)


async def select_latest_price(pool: Pool, ticker: str) -> Price | None:
    found = [price_of(row) for row in await rows_of(pool, prices.latest_price(ticker))]
    return found[0] if found else None


async def select_price_history(pool: Pool, ticker: str, before: datetime | None, limit: int) -> list[Price]:
    return [price_of(row) for row in await rows_of(pool, prices.price_history(ticker, before, limit))]


async def select_prices_in_period(
    pool: Pool, ticker: str, from_dt: datetime, to_dt: datetime, after: datetime | None, limit: int
) -> list[Price]:
    statement = prices.prices_in_period(ticker, from_dt, to_dt, after, limit)
    return [price_of(row) for row in await rows_of(pool, statement)]


async def select_first_timestamps(pool: Pool, tickers: Sequence[str]) -> dict[str, datetime]:
    rows = await rows_of(pool, prices.tickers(tickers, 60))
    return {row["name"]: row["first_timestamp"] for row in rows if row["first_timestamp"] is not None}


async def select_candles(
    pool: Pool,
    ticker: str,
    interval: CandleInterval,
    from_dt: datetime,
    to_dt: datetime,
    limit: int,
    now: datetime | None = None,
) -> list[Candle]:
    rows = await rows_of(pool, candles.candles(ticker, interval, from_dt, to_dt, limit, now))
    return [Candle(*(row[name] for name in Candle.__slots__)) for row in rows]


async def select_coverage(
    pool: Pool, ticker: str, from_dt: datetime, to_dt: datetime, now: datetime | None = None
) -> Coverage:
    [row] = await rows_of(pool, coverage.coverage(ticker, from_dt, to_dt, now))
    return coverage_of(row)


async def select_gaps(
    pool: Pool, ticker: str, from_dt: datetime, to_dt: datetime, now: datetime | None, limit: int
) -> list[Gap]:
    rows = await rows_of(pool, gaps.gaps(ticker, from_dt, to_dt, limit, now))
    return [Gap(row["from_dt"], row["to_dt"], row["missing"], GapReason(row["reason"]), row["detail"]) for row in rows]
