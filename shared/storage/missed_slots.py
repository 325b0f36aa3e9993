"""Slots without a price, and why: the table `missed_slots`."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from shared.storage.database import WRITE_SECONDS, Pool, columns, write


class GapReason(StrEnum):
    NOT_COLLECTED = "NOT_COLLECTED"
    EXCHANGE_ERROR = "EXCHANGE_ERROR"
    REJECTED_VALUE = "REJECTED_VALUE"
    STORAGE_ERROR = "STORAGE_ERROR"


@dataclass(frozen=True, slots=True)
class MissedSlot:
    """Why one slot has no price. The same fault has the same `detail`, so that gaps can be merged."""

    ticker: str
    slot: datetime
    reason: GapReason
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class MissingRun:
    """Missing slots `first`, `first + interval`, … before `end`."""

    first: datetime
    end: datetime
    interval: timedelta


async def insert_missed_slots(
    pool: Pool, missed: Iterable[MissedSlot], *, timeout: float = WRITE_SECONDS
) -> list[MissedSlot]:
    """Store why slots are missing; an earlier reason stays. Returns the rows that are new."""
    sql = """
        insert into missed_slots (ticker, slot, reason, detail)
        select ticker, slot, reason::gap_reason, detail
        from unnest($1::text[], $2::timestamptz[], $3::text[], $4::text[]) as fresh (ticker, slot, reason, detail)
        order by ticker collate "C", slot
        on conflict do nothing
        returning ticker, slot, reason::text, detail
    """
    rows = [(m.ticker, m.slot, m.reason.value, m.detail) for m in missed]
    stored = await write(pool, sql, *columns(rows, 4), timeout=timeout) if rows else []
    return [MissedSlot(row["ticker"], row["slot"], GapReason(row["reason"]), row["detail"]) for row in stored]


async def insert_unanswered(pool: Pool, ticker: str, runs: Iterable[MissingRun], detail: str | None = None) -> None:
    """Note that no source has an answer for these slots, and why, so that healing skips them.

    A period that was noted before keeps its reason.
    """
    sql = """
        insert into unanswered_runs (ticker, first, until, detail)
        select $1, first, until, $4
        from unnest($2::timestamptz[], $3::timestamptz[]) as run (first, until)
        order by first
        on conflict (ticker, first) do update
        set until = greatest(unanswered_runs.until, excluded.until)
    """
    rows = [(run.first, run.end) for run in runs]
    if rows:
        await write(pool, sql, ticker, *columns(rows, 2), detail, timeout=WRITE_SECONDS)
