-- How far back the history before a ticker's first schedule is being filled (HISTORY_FROM): its first schedule moves back
-- with each filled piece, until it begins here or earlier. Null: not filled.
alter table schedules add column filling_to timestamptz;

-- Why no source could answer these slots. Clients see it as the detail of a gap, so a change is a new version of the data.
alter table unanswered_runs add column detail text;

create trigger z_change_data_version
after insert or update or delete on unanswered_runs
for each statement execute function change_data_version();
