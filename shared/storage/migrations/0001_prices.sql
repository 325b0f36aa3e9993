-- One row per (ticker, timestamp), whatever is retried, doubled or killed: the database decides.
create type price_source as enum ('SCHEDULED', 'REQUESTED', 'BACKFILLED');

create table prices (
    -- Byte order is all an index name needs, and cheaper to compare than a language's.
    ticker text collate "C" not null,
    -- The slot of the grid, or for a requested fetch the exchange's own clock.
    timestamp timestamptz not null,
    -- No scale: the exchange documents none. NaN sorts above infinity, so this refuses both.
    price numeric not null check (price > 0 and price < 'infinity'),
    observed_at timestamptz not null,
    source price_source not null,
    testnet boolean not null,
    -- Every column is in the key's index: latest, history and period are index-only range scans.
    primary key (ticker, timestamp) include (price, observed_at, source, testnet)
);

-- Rows are only ever added, so the visibility map that index-only scans need is kept by insert-driven vacuums.
alter table prices set (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_vacuum_insert_threshold = 1000);
