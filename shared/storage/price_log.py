"""Prices in the order in which they were stored, for followers: LISTEN/NOTIFY and a cursor.

PostgreSQL notifies at the commit (migration 0004), even if Redis is unavailable. A notification says only that there is
something to read. Followers read from their position on, so one that was disconnected, or behind a pooler that drops
notifications, misses nothing. A chart average that is replaced before it is read is never sent.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import asyncpg

from shared.config.settings import Settings
from shared.grid import EPOCH
from shared.storage.database import Pool, fetch, fetch_row
from shared.storage.failover import write_hosts
from shared.storage.pool import Connection
from shared.storage.prices import COLUMNS, Price, price_of

CHANNEL = "prices"

_AFTER_ALL_TICKERS = "~"


class Position(NamedTuple):
    """A price's place in the order of storing. A reader that sees a batch sees all earlier batches completely."""

    batch: int
    timestamp: datetime
    ticker: str


BEGINNING = Position(0, EPOCH, "")


class Stored(NamedTuple):
    position: Position
    price: Price


def listen(settings: Settings, connected: Callable[[], None], heard: Callable[[], None]) -> Pool:
    """A pool of one listening connection. `connected` is called for each new one: earlier notifications are lost."""

    hosts = write_hosts(settings.database_url)

    async def connect() -> Connection:
        session = {"application_name": "server, live", "timezone": "UTC"}
        if settings.database_pooler:  # it passes no notifications on
            connection = await hosts.connect(statement_cache_size=0, server_settings=session)
        else:
            connection = await hosts.connect(server_settings={**session, "jit": "off"})
            try:
                await connection.add_listener(CHANNEL, lambda *_: heard())
            except BaseException as error:
                connection.terminate()
                if isinstance(error, asyncpg.InternalClientError):  # PostgreSQL closed it before the LISTEN
                    raise ConnectionResetError(str(error)) from error
                raise
        connected()
        return connection

    return Pool(connect, 1)


async def select_last_position(pool: Pool) -> Position:
    sql = """
        select batch, timestamp, ticker
        from prices
        where batch > 0
        order by batch desc, timestamp desc, ticker desc
        limit 1
    """
    row = await fetch_row(pool, sql)
    return Position(*row) if row else BEGINNING


async def select_stored(pool: Pool, after: Position, limit: int) -> list[Stored]:
    """Prices that were stored after a position, in that order."""
    sql = f"""
        select {COLUMNS}, batch
        from prices
        where batch > 0
          and (batch, timestamp, ticker) > ($1, $2, $3)
        order by batch, timestamp, ticker
        limit $4
    """
    return list(map(_stored, await fetch(pool, sql, *after, limit)))


async def select_batch_of(pool: Pool, tickers: Sequence[str], timestamp: datetime) -> int | None:
    """The first batch with a price of these tickers at `timestamp` or, for each ticker, at the next instant after it.

    `None` also if none of them has a price that early, because then none can have been stored late.
    """
    sql = """
        select min(coalesce(replaced_prices.batch, following.batch))
        from unnest($1::text[]) as wanted (ticker)
        cross join lateral (
            select ticker, timestamp, batch
            from prices
            where prices.ticker = wanted.ticker collate "C"
              and timestamp >= $2
            order by timestamp
            limit 1
        ) as following
        left join replaced_prices
            on replaced_prices.ticker = following.ticker and replaced_prices.timestamp = following.timestamp
        where exists (
            select
            from unnest($1::text[]) as early (ticker)
            join prices on prices.ticker = early.ticker collate "C" and prices.timestamp <= $2
        )
    """
    row = await fetch_row(pool, sql, list(tickers), timestamp)
    return row[0] if row else None


async def select_stored_late(
    pool: Pool, tickers: Sequence[str], timestamp: datetime, after: Position, until: Position, limit: int
) -> list[Stored]:
    """Prices of `timestamp` or earlier that were stored after a position, in that order; `until` is inclusive."""
    sql = f"""
        select {COLUMNS}, batch
        from prices
        where batch > 0
          and (batch, timestamp, ticker) > ($3, $4, $5)
          and (batch, timestamp, ticker) <= ($6, $7, $8)
          and ticker = any($1::text[])
          and timestamp <= $2
        order by batch, timestamp, ticker
        limit $9
    """
    return list(map(_stored, await fetch(pool, sql, list(tickers), timestamp, *after, *until, limit)))


async def select_stored_by_time(
    pool: Pool, tickers: Sequence[str], after: tuple[datetime, str], until: Position, limit: int
) -> list[Stored]:
    """Prices after (timestamp, ticker), oldest first, of those that were stored up to `until`."""
    sql = f"""
        select following.*
        from unnest($1::text[]) as wanted (ticker)
        cross join lateral (
            select {COLUMNS}, batch
            from prices
            where prices.ticker = wanted.ticker collate "C"
              and timestamp >= $2
              and (timestamp, prices.ticker) > ($2, $3)
              and (batch, timestamp, prices.ticker) <= ($4, $5, $6)
            order by timestamp
            limit $7
        ) as following
        order by timestamp, ticker
        limit $7
    """
    return list(map(_stored, await fetch(pool, sql, list(tickers), *after, *until, limit)))


def after_instant(timestamp: datetime) -> tuple[datetime, str]:
    return timestamp, _AFTER_ALL_TICKERS


def after_batch(batch: int) -> Position:
    return Position(batch, datetime.max.replace(tzinfo=UTC), _AFTER_ALL_TICKERS)


def _stored(row: asyncpg.Record) -> Stored:
    *values, batch = row
    price = price_of(values)
    return Stored(Position(batch, price.timestamp, price.ticker), price)
