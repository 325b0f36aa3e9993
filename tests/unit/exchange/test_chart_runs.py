"""The chart is asked about a history of seconds with thousands of holes."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from shared.storage.missed_slots import MissingRun
from worker.exchange.chart import NO_POINT, RANGES, Chart

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MAX_CPU_SECONDS = 1.0
"The event loop is held meanwhile. 0.05 s here; with a comparison of each hole with each other it was 15 s."


async def test_thousands_of_holes_that_are_finer_than_the_chart_are_given_up_at_once() -> None:
    unused: Any = None
    async with httpx.AsyncClient() as http:
        chart = Chart(http, unused, lambda: NOW)
        chart._spacing = dict.fromkeys(RANGES, 6 * SECOND)
        holes = [
            MissingRun(first, first + SECOND, SECOND) for first in (NOW - n * 2 * SECOND for n in range(12_000, 1, -1))
        ]
        began = time.process_time()
        known = [one async for one in chart.recall("btc_usd", holes)]
        took = time.process_time() - began
    assert sorted((run for one in known for run in one.empty), key=lambda run: run.first) == holes
    assert {(one.why, len(one.prices)) for one in known} == {(NO_POINT, 0)}
    assert took < MAX_CPU_SECONDS
