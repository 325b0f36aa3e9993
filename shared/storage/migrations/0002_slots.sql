-- What was meant to be collected, and why a slot is missing.
create table schedules (
    ticker text collate "C" not null,
    -- The first slot of this grid; it ends where the ticker's next row begins.
    since timestamptz not null,
    interval_seconds integer not null check (interval_seconds > 0),
    -- Whether the look-back before the very first slot has been filled from the exchange's chart.
    first_fill_done boolean not null default false,
    primary key (ticker, since)
);

create type gap_reason as enum ('NOT_COLLECTED', 'EXCHANGE_ERROR', 'REJECTED_VALUE', 'STORAGE_ERROR');

-- Written once per slot; a slot with a price is not missing, whatever stands here.
create table missed_slots (
    ticker text collate "C" not null,
    slot timestamptz not null,
    reason gap_reason not null,
    detail text,
    -- The chart was asked after the slot and had no point for it: asking again cannot help.
    unanswered boolean not null default false,
    primary key (ticker, slot)
);
