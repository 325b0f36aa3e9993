-- Candles by the minute and by the hour, kept exact by the transaction that stores, replaces or deletes prices. They are
-- computed anew from the prices of the minutes it touched: a late or backfilled price needs no special case.
create table candle_minutes (
    ticker text collate "C" not null,
    start timestamptz not null,
    open numeric not null,
    high numeric not null,
    low numeric not null,
    close numeric not null,
    samples integer not null,
    -- One bit for each second that has a price stamped with exactly that second. Every slot of every grid is a whole
    -- second, so this tells which slots are there, whatever the schedule was, is, or is corrected to.
    seconds bit(60) not null,
    -- As with prices, every column is in the key's index.
    primary key (ticker, start) include (open, high, low, close, samples, seconds)
);

create table candle_hours (
    ticker text collate "C" not null,
    start timestamptz not null,
    open numeric not null,
    high numeric not null,
    low numeric not null,
    close numeric not null,
    samples integer not null,
    seconds bit(3600) not null,
    primary key (ticker, start) include (open, high, low, close, samples, seconds)
);

-- The running minute and hour are rewritten with each price: vacuum well before a fifth of a large table is dead rows.
alter table candle_minutes set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);
alter table candle_hours set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);

-- The candles of these minutes, and of their hours, anew. Each statement sees what was committed before it began, so
-- whoever holds the writers' lock (below) misses nobody's prices.
create function refresh_candles(tickers text[], minutes timestamptz[]) returns void
language plpgsql
set search_path from current
-- The plan stays with the connection: one that was made for an empty table must not be "read all of it".
set enable_seqscan = off
as $$
begin
    insert into candle_minutes (ticker, start, open, high, low, close, samples, seconds)
    select touched.ticker, touched.start, candle.*
    from unnest(tickers, minutes) as touched (ticker, start)
    cross join lateral (
        select
            (array_agg(price order by timestamp))[1],
            max(price),
            min(price),
            (array_agg(price order by timestamp))[count(*)::integer],
            count(*),
            coalesce(
                bit_or(b'1'::bit(60) >> extract(epoch from timestamp - touched.start)::integer)
                    filter (where date_bin('1 second', timestamp, touched.start) = timestamp),
                b'0'::bit(60)
            )
        from prices
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
        seconds = excluded.seconds;

    insert into candle_hours (ticker, start, open, high, low, close, samples, seconds)
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
            bit_or(seconds::bit(3600) >> extract(epoch from start - touched.start)::integer)
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
        seconds = excluded.seconds;
end
$$;

-- One lock for all writers, held until they commit: of two that add to one minute the second has to see the first one's
-- prices. Writers are few. And as it is taken before any row is locked, no two writers can deadlock.
create function lock_candles() returns trigger
language plpgsql
as $$
begin
    perform pg_advisory_xact_lock(1667329636, 1);  -- "cand": any number that no other program on this database uses
    return null;
end
$$;

create function follow_prices() returns trigger
language plpgsql
set search_path from current
as $$
begin
    if tg_op <> 'INSERT' then
        -- A minute or an hour may be left without prices; those that have some come back at once.
        delete from candle_minutes
        using touched
        where candle_minutes.ticker = touched.ticker
          and candle_minutes.start = date_bin('1 minute', touched.timestamp, 'epoch');
        delete from candle_hours
        using touched
        where candle_hours.ticker = touched.ticker
          and candle_hours.start = date_bin('1 hour', touched.timestamp, 'epoch');
    end if;
    perform refresh_candles(array_agg(ticker), array_agg(minute))
    from (
        select distinct ticker, date_bin('1 minute', timestamp, 'epoch') as minute
        from touched
    ) as touched_minute
    having count(*) > 0;
    return null;
end
$$;

create function truncate_candles() returns trigger
language plpgsql
set search_path from current
as $$
begin
    truncate candle_minutes, candle_hours;
    return null;
end
$$;

create trigger lock_candles
before insert or update or delete on prices
for each statement execute function lock_candles();

create trigger follow_inserted
after insert on prices
referencing new table as touched
for each statement execute function follow_prices();

create trigger follow_deleted
after delete on prices
referencing old table as touched
for each statement execute function follow_prices();

-- What an update took away, and what it put in its place: the key may have changed.
create trigger follow_updated_old
after update on prices
referencing old table as touched
for each statement execute function follow_prices();

create trigger follow_updated_new
after update on prices
referencing new table as touched
for each statement execute function follow_prices();

create trigger follow_truncated
after truncate on prices
for each statement execute function truncate_candles();

-- The prices that are there already, a day at a time. From the first trigger on, others cannot write until this is
-- committed.
select refresh_candles(array_agg(ticker), array_agg(minute))
from (
    select distinct ticker, date_bin('1 minute', timestamp, 'epoch') as minute
    from prices
) as stored_minute
group by ticker, date_bin('1 day', minute, 'epoch');
