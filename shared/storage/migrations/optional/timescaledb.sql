-- `prices` as a hypertable of TimescaleDB, in chunks of 30 days. Not needed, not run by `python -m shared.migrate`, and
-- not tried on a TimescaleDB: none could be had where this was written. What is below is held to their documentation,
-- and was run with a stand-in for their functions. Try it on a copy. There is no way back but a dump.
--
-- First back up, stop the API and the workers, and migrate. With TimescaleDB 2.18 or newer loaded (before that, triggers
-- that see all rows of a statement fail on a hypertable):
--
--   psql "$DATABASE_URL" --command 'create extension if not exists timescaledb'
--   psql "$DATABASE_URL" --set ON_ERROR_STOP=1 --single-transaction --file shared/storage/migrations/optional/timescaledb.sql
--
-- What fits: the primary key has the timestamp in it, as every unique index of a hypertable must; nothing refers to a
-- price by a foreign key; no statement moves a price to another timestamp.
-- What does not: compression (the columnstore). It refuses triggers that see all rows of a delete, and without
-- follow_deleted candles would keep prices that are gone. So what is left to gain is to drop old prices by the chunk:
-- set RETENTION_DAYS, and where its deletes are too slow, also run
--
--   select drop_chunks('prices', (select min(kept_from) from dropped_prices));
--
-- which runs no triggers and needs none, for candles from before `kept_from` are never computed again. Only where every
-- ticker that has prices has a row there.
-- What goes that way is not counted in `dropped_prices.prices`.
-- What else changes: back up and restore as TimescaleDB's manual says, not as the README does; and a later migration of
-- `prices` may need another form than the one that comes with this project.

do $$
declare
    version text := (select extversion from pg_extension where extname = 'timescaledb');
begin
    if version is null then
        raise exception 'the extension timescaledb is not there: create it first';
    end if;
    if (string_to_array(substring(version from '^\d+\.\d+'), '.'))::integer[] < array[2, 18] then
        raise exception 'timescaledb % is too old: from 2.18 on hypertables have the triggers that prices needs', version;
    end if;
end
$$;

set local lock_timeout = '5s';
lock table prices in access exclusive mode;

-- Not while rows are moved into chunks, which would compute all candles again.
drop trigger follow_inserted on prices;
drop trigger follow_deleted on prices;
drop trigger follow_updated_old on prices;
drop trigger follow_updated_new on prices;

select create_hypertable(
    'prices', by_range('timestamp', interval '30 days'), create_default_indexes => false, migrate_data => true
);

create trigger follow_inserted
after insert on prices
referencing new table as touched
for each statement execute function follow_prices();

create trigger follow_deleted
after delete on prices
referencing old table as touched
for each statement execute function follow_prices();

create trigger follow_updated_old
after update on prices
referencing old table as touched
for each statement execute function follow_prices();

create trigger follow_updated_new
after update on prices
referencing new table as touched
for each statement execute function follow_prices();
