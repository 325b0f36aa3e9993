"""Candles from rollups by minute and by hour, which triggers keep exact in the transaction that stores prices."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum

from shared.storage.database import Statement
from shared.storage.schedules import SCHEDULE


class CandleInterval(StrEnum):
    ONE_MINUTE = "ONE_MINUTE"
    THREE_MINUTES = "THREE_MINUTES"
    FIVE_MINUTES = "FIVE_MINUTES"
    FIFTEEN_MINUTES = "FIFTEEN_MINUTES"
    THIRTY_MINUTES = "THIRTY_MINUTES"
    ONE_HOUR = "ONE_HOUR"
    TWO_HOURS = "TWO_HOURS"
    FOUR_HOURS = "FOUR_HOURS"
    SIX_HOURS = "SIX_HOURS"
    TWELVE_HOURS = "TWELVE_HOURS"
    ONE_DAY = "ONE_DAY"
    ONE_WEEK = "ONE_WEEK"


LENGTHS = {
    CandleInterval.ONE_MINUTE: timedelta(minutes=1),
    CandleInterval.THREE_MINUTES: timedelta(minutes=3),
    CandleInterval.FIVE_MINUTES: timedelta(minutes=5),
    CandleInterval.FIFTEEN_MINUTES: timedelta(minutes=15),
    CandleInterval.THIRTY_MINUTES: timedelta(minutes=30),
    CandleInterval.ONE_HOUR: timedelta(hours=1),
    CandleInterval.TWO_HOURS: timedelta(hours=2),
    CandleInterval.FOUR_HOURS: timedelta(hours=4),
    CandleInterval.SIX_HOURS: timedelta(hours=6),
    CandleInterval.TWELVE_HOURS: timedelta(hours=12),
    CandleInterval.ONE_DAY: timedelta(days=1),
    CandleInterval.ONE_WEEK: timedelta(weeks=1),
}

MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
"Where the candles of all lengths are counted from: a Monday, because a week begins on Monday, 00:00 UTC."


# $1 ticker, $2 length of a candle, $3 from, $4 to, $5 limit, $6 now or null. A row of `{table}`: `{width}` s.
_CANDLES = """
    with schedule as (
        select
            *,
            -- A bit for each second of a row that is a slot: a step divides the row's width, or is a multiple of it.
            rpad('', {width}, rpad('1', interval_seconds, '0'))::bit({width}) as slots
        from ({schedule}) as grid
    ), whole as (
        -- The schedule that is in force all over the period, if there is one. Mostly there is, and counting is cheap.
        select interval_seconds, step, slots
        from schedule
        where since <= date_bin($2, $3, '{monday}')
          and until >= date_bin($2, $4, '{monday}') + $2
    ), part as (
        -- As many rows as fit into `limit` candles are enough.
        select date_bin($2, start, '{monday}') as bucket, start, open, high, low, close, samples, seconds
        from {table}
        where ticker = $1
          and start >= date_bin($2, $3, '{monday}')
          and start < date_bin($2, $4, '{monday}') + $2
        order by start
        limit $5::bigint * (extract(epoch from $2::interval) / {width})::bigint
    ), candle as (
        select
            bucket,
            {open} as open,
            {high} as high,
            {low} as low,
            {close} as close,
            {samples} as samples,
            {sum}(
                case
                    when (select step from whole) is null then (
                        select sum(bit_count(substring(seconds & slots from first + 1 for after - first)))
                        from schedule
                        cross join lateral (
                            -- The seconds of the row in which the schedule was in force: mostly all.
                            select
                                case
                                    when since <= start then 0
                                    else ceil(extract(epoch from since - start))::integer
                                end as first,
                                case
                                    when until >= start + interval '{width} s' then {width}
                                    else ceil(extract(epoch from until - start))::integer
                                end as after
                        ) as bounds
                        where since < start + interval '{width} s'
                          and until > start
                          and date_bin(step, start, 'epoch') = start
                    )
                    when date_bin((select step from whole), start, 'epoch') = start
                    then bit_count(seconds & (select slots from whole))
                end
            ) as present
        from part
        {group_by}
        order by bucket
        limit $5
    )
    select
        $1 as ticker,
        bucket as start,
        open,
        high,
        low,
        close,
        samples,
        bucket + $2 <= coalesce($6::timestamptz, now())
            and coalesce(bucket >= (select min(since) from schedule), false)
            and coalesce(present, 0) = case
                when (select step from whole) is null then (
                    select coalesce(sum(
                        ceil(extract(epoch from least(until, bucket + $2)) / interval_seconds)
                        - ceil(extract(epoch from greatest(since, bucket)) / interval_seconds)
                    ), 0)
                    from schedule
                    where since < bucket + $2
                      and until > bucket
                )
                -- Of whole seconds a float counts exactly, in a third of the time.
                else ceil(date_part('epoch', bucket + $2) / (select interval_seconds from whole))
                    - ceil(date_part('epoch', bucket) / (select interval_seconds from whole))
            end as complete,
        case when bucket + $2 > coalesce($6, now()) then bucket + $2 end as expires_at
    from candle
    order by bucket
"""

_AS_IT_IS = dict.fromkeys(("sum", "group_by"), "") | {
    name: name for name in ("open", "high", "low", "close", "samples")
}
_GROUPED = {
    "open": "(array_agg(open order by start))[1]",
    "high": "max(high)",
    "low": "min(low)",
    "close": "(array_agg(close order by start))[count(*)::integer]",
    "samples": "sum(samples)::integer",
    "sum": "sum",
    "group_by": "group by bucket",
}


def _sql(length: timedelta) -> str:
    """A candle as long as a row is that row. To group rows one by one would take most of the time."""
    table, width = ("candle_minutes", 60) if length < timedelta(hours=1) else ("candle_hours", 3600)
    parts = _AS_IT_IS if length == timedelta(seconds=width) else _GROUPED
    return _CANDLES.format(table=table, width=width, monday=MONDAY, schedule=SCHEDULE, **parts)


_SQL = {interval: _sql(length) for interval, length in LENGTHS.items()}


def candles(
    ticker: str,
    interval: CandleInterval,
    from_dt: datetime,
    to_dt: datetime,
    limit: int,
    now: datetime | None = None,
) -> Statement:
    """Oldest first: every whole candle from the one that contains `from_dt` to the one that contains `to_dt`.

    A candle that begins before the first schedule is never complete, because nothing was expected then. `now` is
    PostgreSQL's clock unless it is given.
    """
    return Statement(_SQL[interval], (ticker, LENGTHS[interval], from_dt, to_dt, limit, now), expires=True)
