"""A requested fetch, from the queue through a real worker to its outcome."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import arq
import pytest
from arq.connections import ArqRedis

from shared.config.settings import Settings
from shared.grid import from_microseconds
from shared.local.servers import free_port
from shared.queue.client import QUEUE, open_redis
from shared.queue.fetches import (
    KEEP_FINISHED_SECONDS,
    FetchFailure,
    FetchJob,
    FetchStatus,
    enqueue_fetch_prices,
    finish_fetch_job,
    select_fetch_job,
    start_fetch_job,
)
from shared.storage.prices import Price, PriceSource
from tests.integration.examples import example_price, select_all_prices
from worker.context import Worker
from worker.jobs.requested import fetch_prices
from worker.runner import create_worker
from worker.simulator.app import Simulator
from worker.simulator.faults import Fault

BOTH = ["btc_usd", "eth_usd"]


async def queued_jobs(redis: ArqRedis) -> list[str]:
    """The ids in arq's queue, each of which has a job behind it."""
    ids = sorted(entry.decode() for entry in await redis.zrange(QUEUE, 0, -1))
    assert ids == sorted(key.decode().removeprefix("arq:job:") for key in await redis.keys("arq:job:*"))
    return ids


async def run_queued(worker: Worker) -> int:
    """Run everything in the queue with a real worker; returns how many jobs it completed."""
    arq_worker = create_worker(worker, burst=True, handle_signals=False)
    return await arq_worker.run_check()


def given_prices(simulator: Simulator) -> list[Price]:
    """The prices that the simulator gave."""
    prices: list[Price] = []
    for given in simulator.given:
        at = from_microseconds(given["usOut"])
        price: dict[str, Any] = {"timestamp": at, "observed_at": at, "source": PriceSource.REQUESTED}
        prices.append(example_price(ticker=given["ticker"], price=given["price"], **price))
    return sorted(prices, key=lambda price: price.ticker)


async def test_a_new_fetch_is_queued(redis: ArqRedis) -> None:
    before = datetime.now(UTC)
    job = await enqueue_fetch_prices(redis, ["eth_usd", "btc_usd"])
    assert before - timedelta(milliseconds=1) <= job.enqueued_at <= datetime.now(UTC)
    assert job == FetchJob(job.id, FetchStatus.QUEUED, BOTH, job.enqueued_at, None, None, [], [])
    assert await select_fetch_job(redis, job.id) == job
    assert await queued_jobs(redis) == [job.id]


async def test_the_same_fetch_asked_for_twenty_times_at_once_is_one_job(redis: ArqRedis) -> None:
    jobs = await asyncio.gather(*(enqueue_fetch_prices(redis, BOTH[:: 1 - 2 * (n % 2)]) for n in range(20)))
    assert jobs == [jobs[0]] * 20
    assert await queued_jobs(redis) == [jobs[0].id]


async def test_a_running_fetch_answers_for_the_same_tickers(redis: ArqRedis) -> None:
    queued = await enqueue_fetch_prices(redis, BOTH)
    await start_fetch_job(redis, queued.id)
    running = await enqueue_fetch_prices(redis, BOTH)
    assert (running.id, running.status) == (queued.id, FetchStatus.RUNNING)
    assert running.started_at is not None
    assert await queued_jobs(redis) == [queued.id]


async def test_a_finished_fetch_does_not_answer_for_the_next(redis: ArqRedis) -> None:
    first = await enqueue_fetch_prices(redis, BOTH)
    await finish_fetch_job(redis, first.id, BOTH, [example_price()], [])
    second = await enqueue_fetch_prices(redis, BOTH)
    assert second.id != first.id
    assert second.status == FetchStatus.QUEUED


async def test_fetches_of_different_tickers_are_different_jobs(redis: ArqRedis) -> None:
    wanted = [["btc_usd"], ["eth_usd"], BOTH]
    jobs = [await enqueue_fetch_prices(redis, tickers) for tickers in wanted]
    assert [job.tickers for job in jobs] == wanted
    assert await queued_jobs(redis) == sorted(job.id for job in jobs)
    assert len({job.id for job in jobs}) == 3


async def test_an_unknown_id_is_none(redis: ArqRedis) -> None:
    assert await select_fetch_job(redis, "0" * 32) is None


@pytest.mark.parametrize("is_started", [False, True])
async def test_an_abandoned_fetch_has_failed_and_does_not_block_the_next(redis: ArqRedis, is_started: bool) -> None:
    job = await enqueue_fetch_prices(redis, BOTH)
    if is_started:
        await start_fetch_job(redis, job.id)
    await redis.delete(f"arq:job:{job.id}")

    abandoned = await select_fetch_job(redis, job.id)
    assert abandoned is not None
    assert (abandoned.status, abandoned.prices) == (FetchStatus.FAILED, [])
    assert abandoned.failures == [FetchFailure(t, "ABANDONED", "No worker finished this fetch.") for t in BOTH]
    assert (abandoned.started_at is not None) is is_started

    assert (await enqueue_fetch_prices(redis, BOTH)).id != job.id


async def test_a_finished_fetch_is_kept_for_an_hour(redis: ArqRedis) -> None:
    job = await enqueue_fetch_prices(redis, BOTH)
    assert await redis.ttl(f"fetch:{job.id}") > KEEP_FINISHED_SECONDS
    await finish_fetch_job(redis, job.id, BOTH, [example_price()], [])
    assert 3590 <= await redis.ttl(f"fetch:{job.id}") <= 3600


async def test_the_whole_life_of_a_fetch(worker: Worker, simulator: Simulator) -> None:
    queued = await enqueue_fetch_prices(worker.redis, BOTH)
    assert await run_queued(worker) == 1

    done = await select_fetch_job(worker.redis, queued.id)
    assert done is not None
    assert done.started_at is not None
    assert done.finished_at is not None
    assert queued.enqueued_at <= done.started_at <= done.finished_at <= datetime.now(UTC)
    given = given_prices(simulator)
    assert done == FetchJob(
        queued.id, FetchStatus.SUCCEEDED, BOTH, queued.enqueued_at, done.started_at, done.finished_at, given, []
    )
    assert [str(price.price) for price in done.prices] == [str(price.price) for price in given]
    assert await select_all_prices(worker.pool) == given
    assert await queued_jobs(worker.redis) == []
    assert await worker.redis.keys("arq:result:*") == []

    again = await enqueue_fetch_prices(worker.redis, BOTH)
    assert again.id != queued.id
    assert await run_queued(worker) == 1
    assert await select_all_prices(worker.pool) == sorted(
        given_prices(simulator), key=lambda price: (price.ticker, price.timestamp)
    )


async def test_a_fetch_of_one_ticker_asks_for_no_other(worker: Worker, simulator: Simulator) -> None:
    await enqueue_fetch_prices(worker.redis, ["eth_usd"])
    await run_queued(worker)
    assert dict(simulator.requests) == {("get_index_price", "eth_usd"): 1}
    assert await select_all_prices(worker.pool) == given_prices(simulator)


async def test_a_fetch_with_one_bad_price_is_partial(worker: Worker, simulator: Simulator) -> None:
    simulator.faults.put("btc_usd", Fault("nan", None, 0))
    job = await enqueue_fetch_prices(worker.redis, BOTH)
    await run_queued(worker)
    done = await select_fetch_job(worker.redis, job.id)
    assert done is not None
    assert (done.status, done.prices) == (FetchStatus.PARTIAL, given_prices(simulator))
    assert [price.ticker for price in done.prices] == ["eth_usd"]
    assert done.failures == [FetchFailure("btc_usd", "BAD_PRICE", "price is not finite")]


async def test_a_fetch_without_any_price_has_failed(worker: Worker, simulator: Simulator) -> None:
    simulator.faults.put("*", Fault("maintenance", None, 0))
    job = await enqueue_fetch_prices(worker.redis, BOTH)
    await run_queued(worker)
    done = await select_fetch_job(worker.redis, job.id)
    assert done is not None
    assert (done.status, done.prices) == (FetchStatus.FAILED, [])
    assert done.failures == [FetchFailure(ticker, "RPC_11051", "system_maintenance") for ticker in BOTH]
    assert await select_all_prices(worker.pool) == []


async def test_a_passing_fault_is_tried_again(worker: Worker, simulator: Simulator) -> None:
    simulator.faults.put("*", Fault("too_many_requests", 1, 0))
    job = await enqueue_fetch_prices(worker.redis, ["btc_usd"])
    await run_queued(worker)
    done = await select_fetch_job(worker.redis, job.id)
    assert done is not None
    assert (done.status, done.prices, done.failures) == (FetchStatus.SUCCEEDED, given_prices(simulator), [])
    assert dict(simulator.requests) == {("get_index_price", "btc_usd"): 2}


async def test_a_ticker_the_exchange_does_not_know_is_asked_for_once(worker: Worker, simulator: Simulator) -> None:
    job = await enqueue_fetch_prices(worker.redis, ["nothing_usd"])
    await run_queued(worker)
    done = await select_fetch_job(worker.redis, job.id)
    assert done is not None
    failure = FetchFailure("nothing_usd", "RPC_-32602", "Invalid params invalid index")
    assert (done.status, done.failures) == (FetchStatus.FAILED, [failure])
    assert dict(simulator.requests) == {("get_index_price", "nothing_usd"): 1, ("get_index_price_names", ""): 1}


async def test_two_workers_run_a_fetch_once(worker: Worker, simulator: Simulator) -> None:
    job = await enqueue_fetch_prices(worker.redis, BOTH)
    assert sum(await asyncio.gather(*(run_queued(worker) for _ in range(3)))) == 1
    done = await select_fetch_job(worker.redis, job.id)
    assert done is not None
    assert done.prices == given_prices(simulator)


@pytest.mark.parametrize("hours", [-0.9, 0.9])
async def test_a_requested_price_has_the_exchanges_own_clock(
    worker: Worker, simulator: Simulator, hours: float
) -> None:
    simulator.offset_seconds = hours * 3600
    job = await enqueue_fetch_prices(worker.redis, ["btc_usd"])
    await run_queued(worker)
    done = await select_fetch_job(worker.redis, job.id)
    assert done is not None
    assert (done.status, [price.timestamp for price in done.prices]) == (
        FetchStatus.SUCCEEDED,
        [from_microseconds(one["usOut"]) for one in simulator.given],
    )


@pytest.mark.parametrize(("hours", "code"), [(2, "CLOCK_AHEAD"), (-2, "CLOCK_BEHIND"), (-24 * 365, "CLOCK_BEHIND")])
async def test_a_price_of_a_clock_far_off_is_refused(
    worker: Worker, simulator: Simulator, hours: int, code: str
) -> None:
    simulator.offset_seconds = hours * 3600
    job = await enqueue_fetch_prices(worker.redis, ["btc_usd"])
    await run_queued(worker)
    done = await select_fetch_job(worker.redis, job.id)
    assert done is not None
    assert [failure.code for failure in done.failures] == [code]
    assert await select_all_prices(worker.pool) == []


async def test_a_fetch_lost_in_a_failover_does_not_run_twice(worker: Worker, simulator: Simulator) -> None:
    """As on a replica that became the master without it."""
    simulator.faults.put("*", Fault("slow", None, 1))
    job = await enqueue_fetch_prices(worker.redis, ["btc_usd"])
    running = asyncio.create_task(run_queued(worker))
    async with asyncio.timeout(20):
        while not await worker.redis.delete(f"arq:in-progress:{job.id}"):
            await asyncio.sleep(0.01)
        assert await running == 1
    assert dict(simulator.requests) == {("get_index_price", "btc_usd"): 1}


async def test_a_fetch_that_loses_redis_runs_again_later(worker: Worker, settings: Settings) -> None:
    nowhere = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port()}"})
    async with open_redis(nowhere, retries=0) as away:
        with pytest.raises(arq.Retry):
            await fetch_prices({"worker": replace(worker, redis=away), "job_id": "0" * 32}, ["btc_usd"])


async def test_a_record_with_only_a_workers_part_is_not_a_fetch(redis: ArqRedis) -> None:
    """The rest of the record was lost in a failover, before a client knew of it."""
    await start_fetch_job(redis, "0" * 32)
    assert await select_fetch_job(redis, "0" * 32) is None
