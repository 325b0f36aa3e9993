"""The exchange's stream cut, silent, lagging and refused, while prices are collected every second."""

import asyncio
import time
from datetime import datetime
from typing import Any

import pytest

from tests.faults.conftest import IS_LONG, Report
from tests.faults.history import check_history
from tests.faults.stack import Stack

CUT_SECONDS = 300 if IS_LONG else 12
FAULT_SECONDS = 30 if IS_LONG else 6
MOST_LOST_SLOTS = 3
"Of a ticker, before HTTP carries on."


async def requests(stack: Stack) -> int:
    """Prices asked for over HTTP since the last reset."""
    counts = await stack.switch("GET", "requests")
    return sum(counts.get("get_index_price", {}).values())


async def start_streaming(stack: Stack) -> None:
    stack.variables["STREAM"] = "1"
    stack.start_worker()
    await stack.start_api()

    async def both_open() -> bool:
        return bool((await stack.switch("GET", "stream"))["sockets"] == 2)

    await stack.wait_for(both_open, "both sockets are open")
    await stack.wait_for_prices(3)


async def missing(stack: Stack, ticker: str, begun: datetime) -> int:
    gaps = (await stack.coverage(ticker, begun, stack.current_slot()))["gaps"]
    return sum(gap["missing"] for gap in gaps)


@pytest.mark.timeout(400)
async def test_sockets_that_are_cut_at_random_lose_no_slot(stack: Stack, report: Report) -> None:
    """Each every three seconds on average. One socket is often left, and HTTP when none is."""
    await start_streaming(stack)
    begun = stack.current_slot()
    await stack.switch("PUT", "stream", {"cut_every_seconds": 3})
    await asyncio.sleep(CUT_SECONDS)
    await stack.switch("PUT", "stream", {})
    back = time.monotonic()
    await stack.wait_for_prices(2)
    history = await check_history(stack)
    report("stream: sockets cut every 3 s at random", history, time.monotonic() - back)
    assert [await missing(stack, ticker, begun) for ticker in stack.tickers] == [0, 0]


@pytest.mark.timeout(400)
async def test_a_stream_that_fails_while_its_sockets_are_open_is_replaced_by_http(stack: Stack, report: Report) -> None:
    """Silent, and in the long form lagging and refused: few slots are lost, and the stream is used again afterwards."""
    await start_streaming(stack)
    faults: dict[str, dict[str, Any]] = {
        "silent": {"silent": ["*"]},
        "lagging": {"lag_seconds": 4},
        "refused": {"refuse": True, "cut": True},
    }
    for name in faults if IS_LONG else ("silent",):
        switch = faults[name]
        begun = stack.current_slot()
        await stack.switch("PUT", "stream", switch)
        await asyncio.sleep(FAULT_SECONDS)
        assert await requests(stack) > 0, "HTTP carries on"
        await stack.switch("PUT", "stream", {})
        back = time.monotonic()

        async def is_streaming() -> bool:
            await stack.switch("DELETE", "requests")
            await stack.wait_for_prices(3)
            return await requests(stack) == 0

        await stack.wait_for(is_streaming, "prices come from the stream again")
        seconds = time.monotonic() - back
        report(f"stream: {name} for {FAULT_SECONDS} s", await check_history(stack), seconds)
        lost = [await missing(stack, ticker, begun) for ticker in stack.tickers]
        assert max(lost) <= MOST_LOST_SLOTS, (name, lost)
