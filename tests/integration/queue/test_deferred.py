"""PostgreSQL unavailable after a fetch: the price is deferred in Redis, and stored under its own slot later."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from shared.config.settings import Settings
from shared.errors import StorageUnavailable
from shared.local.servers import free_port
from shared.queue.client import QUEUE
from shared.queue.deferred import defer, store_oldest_deferred
from shared.queue.fetches import FetchFailure, FetchStatus, enqueue_fetch_prices, select_fetch_job
from shared.storage.database import Pool, create_pool, fetch
from shared.storage.missed_slots import GapReason, MissedSlot
from shared.storage.prices import PriceSource, insert_prices
from tests.integration.examples import MINUTE, example_price, select_all_missed_slots, select_all_prices
from tests.integration.jobs.test_slots import arguments_of, given_prices, running_slot
from worker.context import Worker
from worker.jobs.healing import heal_gaps
from worker.jobs.requested import fetch_prices
from worker.jobs.slots import fetch_slot
from worker.jobs.storing import store_deferred
from worker.runner import create_worker
from worker.simulator.app import Simulator
from worker.simulator.faults import Fault


@pytest.fixture
async def away(settings: Settings) -> AsyncIterator[Pool]:
    """A pool whose PostgreSQL does not listen."""
    url = f"postgresql://postgres:secret@127.0.0.1:{free_port()}/deribit"
    async with create_pool(settings.model_copy(update={"database_url": url}), name="tests") as pool:
        yield pool


@pytest.fixture
def cut_off(worker: Worker, away: Pool) -> dict[str, Any]:
    """The context of a worker that cannot reach PostgreSQL."""
    return {"worker": replace(worker, pool=away), "job_try": 1}


async def test_a_deferred_price_is_stored_under_its_own_slot(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any], cut_off: dict[str, Any]
) -> None:
    slot = await running_slot(worker, seconds_left=4)
    await fetch_slot(cut_off, *arguments_of(cut_off, slot))
    assert await worker.redis.zcard("deferred") == 2
    assert await select_all_prices(worker.pool) == []

    assert await store_deferred(ctx) is True
    stored = await select_all_prices(worker.pool)
    assert stored == given_prices(simulator, slot)
    assert [str(price.price) for price in stored] == [str(p.price) for p in given_prices(simulator, slot)]
    assert {price.source for price in stored} == {PriceSource.SCHEDULED}
    assert await worker.redis.zcard("deferred") == 0


async def test_a_late_observation_replaces_the_healed_price(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any], cut_off: dict[str, Any]
) -> None:
    slot = await running_slot(worker, seconds_left=4)
    await fetch_slot(cut_off, *arguments_of(cut_off, slot))
    healed = example_price(slot, "90000.1234", source=PriceSource.BACKFILLED, observed_at=slot)
    await insert_prices(worker.pool, [healed])
    assert await store_deferred(ctx) is True
    assert await select_all_prices(worker.pool) == given_prices(simulator, slot)


async def test_an_entry_leaves_redis_only_after_it_is_stored(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any], cut_off: dict[str, Any], away: Pool
) -> None:
    slot = await running_slot(worker, seconds_left=8)
    await fetch_slot(cut_off, *arguments_of(cut_off, slot))
    assert await store_deferred(cut_off) is False
    with pytest.raises(StorageUnavailable):
        await store_oldest_deferred(worker.redis, away)
    await heal_gaps(cut_off)
    assert await worker.redis.zcard("deferred") == 2
    assert await store_oldest_deferred(worker.redis, worker.pool) == 2
    assert await select_all_prices(worker.pool) == given_prices(simulator, slot)
    assert await store_oldest_deferred(worker.redis, worker.pool) == 0


async def test_a_missed_slot_is_deferred_beside_the_prices(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any], cut_off: dict[str, Any]
) -> None:
    simulator.faults.put("eth_usd", Fault("nan", None, 0))
    slot = await running_slot(worker, seconds_left=4)
    await fetch_slot(cut_off, *arguments_of(cut_off, slot))
    assert await store_deferred(ctx) is True
    assert await select_all_prices(worker.pool) == given_prices(simulator, slot)
    missed = MissedSlot("eth_usd", slot, GapReason.REJECTED_VALUE, "BAD_PRICE: price is not finite")
    assert await select_all_missed_slots(worker.pool) == [missed]


async def test_the_enqueued_job_stores_deferred_prices(
    worker: Worker, simulator: Simulator, cut_off: dict[str, Any]
) -> None:
    slot = await running_slot(worker, seconds_left=8)
    for _ in range(3):
        await fetch_slot(cut_off, *arguments_of(cut_off, slot))
    assert await worker.redis.zrange(QUEUE, 0, -1) == [b"store_deferred"]
    assert await create_worker(worker, burst=True, handle_signals=False).run_check() == 1
    stored = await select_all_prices(worker.pool)
    assert [(price.ticker, price.timestamp) for price in stored] == [("btc_usd", slot), ("eth_usd", slot)]
    given = {(one["ticker"], one["price"]) for one in simulator.given}
    assert {(price.ticker, str(price.price)) for price in stored} <= given
    assert await worker.redis.zcard("deferred") == 0


async def test_the_first_of_several_late_observations_is_stored(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any], cut_off: dict[str, Any]
) -> None:
    """As while PostgreSQL is available: a second run of a slot changes nothing."""
    slot = await running_slot(worker, seconds_left=8)
    await fetch_slot(cut_off, *arguments_of(cut_off, slot))
    first = given_prices(simulator, slot)
    simulator.given.clear()
    await fetch_slot(cut_off, *arguments_of(cut_off, slot))
    assert await store_deferred(ctx) is True
    assert await select_all_prices(worker.pool) == first


async def test_a_requested_fetch_says_that_its_price_is_not_stored_yet(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any], cut_off: dict[str, Any]
) -> None:
    job = await enqueue_fetch_prices(worker.redis, ["btc_usd"])
    await fetch_prices(cut_off | {"job_id": job.id}, ["btc_usd"])
    done = await select_fetch_job(worker.redis, job.id)
    assert done is not None
    message = "The price was fetched and will be stored when the storage is back."
    assert (done.status, done.prices) == (FetchStatus.FAILED, [])
    assert done.failures == [FetchFailure("btc_usd", "STORAGE_UNAVAILABLE", message)]

    assert await store_deferred(ctx) is True
    [stored] = await select_all_prices(worker.pool)
    assert (str(stored.price), stored.source) == (simulator.given[0]["price"], PriceSource.REQUESTED)
    assert stored.timestamp == stored.observed_at


async def test_a_storage_that_refuses_prices_leaves_that_as_the_reason(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    slot = await running_slot(worker, seconds_left=4)
    await fetch(worker.pool, "alter table prices rename to prices_away")
    try:
        await fetch_slot(ctx, *arguments_of(ctx, slot))
    finally:
        await fetch(worker.pool, "alter table prices_away rename to prices")
    assert await select_all_missed_slots(worker.pool) == [
        MissedSlot(ticker, slot, GapReason.STORAGE_ERROR, "fetched, waits to be stored")
        for ticker in ("btc_usd", "eth_usd")
    ]
    assert await store_deferred(ctx) is True
    assert await select_all_prices(worker.pool) == given_prices(simulator, slot)


async def test_a_fetch_that_is_refused_by_the_storage_leaves_no_slot_missing(
    worker: Worker, ctx: dict[str, Any]
) -> None:
    """A requested price belongs to no slot, neither now nor if it is refused later."""
    job = await enqueue_fetch_prices(worker.redis, ["btc_usd"])
    await fetch(worker.pool, "alter table prices rename to prices_away")
    try:
        await fetch_prices(ctx | {"job_id": job.id}, ["btc_usd"])
    finally:
        await fetch(worker.pool, "alter table prices_away rename to prices")
    bad = example_price(price="-1", source=PriceSource.REQUESTED)
    await defer(worker.redis, [bad], [])
    assert await store_deferred(ctx) is True
    assert len(await select_all_prices(worker.pool)) == 1
    assert await select_all_missed_slots(worker.pool) == []


async def test_a_database_that_fails_at_storing_drops_nothing(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    """PostgreSQL is available and the price is valid: a trigger fails, as after a faulty migration."""
    slot = await running_slot(worker, seconds_left=4)
    await fetch(worker.pool, "alter table candle_hours rename to candle_hours_away")
    try:
        await fetch_slot(ctx, *arguments_of(ctx, slot))
        assert await store_deferred(ctx) is False
        assert await select_all_prices(worker.pool) == []
    finally:
        await fetch(worker.pool, "alter table candle_hours_away rename to candle_hours")
    assert await store_deferred(ctx) is True
    assert await select_all_prices(worker.pool) == given_prices(simulator, slot)


async def test_a_refused_price_does_not_block_others(worker: Worker, ctx: dict[str, Any]) -> None:
    slot = await running_slot(worker)
    bad, good = example_price(slot - MINUTE, "-1"), example_price(slot, "1")
    await defer(worker.redis, [bad, good], [])
    assert await store_deferred(ctx) is True
    assert await select_all_prices(worker.pool) == [good]
    assert await select_all_missed_slots(worker.pool) == [
        MissedSlot("btc_usd", slot - MINUTE, GapReason.STORAGE_ERROR, "fetched, refused by the storage")
    ]


async def test_an_entry_that_cannot_be_read_is_set_aside_and_the_others_are_stored(
    worker: Worker, ctx: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Of another release, or malformed; and a reason that PostgreSQL refuses."""
    slot = await running_slot(worker)
    good, known = example_price(slot, "1"), MissedSlot("eth_usd", slot, GapReason.EXCHANGE_ERROR, "HTTP_502: x")
    await defer(worker.redis, [good], [known, MissedSlot("eth_usd", slot - MINUTE, GapReason.EXCHANGE_ERROR, "\0")])
    entries = [entry.decode() for entry in await worker.redis.zrange("deferred", 0, -1)]
    [price] = [entry for entry in entries if "price" in entry]
    [missed] = [entry for entry in entries if "502" in entry]
    bad = [
        "",
        "[]",
        "7",
        "{}",
        "[" * 9999,
        price.replace("SCHEDULED", "DREAMT"),
        price.replace('"price": "1"', '"price": "one"'),
        price.replace("testnet", "mainnet"),
        missed.replace("EXCHANGE_ERROR", "BAD_LUCK"),
        missed.replace('"detail"', '"why"'),
    ]
    await worker.redis.zadd("deferred", {entry: number for number, entry in enumerate(bad)})

    assert await store_deferred(ctx) is True
    assert await select_all_prices(worker.pool) == [good]
    assert await select_all_missed_slots(worker.pool) == [known]
    assert await worker.redis.zcard("deferred") == 0
    aside: list[bytes] = await worker.redis.execute_command("LRANGE", "deferred:unreadable", 0, -1)
    assert [entry.decode() for entry in aside[: len(bad)]] == bad
    assert len(aside) == len(bad) + 1
    assert sum("set aside" in record.getMessage() for record in caplog.records) == len(bad) + 1


async def test_more_than_one_batch_is_stored_in_order(worker: Worker, ctx: dict[str, Any]) -> None:
    slot = await running_slot(worker)
    prices = [example_price(slot - MINUTE * n, f"{90_000 + n}.10") for n in range(1, 1101)]
    await defer(worker.redis, prices, [])
    assert await store_oldest_deferred(worker.redis, worker.pool) == 500
    assert await select_all_prices(worker.pool) == prices[:599:-1]
    assert await store_deferred(ctx) is True
    assert await select_all_prices(worker.pool) == prices[::-1]
