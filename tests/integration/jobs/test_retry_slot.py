"""The retry at half-slot: of retryable tickers only, or of every ticker if the slot's job has left no result."""

from datetime import datetime
from typing import Any

import pytest

from shared.errors import ServiceError
from tests.integration.examples import select_all_missed_slots, select_all_prices
from tests.integration.jobs.test_slots import given_prices, running_slot
from worker.context import Worker
from worker.jobs.slots import retry_slot
from worker.runner import create_worker
from worker.schedule import cron_jobs
from worker.simulator.app import Simulator
from worker.simulator.faults import Fault


async def run_slot(worker: Worker, slot: datetime) -> None:
    """Run the slot's first job, as the schedule enqueues it."""
    job_id = f"cron:fetch_slot:{round(slot.timestamp() * 1000)}"
    await worker.redis.enqueue_job("cron:fetch_slot", _job_id=job_id)
    runner = create_worker(worker, cron_jobs(worker), burst=True, handle_signals=False, max_burst_jobs=1)
    await runner.run_check()


def again(ctx: dict[str, Any], worker: Worker, slot: datetime) -> dict[str, Any]:
    milliseconds = round((slot + worker.interval / 2).timestamp() * 1000)
    return ctx | {"job_id": f"cron:retry_slot:{milliseconds}"}


async def test_a_stored_slot_is_not_retried(worker: Worker, simulator: Simulator, ctx: dict[str, Any]) -> None:
    slot = await running_slot(worker)
    await run_slot(worker, slot)
    await retry_slot(again(ctx, worker, slot))
    assert simulator.requests == {("get_index_price", "btc_usd"): 1, ("get_index_price", "eth_usd"): 1}


async def test_a_passing_fault_is_repaired_within_the_slot(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    simulator.faults.put("eth_usd", Fault("maintenance", None, 0))
    slot = await running_slot(worker, seconds_left=3)
    await run_slot(worker, slot)
    assert [price.ticker for price in await select_all_prices(worker.pool)] == ["btc_usd"]

    simulator.faults.remove("eth_usd")
    await retry_slot(again(ctx, worker, slot))
    assert await select_all_prices(worker.pool) == given_prices(simulator, slot)
    assert simulator.requests["get_index_price", "btc_usd"] == 1
    # The reason stays recorded, but the history shows the price.
    assert [(missed.ticker, missed.slot) for missed in await select_all_missed_slots(worker.pool)] == [
        ("eth_usd", slot)
    ]


async def test_an_unknown_index_is_not_retried(worker: Worker, simulator: Simulator, ctx: dict[str, Any]) -> None:
    strange = Worker(
        worker.settings.model_copy(update={"tickers": ("btc_usd", "no_such")}),
        worker.pool,
        worker.redis,
        worker.http,
        worker.name,
    )
    slot = await running_slot(strange, seconds_left=3)
    await run_slot(strange, slot)
    await retry_slot(again(ctx | {"worker": strange}, strange, slot))
    assert simulator.requests["get_index_price", "no_such"] == 1


@pytest.mark.parametrize("ending", ["never reported", "failed"])
async def test_a_slot_without_a_result_is_fetched_by_another_worker(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any], ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = await running_slot(worker, seconds_left=3)
    if ending == "failed":

        async def fail(*arguments: object) -> None:
            raise ServiceError("the worker failed")

        with monkeypatch.context() as patched:
            patched.setattr("worker.jobs.slots._fetch_slot", fail)
            with pytest.raises(Exception, match="1 job failed"):
                await run_slot(worker, slot)
    await retry_slot(again(ctx, worker, slot))
    assert await select_all_prices(worker.pool) == given_prices(simulator, slot)
    assert len(simulator.given) == 2
