"""Prices in the order in which they were stored, for those who follow them as they come.

PostgreSQL announces them itself, at the commit (migration 0004): nothing is lost between a commit and the word of it,
whoever stores, and Redis may be away. The word only says that there is something to read. What was stored is read by
its position, so a follower that was away, or behind a pooler that passes no word on, misses nothing. An average that
an observation replaces before it was read is not there any more, and is not told.
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
    """Where a price stands in the order of storing. Whoever sees a batch sees all earlier ones whole."""

    batch: int
    timestamp: datetime
    ticker: str


BEGINNING = Position(0, EPOCH, "")


class Stored(NamedTuple):
    position: Position
    price: Price


def listen(settings: Settings, connected: Callable[[], None], heard: Callable[[], None]) -> Pool:
    """A pool of the one connection that hears announcements. `connected`: it is new, what was said before is lost."""

    hosts = write_hosts(settings.database_url)

    async def connect() -> Connection:
        session = {"application_name": "server, live", "timezone": "UTC"}
        if settings.database_pooler:  # which passes no word on, and would keep who listens
            connection = await hosts.connect(statement_cache_size=0, server_settings=session)
            connected()
            return connection
        connection = await hosts.connect(server_settings={**session, "jit": "off"})
        try:
            await connection.add_listener(CHANNEL, lambda *_: heard())
        except asyncpg.InternalClientError as error:  # PostgreSQL said goodbye before it was asked anything
            connection.terminate()
            raise ConnectionResetError(str(error)) from error
        except BaseException:
            connection.terminate()
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
    """What was stored after a position, in that order."""
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
    """The batch in which the first of these tickers came to `timestamp`, or to what follows it.

    `None` too where none of them has a price as early as that: nothing can have come late.
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
    """Prices after (timestamp, ticker), oldest first, as far as they had been stored by `until`."""
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
