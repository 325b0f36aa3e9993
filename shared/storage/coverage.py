"""How much of the schedule's grid is stored, counted in SQL from the hourly candles.

A candle has a bit for each second with a price, and keeps it when retention drops the price. So an hour is one row,
whatever the grid, and kept and dropped prices are counted alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from shared.errors import QueryTooComplex
from shared.storage.database import Pool, Statement, fetch
from shared.storage.schedules import SCHEDULE

MAX_HOURS = 3 * 366 * 24
"Of the schedule, in one question: three years are read in a fraction of a second, even if every hour has gaps."


@dataclass(frozen=True, slots=True)
class Coverage:
    """Slots of the grid that have ended: how many are expected, and how many have a price.

    `dropped`: how many of the present ones only candles show, because retention dropped their prices. `averaged`: how
    many of the present ones hold an average of the chart; the others were observed.
    """

    expected: int
    present: int
    dropped: int = 0
    averaged: int = 0


# $1 ticker, $2 from, $3 to (exclusive), $4 now or null. A segment for each schedule that reaches into the period: the
# first slot in it and the end of the last one. Nothing is expected before the first schedule, and a running slot is not
# missing. Each bit of `slots` is a second of an hour, and is 1 at a slot: every step divides the hour.
SEGMENTS = f"""
    with schedule as ({SCHEDULE}), bounded as (
        select
            step,
            interval_seconds,
            greatest(since, $2::timestamptz) as lower,
            least(until, $3::timestamptz, date_bin(step, coalesce($4::timestamptz, now()), 'epoch')) as upper
        from schedule
    ), rounded as (
        -- Both bounds rounded up to the grid; date_bin rounds towards the past.
        select
            step,
            interval_seconds,
            date_bin(step, lower + step - interval '1 microsecond', 'epoch') as lower,
            date_bin(step, upper + step - interval '1 microsecond', 'epoch') as upper
        from bounded
        where lower < upper
    ), size as (
        select coalesce(ceil(sum(extract(epoch from upper - lower)) / 3600), 0)::bigint as hours
        from rounded
    ), segment as materialized (
        select rounded.*, rpad('', 3600, rpad('1', interval_seconds, '0'))::bit(3600) as slots
        from rounded
        cross join size
        where lower < upper
          and hours <= {MAX_HOURS}
    )
"""

HOURS = f"{SEGMENTS} select hours from size"
"How many hours of the schedule are in the period."

# The seconds of an hour that are inside the segment: mostly all of them.
BOUNDS = """
    cross join lateral (
        select
            greatest(extract(epoch from lower - hour.start)::integer, 0) as first,
            least(extract(epoch from upper - hour.start)::integer, 3600) as after
    ) as bounds
"""

_COUNTED = f"""
    {SEGMENTS}, stored as (
        select
            hour.start,
            bit_count(substring(seconds & slots from first + 1 for after - first)) as present,
            coalesce(bit_count(substring(averaged & slots from first + 1 for after - first)), 0) as averaged
        from segment
        join candle_hours as hour
            on hour.ticker = $1
           and hour.start > lower - interval '1 hour'
           and hour.start < upper
        {BOUNDS}
    ), total as (
        select
            (select coalesce(sum(round(extract(epoch from upper - lower) / interval_seconds)), 0) from segment)::bigint
                as expected,
            coalesce(sum(present), 0)::bigint as present,
            coalesce(sum(averaged), 0)::bigint as averaged,
            -- `kept_from` is a midnight: no hour is half before it.
            coalesce(sum(present) filter (
                where start < (select kept_from from dropped_prices where ticker = $1)
            ), 0)::bigint as dropped
        from stored
    )
    select
        expected,
        present,
        present - averaged as observed,
        averaged,
        dropped,
        coalesce(present::float8 / nullif(expected, 0), 1) as ratio,
        present = expected as complete,
        hours,
        hours > {MAX_HOURS} as is_refused,
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
    cross join size
"""


def coverage(ticker: str, from_dt: datetime, to_dt: datetime, now: datetime | None = None) -> Statement:
    """Counts the ended slots in [from_dt, to_dt). `now` is PostgreSQL's clock unless it is given.

    Refused with `QueryTooComplex` if the schedule has more than `MAX_HOURS` in the period.
    """
    return Statement(_COUNTED, (ticker, from_dt, to_dt, now), expires=True, refuse=too_long)


def too_long(row: asyncpg.Record) -> QueryTooComplex:
    return QueryTooComplex(
        f"The period has {row['hours']} hours of the ticker's schedule; at most {MAX_HOURS} fit, whatever its interval."
    )


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
    return {row["ticker"]: coverage_of(row) for row in rows}


def coverage_of(row: asyncpg.Record) -> Coverage:
    return Coverage(row["expected"], row["present"], row["dropped"], row["averaged"])
