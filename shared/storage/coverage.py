"""How much of the schedule's grid is stored, and what is missing and why, computed in SQL from the rows.

For rows that retention dropped, from the candles, which have a bit for every second with a price.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from shared.storage.database import Pool, Statement, fetch
from shared.storage.missed_slots import MissingRun
from shared.storage.missing_runs import MISSING_RUNS, SEGMENTS

COVERAGE_DEADLINE_SECONDS = 5.0
"Counting a year of one-second slots takes longer than two seconds."


@dataclass(frozen=True, slots=True)
class Coverage:
    """Slots of the grid that have ended: how many are expected, and how many are present.

    `dropped`: how many of the present ones only candles show, because retention dropped their prices.
    """

    expected: int
    present: int
    dropped: int = 0


_COUNTED = (
    SEGMENTS
    + """
    , counted as (
        select
            upper - lower as length,
            step,
            (
                select count(*)
                from prices
                where ticker = $1
                  and timestamp >= lower
                  and timestamp < upper
                  and date_bin(step, timestamp, 'epoch') = timestamp
            ) as present,
            0 as dropped
        from segment
        union all
        select upper - lower, step, dropped, dropped
        from dropped_segment
        cross join lateral (
            select
                coalesce(sum(bit_count(substring(seconds & slots from first + 1 for after - first))), 0) as dropped
            from candle_minutes
            cross join lateral (
                -- The seconds of the minute that are inside the segment: mostly all of them.
                select
                    greatest(extract(epoch from lower - start)::integer, 0) as first,
                    least(extract(epoch from upper - start)::integer, 60) as after
            ) as bounds
            where ticker = $1
              and start > lower - interval '1 minute'
              and start < upper
              and date_bin(step, start, 'epoch') = start
        ) as stored
    )
    , total as (
        select
            coalesce(sum(round(extract(epoch from length) / extract(epoch from step))), 0)::bigint as expected,
            coalesce(sum(present), 0)::bigint as present,
            coalesce(sum(dropped), 0)::bigint as dropped
        from counted
    )
    select
        expected,
        present,
        dropped,
        coalesce(present::float8 / nullif(expected, 0), 1) as ratio,
        present = expected as complete,
        -- The running slot counts when it has ended.
        case
            when $3 > coalesce($4, now()) then (
                select min(date_bin(step, greatest(since, coalesce($4, now())), 'epoch') + step)
                from schedule
                where since < $3
                  and until > coalesce($4, now())
            )
        end as expires_at
    from total
"""
)


_GAPS = (
    MISSING_RUNS
    + """
    , marked as (
        select
            *,
            lag(after) over series is distinct from first
                or lag(reason) over series is distinct from reason
                or lag(detail) over series is distinct from detail as starts
        from run
        window series as (order by first)
    ), grouped as (
        select *, count(*) filter (where starts) over (order by first) as number
        from marked
    )
    select
        min(first) as from_dt,
        max(after) as to_dt,
        sum(round(extract(epoch from after - first) / extract(epoch from step)))::bigint as missing,
        min(reason)::text as reason,
        min(detail) as detail
    from grouped
    group by number
    order by number
    limit $5
"""
)


def coverage(ticker: str, from_dt: datetime, to_dt: datetime, now: datetime | None = None) -> Statement:
    """Counts the ended slots in [from_dt, to_dt). `now` is PostgreSQL's clock unless it is given."""
    return Statement(_COUNTED, (ticker, from_dt, to_dt, now), expires=True)


async def select_coverages(
    pool: Pool, tickers: Sequence[str], from_dt: datetime, to_dt: datetime, now: datetime
) -> dict[str, Coverage]:
    """As `coverage`, for several tickers and a short period."""
    sql = f"""
        select wanted.ticker, counted.*
        from unnest($1::text[]) as wanted (ticker)
        cross join lateral ({_COUNTED.replace("$1", 'wanted.ticker collate "C"')}) as counted
    """
    rows = await fetch(pool, sql, list(tickers), from_dt, to_dt, now)
    return {row["ticker"]: Coverage(row["expected"], row["present"], row["dropped"]) for row in rows}


def gaps(ticker: str, from_dt: datetime, to_dt: datetime, limit: int, now: datetime | None = None) -> Statement:
    """Oldest first; neighbouring runs with the same reason and detail are merged."""
    return Statement(_GAPS, (ticker, from_dt, to_dt, now, limit))


async def select_missing_runs(
    pool: Pool, ticker: str, from_dt: datetime, to_dt: datetime, now: datetime
) -> list[MissingRun]:
    """The missing slots, newest first, without those for which the chart had no answer."""
    sql = (
        MISSING_RUNS
        + """
        select first, after, step
        from run
        where not unanswered
        order by first desc
    """
    )
    rows = await fetch(pool, sql, ticker, from_dt, to_dt, now, timeout=COVERAGE_DEADLINE_SECONDS)
    return [MissingRun(row["first"], row["after"], row["step"]) for row in rows]
