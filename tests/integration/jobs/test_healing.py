"""`heal_gaps` with the simulator's chart alone: what it fills, what it leaves open, and which charts it requests."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.grid import slot_of
from shared.storage.missed_slots import GapReason, MissedSlot, insert_missed_slots
from shared.storage.prices import Price, PriceSource, insert_prices
from tests.integration.examples import (
    MINUTE,
    example_price,
    insert_schedule_rows,
    select_all_missed_slots,
    select_all_prices,
    select_unanswered,
)
from tests.reads import select_gaps
from worker.context import Worker
from worker.exchange.chart import NO_POINT
from worker.exchange.trades import NO_PERPETUAL
from worker.jobs.healing import heal_gaps
from worker.simulator.app import Simulator
from worker.simulator.faults import Fault
from worker.simulator.prices import chart_price

HOUR = timedelta(hours=1)
TICKERS = ("btc_usd", "eth_usd")
RECENT, OLDER = 6, 60
"The chart's spacing in seconds: in the last hour, and before."


@pytest.fixture(autouse=True)
def _no_perpetuals(simulator: Simulator) -> None:
    """Nothing but the chart knows the past."""
    simulator.has_perpetuals = False


def averaged(slot: datetime, spacing: int, ticker: str = "btc_usd") -> Price:
    """The chart's price for a slot at which one of its points begins."""
    price = chart_price(ticker, slot, spacing)
    return Price(ticker, price, slot, slot, PriceSource.BACKFILLED, testnet=True)


async def collect(worker: Worker, ticker: str, since: datetime, missing: Sequence[datetime]) -> list[Price]:
    """A history of observations from `since` until after the test's end, without the missing slots."""
    count = int((datetime.now(UTC) + 2 * MINUTE - since) / worker.interval)
    slots = [since + worker.interval * n for n in range(count)]
    prices = [example_price(slot, ticker=ticker) for slot in slots if slot not in missing]
    await insert_schedule_rows(worker.pool, [(ticker, since, int(worker.interval.total_seconds()))])
    await insert_prices(worker.pool, prices)
    return prices


def charts_asked_for(simulator: Simulator) -> dict[str, int]:
    return {ticker: count for (method, ticker), count in simulator.requests.items() if method == "get_index_chart_data"}


async def test_gaps_are_filled_from_the_chart_with_one_request_per_ticker_and_range(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    now = slot_of(datetime.now(UTC), MINUTE)
    recent = [now - MINUTE * n for n in (5, 6, 9, 20)]
    older = [now - MINUTE * n for n in (70, 90, 91, 110)]
    observed = await collect(worker, "btc_usd", now - 2 * HOUR, recent + older)
    others = await collect(worker, "eth_usd", now - 2 * HOUR, recent)
    # A recorded reason does not prevent healing.
    await insert_missed_slots(worker.pool, [MissedSlot("btc_usd", recent[0], GapReason.EXCHANGE_ERROR, "HTTP_502: x")])

    await heal_gaps(ctx)

    healed = [averaged(slot, RECENT) for slot in recent] + [averaged(slot, OLDER) for slot in older]
    healed += [averaged(slot, RECENT, "eth_usd") for slot in recent]
    expected = sorted(observed + others + healed, key=lambda price: (price.ticker, price.timestamp))
    assert await select_all_prices(worker.pool) == expected
    assert dict(simulator.requests) == {
        ("get_instruments", ""): 1,
        ("get_index_chart_data", "btc_usd"): 2,
        ("get_index_chart_data", "eth_usd"): 1,
    }
    for ticker in TICKERS:
        assert await select_gaps(worker.pool, ticker, now - 2 * HOUR, now, now, 10) == []

    await heal_gaps(ctx)
    assert charts_asked_for(simulator) == {"btc_usd": 2, "eth_usd": 1}


async def test_a_chart_coarser_than_the_grid_fills_nothing_and_is_not_requested_again(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    step = timedelta(seconds=10)
    worker.settings = worker.settings.model_copy(update={"fetch_interval_seconds": 10, "tickers": ("btc_usd",)})
    gap = slot_of(datetime.now(UTC), MINUTE) - MINUTE * 90
    missing = [gap + step * n for n in range(18)]
    known = MissedSlot("btc_usd", missing[1], GapReason.EXCHANGE_ERROR, "HTTP_502: bad")
    observed = await collect(worker, "btc_usd", gap - MINUTE, missing)
    await insert_missed_slots(worker.pool, [known])

    await heal_gaps(ctx)

    assert await select_all_prices(worker.pool) == observed
    why = f"{NO_PERPETUAL}; {NO_POINT}"
    others = [MissedSlot("btc_usd", slot, GapReason.NOT_COLLECTED, why) for slot in missing if slot != known.slot]
    assert await select_all_missed_slots(worker.pool) == sorted([known, *others], key=lambda one: one.slot)
    assert await select_unanswered(worker.pool) == missing
    assert charts_asked_for(simulator) == {"btc_usd": 1}
    for name, count in {"healed": 0, "recovered": 0, "unanswered": len(missing)}.items():
        metric = f"deribit_collector_slots_{name}_total"
        assert worker.metrics.registry.get_sample_value(metric, {"ticker": "btc_usd"}) == count

    await heal_gaps(ctx)
    assert charts_asked_for(simulator) == {"btc_usd": 1}


@pytest.mark.parametrize("kind", ["bad_gateway", "maintenance", "wrong_shape", "nan", "half_json"])
async def test_a_chart_that_cannot_be_read_is_read_in_the_next_run(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any], kind: str
) -> None:
    now = slot_of(datetime.now(UTC), MINUTE)
    missing = [now - MINUTE * n for n in (8, 7, 3)]
    observed = [await collect(worker, ticker, now - MINUTE * 10, missing) for ticker in TICKERS]
    simulator.faults.put("btc_usd", Fault(kind, None, 0))

    await heal_gaps(ctx)
    others = [averaged(slot, RECENT, "eth_usd") for slot in missing]
    half = sorted(observed[0] + observed[1] + others, key=lambda price: (price.ticker, price.timestamp))
    assert await select_all_prices(worker.pool) == half
    assert await select_all_missed_slots(worker.pool) == []
    assert charts_asked_for(simulator) == {"btc_usd": 1, "eth_usd": 1}

    simulator.faults.remove("btc_usd")
    await heal_gaps(ctx)
    healed = [averaged(slot, RECENT) for slot in missing]
    assert await select_all_prices(worker.pool) == sorted(half + healed, key=lambda p: (p.ticker, p.timestamp))
    assert charts_asked_for(simulator) == {"btc_usd": 2, "eth_usd": 1}


async def test_two_workers_that_heal_at_once_leave_one_row_for_each_slot(worker: Worker, ctx: dict[str, Any]) -> None:
    now = slot_of(datetime.now(UTC), MINUTE)
    missing = [now - MINUTE * n for n in range(40, 1, -1)]
    observed = await collect(worker, "btc_usd", now - HOUR, missing)
    others = await collect(worker, "eth_usd", now - HOUR, missing)
    second = replace(worker, name="tests:2", requests=asyncio.Semaphore(4))

    await asyncio.gather(heal_gaps(ctx), heal_gaps(ctx | {"worker": second}), heal_gaps(ctx))

    healed = [averaged(slot, RECENT, ticker) for ticker in TICKERS for slot in missing]
    expected = sorted(observed + others + healed, key=lambda price: (price.ticker, price.timestamp))
    assert await select_all_prices(worker.pool) == expected
