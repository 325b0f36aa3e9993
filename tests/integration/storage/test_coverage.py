"""Coverage, gaps and what is left to heal, held against a recount in plain Python."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest

from shared.grid import slot_of
from shared.storage.coverage import Coverage
from shared.storage.database import Pool, fetch
from shared.storage.gaps import select_averaged_runs, select_missing_runs
from shared.storage.missed_slots import GapReason, MissedSlot, MissingRun, insert_missed_slots, insert_unanswered
from shared.storage.prices import Price, PriceSource, insert_prices
from tests.integration.conftest import Api
from tests.integration.examples import MINUTE, NOON, example_price, insert_schedule_rows
from tests.reads import Gap, select_coverage, select_gaps

TICKER = "btc_usd"
SECOND = timedelta(seconds=1)
OBSERVED = (PriceSource.SCHEDULED, PriceSource.RECOVERED)
UNANSWERED = "no trade within the slot; no chart point as fine as the grid"


@dataclass
class World:
    """What is stored: (since, interval) of each schedule oldest first, the prices' timestamps, the reasons by slot.

    `averaged`: those of the timestamps that hold an average. `ends`: those of the schedules that end by themselves.
    """

    schedules: Sequence[tuple[datetime, timedelta]]
    timestamps: set[datetime]
    missed: dict[datetime, MissedSlot]
    unanswered: set[datetime]
    averaged: set[datetime] = field(default_factory=set)
    ends: dict[datetime, datetime] = field(default_factory=dict)

    async def insert(self, pool: Pool) -> None:
        seconds = [(TICKER, since, int(interval.total_seconds())) for since, interval in self.schedules]
        await insert_schedule_rows(pool, seconds)
        for since, until in self.ends.items():
            await fetch(pool, "update schedules set until = $1 where since = $2", until, since)
        # Some averages are replaced by an observation that comes late or is recovered, and never the other way. Some
        # prices are deleted again.
        observed = {at: OBSERVED[at.second // 5 % 2] for at in self.timestamps - self.averaged}
        late = {at: source for at, source in observed.items() if at.second % 3 == 0}
        first = observed | dict.fromkeys(self.averaged | late.keys(), PriceSource.BACKFILLED)
        for sources in (first, late, dict.fromkeys(observed, PriceSource.BACKFILLED)):
            await insert_prices(pool, [example_price(at, source=source) for at, source in sources.items()])
        gone = [NOON + SECOND * n for n in range(0, 900, 7) if NOON + SECOND * n not in self.timestamps]
        await insert_prices(pool, [example_price(at) for at in gone])
        await fetch(pool, "delete from prices where ticker = $1 and timestamp = any($2)", TICKER, gone)
        await insert_missed_slots(pool, self.missed.values())
        runs = [MissingRun(s, s + SECOND, SECOND) for s in sorted(self.unanswered)]
        await insert_unanswered(pool, TICKER, runs, UNANSWERED)
        # Another ticker's rows count for nothing here.
        await insert_schedule_rows(pool, [("eth_usd", NOON - MINUTE * 99, 60)])
        await insert_prices(pool, [example_price(NOON + MINUTE * n, ticker="eth_usd") for n in range(9)])

    def slots(self, from_dt: datetime, to_dt: datetime, now: datetime) -> list[tuple[datetime, timedelta]]:
        """Every slot expected in [from_dt, to_dt), with its interval: one that begins in its schedule and has ended."""
        slots = []
        untils = [*(since for since, _ in self.schedules[1:]), datetime.max.replace(tzinfo=NOON.tzinfo)]
        for (since, interval), following in zip(self.schedules, untils, strict=True):
            slot, until = slot_of(since, interval), min(following, self.ends.get(since, following))
            while slot < min(until, to_dt, now):
                if max(since, from_dt) <= slot and slot + interval <= now:
                    slots.append((slot, interval))
                slot += interval
        return slots

    def coverage(self, from_dt: datetime, to_dt: datetime, now: datetime) -> Coverage:
        slots = {slot for slot, _ in self.slots(from_dt, to_dt, now)}
        return Coverage(len(slots), len(self.timestamps & slots), averaged=len(self.averaged & slots))

    def gaps(self, from_dt: datetime, to_dt: datetime, now: datetime) -> list[Gap]:
        gaps: list[Gap] = []
        for slot, interval in self.slots(from_dt, to_dt, now):
            if slot in self.timestamps:
                continue
            why = UNANSWERED if slot in self.unanswered else None
            known = self.missed.get(slot, MissedSlot(TICKER, slot, GapReason.NOT_COLLECTED, why))
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

    def to_replace(self, from_dt: datetime, to_dt: datetime, now: datetime) -> list[datetime]:
        return [slot for slot, _ in self.slots(from_dt, to_dt, now) if slot in self.averaged - self.unanswered]


def random_world(chance: random.Random) -> World:
    since = NOON + SECOND * chance.randrange(0, 120)
    schedules = [(since, timedelta(seconds=chance.choice([5, 10, 20, 60])))]
    if chance.random() < 0.7:
        later = since + SECOND * chance.randrange(1, 400)
        schedules.append((later, timedelta(seconds=chance.choice([5, 15, 60, 120]))))
    candidates = [NOON + SECOND * n for n in range(0, 900, 5)]
    timestamps = {slot for slot in candidates if chance.random() < chance.choice([0.1, 0.5, 0.9])}
    timestamps |= {NOON + SECOND * chance.uniform(0, 900) for _ in range(5)}  # requested, off the grid
    averaged = {slot for slot in timestamps if slot.microsecond == 0 and chance.random() < 0.3}
    ends = {
        since: since + SECOND * chance.randrange(0, 400)
        for since, _ in schedules[: chance.randrange(len(schedules) + 1)]
    }
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
    return World(schedules, timestamps, missed, unanswered, averaged, ends)


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
        limit = chance.choice([1, 2, 3, 10, 10_000])
        assert await select_gaps(pool, TICKER, *period, limit) == world.gaps(*period)[:limit], case
        assert slots_of(await select_missing_runs(pool, TICKER, *period)) == world.to_heal(*period), case
        assert slots_of(await select_averaged_runs(pool, TICKER, *period)) == world.to_replace(*period), case


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


async def test_a_gap_that_goes_on_for_hours_is_one_and_a_page_ends_with_a_whole_gap(pool: Pool) -> None:
    """Also across the hours, a change of the interval, and slots with a reason in between."""
    hour, half = MINUTE * 60, MINUTE * 30
    await insert_schedule_rows(pool, [(TICKER, NOON, 60), (TICKER, NOON + 5 * hour + half, 600)])
    await insert_prices(pool, [example_price(NOON + hour * n + half) for n in range(1, 12)])
    await insert_prices(pool, [example_price(NOON + 10 * hour, ticker="eth_usd")])
    await fetch(pool, "delete from prices where timestamp = $1", NOON + 7 * hour + half)
    period = (NOON, NOON + 12 * hour, NOON + 12 * hour)
    gaps = await select_gaps(pool, TICKER, *period, 100)
    stored = [NOON + hour * n + half for n in range(1, 12) if n != 7]
    assert [gap.from_dt for gap in gaps[1:]] == [
        at + (MINUTE if at < NOON + 5 * hour + half else 10 * MINUTE) for at in stored
    ]
    assert [gap.to_dt for gap in gaps] == [*stored, period[1]]
    for limit in range(1, len(gaps) + 2):
        assert await select_gaps(pool, TICKER, *period, limit) == gaps[:limit], limit


async def test_a_year_of_seconds_is_counted_from_the_hours_and_its_first_gap_is_found(pool: Pool) -> None:
    """Every other second is missing: 15 million gaps."""
    until = NOON + timedelta(days=365)
    await insert_schedule_rows(pool, [(TICKER, NOON, 1)])
    await fetch(
        pool,
        """
        insert into candle_hours (ticker, start, open, high, low, close, samples, seconds, averaged)
        select $1, start, 1, 1, 1, 1, 1800, seconds, seconds & (b'1'::bit(3600) >> 2)
        from generate_series($2::timestamptz, $3::timestamptz - interval '1 hour', '1 hour') as start
        cross join (select repeat('10', 1800)::bit(3600) as seconds) as bits
        """,
        TICKER,
        NOON,
        until,
        timeout=30,
    )
    slots = 365 * 86_400
    try:
        covered = await select_coverage(pool, TICKER, NOON, until, until)
        assert covered == Coverage(slots, slots // 2, averaged=365 * 24)
        gaps = await select_gaps(pool, TICKER, NOON, until, until, 2)
        assert [gap.from_dt - NOON for gap in gaps] == [SECOND, SECOND * 3]
    finally:
        await fetch(pool, "truncate candle_hours")


async def test_what_is_too_much_is_refused_with_what_fits(api: Api, pool: Pool) -> None:
    """The period counts only as far as the ticker's schedule reaches into it."""
    await insert_schedule_rows(pool, [(TICKER, NOON - timedelta(days=4 * 365), 60), ("eth_usd", NOON, 60)])
    query = """
        query ($ticker: String!) {
          coverage(ticker: $ticker, fromDt: "2000-01-01T00:00:00Z", toDt: "2026-01-31T12:01:00Z") {
            expected observed averaged gaps { missing }
          }
        }
    """
    answer = await api.execute(query, {"ticker": TICKER})
    assert answer["data"] == {"coverage": None}
    [error] = answer["errors"]
    assert error["extensions"] == {"code": "QUERY_TOO_COMPLEX"}
    assert error["message"] == (
        "The period has 35041 hours of the ticker's schedule; at most 26352 fit, whatever its interval."
    )
    counted = {"expected": 1, "observed": 0, "averaged": 0, "gaps": [{"missing": 1}]}
    assert await api.execute(query, {"ticker": "eth_usd"}) == {"data": {"coverage": counted}}
