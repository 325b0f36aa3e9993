"""The schedule's fetch: one row per slot, or a recorded reason, for every fault of the exchange."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.grid import from_microseconds, slot_of
from shared.storage.missed_slots import GapReason, MissedSlot
from shared.storage.prices import Price, PriceSource
from tests.integration.examples import MINUTE, example_price, select_all_missed_slots, select_all_prices
from worker.context import Worker
from worker.jobs.slots import fetch_slot
from worker.simulator.app import Simulator
from worker.simulator.faults import Fault

EXCHANGE, REJECTED = GapReason.EXCHANGE_ERROR, GapReason.REJECTED_VALUE


async def running_slot(worker: Worker, seconds_left: float = 2) -> datetime:
    """The running slot, or the next one if it is about to end."""
    now = datetime.now(UTC)
    slot = slot_of(now, worker.interval)
    left = (slot + worker.interval - now).total_seconds()
    if left < seconds_left:
        await asyncio.sleep(left + 0.01)
        slot += worker.interval
    return slot


def arguments_of(ctx: dict[str, Any], slot: datetime) -> tuple[int, int, list[str]]:
    """The arguments with which the worker's own schedule enqueues the slot's jobs."""
    settings = ctx["worker"].settings
    return round(slot.timestamp()), settings.fetch_interval_seconds, sorted(settings.tickers)


def given_prices(simulator: Simulator, slot: datetime) -> list[Price]:
    """The prices that the exchange sent, as they must be stored."""
    return sorted(
        (
            example_price(slot, one["price"], ticker=one["ticker"], observed_at=from_microseconds(one["usOut"]))
            for one in simulator.given
        ),
        key=lambda price: price.ticker,
    )


async def test_a_slot_is_stored_as_the_exchange_gave_it(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    slot = await running_slot(worker)
    await fetch_slot(ctx, *arguments_of(ctx, slot))
    stored = await select_all_prices(worker.pool)
    given = given_prices(simulator, slot)
    assert stored == given
    assert [(price.ticker, price.source, price.testnet) for price in stored] == [
        ("btc_usd", PriceSource.SCHEDULED, True),
        ("eth_usd", PriceSource.SCHEDULED, True),
    ]
    assert [str(price.price) for price in stored] == [str(price.price) for price in given]
    assert await select_all_missed_slots(worker.pool) == []


async def test_a_slot_that_is_run_twice_keeps_its_first_price(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    slot = await running_slot(worker)
    await fetch_slot(ctx, *arguments_of(ctx, slot))
    given = given_prices(simulator, slot)
    await asyncio.gather(*(fetch_slot(ctx, *arguments_of(ctx, slot)) for _ in range(4)))
    assert len(simulator.given) == 10
    assert await select_all_prices(worker.pool) == given


async def test_a_slot_that_is_over_is_not_fetched(worker: Worker, simulator: Simulator, ctx: dict[str, Any]) -> None:
    now = datetime.now(UTC)
    for ago in (MINUTE, 5 * MINUTE):
        await fetch_slot(ctx, *arguments_of(ctx, slot_of(now, MINUTE) - ago))
    assert await select_all_prices(worker.pool) == []
    assert await select_all_missed_slots(worker.pool) == []
    assert not simulator.requests


NO_ENVELOPE = "reply is not a JSON-RPC envelope"
FAULTS = {
    "rate_limit_429": (EXCHANGE, f"HTTP_429: {NO_ENVELOPE}"),
    "too_many_requests": (EXCHANGE, "RPC_10028: too_many_requests"),
    "maintenance": (EXCHANGE, "RPC_11051: system_maintenance"),
    "internal_error": (EXCHANGE, "RPC_11094: internal_server_error"),
    "bad_gateway": (EXCHANGE, f"HTTP_502: {NO_ENVELOPE}"),
    "redirect": (EXCHANGE, "REDIRECT: redirect to another place refused (HTTP 302)"),
    "hang": (EXCHANGE, "TIMEOUT: no answer in time"),
    "slow": (EXCHANGE, "TIMEOUT: no answer in time"),
    "half_json": (EXCHANGE, f"BAD_REPLY: {NO_ENVELOPE}"),
    "wrong_shape": (EXCHANGE, "BAD_REPLY: result without index_price"),
    "missing_price": (EXCHANGE, "BAD_REPLY: result without index_price"),
    "nan": (REJECTED, "BAD_PRICE: price is not finite"),
    "infinity": (REJECTED, "BAD_PRICE: price is not finite"),
    "negative": (REJECTED, "BAD_PRICE: price is not positive"),
    "zero": (REJECTED, "BAD_PRICE: price is not positive"),
    "wrong_id": (EXCHANGE, "WRONG_ID: reply carries an id that was not sent"),
    "no_price_error": (EXCHANGE, "BAD_REPLY: error is not an object"),
}
ASKED_ONCE = {"maintenance", "redirect", "nan", "infinity", "negative", "zero", "hang", "slow"}


async def test_every_fault_leaves_its_reason_and_does_not_affect_other_tickers(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    """One ticker for each fault and two without, all in the same slot."""
    kinds = {f"sim{n}_usd": kind for n, kind in enumerate(FAULTS)}
    tickers = ("btc_usd", *kinds, "eth_usd")
    worker.settings = worker.settings.model_copy(update={"fetch_interval_seconds": 2, "tickers": tickers})
    for ticker, kind in kinds.items():
        simulator.faults.put(ticker, Fault(kind, None, 60))
    slot = await running_slot(worker, seconds_left=1.95)

    await fetch_slot(ctx, *arguments_of(ctx, slot))

    assert datetime.now(UTC) - slot < timedelta(seconds=2.5)
    assert [price.ticker for price in await select_all_prices(worker.pool)] == ["btc_usd", "eth_usd"]
    expected = [MissedSlot(ticker, slot, *FAULTS[kind]) for ticker, kind in sorted(kinds.items())]
    assert await select_all_missed_slots(worker.pool) == expected
    for ticker, kind in kinds.items():
        asked = simulator.requests["get_index_price", ticker]
        assert asked == 1 if kind in ASKED_ONCE else 2 <= asked <= 5, (kind, asked)


async def test_a_fault_that_passes_within_the_slot_leaves_no_trace(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    slot = await running_slot(worker, seconds_left=5)
    simulator.faults.put("btc_usd", Fault("bad_gateway", 1, 0))
    await fetch_slot(ctx, *arguments_of(ctx, slot))
    assert await select_all_prices(worker.pool) == given_prices(simulator, slot)
    assert await select_all_missed_slots(worker.pool) == []


async def test_an_envelope_without_a_clock_gets_the_time_of_ours(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    simulator.faults.put("*", Fault("no_clock", None, 0))
    slot = await running_slot(worker)
    before = datetime.now(UTC)
    await fetch_slot(ctx, *arguments_of(ctx, slot))
    stored = await select_all_prices(worker.pool)
    assert [price.price for price in stored] == [price.price for price in given_prices(simulator, slot)]
    assert all(before <= price.observed_at <= datetime.now(UTC) for price in stored)


@pytest.mark.parametrize("seconds", [-4, 0, 50])
async def test_an_observation_within_the_slot_or_just_before_it_is_stored(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any], seconds: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The exchange's clock is `seconds` after the slot's beginning."""
    slot = await running_slot(worker)
    simulator.offset_seconds = (slot - datetime.now(UTC)).total_seconds() + seconds
    await fetch_slot(ctx, *arguments_of(ctx, slot))
    stored = await select_all_prices(worker.pool)
    assert stored == given_prices(simulator, slot)
    assert len(stored) == 2
    assert abs((stored[0].observed_at - slot).total_seconds() - seconds) < 5
    said = [message for message in caplog.messages if "our clock differs from the exchange's by" in message]
    assert len(said) == (2 if abs(simulator.offset_seconds) > 1.5 else len(said))


@pytest.mark.parametrize("seconds", [-6, -70, 61, 70, 86_400 * 365])
async def test_an_observation_outside_the_slot_is_refused(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any], seconds: int
) -> None:
    slot = await running_slot(worker)
    simulator.offset_seconds = (slot - datetime.now(UTC)).total_seconds() + seconds
    await fetch_slot(ctx, *arguments_of(ctx, slot))
    assert await select_all_prices(worker.pool) == []
    detail = "CLOCK_OUTSIDE_SLOT: the exchange's clock is outside the slot"
    assert await select_all_missed_slots(worker.pool) == [
        MissedSlot(ticker, slot, REJECTED, detail) for ticker in ("btc_usd", "eth_usd")
    ]
    assert set(simulator.requests.values()) == {1}


async def test_in_a_short_slot_our_clock_may_run_ahead_by_half_of_it(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    worker.settings = worker.settings.model_copy(update={"fetch_interval_seconds": 2})
    slots = []
    for seconds in (-0.8, -1.2):
        slot = await running_slot(worker, seconds_left=1.8)
        simulator.offset_seconds = (slot - datetime.now(UTC)).total_seconds() + seconds
        await fetch_slot(ctx, *arguments_of(ctx, slot))
        slots.append(slot)
        await asyncio.sleep((slot + worker.interval - datetime.now(UTC)).total_seconds())
    assert [(price.ticker, price.timestamp) for price in await select_all_prices(worker.pool)] == [
        ("btc_usd", slots[0]),
        ("eth_usd", slots[0]),
    ]
    assert [missed.slot for missed in await select_all_missed_slots(worker.pool)] == [slots[1]] * 2
