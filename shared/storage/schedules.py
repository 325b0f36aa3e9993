"""What should be collected: the grid of each ticker, and since when."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from shared.storage.database import Pool, fetch

# $1 ticker, $4 now or null. When the running slot, of the schedule in force or of the next one, has ended.
NEXT_SLOT_END = """
    select min(date_bin(step, greatest(since, coalesce($4::timestamptz, now())), 'epoch') + step)
    from (
        select
            since,
            lead(since, 1, 'infinity') over (order by since) as until,
            make_interval(secs => interval_seconds) as step
        from schedules
        where ticker = $1
    ) as schedule
    where until > coalesce($4::timestamptz, now())
"""


async def insert_schedules(pool: Pool, tickers: Sequence[str], since: datetime, interval: timedelta) -> None:
    """Note that these tickers are collected at this interval from `since` on, unless they already are.

    A ticker with an earlier schedule needs no first fill: slots that are missing since then are gaps. Deletes any
    schedule that would begin later.
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
    # Two workers that start at the same time may both have inserted the same schedule; both have committed by now.
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
    """First slot and interval of each ticker whose history is not yet filled from the chart."""
    sql = """
        select ticker, since, interval_seconds
        from schedules
        where ticker = any($1::text[])
          and not first_fill_done
    """
    rows = await fetch(pool, sql, list(tickers))
    return {row["ticker"]: (row["since"], timedelta(seconds=row["interval_seconds"])) for row in rows}


async def finish_first_fill(pool: Pool, ticker: str, since: datetime, complete_from: datetime) -> None:
    """Let the schedule begin where its history is complete: earlier prices are shown, but not expected."""
    sql = """
        update schedules
        set first_fill_done = true,
            since = $3
        where ticker = $1
          and since = $2
          and not first_fill_done
    """
    await fetch(pool, sql, ticker, since, complete_from)
