"""What is missing of the schedule's grid, and why: for clients as gaps, for healing as runs."""

from datetime import datetime

import asyncpg

from shared.storage.coverage import BOUNDS, SEGMENTS
from shared.storage.database import WRITE_SECONDS, Pool, Statement, fetch
from shared.storage.missed_slots import MissingRun

MAX_RUNS = 1000
"Of missing slots that one healing pass reads; the next pass reads the rest."

ROWS_AN_HOUR = 6
"What an hour costs, in rows that `coverage` reads."

_MISSING = "expected & ~present"
_AVERAGED = "expected & averages"

# Hours with slots that are {wanted}: `missing` has a bit for each of them, `expected` for each slot of the segment.
_INCOMPLETE = f"""
    {SEGMENTS}, hour as materialized (
        select hour.start, step, interval_seconds, first, after, expected, {{wanted}} as missing
        from segment
        cross join lateral generate_series(
            date_bin('1 hour', lower, 'epoch'), upper - interval '1 microsecond', interval '1 hour'
        ) as hour (start)
        left join candle_hours on candle_hours.ticker = $1 and candle_hours.start = hour.start
        {BOUNDS}
        cross join lateral (
            select
                coalesce(seconds, b'0'::bit(3600)) as present,
                coalesce(averaged, b'0'::bit(3600)) as averages,
                case
                    when after - first = 3600 then slots
                    else slots & (~b'0'::bit(3600) >> first) & ~(~b'0'::bit(3600) >> after)
                end as expected
        ) as bits
        where bit_count({{wanted}}) > 0
    )
"""

# The runs of missing slots within an hour. Where a slot differs from the one before it, a run begins or has ended. To
# cut the bits at every such place leaves the zeros before each, whose lengths give the positions.
_HOLES = """
    , hole as (
        select step, start + first * interval '1 second' as first, start + after * interval '1 second' as after
        from {hour}
        where missing = expected
        union all
        select step, start + second * interval '1 second', start + next_second * interval '1 second'
        from {hour}
        cross join lateral (
            select second, lead(second) over (order by number) as next_second, number
            from (
                select number, sum(length(zeros)) over (order by number) + number - 1 as second
                from string_to_table((missing # (missing >> interval_seconds))::text, '1')
                    with ordinality as cut (zeros, number)
            ) as change
        ) as run
        where missing <> expected
          and number % 2 = 1
          and second < 3600
    ), missing_run as (
        select step, lower(run) as first, upper(run) as after
        from (select step, range_agg(tstzrange(first, after)) as runs from hole group by step) as merged
        cross join lateral unnest(runs) as run
    )
"""

# What no source can answer any better. These runs do not overlap, so of those that begin before the period only the
# last one can reach it.
_NOTED = """
    select first, until, detail
    from unanswered_runs
    where ticker = $1
      and first < {upper}
      and until > {lower}
      and first >= coalesce(
          (
              select max(earlier.first)
              from unanswered_runs as earlier
              where earlier.ticker = $1
                and earlier.first <= {lower}
          ),
          '-infinity'
      )
"""

# $5 limit. Hours until more gaps have begun than are wanted: a run that goes on from the hour before, or from the
# schedule before, is not a gap of its own.
_GAPS = f"""
    {_INCOMPLETE.format(wanted=_MISSING)}, counted as (
        select
            *,
            sum(bit_count(missing & ~(missing >> interval_seconds)) - get_bit(missing, 0))
                over (order by start) as begun
        from hour
    ), wanted as (
        select *
        from counted
        where start <= coalesce(
            (select min(start) from counted where begun > $5 + (select count(*) from segment)), 'infinity'
        )
    )
    {_HOLES.format(hour="wanted")}, event as (
        select missing_run.*, known.*
        from missing_run
        cross join lateral (
            -- The slot before the run, then those in it whose reason is known.
            select first - step as slot, true as before, null::gap_reason as reason, null::text as detail
            union all
            select slot, false, reason, detail
            from missed_slots
            where ticker = $1
              and slot >= first
              and slot < after
              and date_bin(step, slot, 'epoch') = slot
        ) as known
    ), neighbour as (
        select *, lead(slot, 1, after) over (partition by first order by slot) as next
        from event
    ), run as (
        select slot as first, slot + step as after, step, reason, detail
        from neighbour
        where not before
        union all
        select part.first, part.after, step, 'NOT_COLLECTED', part.detail
        from (select slot + step as first, next as after, step from neighbour where next > slot + step) as unknown
        cross join lateral (
            -- Cut where the slots begin and end that no source could answer.
            select at as first, lead(at, 1, unknown.after) over (order by at, detail nulls first) as after, detail
            from (
                select unknown.first as at, null as detail
                union all
                select cut.*
                from ({_NOTED.format(lower="unknown.first", upper="unknown.after")}) as noted
                cross join lateral (
                    select
                        greatest(date_bin(step, noted.first + step - interval '1 microsecond', 'epoch'), unknown.first)
                            as begin,
                        date_bin(step, noted.until + step - interval '1 microsecond', 'epoch') as stop
                ) as slots
                cross join lateral (values (slots.begin, noted.detail), (slots.stop, null)) as cut (at, detail)
                where begin < stop
                  and cut.at < unknown.after
            ) as cut
        ) as part
        where part.first < part.after
    ), marked as (
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


def _runs(wanted: str) -> str:
    """$5 limit. Without the noted slots, which may be those of another grid, of an earlier schedule."""
    return f"""
        {_INCOMPLETE.format(wanted=wanted)}
        {_HOLES.format(hour="hour")}, unknown as (
            select
                step,
                range_agg(tstzrange(first, after)) - coalesce(
                    (select range_agg(tstzrange(first, until)) from ({_NOTED.format(lower="$2", upper="$3")}) as noted),
                    '{{}}'
                ) as runs
            from missing_run
            group by step
        ), run as (
            select
                date_bin(step, lower(run) + step - interval '1 microsecond', 'epoch') as first,
                date_bin(step, upper(run) + step - interval '1 microsecond', 'epoch') as after,
                step
            from unknown
            cross join lateral unnest(runs) as run
        )
        select first, after, step
        from run
        where first < after
        order by first desc
        limit $5
    """


_MISSING_RUNS, _AVERAGED_RUNS = _runs(_MISSING), _runs(_AVERAGED)


def gaps(ticker: str, from_dt: datetime, to_dt: datetime, limit: int, now: datetime | None = None) -> Statement:
    """Oldest first; neighbouring runs with the same reason and detail are merged. Of a period that `coverage` refuses,
    none.
    """
    return Statement(_GAPS, (ticker, from_dt, to_dt, now, limit))


async def select_missing_runs(
    pool: Pool, ticker: str, from_dt: datetime, to_dt: datetime, now: datetime, limit: int = MAX_RUNS
) -> list[MissingRun]:
    """The missing slots as the longest runs, newest first, without those that no source could answer."""
    rows = await fetch(pool, _MISSING_RUNS, ticker, from_dt, to_dt, now, limit, timeout=WRITE_SECONDS)
    return _runs_of(rows)


async def select_averaged_runs(
    pool: Pool, ticker: str, from_dt: datetime, to_dt: datetime, now: datetime, limit: int = MAX_RUNS
) -> list[MissingRun]:
    """As `select_missing_runs`, of the slots that hold an average of the chart."""
    rows = await fetch(pool, _AVERAGED_RUNS, ticker, from_dt, to_dt, now, limit, timeout=WRITE_SECONDS)
    return _runs_of(rows)


def _runs_of(rows: list[asyncpg.Record]) -> list[MissingRun]:
    return [MissingRun(row["first"], row["after"], row["step"]) for row in rows]
