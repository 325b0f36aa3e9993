"""Jobs of release 0.2.0 in arq's default queue, as an upgrade finds them."""

import time
from datetime import datetime
from typing import Any

import pytest

from shared.queue.client import QUEUE, serialize
from tests.integration.examples import select_all_prices
from tests.integration.jobs.test_slots import given_prices, running_slot
from worker.context import Worker
from worker.jobs.released import _move
from worker.runner import create_worker
from worker.simulator.app import Simulator


async def enqueue_released(worker: Worker, job_id: str, name: str, *arguments: Any, after_ms: int = 0) -> None:
    """As arq's `enqueue_job` did it."""
    now = round(time.time() * 1000)
    await worker.redis.set(f"arq:job:{job_id}", serialize({"t": None, "f": name, "a": arguments, "k": {}, "et": now}))
    await worker.redis.zadd("arq:queue", {job_id: now + after_ms})


def released_id(name: str, at: datetime) -> str:
    return f"cron:{name}:{round(at.timestamp() * 1000)}"


async def run_all(worker: Worker) -> int:
    return await create_worker(worker, burst=True, handle_signals=False).run_check()


@pytest.mark.parametrize("name", ["fetch_prices", "fetch_again"])
async def test_a_slot_of_the_release_before_is_fetched(worker: Worker, simulator: Simulator, name: str) -> None:
    slot = await running_slot(worker, seconds_left=4)
    due = slot if name == "fetch_prices" else slot + worker.interval / 2
    await enqueue_released(worker, released_id(name, due), f"cron:{name}")
    await _move(worker.redis)
    assert await run_all(worker) == 1
    assert await select_all_prices(worker.pool) == given_prices(simulator, slot)
    assert len(simulator.given) == 2
    # Its cron, on an old worker, may enqueue it once more: what is stored is not asked for again.
    await enqueue_released(worker, released_id(name, due), f"cron:{name}")
    await _move(worker.redis)
    assert await run_all(worker) == 1
    assert len(simulator.given) == 2


@pytest.mark.parametrize(
    ("job_id", "name", "arguments"),
    [
        ("a" * 32, "fetch_prices", (["btc_usd"],)),
        ("cron:heal_gaps:1", "cron:heal_gaps", ()),
        ("cron:drop_old_prices:1", "cron:drop_old_prices", ()),
        ("store_deferred", "store_deferred", ()),
    ],
)
async def test_every_other_job_of_the_release_before_is_run(
    worker: Worker, job_id: str, name: str, arguments: tuple[Any, ...]
) -> None:
    await enqueue_released(worker, job_id, name, *arguments)
    await _move(worker.redis)
    assert await worker.redis.zrange("arq:queue", 0, -1) == []
    assert await run_all(worker) == 1


async def test_jobs_that_are_not_ours_not_due_or_running_stay(worker: Worker) -> None:
    await enqueue_released(worker, "foreign", "send_mail")
    await enqueue_released(worker, "later", "cron:heal_gaps", after_ms=60_000)
    await enqueue_released(worker, "running", "cron:heal_gaps")
    await worker.redis.set("arq:in-progress:running", b"1")
    await worker.redis.set("arq:job:pickled", b"\x80\x04]\x94.")
    await worker.redis.set("arq:job:listed", b"[1]")
    await worker.redis.zadd("arq:queue", {"pickled": 1, "listed": 1, "gone": 1})
    await _move(worker.redis)
    assert sorted(await worker.redis.zrange("arq:queue", 0, -1)) == (
        [b"foreign", b"gone", b"later", b"listed", b"pickled", b"running"]
    )
    assert await worker.redis.zrange(QUEUE, 0, -1) == []
