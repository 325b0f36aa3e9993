-- Citus: no. This file says why, and refuses.
--
-- The keys would fit: every table but `schema_migrations` begins its primary key with the ticker, none refers to another
-- by a foreign key, and each question about a ticker names it. `create_distributed_table(<table>, 'ticker')` for all of
-- them, colocated, would answer reads of one ticker from one node.
--
-- What stores does not fit. Candles, the order of storing and the word to followers are made by triggers on `prices`, and
-- Citus, by default, refuses to distribute a table that has triggers. `citus.enable_unsafe_triggers` lets it, and then, by
-- its own warning, a trigger may only touch what is on its own node, and what it does may not be seen by, or may conflict
-- with, the transaction around it. Ours run once for a statement, on all its rows, and a statement that stores a slot has
-- the rows of all tickers: it would be one for each shard instead. They read `prices` again, by its own name, which would
-- be another distributed query, blind to the rows just stored. The writers' lock would be a lock on one node,
-- `price_batches` a sequence for each node, so that followers would miss prices, and `notify` be heard on that node alone.
-- Candles would be wrong without a word. A table that is not distributed gains nothing from Citus.
--
-- What it would take: candles written by the statement that stores prices, for one ticker at a time, and a number of
-- storing for each ticker instead of one for all. As long as one server holds the prices (see Capacity in the README: a
-- ticker a second takes 8 GiB a year, RETENTION_DAYS makes an end of that), that buys nothing. None of this was tried on
-- a Citus, for none could be had where it was written; it is what their documentation and discussions say.

do $$
begin
    raise exception 'prices cannot be distributed by Citus: their triggers need one node, as this file explains';
end
$$;
