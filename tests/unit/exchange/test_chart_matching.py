"""Which chart point heals which slot, and which charts are requested."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.grid import slot_of
from shared.storage.missed_slots import MissingRun
from shared.storage.prices import Price, PriceSource
from tests.unit.replies import reply, settings_for, unspaced
from worker.exchange.chart import NO_POINT, RANGES, Chart
from worker.exchange.chart_matching import match_chart
from worker.exchange.http import ChartPoint, create_http
from worker.exchange.source import Known

START = datetime(2026, 10, 8, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def point(seconds: float, price: str = "1.5") -> ChartPoint:
    return ChartPoint(at(seconds), Decimal(price), testnet=True)


def healed(slot: float, seconds: float, price: str = "1.5") -> Price:
    return Price("btc_usd", Decimal(price), at(slot), at(seconds), PriceSource.BACKFILLED, testnet=True)


def run(first: float, slots: int, interval: timedelta = MINUTE) -> MissingRun:
    return MissingRun(at(first), at(first) + slots * interval, interval)


def match(missing: MissingRun, points: list[ChartPoint]) -> tuple[list[Price], list[MissingRun]]:
    return match_chart("btc_usd", missing, points)


def test_a_slot_takes_the_nearest_point() -> None:
    points = [point(0, "1"), point(50, "2"), point(65, "3"), point(120, "4")]
    assert match(run(0, 3), points) == ([healed(0, 0, "1"), healed(60, 65, "3"), healed(120, 120, "4")], [])


def test_of_two_equally_near_points_the_earlier_is_used() -> None:
    assert match(run(60, 1), [point(50, "1"), point(70, "2")]) == ([healed(60, 50, "1")], [])


def test_a_point_is_near_within_half_an_interval() -> None:
    assert match(run(60, 1), [point(30), point(120)]) == ([healed(60, 30)], [])
    assert match(run(60, 1), [point(29.999), point(120)]) == ([], [run(60, 1)])


def test_a_slot_beyond_the_charts_ends_may_still_be_answered() -> None:
    assert match(run(0, 5), [point(61), point(119), point(170)]) == (
        [healed(60, 61), healed(120, 119), healed(180, 170)],
        [],
    )


@pytest.mark.parametrize("points", [[], [point(0)]])
def test_a_chart_that_does_not_surround_a_slot_leaves_it_open(points: list[ChartPoint]) -> None:
    assert match(run(-600, 1), points) == match(run(600, 1), points) == ([], [])


def test_holes_are_returned_as_runs() -> None:
    tens = timedelta(seconds=10)
    assert match(run(0, 12, tens), [point(0), point(60), point(120)]) == (
        [healed(0, 0), healed(60, 60)],
        [run(10, 5, tens), run(70, 5, tens)],
    )


def brute_force(missing: MissingRun, points: list[ChartPoint]) -> tuple[list[Price], list[datetime]]:
    filled, unanswered = [], []
    slot = missing.first
    while slot < missing.end:
        near = [p for p in points if abs(p.timestamp - slot) <= missing.interval / 2]
        if near:
            distance = min(abs(p.timestamp - slot) for p in near)
            best = next(p for p in near if abs(p.timestamp - slot) == distance)
            filled.append(
                Price("btc_usd", best.price, slot, best.timestamp, PriceSource.BACKFILLED, testnet=best.testnet)
            )
        elif any(p.timestamp < slot for p in points) and any(p.timestamp > slot for p in points):
            unanswered.append(slot)
        slot += missing.interval
    return filled, unanswered


def slots_of(runs: list[MissingRun]) -> list[datetime]:
    return [one.first + n * one.interval for one in runs for n in range((one.end - one.first) // one.interval)]


@given(
    st.integers(-5, 100),
    st.integers(1, 60),
    st.sampled_from((1, 2, 4, 10, 60)),
    st.sets(st.integers(-20, 400)),
)
@settings(max_examples=300)
def test_matching_equals_a_search_over_every_point(first: int, slots: int, interval: int, quarters: set[int]) -> None:
    points = [point(quarter / 4, str(100 + quarter)) for quarter in sorted(quarters)]
    missing = run(first, slots, timedelta(seconds=interval))
    prices, holes = match(missing, points)
    assert (prices, slots_of(holes)) == brute_force(missing, points)


async def ranges_asked(*ages: timedelta) -> list[str]:
    """The ranges requested if slots of these ages are missing and every chart is empty."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params["range"])
        return httpx.Response(200, content=reply("[]"))

    now = datetime.now(UTC)
    runs = [MissingRun(now - age, now - age + MINUTE, MINUTE) for age in ages]
    async with create_http(settings_for(), httpx.MockTransport(answer)) as http:
        chart = Chart(http, unspaced(http))
        assert [known async for known in chart.recall("btc_usd", runs) if known.prices or known.empty] == []
    return asked


@pytest.mark.parametrize(
    ("age", "chart_range"),
    [
        (timedelta(0), "1h"),
        (timedelta(minutes=59, seconds=59), "1h"),
        (timedelta(hours=1), "1d"),
        (timedelta(hours=24) - MINUTE, "1d"),
        (timedelta(hours=24), "2d"),
        (timedelta(days=2), "1m"),
        (timedelta(days=28), "1y"),
        (timedelta(days=365), "all"),
    ],
)
async def test_the_finest_chart_that_reaches_back_is_requested(age: timedelta, chart_range: str) -> None:
    assert await ranges_asked(age) == [chart_range]


async def test_each_chart_is_requested_at_most_once() -> None:
    ages = [timedelta(days=3), timedelta(minutes=5), timedelta(days=4), timedelta(minutes=7), timedelta(minutes=9)]
    assert await ranges_asked(*ages) == ["1h", "1m"]


async def test_without_missing_slots_no_chart_is_requested() -> None:
    assert await ranges_asked() == []


def test_each_range_reaches_further_than_the_one_before() -> None:
    assert list(RANGES.values()) == sorted(RANGES.values())


async def test_a_chart_that_is_coarser_than_the_grid_answers_nothing_and_is_not_requested_again() -> None:
    hour, now = timedelta(hours=1), slot_of(datetime.now(UTC), timedelta(hours=1))
    points = ",".join(f"[{(now - n * hour).timestamp() * 1000:.0f},1.5]" for n in range(700, -1, -1))
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, content=reply(f"[{points}]"))

    missing = MissingRun(now - 100 * hour, now - 98 * hour, MINUTE)
    async with create_http(settings_for(), httpx.MockTransport(answer)) as http:
        chart = Chart(http, unspaced(http))
        for _ in range(2):
            assert [known async for known in chart.recall("btc_usd", [missing])] == [Known([], [missing], NO_POINT)]
        assert len(asked) == 1
        on_the_hour = MissingRun(missing.first, missing.end, hour)
        [known] = [known async for known in chart.recall("btc_usd", [on_the_hour])]
    assert [price.timestamp for price in known.prices] == [missing.first, missing.first + hour]
