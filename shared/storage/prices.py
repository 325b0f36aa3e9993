"""Stored prices: one row per (ticker, timestamp), exact decimals, UTC instants."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from operator import attrgetter
from typing import Any

import asyncpg

from shared.cursor import CURSOR_SQL, UNKNOWN_BATCH, Position, encode_cursor
from shared.errors import PriceStale
from shared.storage.database import WRITE_SECONDS, Pool, Statement, columns, fetch, write
from shared.telemetry.traces import span


class PriceSource(StrEnum):
    """In the order of precedence, as in PostgreSQL. The first two are equals."""

    SCHEDULED = "SCHEDULED"
    REQUESTED = "REQUESTED"
    RECOVERED = "RECOVERED"
    BACKFILLED = "BACKFILLED"


@dataclass(frozen=True, slots=True)
class Price:
    """A row of `prices`; its fields are the columns.

    `timestamp`: the instant that the price stands for. `observed_at`: the exchange's clock when it gave the price (µs).
    `batch`: the statement that stored it (migration 0004), given by the database.
    """

    ticker: str
    price: Decimal
    timestamp: datetime
    observed_at: datetime
    source: PriceSource
    testnet: bool
    batch: int = field(default=UNKNOWN_BATCH, compare=False)

    @property
    def cursor(self) -> str:
        return encode_cursor(Position(self.batch, self.timestamp, self.ticker))


# By type of a field: the SQL type, to JSON, from JSON. The enum travels as text, because asyncpg would look its type up
# on every new connection.
_CODECS: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    str: ("text", str, str),
    Decimal: ("numeric", str, Decimal),
    datetime: ("timestamptz", datetime.isoformat, datetime.fromisoformat),
    PriceSource: ("text", str, PriceSource),
    bool: ("boolean", bool, bool),
    int: ("bigint", int, int),
}
_TYPES: dict[str, Any] = {column.name: column.type for column in fields(Price)}
_INSERTED = {name: kind for name, kind in _TYPES.items() if name != "batch"}
_NAMES = ", ".join(_INSERTED)
_RANKS = {source: max(rank, 1) for rank, source in enumerate(PriceSource)}

COLUMNS = ", ".join("source::text as source" if name == "source" else name for name in _TYPES)
# The batch is not in the key's index: an answer without the cursor is an index-only scan.
WITH_CURSOR = f"{COLUMNS}, {CURSOR_SQL} as cursor"
FIELDS = (*_INSERTED, "cursor")
"The columns of a price in an answer."

STALE_INTERVALS = 2
"A ticker without a new price for this many intervals is stale."


def latest_price(ticker: str, max_age_seconds: int | None = None) -> Statement:
    """The newest price; with `max_age_seconds`, refused if it stands for an older instant."""
    if max_age_seconds is None:
        return Statement(f"{_LATEST_PRICE} limit 1", (ticker,))
    sql = f"""
        select
            latest.*,
            timestamp + make_interval(secs => $2) as expires_at,
            now() - timestamp > make_interval(secs => $2) as is_refused,
            extract(epoch from now() - timestamp)::bigint as age_seconds,
            $2::integer as max_age_seconds
        from ({_LATEST_PRICE} limit 1) as latest
    """
    return Statement(sql, (ticker, max_age_seconds), expires=True, refuse=_price_stale)


def latest_prices(tickers: Sequence[str]) -> Statement:
    """The newest price of each ticker that has one, in the order of `tickers`."""
    return Statement(_LATEST_PRICES, (list(tickers),))


def price_history(ticker: str, before: datetime | None, limit: int) -> Statement:
    """Newest first; `before` is exclusive."""
    sql = f"""
        select {WITH_CURSOR}
        from prices
        where ticker = $1
          and timestamp < coalesce($2, 'infinity'::timestamptz)
        order by timestamp desc
        limit $3
    """
    return Statement(sql, (ticker, before, limit))


def prices_in_period(ticker: str, from_dt: datetime, to_dt: datetime, after: datetime | None, limit: int) -> Statement:
    """Oldest first; both bounds inclusive, `after` exclusive."""
    sql = f"""
        select {WITH_CURSOR}
        from prices
        where ticker = $1
          and timestamp >= $2
          and timestamp <= $3
          and timestamp > coalesce($4, '-infinity'::timestamptz)
        order by timestamp
        limit $5
    """
    return Statement(sql, (ticker, from_dt, to_dt, after, limit))


def tickers(names: Sequence[str], interval_seconds: int) -> Statement:
    """One row for each ticker, in the order of `names`; `latest_…` is the newest price. Stale: two intervals old."""
    sql = f"""
        select
            wanted.name,
            $2::integer as interval_seconds,
            {", ".join(f"latest.{name} as latest_{name}" for name in (*_TYPES, "cursor"))},
            extract(epoch from now() - latest.timestamp)::float8 as lag_seconds,
            coalesce(now() - latest.timestamp > interval '{STALE_INTERVALS} s' * $2, true) as stale,
            oldest.timestamp as first_timestamp,
            dropped_prices.kept_from,
            case when history.since > history.filling_to then history.filling_to end as filling_to,
            case
                when now() - latest.timestamp <= interval '{STALE_INTERVALS} s' * $2
                then latest.timestamp + interval '{STALE_INTERVALS} s' * $2
            end as expires_at
        from unnest($1::text[]) with ordinality as wanted (name, position)
        left join dropped_prices on dropped_prices.ticker = wanted.name collate "C"
        left join lateral (
            select {WITH_CURSOR}
            from prices
            where prices.ticker = wanted.name collate "C"
            order by timestamp desc
            limit 1
        ) as latest on true
        left join lateral (
            -- Of the kept prices: skips the index entries of dropped ones.
            select timestamp
            from prices
            where prices.ticker = wanted.name collate "C"
              and timestamp >= coalesce(dropped_prices.kept_from, '-infinity')
            order by timestamp
            limit 1
        ) as oldest on true
        left join lateral (
            select min(since) as since, min(filling_to) as filling_to
            from schedules
            where schedules.ticker = wanted.name collate "C"
        ) as history on true
        order by wanted.position
    """
    return Statement(sql, (list(names), interval_seconds), expires=True)


_LATEST_PRICE = f"""
    select {WITH_CURSOR}
    from prices
    where ticker = $1
    order by timestamp desc
"""

_LATEST_PRICES = f"""
    select latest.*
    from unnest($1::text[]) with ordinality as wanted (ticker, position)
    cross join lateral (
        select {WITH_CURSOR}
        from prices
        where prices.ticker = wanted.ticker collate "C"
        order by timestamp desc
        limit 1
    ) as latest
    order by wanted.position
"""


def _price_stale(row: asyncpg.Record) -> PriceStale:
    ticker, age = row["ticker"], row["age_seconds"]
    return PriceStale(f"The newest price of {ticker} is {age} s old, not {row['max_age_seconds']} s.")


async def select_latest_prices(pool: Pool, tickers: Sequence[str]) -> list[Price]:
    return [price_of(row) for row in await fetch(pool, _LATEST_PRICES, list(tickers))]


async def select_observed_tickers(pool: Pool, tickers: Sequence[str], slot: datetime) -> set[str]:
    """The tickers that have an observed price for this slot."""
    sql = """
        select ticker
        from prices
        where ticker = any($1::text[])
          and timestamp = $2
          and source <> 'BACKFILLED'
    """
    return {row["ticker"] for row in await fetch(pool, sql, list(tickers), slot)}


async def insert_prices(pool: Pool, prices: Iterable[Price], *, timeout: float = WRITE_SECONDS) -> list[Price]:
    """Store prices in one statement; returns those that were new.

    Idempotent: an existing row stays, unless its source ranks lower: a late observation replaces what healed its slot.
    """
    sql = f"""
        insert into prices ({_NAMES})
        select {", ".join("source::price_source" if name == "source" else name for name in _INSERTED)}
        from unnest({", ".join(f"${n}::{_CODECS[kind][0]}[]" for n, kind in enumerate(_INSERTED.values(), 1))})
            as fresh ({_NAMES})
        -- Two writers that lock the same rows in the same order cannot deadlock.
        order by timestamp, ticker collate "C"
        on conflict (ticker, timestamp) do update
        set {", ".join(f"{name} = excluded.{name}" for name in _INSERTED if name not in {"ticker", "timestamp"})}
        where prices.source > greatest(excluded.source, 'REQUESTED')
        returning {COLUMNS}
    """
    # One statement cannot update a row twice, so the batch itself keeps one price per row: the best source's first.
    unique: dict[tuple[str, datetime], Price] = {}
    for price in sorted(prices, key=lambda price: (_RANKS[price.source], price.observed_at)):
        unique.setdefault((price.ticker, price.timestamp), price)
    if not unique:
        return []
    rows = list(map(attrgetter(*_INSERTED), unique.values()))
    with span("insert prices", "client", db__system__name="postgresql", prices=len(rows)):
        return [price_of(row) for row in await write(pool, sql, *columns(rows, len(_INSERTED)), timeout=timeout)]


def dump_price(price: Price) -> dict[str, Any]:
    """As JSON for Redis. The digits are text, because JSON has no exact numbers."""
    return {name: _CODECS[kind][1](getattr(price, name)) for name, kind in _TYPES.items()}


def load_price(record: dict[str, Any]) -> Price:
    """Also a record of the release before, which has no batch."""
    return Price(**{name: _CODECS[kind][2](record[name]) for name, kind in _TYPES.items() if name in record})


def price_of(row: Iterable[Any]) -> Price:
    """From a row that begins with the values of `COLUMNS`."""
    ticker, price, timestamp, observed_at, source, testnet, batch = list(row)[: len(_TYPES)]
    return Price(ticker, price, timestamp, observed_at, PriceSource(source), testnet, batch)
