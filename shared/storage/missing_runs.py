"""SQL that `coverage.py` completes: segments of the grid, and the runs of missing slots in them."""

# $1 ticker, $2 from, $3 to (exclusive), $4 now or null. One row for each schedule that reaches into the period: the
# first slot in it and the end of the last one. Nothing is expected before the first schedule, and a running slot is not
# missing. Dropped and kept prices are segments of their own.
SEGMENTS = """
    with dropped as (
        select kept_from
        from dropped_prices
        where ticker = $1
    ), schedule as (
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
            least(until, $3::timestamptz, date_bin(step, coalesce($4::timestamptz, now()), 'epoch')) as upper
        from schedule
    ), rounded as (
        -- Both bounds rounded up to the grid; date_bin rounds towards the past.
        select
            step,
            date_bin(step, lower + step - interval '1 microsecond', 'epoch') as lower,
            date_bin(step, upper + step - interval '1 microsecond', 'epoch') as upper
        from bounded
        where lower < upper
    ), segment as (
        -- `kept_from` is a midnight, which is on every grid. If it is null, greatest and least ignore it.
        select step, greatest(lower, (select kept_from from dropped)) as lower, upper
        from rounded
        where upper > coalesce((select kept_from from dropped), '-infinity')
    ), dropped_segment as (
        select
            step,
            lower,
            least(upper, kept_from) as upper,
            -- A bit for each second of a minute that is a slot: every step divides the minute, or is a multiple of it.
            rpad('', 60, rpad('1', extract(epoch from step)::integer, '0'))::bit(60) as slots
        from rounded
        cross join dropped
        where lower < kept_from
    )
"""

# Runs of missing slots: the holes between stored neighbours, split at slots whose reason is known. Only the holes are
# sorted, because the index returns the stored slots in order.
MISSING_RUNS = (
    SEGMENTS
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
        union all
        select dropped_segment.step, bounds.first, bounds.after
        from dropped_segment
        cross join lateral (
            select
                lag(stored.last, 1, lower - step) over (order by stored.first) + step as first,
                stored.first as after
            from (
                select stretch.first, stretch.last
                from candle_minutes
                cross join lateral (
                    select start + interval '1 minute' - least(step, interval '1 minute') as last_slot
                ) as minute
                cross join lateral (
                    select start >= lower and last_slot < upper and seconds & slots = slots as is_whole
                ) as known
                cross join lateral (
                    -- A complete minute as one stretch, or its slots one by one.
                    select start as first, last_slot as last
                    where is_whole
                    union all
                    select slot, slot
                    from generate_series(start, last_slot, step) as slot
                    where not is_whole
                      and slot >= lower
                      and slot < upper
                      and get_bit(seconds, extract(epoch from slot - start)::integer) = 1
                ) as stretch
                where ticker = $1
                  and start > lower - interval '1 minute'
                  and start < upper
                  and date_bin(step, start, 'epoch') = start
                union all
                select upper, null
            ) as stored
        ) as bounds
        where bounds.first < bounds.after
    ), event as (
        select hole.*, known.*
        from hole
        cross join lateral (
            -- The stored slot, or the bound, before the hole.
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
