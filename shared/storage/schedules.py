"""What was meant to be collected: per ticker, the grid and since when. And why a slot of it is missing."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from shared.storage.database import Pool, fetch


async def insert_schedules(pool: Pool, tickers: Sequence[str], since: datetime, interval: timedelta) -> None:
    """Note that these tickers are collected at this interval from `since` on, unless that is the case already.

    A ticker that was collected before needs no first fill: what is missing since then is a gap. A schedule that was to
    begin later never does.
    """
    sql = """
        with changed as (
            select wanted.ticker
            from unnest($1::text[]) as wanted (ticker)
            where $3 is distinct from (
                select interval_seconds
                from schedules
                where schedules.ticker = wanted.ticker collate "C"
                order by since desc
                limit 1
            )
        ), void as (
            delete from schedules
            using changed
            where schedules.ticker = changed.ticker collate "C"
              and schedules.since > $2
        )
        insert into schedules (ticker, since, interval_seconds, first_fill_done)
        select
            ticker,
            $2,
            $3,
            exists (
                select
                from schedules
                where schedules.ticker = changed.ticker collate "C"
                  and schedules.since < $2
            )
        from changed
        on conflict (ticker, since) do update
        set interval_seconds = excluded.interval_seconds
    """
    await fetch(pool, sql, list(tickers), since, int(interval.total_seconds()))
    # Two workers that start together may both have found no schedule; each has committed its own by now.
    repeated = """
        delete from schedules
        where ticker = any($1::text[])
          and interval_seconds = (
              select interval_seconds
              from schedules as before
              where before.ticker = schedules.ticker
                and before.since < schedules.since
              order by before.since desc
              limit 1
          )
    """
    await fetch(pool, repeated, list(tickers))


async def select_first_fills(pool: Pool, tickers: Sequence[str]) -> dict[str, tuple[datetime, timedelta]]:
    """First slot and interval of each ticker whose past has not been filled from the chart yet."""
    sql = """
        select ticker, since, interval_seconds
        from schedules
        where ticker = any($1::text[])
          and not first_fill_done
    """
    rows = await fetch(pool, sql, list(tickers))
    return {row["ticker"]: (row["since"], timedelta(seconds=row["interval_seconds"])) for row in rows}


async def finish_first_fill(pool: Pool, ticker: str, since: datetime, complete_from: datetime) -> None:
    """The schedule begins where its history is whole: a sparse past is shown, but nothing is expected of it."""
    sql = """
        update schedules
        set first_fill_done = true,
            since = $3
        where ticker = $1
          and since = $2
          and not first_fill_done
    """
    await fetch(pool, sql, ticker, since, complete_from)
