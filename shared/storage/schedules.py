"""What should be collected: the grid of each ticker, and since when.

A ticker's first schedule begins where its history has been filled to, so it moves back while the history is filled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Beginning:
    """A ticker's first schedule. `has_first_fill`: whether the look-back before it has been filled."""

    since: datetime
    interval: timedelta
    has_first_fill: bool


_FIRST = """
    select ticker, min(since) as since
    from schedules
    where ticker = any($1::text[])
    group by ticker
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


async def select_beginnings(pool: Pool, tickers: Sequence[str]) -> dict[str, Beginning]:
    sql = f"""
        select ticker, since, interval_seconds, first_fill_done
        from schedules
        join ({_FIRST}) as first using (ticker, since)
    """
    rows = await fetch(pool, sql, list(tickers))
    return {row[0]: Beginning(row[1], timedelta(seconds=row[2]), row[3]) for row in rows}


async def move_beginning(pool: Pool, ticker: str, beginning: Beginning, since: datetime, *, is_done: bool) -> None:
    """Let the history begin at `since`, unless another worker has moved it. `is_done`: the look-back is filled."""
    sql = """
        update schedules
        set since = $3,
            first_fill_done = first_fill_done or $4
        where ticker = $1
          and since = $2
    """
    await fetch(pool, sql, ticker, beginning.since, since, is_done)


async def update_filling_to(pool: Pool, ticker: str, filling_to: datetime | None) -> None:
    """Say how far back the history is being filled; `None` for not at all."""
    sql = f"""
        update schedules
        set filling_to = $2
        from ({_FIRST.replace("any($1::text[])", "$1")}) as first
        where schedules.ticker = first.ticker
          and schedules.since = first.since
          and filling_to is distinct from $2
    """
    await fetch(pool, sql, ticker, filling_to)
