"""Prices in the order in which they were stored, for followers: LISTEN/NOTIFY and a cursor.

PostgreSQL notifies at the commit (migration 0004), even if Redis is unavailable. A notification says only that there is
something to read. Followers read from their position on, so one that was disconnected, or behind a pooler that drops
notifications, misses nothing. A chart average that is replaced before it is read is never sent.

What is already stored is read in pages. Each statement looks at a bounded number of rows, however few of them it
returns, so that no follower holds a connection for long.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import asyncpg

from shared.config.settings import Settings
from shared.cursor import BEGINNING, UNKNOWN_BATCH, Position
from shared.storage.database import Pool, columns, fetch, fetch_row
from shared.storage.failover import write_hosts
from shared.storage.pool import Connection
from shared.storage.prices import COLUMNS, Price, price_of

CHANNEL = "prices"

_AFTER_ALL_TICKERS = "~"


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


async def select_newest_stored(pool: Pool, limit: int) -> list[Stored]:
    """The prices that were stored last, in the order of storing."""
    sql = f"""
        select {COLUMNS}
        from prices
        where batch > 0
        order by batch desc, timestamp desc, ticker desc
        limit $1
    """
    return _stored(reversed(await fetch(pool, sql, limit)))


async def select_last_position(pool: Pool) -> Position:
    newest = await select_newest_stored(pool, 1)
    return newest[0].position if newest else BEGINNING


async def select_newest_of(pool: Pool, positions: Sequence[Position]) -> Position | None:
    """The last of these positions that still has a price; `None` if none has."""
    sql = """
        select prices.batch, prices.timestamp, prices.ticker
        from unnest($1::bigint[], $2::timestamptz[], $3::text[]) as wanted (batch, timestamp, ticker)
        join prices
            on prices.ticker = wanted.ticker collate "C"
            and prices.timestamp = wanted.timestamp
            and prices.batch = wanted.batch
        order by prices.batch desc, prices.timestamp desc, prices.ticker desc
        limit 1
    """
    row = await fetch_row(pool, sql, *columns(positions, 3))
    return Position(*row) if row else None


async def find_position(pool: Pool, position: Position) -> Position | None:
    """Where to go on behind a cursor's position; `None` if this database never gave it.

    It gave it if the price is there, or was there: an average that was replaced, or a price that retention dropped.
    """
    sql = """
        select
            (select batch from prices where ticker = $1 and timestamp = $2) as stored,
            (select batch from replaced_prices where ticker = $1 and timestamp = $2) as replaced,
            exists (select from dropped_prices where ticker = $1 and kept_from > $2) as is_dropped,
            (select batch from prices where batch > 0 order by batch desc limit 1) as newest
    """
    batch, timestamp, ticker = position
    row = await fetch_row(pool, sql, ticker, timestamp)
    assert row is not None  # noqa: S101  it has no FROM
    stored, replaced, is_dropped, newest = row
    if stored is None:
        return position if is_dropped and 0 <= batch <= (newest or 0) else None
    if batch == UNKNOWN_BATCH:
        return Position(stored, timestamp, ticker)
    is_replaced = batch == 0 or (replaced is not None and replaced <= batch)
    return position if batch == stored or (is_replaced and batch < stored) else None


async def select_stored(pool: Pool, after: Position, limit: int) -> list[Stored]:
    """Prices that were stored after a position, in that order."""
    sql = f"""
        select {COLUMNS}
        from prices
        where batch > 0
          and (batch, timestamp, ticker) > ($1, $2, $3)
        order by batch, timestamp, ticker
        limit $4
    """
    return _stored(await fetch(pool, sql, *after, limit))


async def select_page_end(pool: Pool, after: Position, until: Position, size: int) -> Position:
    """The position of the `size`th price after a position, of all tickers; `until` if there are fewer."""
    sql = """
        select batch, timestamp, ticker
        from prices
        where batch > 0
          and (batch, timestamp, ticker) > ($1, $2, $3)
          and (batch, timestamp, ticker) <= ($4, $5, $6)
        order by batch, timestamp, ticker
        offset $7::integer - 1
        limit 1
    """
    row = await fetch_row(pool, sql, *after, *until, size)
    return Position(*row) if row else until


async def select_page(
    pool: Pool, tickers: Sequence[str], after: Position, until: Position, size: int, latest: datetime | None = None
) -> list[Stored]:
    """Prices that were stored after a position, in that order; `until` is inclusive. `size`: as of `select_page_end`.

    `latest`: only prices of that timestamp or earlier.
    """
    sql = f"""
        select {COLUMNS}
        from (
            select *
            from prices
            where batch > 0
              and (batch, timestamp, ticker) > ($2, $3, $4)
              and (batch, timestamp, ticker) <= ($5, $6, $7)
            order by batch, timestamp, ticker
            limit $8
        ) as page
        where ticker = any($1::text[])
          and timestamp <= coalesce($9, 'infinity'::timestamptz)
        order by batch, timestamp, ticker
    """
    return _stored(await fetch(pool, sql, list(tickers), *after, *until, size, latest))


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


async def select_stored_by_time(
    pool: Pool, tickers: Sequence[str], after: tuple[datetime, str], size: int
) -> list[Stored]:
    """Prices after (timestamp, ticker), oldest first; whenever they were stored. Empty only if there are none."""
    sql = f"""
        with page as (
            select following.*
            from unnest($1::text[]) as wanted (ticker)
            cross join lateral (
                select {COLUMNS}
                from prices
                where prices.ticker = wanted.ticker collate "C"
                  and timestamp >= $2
                  and (timestamp, prices.ticker) > ($2, $3)
                order by timestamp
                limit $4
            ) as following
        )
        select *
        from page
        -- A ticker with a full page may have more prices behind it.
        where timestamp <= (
            select coalesce(min(last), 'infinity')
            from (select max(timestamp) as last from page group by ticker having count(*) = $4) as full_page
        )
        order by timestamp, ticker
    """
    size_of_each = max(1, size // len(tickers))
    return _stored(await fetch(pool, sql, list(tickers), *after, size_of_each))


def after_instant(timestamp: datetime) -> tuple[datetime, str]:
    return timestamp, _AFTER_ALL_TICKERS


def after_batch(batch: int) -> Position:
    return Position(batch, datetime.max.replace(tzinfo=UTC), _AFTER_ALL_TICKERS)


def _stored(rows: Iterable[asyncpg.Record]) -> list[Stored]:
    prices = map(price_of, rows)
    return [Stored(Position(price.batch, price.timestamp, price.ticker), price) for price in prices]
