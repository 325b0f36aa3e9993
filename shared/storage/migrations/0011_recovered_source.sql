-- Observed by the exchange and read later. By itself, because a transaction that adds a value cannot use it. The order
-- of the values is the order of precedence: a source of higher rank replaces one of lower rank.
alter type price_source add value 'RECOVERED' before 'BACKFILLED';
