"""A slot's price from the stream; HTTP has what the stream does not give."""

import asyncio
import time
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from shared.grid import slot_of
from shared.queue.fetches import enqueue_fetch_prices
from shared.storage.missed_slots import GapReason
from shared.storage.prices import Price, PriceSource
from tests.integration.examples import select_all_missed_slots, select_all_prices
from tests.integration.jobs.test_slots import arguments_of, given_prices, running_slot
from worker.context import Worker
from worker.exchange.errors import DeribitError
from worker.exchange.http import Observation
from worker.exchange.stream import CALL_SPACING_MS, Stream
from worker.jobs.requested import fetch_prices
from worker.jobs.slots import fetch_slot
from worker.simulator.app import Simulator
from worker.simulator.faults import Fault


async def test_a_slot_is_stored_as_the_stream_gave_it_and_http_has_the_rest(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    slot = await running_slot(worker)
    now = worker.clock.now()
    message = Observation("btc_usd", Decimal("91234.560"), now, testnet=False)
    earlier = Observation("eth_usd", Decimal("1"), slot - timedelta(microseconds=1), testnet=False)
    worker.stream.receive(message)
    worker.stream.receive(earlier)
    await fetch_slot(ctx, *arguments_of(ctx, slot))
    stored = await select_all_prices(worker.pool)
    assert stored == [
        Price("btc_usd", Decimal("91234.560"), slot, now, PriceSource.SCHEDULED, testnet=False),
        *given_prices(simulator, slot),
    ]
    assert simulator.requests == {("get_index_price", "eth_usd"): 1}
    assert worker.stream.slots == {"stream": 1, "http": 1}


@pytest.mark.parametrize("does_hang", [False, True])
async def test_a_message_that_comes_while_http_fails_is_stored(
    worker: Worker, ctx: dict[str, Any], does_hang: bool
) -> None:
    """Whether HTTP refuses at once, or does not answer before the slot is over."""

    class Failing:
        async def observe(self, ticker: str) -> Observation:
            worker.stream.receive(Observation(ticker, Decimal("91234.560"), slot, testnet=False))
            await asyncio.sleep(60 if does_hang else 0)
            raise DeribitError("HTTP_403", "reply is not a JSON-RPC envelope")

    worker.live = Failing()
    slot = slot_of(worker.clock.now(), timedelta(seconds=1)) + timedelta(seconds=1)
    await asyncio.sleep((slot - worker.clock.now()).total_seconds() + 0.01)
    await fetch_slot(ctx, round(slot.timestamp()), 1, ["btc_usd"])
    stored = await select_all_prices(worker.pool)
    assert stored == [Price("btc_usd", Decimal("91234.560"), slot, slot, PriceSource.SCHEDULED, testnet=False)]
    assert await select_all_missed_slots(worker.pool) == []
    assert worker.stream.slots == {"stream": 1, "http": 0}


async def test_a_requested_price_is_always_asked_for_over_http(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    worker.stream.receive(Observation("btc_usd", Decimal("91234.56"), worker.clock.now(), testnet=False))
    job = await enqueue_fetch_prices(worker.redis, ["btc_usd"])
    await fetch_prices(ctx | {"job_id": job.id}, ["btc_usd"])
    assert [price.source for price in await select_all_prices(worker.pool)] == [PriceSource.REQUESTED]
    assert simulator.requests == {("get_index_price", "btc_usd"): 1}


async def test_the_subscriptions_of_all_workers_are_spaced(worker: Worker) -> None:
    streams = [worker.stream, Stream(worker.settings, worker.redis, worker.clock.now)]
    began = time.monotonic()
    await asyncio.gather(*(stream._turn() for stream in streams * 2))
    assert time.monotonic() - began > 3 * CALL_SPACING_MS / 1000 - 0.01


@pytest.mark.parametrize(
    ("state", "detail"),
    [
        ({"price_index": "btc_usd", "locked": True, "reasons": ["a\nb", 3, "c"]}, "locked this index: ab, c"),
        ({"price_index": "btc_usd", "locked": True}, "locked this index"),
        ({"maintenance": True}, "MAINTENANCE: the exchange announced a maintenance"),
    ],
)
async def test_the_platforms_state_is_the_reason_of_a_slot_without_a_price(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any], state: dict[str, Any], detail: str
) -> None:
    simulator.faults.put("btc_usd", Fault("maintenance", None, 0))
    worker.stream.note_state(state)
    slot = await running_slot(worker)
    await fetch_slot(ctx, *arguments_of(ctx, slot))
    [missed] = await select_all_missed_slots(worker.pool)
    assert (missed.ticker, missed.slot, missed.reason) == ("btc_usd", slot, GapReason.EXCHANGE_ERROR)
    assert missed.detail is not None
    assert missed.detail.endswith(detail)
