-- A ticker that is no longer collected has an end.
alter table schedules
    -- Slots from here on are not expected. Null: it ends where the ticker's next row begins, or not yet.
    add column until timestamptz check (until >= since);

-- When a worker last reported that it collects the ticker. Not in `schedules`, because each report would change the
-- version of the data.
create table collected_tickers (
    ticker text collate "C" primary key,
    reported_at timestamptz not null
) with (fillfactor = 50);

-- Two workers that start at once change the rows of the same tickers, and no statement can delete and insert in one
-- order. So they take turns, as the writers of prices do: the lock comes before any row's.
create trigger lock_candles
before insert or update or delete on schedules
for each statement execute function lock_candles();

-- Slots that no chart could answer, so that healing does not ask again: those in [first, until). One row for each run
-- instead of `missed_slots.unanswered`, which the release before still writes. No answer to a client depends on it.
create table unanswered_runs (
    ticker text collate "C" not null,
    first timestamptz not null,
    until timestamptz not null check (until > first),
    primary key (ticker, first)
);

-- Emptying a table by hand begins anew, as in 0003.
create function truncate_reports() returns trigger
language plpgsql
set search_path from current
as $$
begin
    truncate collected_tickers;
    return null;
end
$$;

create trigger follow_truncated
after truncate on schedules
for each statement execute function truncate_reports();

create function truncate_unanswered() returns trigger
language plpgsql
set search_path from current
as $$
begin
    truncate unanswered_runs;
    return null;
end
$$;

create trigger follow_truncated
after truncate on missed_slots
for each statement execute function truncate_unanswered();

-- As in 0006, without counting. What retention did is in the worker's metrics. The columns `prices`, `late` and
-- `dropped_at` stay for the release before, whose workers write them.
create or replace function refuse_dropped() returns trigger
language plpgsql
set search_path from current
as $$
begin
    if exists (
        select
        from dropped_prices
        where ticker = new.ticker
          and kept_from > new.timestamp
    ) then
        return null;
    end if;
    return new;
end
$$;

-- Infinity, BC and the year 20000 cannot be answered: no client can read them. The grid begins in 1970. Not valid yet:
-- to look at all rows takes its time, during which nothing could be read or stored.
alter table prices
    add constraint prices_possible_instants check (
        timestamp >= '1970-01-01 00:00:00+00' and timestamp < '3000-01-01 00:00:00+00'
        and observed_at >= '1970-01-01 00:00:00+00' and observed_at < '3000-01-01 00:00:00+00'
    ) not valid;
