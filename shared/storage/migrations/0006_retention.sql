-- Raw prices that are dropped for their age (RETENTION_DAYS), and their candles, which stay as they are.
create table dropped_prices (
    ticker text collate "C" primary key,
    -- Older prices are dropped, or about to be: from the moment this is committed their candles are never computed again,
    -- so it does not matter when the rows go, in how many pieces, and whether somebody was killed in between. A
    -- midnight, UTC, so that no candle is half before it.
    kept_from timestamptz not null check (date_bin('1 day', kept_from, 'epoch') = kept_from),
    -- How far the rows are gone: what deletes more of them does not read again what is left of these until a vacuum.
    dropped_until timestamptz not null default '-infinity',
    prices bigint not null default 0,
    -- How often a price came for what was dropped before, and was not stored.
    late bigint not null default 0,
    dropped_at timestamptz
);

-- Until it is committed, nobody stores what is before the new instant and may not have been seen by those who delete.
create trigger lock_candles
before insert or update on dropped_prices
for each statement execute function lock_candles();

-- What is deleted leaves room only when it is vacuumed: well before a fifth of a large table.
alter table prices set (autovacuum_vacuum_scale_factor = 0.05);

-- As in 0004, and the instant before which rows are looked at one by one, for all tickers together: it is read under the
-- writers' lock, which whoever deletes rows takes too.
create or replace function number_prices() returns trigger
language plpgsql
set search_path from current
as $$
begin
    perform set_config('prices.batch', nextval('price_batches')::text, true);
    perform set_config('prices.dropped_before', coalesce(max(kept_from)::text, ''), true) from dropped_prices;
    perform pg_notify('prices', '');
    return null;
end
$$;

-- A minute of which one price is left, or came late, would be a candle of that one price.
create function refuse_dropped() returns trigger
language plpgsql
set search_path from current
as $$
begin
    update dropped_prices
    set late = late + 1
    where ticker = new.ticker
      and kept_from > new.timestamp;
    return case when found then null else new end;
end
$$;

create trigger refuse_dropped
before insert on prices
for each row
when (new.timestamp < nullif(current_setting('prices.dropped_before', true), '')::timestamptz)
execute function refuse_dropped();

-- As in 0003, but for what was dropped.
create or replace function follow_prices() returns trigger
language plpgsql
set search_path from current
as $$
declare
    tickers text[];
    minutes timestamptz[];
begin
    select array_agg(ticker), array_agg(minute)
    into tickers, minutes
    from (
        select distinct touched.ticker, date_bin('1 minute', touched.timestamp, 'epoch') as minute
        from touched
        left join dropped_prices on dropped_prices.ticker = touched.ticker
        where touched.timestamp >= coalesce(dropped_prices.kept_from, '-infinity')
    ) as touched_minute;
    if tickers is null then
        return null;
    end if;
    if tg_op <> 'INSERT' then
        -- A minute or an hour may be left without prices; those that have some come back at once.
        delete from candle_minutes
        using unnest(tickers, minutes) as touched_minute (ticker, minute)
        where candle_minutes.ticker = touched_minute.ticker collate "C"
          and candle_minutes.start = touched_minute.minute;
        delete from candle_hours
        using unnest(tickers, minutes) as touched_minute (ticker, minute)
        where candle_hours.ticker = touched_minute.ticker collate "C"
          and candle_hours.start = date_bin('1 hour', touched_minute.minute, 'epoch');
    end if;
    perform refresh_candles(tickers, minutes);
    return null;
end
$$;

-- Who empties the table begins anew.
create or replace function truncate_candles() returns trigger
language plpgsql
set search_path from current
as $$
begin
    truncate candle_minutes, candle_hours, dropped_prices;
    return null;
end
$$;
