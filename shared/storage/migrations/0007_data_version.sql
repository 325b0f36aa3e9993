-- A version of everything that an answer can depend on. It changes in the transaction that changes the data, so two
-- snapshots with the same version hold the same data, and an answer may be kept for as long as the version stays.
create table data_version (
    only_row boolean primary key default true check (only_row),
    -- Random rather than a number: after a failover or a restore that lost transactions, a number would come again.
    version uuid not null default gen_random_uuid()
) with (fillfactor = 10);

insert into data_version default values;

create function change_data_version() returns trigger
language plpgsql
set search_path from current
as $$
begin
    update data_version
    set version = gen_random_uuid();
    return null;
end
$$;

-- Triggers of one kind fire in the order of their names, and this one is the last: the row that all writers change is
-- locked for as short a time as possible. Candles change with prices, in the same transaction.
create trigger z_change_data_version
after insert or update or delete or truncate on prices
for each statement execute function change_data_version();

create trigger z_change_data_version
after insert or update or delete or truncate on schedules
for each statement execute function change_data_version();

create trigger z_change_data_version
after insert or update or delete or truncate on missed_slots
for each statement execute function change_data_version();

create trigger z_change_data_version
after insert or update or delete or truncate on dropped_prices
for each statement execute function change_data_version();
