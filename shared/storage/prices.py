"""Stored prices: one row per (ticker, timestamp), exact decimals, UTC instants."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from shared.storage.database import WRITE_SECONDS, Pool, columns, fetch, fetch_row, write
from shared.telemetry.traces import span


class PriceSource(StrEnum):
    SCHEDULED = "SCHEDULED"
    REQUESTED = "REQUESTED"
    BACKFILLED = "BACKFILLED"


@dataclass(frozen=True, slots=True)
class Price:
    """`timestamp` is the instant the price stands for, `observed_at` the exchange's clock when it gave it (µs)."""

    ticker: str
    price: Decimal
    timestamp: datetime
    observed_at: datetime
    source: PriceSource
    testnet: bool


# The enum travels as text: asyncpg would otherwise look its type up on every new connection.
COLUMNS = "ticker, price, timestamp, observed_at, source::text as source, testnet"


# The statements of the four reads, named because they are run as they are, or with their answer written as JSON.

LATEST_PRICE = f"""
    select {COLUMNS}
    from prices
    where ticker = $1
    order by timestamp desc
    limit 1
"""

LATEST_PRICES = f"""
    select latest.*
    from unnest($1::text[]) with ordinality as wanted (ticker, position)
    cross join lateral (
        select {COLUMNS}
        from prices
        where prices.ticker = wanted.ticker collate "C"
        order by timestamp desc
        limit 1
    ) as latest
    order by wanted.position
"""

PRICE_HISTORY = f"""
    select {COLUMNS}
    from prices
    where ticker = $1
      and timestamp < coalesce($2, 'infinity'::timestamptz)
    order by timestamp desc
    limit $3
"""

PRICES_IN_PERIOD = f"""
    select {COLUMNS}
    from prices
    where ticker = $1
      and timestamp >= $2
      and timestamp <= $3
      and timestamp > coalesce($4, '-infinity'::timestamptz)
    order by timestamp
    limit $5
"""


async def select_latest_price(pool: Pool, ticker: str) -> Price | None:
    row = await fetch_row(pool, LATEST_PRICE, ticker)
    return price_of(row) if row else None


async def select_latest_prices(pool: Pool, tickers: Sequence[str]) -> list[Price]:
    """The newest price of each ticker that has one, in the order of `tickers`."""
    return [price_of(row) for row in await fetch(pool, LATEST_PRICES, list(tickers))]


async def select_first_timestamps(pool: Pool, tickers: Sequence[str]) -> dict[str, datetime]:
    """Of prices that are kept: the instant behind all that were dropped is where to look."""
    sql = """
        select oldest.ticker, oldest.timestamp
        from unnest($1::text[]) as wanted (ticker)
        cross join lateral (
            select ticker, timestamp
            from prices
            where prices.ticker = wanted.ticker collate "C"
              and timestamp >= coalesce(
                  (select kept_from from dropped_prices where dropped_prices.ticker = wanted.ticker collate "C"),
                  '-infinity'
              )
            order by timestamp
            limit 1
        ) as oldest
    """
    return {row["ticker"]: row["timestamp"] for row in await fetch(pool, sql, list(tickers))}


async def select_observed_tickers(pool: Pool, tickers: Sequence[str], slot: datetime) -> set[str]:
    """Those that have an observed price for this slot."""
    sql = """
        select ticker
        from prices
        where ticker = any($1::text[])
          and timestamp = $2
          and source <> 'BACKFILLED'
    """
    return {row["ticker"] for row in await fetch(pool, sql, list(tickers), slot)}


async def select_price_history(pool: Pool, ticker: str, before: datetime | None, limit: int) -> list[Price]:
    """Newest first; `before` is exclusive."""
    return [price_of(row) for row in await fetch(pool, PRICE_HISTORY, ticker, before, limit)]


async def select_prices_in_period(
    pool: Pool, ticker: str, from_dt: datetime, to_dt: datetime, after: datetime | None, limit: int
) -> list[Price]:
    """Oldest first; both bounds inclusive, `after` exclusive."""
    return [price_of(row) for row in await fetch(pool, PRICES_IN_PERIOD, ticker, from_dt, to_dt, after, limit)]


async def insert_prices(pool: Pool, prices: Iterable[Price], *, timeout: float = WRITE_SECONDS) -> list[Price]:
    """Store prices in one statement; answers those that were new.

    Safe to repeat: a row that is there stays as it is, with one exception. An observation takes the place of a chart
    average, because a late observation (PostgreSQL was away) may find that its slot has been healed meanwhile.
    """
    sql = f"""
        insert into prices (ticker, price, timestamp, observed_at, source, testnet)
        select ticker, price, timestamp, observed_at, source::price_source, testnet
        from unnest($1::text[], $2::numeric[], $3::timestamptz[], $4::timestamptz[], $5::text[], $6::boolean[])
            as fresh (ticker, price, timestamp, observed_at, source, testnet)
        -- Two writers that lock the same rows in the same order cannot deadlock.
        order by timestamp, ticker collate "C"
        on conflict (ticker, timestamp) do update
        set price = excluded.price,
            observed_at = excluded.observed_at,
            source = excluded.source,
            testnet = excluded.testnet
        where prices.source = 'BACKFILLED'
          and excluded.source <> 'BACKFILLED'
        returning {COLUMNS}
    """
    # One statement cannot touch a row twice, so of a repeat within the batch the first observation stands here too.
    unique: dict[tuple[str, datetime], Price] = {}
    for price in sorted(prices, key=lambda p: (p.source is PriceSource.BACKFILLED, p.observed_at)):
        unique.setdefault((price.ticker, price.timestamp), price)
    rows = [(p.ticker, p.price, p.timestamp, p.observed_at, p.source.value, p.testnet) for p in unique.values()]
    if not rows:
        return []
    with span("insert prices", "client", db__system__name="postgresql", prices=len(rows)):
        return [price_of(row) for row in await write(pool, sql, *columns(rows, 6), timeout=timeout)]


def dump_price(price: Price) -> dict[str, Any]:
    """A price as JSON for Redis; the digits are text, for JSON has no exact numbers."""
    return {
        **asdict(price),
        "price": str(price.price),
        "timestamp": price.timestamp.isoformat(),
        "observed_at": price.observed_at.isoformat(),
        "source": price.source.value,
    }


def load_price(record: dict[str, Any]) -> Price:
    return Price(
        ticker=record["ticker"],
        price=Decimal(record["price"]),
        timestamp=datetime.fromisoformat(record["timestamp"]),
        observed_at=datetime.fromisoformat(record["observed_at"]),
        source=PriceSource(record["source"]),
        testnet=record["testnet"],
    )


def price_of(row: Iterable[Any]) -> Price:
    """From the values of `COLUMNS`."""
    ticker, price, timestamp, observed_at, source, testnet = row
    return Price(ticker, price, timestamp, observed_at, PriceSource(source), testnet)
