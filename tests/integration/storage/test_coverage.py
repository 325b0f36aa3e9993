"""Coverage, gaps and what is left to heal, held against a recount in plain Python."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest

from shared.grid import slot_of
from shared.storage.coverage import Coverage, select_missing_runs
from shared.storage.database import Pool, fetch
from shared.storage.missed_slots import GapReason, MissedSlot, MissingRun, insert_missed_slots, insert_unanswered
from shared.storage.prices import Price, PriceSource, insert_prices
from shared.storage.schedules import insert_schedules
from tests.integration.examples import MINUTE, NOON, example_price, insert_schedule_rows
from tests.reads import Gap, select_coverage, select_gaps

TICKER = "btc_usd"
SECOND = timedelta(seconds=1)


@dataclass
class World:
    """What is stored: (since, interval) of each schedule oldest first, the prices' timestamps, the reasons by slot."""

    schedules: Sequence[tuple[datetime, timedelta]]
    timestamps: set[datetime]
    missed: dict[datetime, MissedSlot]
    unanswered: set[datetime]

    async def insert(self, pool: Pool) -> None:
        seconds = [(TICKER, since, int(interval.total_seconds())) for since, interval in self.schedules]
        await insert_schedule_rows(pool, seconds)
        await insert_prices(pool, [example_price(timestamp) for timestamp in self.timestamps])
        await insert_missed_slots(pool, self.missed.values())
        await insert_unanswered(pool, TICKER, [MissingRun(s, s + MINUTE, MINUTE) for s in sorted(self.unanswered)])
        # Another ticker's rows count for nothing here.
        await insert_schedule_rows(pool, [("eth_usd", NOON - MINUTE * 99, 60)])
        await insert_prices(pool, [example_price(NOON + MINUTE * n, ticker="eth_usd") for n in range(9)])

    def slots(self, from_dt: datetime, to_dt: datetime, now: datetime) -> list[tuple[datetime, timedelta]]:
        """Every slot expected in [from_dt, to_dt), with its interval: one that begins in its schedule and has ended."""
        slots = []
        untils = [*(since for since, _ in self.schedules[1:]), datetime.max.replace(tzinfo=NOON.tzinfo)]
        for (since, interval), until in zip(self.schedules, untils, strict=True):
            slot = slot_of(since, interval)
            while slot < min(until, to_dt, now):
                if max(since, from_dt) <= slot and slot + interval <= now:
                    slots.append((slot, interval))
                slot += interval
        return slots

    def coverage(self, from_dt: datetime, to_dt: datetime, now: datetime) -> Coverage:
        slots = [slot for slot, _ in self.slots(from_dt, to_dt, now)]
        return Coverage(len(slots), len(self.timestamps & set(slots)))

    def gaps(self, from_dt: datetime, to_dt: datetime, now: datetime) -> list[Gap]:
        gaps: list[Gap] = []
        for slot, interval in self.slots(from_dt, to_dt, now):
            if slot in self.timestamps:
                continue
            known = self.missed.get(slot, MissedSlot(TICKER, slot, GapReason.NOT_COLLECTED))
            last = gaps[-1] if gaps else None
            if last and (last.to_dt, last.reason, last.detail) == (slot, known.reason, known.detail):
                gaps[-1] = Gap(last.from_dt, slot + interval, last.missing + 1, known.reason, known.detail)
            else:
                gaps.append(Gap(slot, slot + interval, 1, known.reason, known.detail))
        return gaps

    def to_heal(self, from_dt: datetime, to_dt: datetime, now: datetime) -> list[datetime]:
        return [
            slot
            for slot, _ in self.slots(from_dt, to_dt, now)
            if slot not in self.timestamps and slot not in self.unanswered
        ]


def random_world(chance: random.Random) -> World:
    since = NOON + SECOND * chance.randrange(0, 120)
    schedules = [(since, timedelta(seconds=chance.choice([5, 10, 20, 60])))]
    if chance.random() < 0.7:
        later = since + SECOND * chance.randrange(1, 400)
        schedules.append((later, timedelta(seconds=chance.choice([5, 15, 60, 120]))))
    candidates = [NOON + SECOND * n for n in range(0, 900, 5)]
    timestamps = {slot for slot in candidates if chance.random() < chance.choice([0.1, 0.5, 0.9])}
    timestamps |= {NOON + SECOND * chance.uniform(0, 900) for _ in range(5)}  # requested, off the grid
    reasons = [
        (reason, detail)
        for reason in (GapReason.EXCHANGE_ERROR, GapReason.NOT_COLLECTED)
        for detail in ("HTTP_502: reply", None)
    ]
    missed = {}
    for slot in candidates:
        if chance.random() < 0.5:  # some with a price too: healed meanwhile
            missed[slot] = MissedSlot(TICKER, slot, *chance.choice(reasons))
    unanswered = {slot for slot in candidates if chance.random() < 0.3}
    for slot in unanswered - missed.keys():
        missed[slot] = MissedSlot(TICKER, slot, GapReason.NOT_COLLECTED)
    return World(schedules, timestamps, missed, unanswered)


def slots_of(runs: Sequence[MissingRun]) -> list[datetime]:
    return sorted(
        run.first + run.interval * n for run in runs for n in range(round((run.end - run.first) / run.interval))
    )


@pytest.mark.parametrize("seed", range(12))
async def test_the_answers_equal_a_recount(pool: Pool, seed: int) -> None:
    chance = random.Random(seed)
    world = random_world(chance)
    await world.insert(pool)
    until_change = [since for since, _ in world.schedules]
    for _ in range(12):
        from_dt = chance.choice([NOON, chance.choice(until_change)]) + SECOND * chance.randrange(-90, 300)
        to_dt = from_dt + SECOND * chance.uniform(0, 900)
        now = NOON + SECOND * chance.uniform(-30, 1200)
        period = (from_dt, to_dt, now)
        case = f"{world.schedules} {period}"
        assert await select_coverage(pool, TICKER, *period) == world.coverage(*period), case
        assert await select_gaps(pool, TICKER, *period, 10_000) == world.gaps(*period), case
        assert slots_of(await select_missing_runs(pool, TICKER, *period)) == world.to_heal(*period), case


async def test_a_period_that_begins_in_the_last_slot_before_an_interval_change(pool: Pool) -> None:
    """No slot of the old grid is in the period, and both grids meet in the period's first slot."""
    change = NOON + MINUTE
    world = World([(NOON, SECOND * 10), (change, MINUTE)], {change + MINUTE * 4}, {}, set())
    await world.insert(pool)
    period = (change - SECOND * 5, change + MINUTE * 5, change + MINUTE * 5)
    assert await select_coverage(pool, TICKER, *period) == Coverage(5, 1)
    assert await select_gaps(pool, TICKER, *period, 10) == [
        Gap(change, change + MINUTE * 4, 4, GapReason.NOT_COLLECTED, None)
    ]
    assert await select_missing_runs(pool, TICKER, *period) == [MissingRun(change, change + MINUTE * 4, MINUTE)]


async def test_nothing_is_expected_of_a_ticker_that_was_never_collected(pool: Pool) -> None:
    await insert_prices(pool, [example_price()])
    period = (NOON - MINUTE, NOON + MINUTE * 10, NOON + MINUTE * 20)
    assert await select_coverage(pool, TICKER, *period) == Coverage(0, 0)
    assert await select_gaps(pool, TICKER, *period, 10) == []
    assert await select_missing_runs(pool, TICKER, *period) == []


@pytest.mark.parametrize(
    ("from_minute", "to_minute", "now_minute", "expected"),
    [
        (-10, 0, 20, 0),  # before the first schedule
        (-10, 3, 20, 3),  # across its beginning
        (30, 40, 20, 0),  # in the future
        (0, 40, 20, 20),  # across now
        (0, 40, 20.99, 20),  # the slot still running is not missing
        (0.5, 2.5, 20, 2),  # not aligned: the slots 1 and 2 begin in it
        (1, 1, 20, 0),  # empty
        (1, 1.001, 20, 1),
        (2, 1, 20, 0),
    ],
)
async def test_the_edges_of_what_is_expected(
    pool: Pool, from_minute: float, to_minute: float, now_minute: float, expected: int
) -> None:
    await insert_schedule_rows(pool, [(TICKER, NOON, 60)])
    period = (NOON + MINUTE * from_minute, NOON + MINUTE * to_minute, NOON + MINUTE * now_minute)
    assert await select_coverage(pool, TICKER, *period) == Coverage(expected, 0)
    assert sum(gap.missing for gap in await select_gaps(pool, TICKER, *period, 10)) == expected


async def test_neighbouring_slots_merge_by_reason_and_detail_and_the_limit_keeps_the_oldest(pool: Pool) -> None:
    def missed(minute: int, reason: GapReason, detail: str | None = None) -> MissedSlot:
        return MissedSlot(TICKER, NOON + MINUTE * minute, reason, detail)

    await insert_schedule_rows(pool, [(TICKER, NOON, 60)])
    await insert_prices(pool, [example_price(NOON + MINUTE * minute) for minute in (0, 6)])
    await insert_missed_slots(
        pool,
        [
            *(missed(minute, GapReason.EXCHANGE_ERROR, "HTTP_502: bad") for minute in (1, 2)),
            missed(3, GapReason.EXCHANGE_ERROR, "TIMEOUT: none"),
            missed(4, GapReason.REJECTED_VALUE, "TIMEOUT: none"),
            missed(6, GapReason.STORAGE_ERROR),  # has a price, so it is healed
            missed(7, GapReason.NOT_COLLECTED),  # the same as nothing known of 8
        ],
    )
    expected = [
        Gap(NOON + MINUTE * 1, NOON + MINUTE * 3, 2, GapReason.EXCHANGE_ERROR, "HTTP_502: bad"),
        Gap(NOON + MINUTE * 3, NOON + MINUTE * 4, 1, GapReason.EXCHANGE_ERROR, "TIMEOUT: none"),
        Gap(NOON + MINUTE * 4, NOON + MINUTE * 5, 1, GapReason.REJECTED_VALUE, "TIMEOUT: none"),
        Gap(NOON + MINUTE * 5, NOON + MINUTE * 6, 1, GapReason.NOT_COLLECTED, None),
        Gap(NOON + MINUTE * 7, NOON + MINUTE * 9, 2, GapReason.NOT_COLLECTED, None),
    ]
    period = (NOON, NOON + MINUTE * 9, NOON + MINUTE * 30)
    for limit in (1, 3, 5, 100):
        assert await select_gaps(pool, TICKER, *period, limit) == expected[:limit]
    assert await select_coverage(pool, TICKER, *period) == Coverage(9, 2)


async def test_the_first_reason_of_a_slot_stands_and_an_unanswered_chart_is_added(pool: Pool) -> None:
    await insert_schedule_rows(pool, [(TICKER, NOON, 60)])
    first = MissedSlot(TICKER, NOON, GapReason.EXCHANGE_ERROR, "HTTP_502: bad")
    for missed in (first, MissedSlot(TICKER, NOON, GapReason.STORAGE_ERROR, "later")):
        await insert_missed_slots(pool, [missed])
    period = (NOON, NOON + MINUTE, NOON + MINUTE)
    gap = Gap(NOON, NOON + MINUTE, 1, GapReason.EXCHANGE_ERROR, "HTTP_502: bad")
    assert await select_gaps(pool, TICKER, *period, 10) == [gap]
    assert await select_missing_runs(pool, TICKER, *period) == [MissingRun(NOON, NOON + MINUTE, MINUTE)]

    await insert_unanswered(pool, TICKER, [MissingRun(NOON, NOON + MINUTE, MINUTE)])
    assert await select_gaps(pool, TICKER, *period, 10) == [gap]
    assert await select_missing_runs(pool, TICKER, *period) == []

    average: Price = example_price(source=PriceSource.BACKFILLED)
    await insert_prices(pool, [average])
    assert await select_gaps(pool, TICKER, *period, 10) == []


async def select_schedules(pool: Pool) -> list[tuple[datetime, int]]:
    rows = await fetch(pool, "select since, interval_seconds from schedules where ticker = $1 order by since", TICKER)
    return [(row["since"], row["interval_seconds"]) for row in rows]


async def test_a_schedule_is_noted_once_and_again_when_its_interval_changes(pool: Pool) -> None:
    for since, interval in [(NOON, MINUTE), (NOON + MINUTE, MINUTE), (NOON + MINUTE * 2, SECOND)]:
        await insert_schedules(pool, [TICKER, "eth_usd"], since, interval)
    assert await select_schedules(pool) == [(NOON, 60), (NOON + MINUTE * 2, 1)]


@pytest.mark.parametrize("since", [NOON + MINUTE * 21, NOON + MINUTE * 60], ids=["earlier", "same"])
async def test_an_interval_changed_before_the_last_change_took_effect_is_the_one_that_counts(
    pool: Pool, since: datetime
) -> None:
    """An hourly schedule begins with the next hour; the operator goes back to minutes before that."""
    await insert_schedules(pool, [TICKER], NOON, MINUTE)
    await insert_schedules(pool, [TICKER], NOON + MINUTE * 60, MINUTE * 60)
    await insert_schedules(pool, [TICKER], since, MINUTE)
    two_to_three = (NOON + MINUTE * 120, NOON + MINUTE * 180, NOON + MINUTE * 300)
    assert await select_coverage(pool, TICKER, *two_to_three) == Coverage(60, 0)
