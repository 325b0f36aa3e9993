-- How far back the history before a ticker's first schedule is being filled (HISTORY_FROM): its first schedule moves back
-- with each filled piece, until it begins here or earlier. Null: not filled.
alter table schedules add column filling_to timestamptz;
