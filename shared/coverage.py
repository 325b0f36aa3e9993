"""How much of the schedule's grid is stored, and what is missing and why. Computed in SQL from the rows themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from shared.db import Pool, fetch, fetch_row
from shared.schedules import GapReason, MissingRun

COVERAGE_DEADLINE_SECONDS = 5.0
"A year of one-second slots is many rows to count; the answer is worth more than two seconds."


@dataclass(frozen=True, slots=True)
class Coverage:
    """Slots of the grid that have ended: how many there should be, and how many there are."""

    expected: int
    present: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Consecutive missing slots with one reason, from the first slot's beginning to the last one's end."""

    from_dt: datetime
    to_dt: datetime
    missing: int
    reason: GapReason
    detail: str | None


# $1 ticker, $2 from, $3 to (exclusive), $4 now. One row per schedule that reaches into the period, with the first slot
# asked about and the end of the last one: nothing is expected before the first schedule, and a slot that is still
# running is not missing.
_SEGMENTS = """
    with schedule as (
        select
            make_interval(secs => interval_seconds) as step,
            since,
            lead(since, 1, 'infinity') over (order by since) as until
        from schedules
        where ticker = $1
    ), bounded as (
        select
            step,
            greatest(since, $2::timestamptz) as lower,
            least(until, $3::timestamptz, date_bin(step, $4::timestamptz, 'epoch')) as upper
        from schedule
    ), segment as (
        -- Both bounds rounded up to the grid; date_bin rounds towards the past.
        select
            step,
            date_bin(step, lower + step - interval '1 microsecond', 'epoch') as lower,
            date_bin(step, upper + step - interval '1 microsecond', 'epoch') as upper
        from bounded
        where lower < upper
    )
"""

# Runs of missing slots: the holes between stored neighbours, split where the reason of a slot is known. Only the holes
# are sorted, for the stored slots come from the index in order.
_RUNS = (
    _SEGMENTS
    + """
    , hole as (
        select segment.step, bounds.first, bounds.after
        from segment
        cross join lateral (
            select previous + segment.step as first, timestamp as after
            from (
                select timestamp, lag(timestamp, 1, segment.lower - segment.step) over (order by timestamp) as previous
                from prices
                where ticker = $1
                  and timestamp >= segment.lower
                  and timestamp < segment.upper
                  and date_bin(segment.step, timestamp, 'epoch') = timestamp
            ) as stored
            where timestamp > previous + segment.step
            union all
            select
                segment.step + coalesce(
                    (
                        select timestamp
                        from prices
                        where ticker = $1
                          and timestamp >= segment.lower
                          and timestamp < segment.upper
                          and date_bin(segment.step, timestamp, 'epoch') = timestamp
                        order by timestamp desc
                        limit 1
                    ),
                    segment.lower - segment.step
                ),
                segment.upper
        ) as bounds
        where bounds.first < bounds.after
    ), event as (
        select hole.*, known.*
        from hole
        cross join lateral (
            -- The stored slot, or the bound, that the hole begins behind.
            select
                hole.first - hole.step as slot,
                true as present,
                null::gap_reason as reason,
                null::text as detail,
                false as unanswered
            union all
            select slot, false, reason, detail, unanswered
            from missed_slots
            where ticker = $1
              and slot >= hole.first
              and slot < hole.after
              and date_bin(hole.step, slot, 'epoch') = slot
        ) as known
    ), neighbour as (
        select *, lead(slot, 1, after) over (partition by first order by slot) as next
        from event
    ), run as (
        select slot as first, slot + step as after, step, reason, detail, unanswered
        from neighbour
        where not present
        union all
        select slot + step, next, step, 'NOT_COLLECTED', null, false
        from neighbour
        where next > slot + step
    )
"""
)


_COUNTED = (
    _SEGMENTS
    + """
    select
        coalesce(sum(round(extract(epoch from upper - lower) / extract(epoch from step))), 0)::bigint as expected,
        coalesce(sum(stored.present), 0)::bigint as present
    from segment
    cross join lateral (
        select count(*) as present
        from prices
        where ticker = $1
          and timestamp >= segment.lower
          and timestamp < segment.upper
          and date_bin(segment.step, timestamp, 'epoch') = timestamp
    ) as stored
"""
)


async def select_coverage(pool: Pool, ticker: str, from_dt: datetime, to_dt: datetime, now: datetime) -> Coverage:
    """Count the ended slots in [from_dt, to_dt)."""
    # A year of seconds may take its time; a storage that is away must not take as long to be found out.
    await fetch(pool, "select")
    row = await fetch_row(pool, _COUNTED, ticker, from_dt, to_dt, now, timeout=COVERAGE_DEADLINE_SECONDS)
    assert row is not None  # noqa: S101  an aggregate always has one row
    return Coverage(expected=row["expected"], present=row["present"])


async def select_coverages(
    pool: Pool, tickers: Sequence[str], from_dt: datetime, to_dt: datetime, now: datetime
) -> dict[str, Coverage]:
    """As `select_coverage`, for several tickers and a short period."""
    sql = f"""
        select wanted.ticker, counted.*
        from unnest($1::text[]) as wanted (ticker)
        cross join lateral ({_COUNTED.replace("$1", 'wanted.ticker collate "C"')}) as counted
    """
    rows = await fetch(pool, sql, list(tickers), from_dt, to_dt, now)
    return {row["ticker"]: Coverage(expected=row["expected"], present=row["present"]) for row in rows}


async def select_gaps(
    pool: Pool, ticker: str, from_dt: datetime, to_dt: datetime, now: datetime, limit: int
) -> list[Gap]:
    """Oldest first, neighbouring runs with the same reason and detail merged."""
    sql = (
        _RUNS
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
    rows = await fetch(pool, sql, ticker, from_dt, to_dt, now, limit, timeout=COVERAGE_DEADLINE_SECONDS)
    return [Gap(row["from_dt"], row["to_dt"], row["missing"], GapReason(row["reason"]), row["detail"]) for row in rows]


async def select_missing_runs(
    pool: Pool, ticker: str, from_dt: datetime, to_dt: datetime, now: datetime
) -> list[MissingRun]:
    """The missing slots that the chart has not been asked about in vain, newest first."""
    sql = (
        _RUNS
        + """
        select first, after, step
        from run
        where not unanswered
        order by first desc
    """
    )
    rows = await fetch(pool, sql, ticker, from_dt, to_dt, now, timeout=COVERAGE_DEADLINE_SECONDS)
    return [MissingRun(row["first"], row["after"], row["step"]) for row in rows]
