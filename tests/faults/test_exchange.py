"""The exchange's faults, for one ticker and for all, while prices are collected every second."""

import asyncio
import time
from datetime import datetime
from pathlib import Path

import pytest

from tests.faults.conftest import IS_LONG, Report
from tests.faults.history import check_history
from tests.faults.stack import TICKERS, Stack, open_stack

SECONDS_EACH = 6 if IS_LONG else 3

# kind: the reasons that the history may have.
KINDS = {
    "rate_limit_429": {("EXCHANGE_ERROR", "HTTP_429: reply is not a JSON-RPC envelope")},
    "too_many_requests": {("EXCHANGE_ERROR", "RPC_10028: too_many_requests")},
    "maintenance": {("EXCHANGE_ERROR", "RPC_11051: system_maintenance")},
    "bad_gateway": {("EXCHANGE_ERROR", "HTTP_502: reply is not a JSON-RPC envelope")},
    "hang": {("EXCHANGE_ERROR", "TIMEOUT: no answer in time")},
    "drop": {("EXCHANGE_ERROR", "DISCONNECTED: connection closed without an answer")},
    "truncated": {("EXCHANGE_ERROR", "DISCONNECTED: connection closed without an answer")},
    "half_json": {("EXCHANGE_ERROR", "BAD_REPLY: reply is not a JSON-RPC envelope")},
    "wrong_shape": {("EXCHANGE_ERROR", "BAD_REPLY: result without index_price")},
    "nan": {("REJECTED_VALUE", "BAD_PRICE: price is not finite")},
    "negative": {("REJECTED_VALUE", "BAD_PRICE: price is not positive")},
}
MOST_ATTEMPTS_A_SLOT = 8
# An attempt that the slot's end interrupts is a time-out.
CUT_OFF = ("EXCHANGE_ERROR", "TIMEOUT: no answer in time")


async def reasons_told(stack: Stack, ticker: str, begun: datetime) -> set[tuple[str, str]]:
    """Without those of the slot in which the fault began, which may have another reason."""
    gaps = (await stack.coverage(ticker, begun, stack.current_slot()))["gaps"]
    return {(gap["reason"], gap["detail"]) for gap in gaps if datetime.fromisoformat(gap["fromDt"]) > begun}


@pytest.mark.timeout(120)
async def test_a_fault_of_one_ticker_does_not_affect_the_others(tmp_path: Path, report: Report) -> None:
    """Every kind at once, each on its own ticker."""
    faulty = {f"sim{number}_usd": kind for number, kind in enumerate(KINDS)}
    async with open_stack(tmp_path, interval=1, tickers=(*TICKERS, *faulty)) as stack:
        stack.start_worker()
        await stack.start_api()
        await stack.wait_for_prices(3)
        await stack.switch("DELETE", "requests")
        for ticker, kind in faulty.items():
            await stack.switch("PUT", f"faults/{ticker}", {"kind": kind, "methods": ["get_index_price"]})
        begun, began = stack.current_slot(), time.monotonic()
        await asyncio.sleep(2 * SECONDS_EACH)
        told: dict[str, set[tuple[str, str]]] = {}

        async def all_told() -> bool:
            told.update({kind: await reasons_told(stack, ticker, begun) for ticker, kind in faulty.items()})
            return all(told.values())

        await stack.wait_for(all_told, "a gap of each kind")
        seconds = time.monotonic() - began
        requests = (await stack.switch("GET", "requests"))["get_index_price"]
        for ticker in faulty:
            await stack.switch("DELETE", f"faults/{ticker}")
        back = time.monotonic()
        await stack.wait_for_prices(2)
        report("11 exchange faults at once, of one ticker each", await check_history(stack), time.monotonic() - back)
        for kind, expected in KINDS.items():
            assert told[kind] <= expected | {CUT_OFF}
        assert max(requests.values()) <= MOST_ATTEMPTS_A_SLOT * requests["btc_usd"]
        assert requests["btc_usd"] <= seconds + 5  # a healthy ticker is requested once a slot
        for ticker in TICKERS:
            assert (await stack.coverage(ticker, begun, stack.current_slot()))["gaps"] == []


@pytest.mark.timeout(240)
async def test_a_fault_of_all_tickers_is_recorded_and_passes(stack: Stack, report: Report) -> None:
    stack.start_worker()
    await stack.start_api()
    await stack.wait_for_prices(2)
    back = time.monotonic()
    for kind in KINDS if IS_LONG else ("rate_limit_429", "hang", "nan"):
        await stack.switch("DELETE", "requests")
        await stack.switch("PUT", "faults/*", {"kind": kind, "methods": ["get_index_price"]})
        begun, began = stack.current_slot(), time.monotonic()
        await asyncio.sleep(SECONDS_EACH)
        told: set[tuple[str, str]] = set()

        async def is_told(begun: datetime = begun, told: set[tuple[str, str]] = told) -> bool:
            told |= await reasons_told(stack, "eth_usd", begun)
            return bool(told)

        await stack.wait_for(is_told, f"a gap for {kind}")
        requests = (await stack.switch("GET", "requests"))["get_index_price"]
        seconds = time.monotonic() - began
        await stack.switch("DELETE", "faults/*")
        back = time.monotonic()
        assert max(requests.values()) <= MOST_ATTEMPTS_A_SLOT * (seconds + 1), (kind, requests)
        await stack.wait_for_prices(1)
        assert told <= KINDS[kind] | {CUT_OFF}, kind
    report("exchange faults of all tickers", await check_history(stack), time.monotonic() - back)


@pytest.mark.timeout(400)
async def test_exchange_back_after_minutes_is_healed(slow_stack: Stack, report: Report) -> None:
    stack = slow_stack
    stack.start_worker()
    await stack.start_api()
    await stack.wait_for_prices(1)
    await stack.switch("PUT", "faults/*", {"kind": "bad_gateway"})
    await asyncio.sleep(300 if IS_LONG else 13)
    await stack.switch("DELETE", "faults/*")
    end = stack.current_slot()

    recovered = await stack.wait_until_whole(end)
    history = await check_history(stack, end)
    report(f"exchange unavailable for {300 if IS_LONG else 13} s", history, recovered)
    assert history.missing == 0
