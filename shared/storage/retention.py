"""Retention: old raw prices are dropped, their candles stay. `dropped_prices` has the limit of each ticker.

First `kept_from` moves: from then on prices before it are refused, and candles before it are not computed again
(migration 0006). Then the rows are deleted in batches. Any worker may do any part of this at any time, and repeat it.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from shared.storage.database import WRITE_SECONDS, Pool, fetch, write


async def select_kept_from(pool: Pool, tickers: Sequence[str]) -> dict[str, datetime]:
    """For tickers with dropped prices: the instant before which they were dropped."""
    sql = """
        select ticker, kept_from
        from dropped_prices
        where ticker = any($1::text[])
    """
    return {row["ticker"]: row["kept_from"] for row in await fetch(pool, sql, list(tickers))}


async def move_kept_from(pool: Pool, now: datetime, retention: timedelta) -> dict[str, datetime]:
    """Move the limit of every ticker that was ever collected. Returns the limits that have moved.

    Age counts back from the ticker's newest price, to the midnight before, so that a ticker that is no longer collected
    loses nothing, nor does anything when a clock is wrong. Moves only forward, and only if there are prices before it.
    """
    sql = """
        with collected as (
            select distinct ticker
            from schedules
        ), wanted as (
            select collected.ticker, date_bin('1 day', least(newest.timestamp, $1) - $2::interval, 'epoch') as kept_from
            from collected
            cross join lateral (
                select timestamp
                from prices
                where prices.ticker = collected.ticker
                order by timestamp desc
                limit 1
            ) as newest
        )
        insert into dropped_prices (ticker, kept_from)
        select ticker, kept_from
        from wanted
        where exists (
            select
            from prices
            where prices.ticker = wanted.ticker
              and timestamp < wanted.kept_from
              and timestamp >= coalesce(
                  (select kept_from from dropped_prices where dropped_prices.ticker = wanted.ticker), '-infinity'
              )
        )
        order by ticker
        on conflict (ticker) do update
        set kept_from = excluded.kept_from
        where dropped_prices.kept_from < excluded.kept_from
        returning ticker, kept_from
    """
    rows = await write(pool, sql, now, retention, timeout=WRITE_SECONDS)
    return {row["ticker"]: row["kept_from"] for row in rows}


async def select_to_drop(pool: Pool) -> dict[str, datetime]:
    """The tickers that still have prices before their `kept_from`, and that instant."""
    sql = """
        select ticker, kept_from
        from dropped_prices
        where exists (
            select
            from prices
            where prices.ticker = dropped_prices.ticker
              and timestamp >= dropped_until
              and timestamp < kept_from
        )
        order by ticker
    """
    return {row["ticker"]: row["kept_from"] for row in await fetch(pool, sql)}


async def drop_oldest_prices(pool: Pool, ticker: str, limit: int) -> int:
    """Delete up to `limit` of a ticker's oldest prices before its `kept_from`; returns how many.

    One transaction, which holds the writers' lock: `limit` bounds how long they wait.
    """
    sql = """
        with gone as (
            delete from prices
            where ticker = $1
              and timestamp >= (select dropped_until from dropped_prices where ticker = $1)
              and timestamp < (select kept_from from dropped_prices where ticker = $1)
              and timestamp < coalesce(
                  (
                      select timestamp
                      from prices
                      where ticker = $1
                        and timestamp >= (select dropped_until from dropped_prices where ticker = $1)
                      order by timestamp
                      offset $2
                      limit 1
                  ),
                  'infinity'
              )
            returning timestamp
        ), replaced as (
            -- Rows of `replaced_prices` serve followers, who cannot receive dropped prices any more.
            delete from replaced_prices
            using gone
            where replaced_prices.ticker = $1
              and replaced_prices.timestamp = gone.timestamp
        )
        update dropped_prices
        set dropped_until = last
        from (select max(timestamp) as last, count(*) as count from gone) as these
        where ticker = $1
          and count > 0
        returning count
    """
    rows = await write(pool, sql, ticker, limit, timeout=WRITE_SECONDS)
    return rows[0]["count"] if rows else 0
