-- The order in which prices were stored, and a word to those who follow them.
create sequence price_batches;

-- The statement that stored the row, or put an observation in the place of an average. Numbers are given while the
-- writers' lock is held, which ends after the commit: whoever sees a number sees everything that has a lower one. 0: not
-- known, stored before this column was there, or with triggers off.
alter table prices
    add column batch bigint not null
    default coalesce(nullif(current_setting('prices.batch', true), ''), '0')::bigint;

-- Averages that an observation has replaced, and the number each had: who had seen the average left after that one.
create table replaced_prices (
    ticker text collate "C" not null,
    timestamp timestamptz not null,
    batch bigint not null,
    primary key (ticker, timestamp)
);

create function number_prices() returns trigger
language plpgsql
set search_path from current
as $$
begin
    perform set_config('prices.batch', nextval('price_batches')::text, true);
    -- Heard at the commit, or never. It says that there is something to read, not what.
    perform pg_notify('prices', '');
    return null;
end
$$;

-- Triggers of one kind fire in the order of their names: this one after lock_candles, and before any row.
create trigger number_prices
before insert on prices
for each statement execute function number_prices();

create function renumber_price() returns trigger
language plpgsql
set search_path from current
as $$
begin
    if old.batch > 0 then
        insert into replaced_prices (ticker, timestamp, batch)
        values (old.ticker, old.timestamp, old.batch)
        on conflict do nothing;
    end if;
    new.batch = coalesce(nullif(current_setting('prices.batch', true), '')::bigint, old.batch);
    return new;
end
$$;

-- An observation that takes the place of an average was stored now. An update by hand has no number, and is not told.
create trigger renumber_price
before update on prices
for each row execute function renumber_price();
