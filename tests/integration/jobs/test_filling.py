"""The history before the first slot: the look-back of a fresh ticker, and HISTORY_FROM."""

import asyncio
import contextlib
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.grid import slot_of
from shared.storage import prices as storage
from shared.storage.database import fetch
from shared.storage.prices import Price, PriceSource, insert_prices
from tests.integration.examples import MINUTE, example_price, select_all_prices
from tests.integration.jobs.test_healing import HOUR
from tests.integration.jobs.test_recovering import traded
from tests.reads import rows_of, select_coverage, select_gaps
from worker.context import Worker
from worker.jobs import filling
from worker.jobs.filling import fill_histories, fill_piece
from worker.simulator.app import Simulator
from worker.simulator.faults import Fault

TICKER = "btc_usd"


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.queue.spacing.SPACING_MICROSECONDS", 1_000)


def set_up(worker: Worker, **settings: Any) -> None:
    worker.settings = worker.settings.model_copy(update={"tickers": (TICKER,), **settings})
    worker.clock.synchronized.set()


async def fill(worker: Worker) -> int:
    """Until there is no more to fill. Returns the number of pieces."""
    pieces = 0
    while await fill_piece(worker, TICKER):
        pieces += 1
    return pieces


async def beginning(worker: Worker) -> tuple[datetime, bool]:
    row = (await fetch(worker.pool, "select since, first_fill_done from schedules order by since limit 1"))[0]
    return row["since"], row["first_fill_done"]


async def filling_to(worker: Worker) -> datetime | None:
    [row] = await rows_of(worker.pool, storage.tickers([TICKER], 60))
    found: datetime | None = row["filling_to"]
    return found


def known(first: datetime, end: datetime, interval: timedelta = MINUTE) -> list[Price]:
    """What the simulator's trades say of every slot that has one."""
    slots = [first + n * interval for n in range((end - first) // interval)]
    return [price for slot in slots if (price := traded(slot, interval))]


async def test_a_fresh_ticker_starts_with_the_look_back(worker: Worker) -> None:
    set_up(worker, heal_lookback_hours=8)
    await worker.note_schedule()
    before = slot_of(datetime.now(UTC), MINUTE)
    assert await fill(worker) == 1
    since, is_done = await beginning(worker)
    assert is_done
    assert before - 8 * HOUR <= since <= before - 8 * HOUR + 2 * MINUTE
    stored = await select_all_prices(worker.pool)
    recovered = [price for price in stored if price.source is PriceSource.RECOVERED and price.timestamp < before]
    assert recovered == known(since, before)
    assert await select_gaps(worker.pool, TICKER, since, before - 2 * MINUTE, before, 10) == []
    assert await filling_to(worker) is None
    assert await fill(worker) == 0


async def test_without_a_perpetual_a_fresh_ticker_starts_with_the_chart(worker: Worker, simulator: Simulator) -> None:
    set_up(worker, heal_lookback_hours=24, history_from=datetime.now(UTC) - timedelta(days=9))
    simulator.has_perpetuals = False
    await worker.note_schedule()
    await fill(worker)
    since, is_done = await beginning(worker)
    age = datetime.now(UTC) - since
    assert is_done
    assert timedelta(days=2) - 3 * MINUTE < age < timedelta(days=2) + 3 * MINUTE, "as far as the chart is fine enough"
    assert {price.source for price in await select_all_prices(worker.pool)} == {PriceSource.BACKFILLED}
    assert await filling_to(worker) is None
    assert await fill(worker) == 0


async def test_without_trades_a_fresh_ticker_starts_with_the_chart(worker: Worker, simulator: Simulator) -> None:
    simulator.faults.put("*", Fault("bad_gateway", None, 0, ("get_last_trades_by_instrument_and_time",)))
    set_up(worker, heal_lookback_hours=2)
    await worker.note_schedule()
    with contextlib.suppress(Exception):
        await fill(worker)
    stored = await select_all_prices(worker.pool)
    assert len(stored) >= 118
    assert {price.source for price in stored} == {PriceSource.BACKFILLED}


async def test_a_sparse_past_is_shown_but_not_expected(worker: Worker) -> None:
    set_up(worker, fetch_interval_seconds=1, heal_lookback_hours=1)
    await worker.note_schedule()
    await fill(worker)
    assert await beginning(worker) == (worker.first_slot, True)
    assert len(await select_all_prices(worker.pool)) > 1000


async def test_the_history_is_filled_back_to_the_setting_and_holes_have_reasons(worker: Worker) -> None:
    now = slot_of(datetime.now(UTC), MINUTE)
    goal = now - timedelta(days=3)
    set_up(worker, history_from=goal, heal_lookback_hours=1)
    observed = example_price(goal + HOUR, "1.25", source=PriceSource.REQUESTED)
    average = example_price(goal + 2 * HOUR, "1.75", source=PriceSource.BACKFILLED)
    await insert_prices(worker.pool, [observed, average])
    await worker.note_schedule()

    assert await fill_piece(worker, TICKER)
    first, _ = await beginning(worker)
    assert goal < first < now - 5 * HOUR, "the newest piece comes first"
    assert await filling_to(worker) == goal
    gauge = worker.metrics.registry.get_sample_value
    assert gauge("deribit_collector_history_filling_to_timestamp_seconds", {"ticker": TICKER}) == goal.timestamp()

    await fill(worker)
    assert await beginning(worker) == (goal, True)
    assert await filling_to(worker) is None
    assert gauge("deribit_collector_history_filling_to_timestamp_seconds", {"ticker": TICKER}) == 0
    assert gauge("deribit_collector_history_from_timestamp_seconds", {"ticker": TICKER}) == goal.timestamp()
    stored = [price for price in await select_all_prices(worker.pool) if price.timestamp < now]
    expected = {price.timestamp: price for price in known(goal, now)} | {observed.timestamp: observed}
    averages = [price for price in stored if price.source is PriceSource.BACKFILLED]
    assert [price for price in stored if price not in averages] == list(expected.values())
    assert average not in stored, "a recovered price replaces an average"

    end = now - HOUR
    counted = await select_coverage(worker.pool, TICKER, goal, end, now)
    assert counted.expected == (end - goal) // MINUTE
    gaps = await select_gaps(worker.pool, TICKER, goal, end, now, 100)
    assert counted.expected - counted.present == sum(gap.missing for gap in gaps) > 0
    assert {gap.detail for gap in gaps} == {"no trade within the slot; no chart point as fine as the grid"}


async def test_a_start_that_reaches_further_back_goes_on_from_where_it_is(worker: Worker, simulator: Simulator) -> None:
    now = slot_of(datetime.now(UTC), MINUTE)
    set_up(worker, history_from=now - timedelta(days=1), heal_lookback_hours=1)
    await worker.note_schedule()
    await fill(worker)
    assert (await beginning(worker))[0] == now - timedelta(days=1)
    simulator.requests.clear()
    set_up(worker, history_from=now - timedelta(days=1, hours=6))
    await fill(worker)
    assert (await beginning(worker))[0] == now - timedelta(days=1, hours=6)
    assert sum(simulator.requests.values()) < 40
    set_up(worker, history_from=None)
    assert await fill(worker) == 0


async def test_nothing_is_expected_from_before_the_perpetual(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    created = slot_of(datetime.now(UTC), MINUTE) - timedelta(hours=9)
    milliseconds = round(created.timestamp() * 1000)
    monkeypatch.setattr("worker.simulator.trades.CREATED_MS", milliseconds)
    set_up(worker, history_from=created - timedelta(days=900), heal_lookback_hours=1)
    await worker.note_schedule()
    await fill(worker)
    assert await beginning(worker) == (created, True)


@pytest.mark.timeout(120)
async def test_kills_at_any_moment_lose_and_double_nothing(worker: Worker) -> None:
    now = slot_of(datetime.now(UTC), MINUTE)
    goal = now - timedelta(hours=20)
    set_up(worker, history_from=goal, heal_lookback_hours=1)
    await worker.note_schedule()
    for _ in range(12):
        task = asyncio.create_task(fill_histories(worker))
        await asyncio.sleep(random.random() * 0.4)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await fill(worker)
    assert (await beginning(worker))[0] == goal
    stored = await select_all_prices(worker.pool)
    recovered = [price for price in stored if price.source is PriceSource.RECOVERED and price.timestamp < now]
    assert recovered == known(goal, now)
    assert len({price.timestamp for price in stored}) == len(stored)


async def test_a_refusal_delays_the_filling_and_loses_nothing(
    worker: Worker, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "_BUSY_SECONDS", 0.01)
    monkeypatch.setattr("worker.exchange.background._FIRST_BACKOFF_SECONDS", 0.01)
    goal = slot_of(datetime.now(UTC), MINUTE) - timedelta(hours=12)
    set_up(worker, history_from=goal, heal_lookback_hours=1)
    simulator.faults.put("*", Fault("too_many_requests", 3, 0, ("get_last_trades_by_instrument_and_time",)))
    task = asyncio.create_task(fill_histories(worker))
    try:
        async with asyncio.timeout(30):
            while not await fetch(worker.pool, "select from schedules where since = $1", goal):
                await asyncio.sleep(0.1)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_two_workers_fill_one_at_a_time(worker: Worker, simulator: Simulator) -> None:
    goal = slot_of(datetime.now(UTC), MINUTE) - timedelta(hours=12)
    set_up(worker, history_from=goal, heal_lookback_hours=1)
    second = replace(worker, name="tests:2")
    tasks = [asyncio.create_task(fill_histories(one)) for one in (worker, second)]
    try:
        async with asyncio.timeout(30):
            while not await fetch(worker.pool, "select from schedules where since = $1", goal):
                await asyncio.sleep(0.1)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    # 1.3 trades a second in pages of 1,000; two fillers would have asked twice.
    assert simulator.requests["get_last_trades_by_instrument_and_time", TICKER] < 75
