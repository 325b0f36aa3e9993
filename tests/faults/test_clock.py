"""The exchange's clock is stepped by half a minute while prices are collected. Our own: test_many_workers.py."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.conftest import IS_LONG, Report
from tests.faults.history import check_history
from tests.faults.stack import TICKERS, Stack, open_stack

STEP_SECONDS = 30
INTERVAL = 6 if IS_LONG else 1
"The chart heals a grid of six seconds; a grid of one second shows sooner what is not stored."
SLOTS_EACH = 3 if IS_LONG else 1
OUTSIDE = ("REJECTED_VALUE", "CLOCK_OUTSIDE_SLOT: the exchange's clock is outside the slot")


@pytest.fixture
async def stepped(tmp_path: Path) -> AsyncIterator[Stack]:
    async with open_stack(tmp_path, interval=INTERVAL) as stack:
        yield stack


async def requested(stack: Stack) -> None:
    """A requested fetch belongs to no slot: it is stored under the exchange's own clock."""
    job = (await stack.graphql("mutation { fetchPrices { id } }"))["data"]["fetchPrices"]["id"]

    async def is_done() -> bool:
        answer = await stack.graphql(f'{{ fetchJob(id: "{job}") {{ status }} }}')
        return bool(answer["data"]["fetchJob"]["status"] == "SUCCEEDED")

    await stack.wait_for(is_done, "the fetch has succeeded")


@pytest.mark.timeout(300)
async def test_no_price_is_stored_in_a_wrong_slot_when_the_exchanges_clock_is_stepped(
    stepped: Stack, report: Report
) -> None:
    stack = stepped
    worker = stack.start_worker()
    await stack.start_api()
    await stack.wait_for_prices(2)
    for offset in (STEP_SECONDS, -STEP_SECONDS, 0):
        begun = stack.current_slot()
        await stack.switch("PUT", "clock", {"offset_seconds": offset})
        await requested(stack)
        if offset:
            await asyncio.sleep((SLOTS_EACH + 1) * INTERVAL)
            for ticker in TICKERS:
                told = {
                    (gap["reason"], gap["detail"])
                    for gap in (await stack.coverage(ticker, begun, stack.current_slot()))["gaps"]
                }
                assert OUTSIDE in told, (offset, told)
    back = time.monotonic()
    await stack.wait_for_prices(2)
    recovered = time.monotonic() - back
    end = stack.current_slot()
    before = await check_history(stack, end)
    assert before.reasons <= {OUTSIDE, ("NOT_COLLECTED", None)}
    name, refused = f"exchange's clock +{STEP_SECONDS} s, then -{STEP_SECONDS} s", f"{before.missing} slots refused"
    if IS_LONG:
        recovered = await stack.wait_until_whole(end)
        healed = await check_history(stack, end)
        assert healed.missing == 0
        report(name, healed, recovered, f"{refused}, then healed; none in a wrong slot")
    else:
        report(name, before, recovered, f"{refused}; none in a wrong slot")
    assert worker.poll() is None
