"""Candles from rollups by minute and by hour, which triggers keep exact in the transaction that stores prices."""

from datetime import datetime, timedelta
from enum import StrEnum

from shared.storage.database import Statement
from shared.storage.schedules import SCHEDULE


class CandleInterval(StrEnum):
    ONE_MINUTE = "ONE_MINUTE"
    FIVE_MINUTES = "FIVE_MINUTES"
    FIFTEEN_MINUTES = "FIFTEEN_MINUTES"
    ONE_HOUR = "ONE_HOUR"
    FOUR_HOURS = "FOUR_HOURS"
    ONE_DAY = "ONE_DAY"


LENGTHS = {
    CandleInterval.ONE_MINUTE: timedelta(minutes=1),
    CandleInterval.FIVE_MINUTES: timedelta(minutes=5),
    CandleInterval.FIFTEEN_MINUTES: timedelta(minutes=15),
    CandleInterval.ONE_HOUR: timedelta(hours=1),
    CandleInterval.FOUR_HOURS: timedelta(hours=4),
    CandleInterval.ONE_DAY: timedelta(days=1),
}


# $1 ticker, $2 length of a candle, $3 from, $4 to, $5 limit, $6 now or null. A row of `{table}`: `{width}` s.
_CANDLES = """
    with schedule as (
        select
            *,
            -- A bit for each second of a row that is a slot: a step divides the row's width, or is a multiple of it.
            rpad('', {width}, rpad('1', interval_seconds, '0'))::bit({width}) as slots
        from ({schedule}) as grid
    ), part as (
        -- As many rows as fit into `limit` candles are enough.
        select date_bin($2, start, 'epoch') as bucket, start, open, high, low, close, samples, seconds
        from {table}
        where ticker = $1
          and start >= date_bin($2, $3, 'epoch')
          and start < date_bin($2, $4, 'epoch') + $2
        order by start
        limit $5::bigint * (extract(epoch from $2::interval) / {width})::bigint
    ), candle as (
        select
            bucket,
            (array_agg(open order by start))[1] as open,
            max(high) as high,
            min(low) as low,
            (array_agg(close order by start))[count(*)::integer] as close,
            sum(samples)::integer as samples,
            sum((
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
            )) as present
        from part
        group by bucket
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
            and coalesce(present, 0) = (
                select coalesce(sum(
                    ceil(extract(epoch from least(until, bucket + $2)) / interval_seconds)
                    - ceil(extract(epoch from greatest(since, bucket)) / interval_seconds)
                ), 0)
                from schedule
                where since < bucket + $2
                  and until > bucket
            ) as complete,
        case when bucket + $2 > coalesce($6, now()) then bucket + $2 end as expires_at
    from candle
    order by bucket
"""

_FROM_MINUTES = _CANDLES.format(table="candle_minutes", width=60, schedule=SCHEDULE)
_FROM_HOURS = _CANDLES.format(table="candle_hours", width=3600, schedule=SCHEDULE)


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
    length = LENGTHS[interval]
    sql = _FROM_MINUTES if length < timedelta(hours=1) else _FROM_HOURS
    return Statement(sql, (ticker, length, from_dt, to_dt, limit, now), expires=True)
