-- By itself, for it takes its time on a big table: what reads goes on meanwhile, what stores waits.
create index prices_by_batch on prices (batch, timestamp, ticker) where batch > 0;
