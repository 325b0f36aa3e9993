"""The retry at half-slot: of the tickers that are not stored, except those that the slot's own job still fetches."""

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from shared.queue.jobs import FETCH_SLOT, enqueue_once, slot_job_id
from shared.storage.database import fetch
from tests.integration.examples import select_all_missed_slots, select_all_prices
from tests.integration.jobs.test_slots import arguments_of, given_prices, running_slot
from worker.context import Worker
from worker.jobs.slots import fetch_slot, retry_slot
from worker.runner import create_worker
from worker.simulator.app import Simulator
from worker.simulator.faults import Fault


async def run_slot(worker: Worker, slot: datetime) -> None:
    """Run the slot's first job, as the schedule enqueues it."""
    arguments = arguments_of({"worker": worker}, slot)
    await enqueue_once(worker.redis, FETCH_SLOT, arguments, slot_job_id(FETCH_SLOT, *arguments), 60)
    await create_worker(worker, burst=True, handle_signals=False, max_burst_jobs=1).run_check()


async def test_a_stored_slot_is_not_retried(worker: Worker, simulator: Simulator, ctx: dict[str, Any]) -> None:
    slot = await running_slot(worker)
    await run_slot(worker, slot)
    await retry_slot(ctx, *arguments_of(ctx, slot))
    assert simulator.requests == {("get_index_price", "btc_usd"): 1, ("get_index_price", "eth_usd"): 1}


async def test_a_passing_fault_is_repaired_within_the_slot(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    simulator.faults.put("eth_usd", Fault("maintenance", None, 0))
    slot = await running_slot(worker, seconds_left=3)
    await run_slot(worker, slot)
    assert [price.ticker for price in await select_all_prices(worker.pool)] == ["btc_usd"]

    simulator.faults.remove("eth_usd")
    await retry_slot(ctx, *arguments_of(ctx, slot))
    assert await select_all_prices(worker.pool) == given_prices(simulator, slot)
    assert simulator.requests["get_index_price", "btc_usd"] == 1
    # The reason stays recorded, but the history shows the price.
    assert [(missed.ticker, missed.slot) for missed in await select_all_missed_slots(worker.pool)] == [
        ("eth_usd", slot)
    ]


async def test_an_unknown_index_is_not_retried(worker: Worker, simulator: Simulator, ctx: dict[str, Any]) -> None:
    settings = worker.settings.model_copy(update={"tickers": ("btc_usd", "no_such")})
    strange = {**ctx, "worker": replace(worker, settings=settings)}
    slot = await running_slot(worker, seconds_left=3)
    await fetch_slot(strange, *arguments_of(strange, slot))
    await retry_slot(strange, *arguments_of(strange, slot))
    assert simulator.requests["get_index_price", "no_such"] == 1


@pytest.mark.parametrize("has_run", [False, True])
async def test_a_slot_that_is_not_stored_is_fetched_whatever_became_of_its_job(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any], has_run: bool
) -> None:
    """It may not have run at all, or its price may be gone: only what is stored counts."""
    slot = await running_slot(worker, seconds_left=3)
    if has_run:
        await run_slot(worker, slot)
        await fetch(worker.pool, "delete from prices where ticker = 'eth_usd'")
        simulator.given.pop()
        simulator.given.pop()
    await retry_slot(ctx, *arguments_of(ctx, slot))
    stored = await select_all_prices(worker.pool)
    assert [price.ticker for price in stored] == ["btc_usd", "eth_usd"]
    assert simulator.requests == {("get_index_price", "btc_usd"): 1, ("get_index_price", "eth_usd"): 1 + has_run}


async def test_what_the_slots_own_job_still_fetches_is_not_asked_for_twice(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    """The others are, because the job has given them up."""
    simulator.faults.put("eth_usd", Fault("slow", 1, 1.5))
    simulator.faults.put("btc_usd", Fault("maintenance", 1, 0))
    slot = await running_slot(worker, seconds_left=10)
    first = asyncio.create_task(fetch_slot(ctx, *arguments_of(ctx, slot)))
    await asyncio.sleep(0.5)
    await retry_slot(ctx, *arguments_of(ctx, slot))
    await first
    assert await select_all_prices(worker.pool) == given_prices(simulator, slot)
    assert simulator.requests == {("get_index_price", "btc_usd"): 2, ("get_index_price", "eth_usd"): 1}


async def test_the_retry_takes_over_when_the_worker_of_the_slots_job_dies(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    simulator.faults.put("*", Fault("hang", 2, 60))
    slot = await running_slot(worker, seconds_left=10)
    first = asyncio.create_task(fetch_slot(ctx, *arguments_of(ctx, slot)))
    await asyncio.sleep(0.5)
    retry = asyncio.create_task(retry_slot(ctx, *arguments_of(ctx, slot)))
    await asyncio.sleep(0.5)
    assert simulator.requests == {("get_index_price", "btc_usd"): 1, ("get_index_price", "eth_usd"): 1}
    first.cancel()  # and with it the lease
    await retry
    assert await select_all_prices(worker.pool) == given_prices(simulator, slot)


async def test_a_job_says_what_it_needs_whatever_the_worker_that_runs_it_is_set_to(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    slot = await running_slot(worker, seconds_left=4)
    settings = worker.settings.model_copy(update={"tickers": ("btc_usd",), "fetch_interval_seconds": 30})
    other = {**ctx, "worker": replace(worker, settings=settings)}
    await fetch_slot(other, *arguments_of(ctx, slot))
    assert await select_all_prices(worker.pool) == given_prices(simulator, slot)
    assert [price.ticker for price in await select_all_prices(worker.pool)] == ["btc_usd", "eth_usd"]
