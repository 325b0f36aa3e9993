"""Arithmetic on runs of slots, so that a grid of seconds needs no list of its slots."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from shared.storage.missed_slots import MissingRun


def slots_between(run: MissingRun, after: datetime, until: datetime) -> MissingRun | None:
    """The slots of the run in (after, until]."""
    skipped = max((after - run.first) // run.interval + 1, 0)
    kept = (until - run.first) // run.interval + 1
    first, end = run.first + skipped * run.interval, min(run.end, run.first + kept * run.interval)
    return MissingRun(first, end, run.interval) if first < end else None


def split(runs: Iterable[MissingRun], cut: datetime) -> tuple[list[MissingRun], list[MissingRun]]:
    """The slots before `cut`, and the others."""
    before, others = [], []
    for run in runs:
        kept = min(max(-((run.first - cut) // run.interval), 0), (run.end - run.first) // run.interval)
        middle = run.first + kept * run.interval
        if run.first < middle:
            before.append(MissingRun(run.first, middle, run.interval))
        if middle < run.end:
            others.append(MissingRun(middle, run.end, run.interval))
    return before, others


def without(runs: Iterable[MissingRun], slots: Iterable[datetime]) -> list[MissingRun]:
    """The runs, which ascend, without these slots of theirs, which ascend too."""
    left = []
    gone = iter(slots)
    slot = next(gone, None)
    for run in runs:
        first = run.first
        while slot is not None and slot < run.end:
            if first < slot:
                left.append(MissingRun(first, slot, run.interval))
            first = slot + run.interval
            slot = next(gone, None)
        if first < run.end:
            left.append(MissingRun(first, run.end, run.interval))
    return left


def common(some: Sequence[MissingRun], others: Sequence[MissingRun]) -> list[MissingRun]:
    """The slots that are in both. Both ascend."""
    found = []
    left, right = 0, 0
    while left < len(some) and right < len(others):
        run, other = some[left], others[right]
        first, end = max(run.first, other.first), min(run.end, other.end)
        if first < end:
            found.append(MissingRun(first, end, run.interval))
        if run.end <= other.end:
            left += 1
        else:
            right += 1
    return found


def pieces(runs: Iterable[MissingRun], length: timedelta) -> Iterator[list[MissingRun]]:
    """Runs that ascend, cut into periods of at most `length`, the newest first; the runs in a piece ascend."""
    left = list(runs)
    while left:
        left, piece = split(left, left[-1].end - max(length, left[-1].interval))
        yield piece


def count(runs: Iterable[MissingRun]) -> int:
    return sum((run.end - run.first) // run.interval for run in runs)
