"""What should be collected: the grid of each ticker, since when and until when.

A ticker's first schedule begins where its history has been filled to, so it moves back while the history is filled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from shared.storage.database import WRITE_SECONDS, Pool, columns, fetch, write

# $1 ticker. A schedule ends where the next one begins, or earlier if no worker collected the ticker any more.
SCHEDULE = """
    select
        interval_seconds,
        make_interval(secs => interval_seconds) as step,
        since,
        least(until, lead(since, 1, 'infinity') over (order by since)) as until
    from schedules
    where ticker = $1
"""

UNREPORTED = timedelta(minutes=10)
"A ticker that no worker has reported for this long, while some worker ran, is no longer collected."

# $1 ticker, $4 now or null. When the running slot, of the schedule in force or of the next one, has ended.
NEXT_SLOT_END = f"""
    select min(date_bin(step, greatest(since, coalesce($4::timestamptz, now())), 'epoch') + step)
    from ({SCHEDULE}) as schedule
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

    Compares with the schedule in force at `since`, and deletes those that would begin later: a change that is taken
    back, or the row of a worker whose clock was ahead. A ticker with an earlier schedule needs no first fill: slots
    that are missing since then are gaps.
    """
    sql = """
        with changed as (
            select wanted.ticker
            from unnest($1::text[]) as wanted (ticker)
            where $3 is distinct from (
                select case when until is null then interval_seconds end
                from schedules
                where schedules.ticker = wanted.ticker collate "C"
                  and since <= $2
                order by since desc
                limit 1
            )
        ), void as (
            delete from schedules
            where ticker = any($1::text[])
              and since > $2
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
        set interval_seconds = excluded.interval_seconds,
            until = null
    """
    await fetch(pool, sql, list(tickers), since, int(interval.total_seconds()))
    # Two workers that start at the same time may both have inserted the same schedule; both have committed by now.
    repeated = """
        delete from schedules
        where ticker = any($1::text[])
          and interval_seconds = (
              select case when before.until is null then before.interval_seconds end
              from schedules as before
              where before.ticker = schedules.ticker
                and before.since < schedules.since
              order by before.since desc
              limit 1
          )
    """
    await fetch(pool, repeated, list(tickers))


async def report_collected(pool: Pool, tickers: Sequence[str]) -> list[str]:
    """Report that a worker collects these tickers; returns those whose schedule has an end all the same."""
    sql = """
        with reported as (
            insert into collected_tickers (ticker, reported_at)
            select ticker, now()
            from unnest($1::text[]) as collected (ticker)
            order by ticker collate "C"
            on conflict (ticker) do update
            set reported_at = greatest(collected_tickers.reported_at, excluded.reported_at)
        )
        select ticker
        from (
            select distinct on (ticker) ticker, until
            from schedules
            where ticker = any($1::text[])
            order by ticker, since desc
        ) as newest
        where until is not null
    """
    return [row["ticker"] for row in await write(pool, sql, list(tickers), timeout=WRITE_SECONDS)]


async def end_schedules(pool: Pool) -> dict[str, datetime]:
    """End the schedules of tickers that no worker collects any more; returns these tickers and their ends.

    A schedule ends with the last report or the newest price. Call it only from a worker that has run for `UNREPORTED`:
    after an outage of all workers, the others have reported by then. A worker of the release before sends no reports,
    but its prices count.
    """
    sql = """
        select newest.ticker, since, greatest(since, date_bin(step, greatest(reported_at, timestamp), 'epoch') + step)
        from (
            select distinct on (ticker) ticker, since, until, make_interval(secs => interval_seconds) as step
            from schedules
            order by ticker, since desc
        ) as newest
        left join collected_tickers on collected_tickers.ticker = newest.ticker
        left join lateral (
            select timestamp
            from prices
            where prices.ticker = newest.ticker
            order by timestamp desc
            limit 1
        ) as last_price on true
        where newest.until is null
          and greatest(since, reported_at, timestamp + step) < now() - $1::interval
    """
    ended = [tuple(row) for row in await fetch(pool, sql, UNREPORTED)]
    if ended:  # an update changes the version of the data, even one of no rows
        sql = """
            update schedules
            set until = ended.until
            from unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) as ended (ticker, since, until)
            where schedules.ticker = ended.ticker
              and schedules.since = ended.since
              and schedules.until is null
        """
        await write(pool, sql, *columns(ended, 3), timeout=WRITE_SECONDS)
    return {ticker: until for ticker, _, until in ended}


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
        from ({_FIRST}) as first
        where schedules.ticker = first.ticker
          and schedules.since = first.since
          and filling_to is distinct from $2
    """
    await fetch(pool, sql, [ticker], filling_to)
