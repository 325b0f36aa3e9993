-- Rows from before the check of 0009 that it refuses are deleted: their instants mean nothing, and answers with them
-- failed. What is deleted is in the log of the migration and of PostgreSQL. Others read and store meanwhile.
do $$
declare
    impossible text[];
begin
    -- First without the writers' lock, which a delete takes before it looks.
    select array_agg(format('%s of %s, observed at %s, %s', ticker, timestamp, observed_at, price))
    into impossible
    from prices
    where timestamp < '1970-01-01 00:00:00+00' or timestamp >= '3000-01-01 00:00:00+00'
       or observed_at < '1970-01-01 00:00:00+00' or observed_at >= '3000-01-01 00:00:00+00';
    if impossible is not null then
        raise warning 'deleted % prices at impossible instants: %',
            cardinality(impossible), array_to_string(impossible[:100], '; ');
        delete from prices
        where timestamp < '1970-01-01 00:00:00+00' or timestamp >= '3000-01-01 00:00:00+00'
           or observed_at < '1970-01-01 00:00:00+00' or observed_at >= '3000-01-01 00:00:00+00';
    end if;
end
$$;

alter table prices validate constraint prices_possible_instants;
