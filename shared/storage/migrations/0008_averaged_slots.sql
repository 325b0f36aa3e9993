-- Which seconds of a candle hold an average of the exchange's chart, so that coverage can be counted from candles alone
-- and still tell observed slots from averaged ones.

-- Writers wait until this is committed. Taken before any table is locked, in the order in which writers lock.
select pg_advisory_xact_lock(1667329636, 1);

-- The long scan of `prices` comes before the locks that readers of candles wait for.
create temporary table averaged_minutes on commit drop as
select
    ticker,
    date_bin('1 minute', timestamp, 'epoch') as start,
    bit_or(
        b'1'::bit(60) >> extract(epoch from timestamp - date_bin('1 minute', timestamp, 'epoch'))::integer
    ) as averaged
from prices
where source = 'BACKFILLED'
  and isfinite(timestamp)
  and date_bin('1 second', timestamp, 'epoch') = timestamp
group by 1, 2;

-- Null: none, which costs nothing. Always a part of `seconds`. Of prices that retention dropped before this migration,
-- nothing tells averages from observations any more, so they count as observed.
alter table candle_minutes add column averaged bit(60);
alter table candle_hours add column averaged bit(3600);

-- An index that held every column made each change of a running candle write all of it again, into a new place of the
-- index. With the plain key, PostgreSQL changes the row within its page (a heap-only tuple) and leaves the index alone.
alter table candle_minutes drop constraint candle_minutes_pkey, add primary key (ticker, start);
alter table candle_hours drop constraint candle_hours_pkey, add primary key (ticker, start);
alter table candle_minutes set (fillfactor = 90);
alter table candle_hours set (fillfactor = 80);

update candle_minutes
set averaged = averaged_minutes.averaged
from averaged_minutes
where candle_minutes.ticker = averaged_minutes.ticker
  and candle_minutes.start = averaged_minutes.start;

update candle_hours
set averaged = averaged_hours.averaged
from (
    select
        ticker,
        date_bin('1 hour', start, 'epoch') as start,
        bit_or(averaged::bit(3600) >> extract(epoch from start - date_bin('1 hour', start, 'epoch'))::integer)
            as averaged
    from averaged_minutes
    group by 1, 2
) as averaged_hours
where candle_hours.ticker = averaged_hours.ticker
  and candle_hours.start = averaged_hours.start;

-- As in 0003, with the averaged seconds.
create or replace function refresh_candles(tickers text[], minutes timestamptz[]) returns void
language plpgsql
set search_path from current
set enable_seqscan = off
as $$
begin
    insert into candle_minutes (ticker, start, open, high, low, close, samples, seconds, averaged)
    select touched.ticker, touched.start, candle.*
    from unnest(tickers, minutes) as touched (ticker, start)
    cross join lateral (
        select
            (array_agg(price order by timestamp))[1],
            max(price),
            min(price),
            (array_agg(price order by timestamp))[count(*)::integer],
            count(*),
            coalesce(bit_or(second), b'0'::bit(60)),
            bit_or(second) filter (where source = 'BACKFILLED')
        from prices
        cross join lateral (
            select
                case
                    when date_bin('1 second', timestamp, touched.start) = timestamp
                    then b'1'::bit(60) >> extract(epoch from timestamp - touched.start)::integer
                end as second
        ) as stamped
        where prices.ticker = touched.ticker collate "C"
          and timestamp >= touched.start
          and timestamp < touched.start + interval '1 minute'
        having count(*) > 0
    ) as candle
    on conflict (ticker, start) do update
    set open = excluded.open,
        high = excluded.high,
        low = excluded.low,
        close = excluded.close,
        samples = excluded.samples,
        seconds = excluded.seconds,
        averaged = excluded.averaged;

    insert into candle_hours (ticker, start, open, high, low, close, samples, seconds, averaged)
    select touched.ticker, touched.start, candle.*
    from (
        select distinct ticker, date_bin('1 hour', minute, 'epoch')
        from unnest(tickers, minutes) as touched_minute (ticker, minute)
    ) as touched (ticker, start)
    cross join lateral (
        select
            (array_agg(open order by start))[1],
            max(high),
            min(low),
            (array_agg(close order by start))[count(*)::integer],
            sum(samples),
            bit_or(seconds::bit(3600) >> extract(epoch from start - touched.start)::integer),
            bit_or(averaged::bit(3600) >> extract(epoch from start - touched.start)::integer)
        from candle_minutes
        where candle_minutes.ticker = touched.ticker collate "C"
          and start >= touched.start
          and start < touched.start + interval '1 hour'
        having count(*) > 0
    ) as candle
    on conflict (ticker, start) do update
    set open = excluded.open,
        high = excluded.high,
        low = excluded.low,
        close = excluded.close,
        samples = excluded.samples,
        seconds = excluded.seconds,
        averaged = excluded.averaged;
end
$$;
