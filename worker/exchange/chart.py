"""The exchange's chart as a source of past slots. Its points are averages, and only of the last two days as fine as a
minute. A chart that is coarser than the grid answers nothing."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median_low

import httpx

from shared.storage.missed_slots import MissingRun
from worker.exchange.background import Background
from worker.exchange.chart_matching import match_chart
from worker.exchange.http import ChartPoint, get_index_chart, own_clock
from worker.exchange.runs import slots_between, split
from worker.exchange.source import Known

RANGES = {
    "1h": timedelta(hours=1),
    "1d": timedelta(days=1),
    "2d": timedelta(days=2),
    "1m": timedelta(days=28),
    "1y": timedelta(days=365),
    "all": timedelta(days=36_500),
}
"The exchange's chart ranges, finest spacing first. `1m` is a month; the shortest month is assumed."

NO_POINT = "no chart point as fine as the grid"

_KEEP_SECONDS = 15.0
"So that a run which heals several periods reads each chart once."


class Chart:
    """Learns the spacing of each range from its points, and does not ask again for one that is too coarse."""

    name = "chart"

    def __init__(
        self, http: httpx.AsyncClient, background: Background, now: Callable[[], datetime] = own_clock
    ) -> None:
        self._http = http
        self._now = now
        self._background = background
        self._spacing: dict[str, timedelta] = {}
        self._kept: dict[tuple[str, str], tuple[float, list[ChartPoint]]] = {}

    async def known_from(self, ticker: str) -> None:
        """Unknown, because each range has its own spacing."""

    async def recall(self, ticker: str, runs: Sequence[MissingRun]) -> AsyncIterator[Known]:
        """Each slot is asked of the shortest range that reaches it. Raises `DeribitError`."""
        now = self._now()
        finer = timedelta(0)
        for chart_range, reach in RANGES.items():
            parts = [part for run in runs if (part := slots_between(run, now - reach, now - finer))]
            finer = reach
            coarse = [part for part in parts if part.interval < self._spacing.get(chart_range, timedelta(0))]
            parts = [part for part in parts if part not in coarse]
            if coarse:
                yield Known([], coarse, NO_POINT)
            if not parts:
                continue
            points = await self._points(ticker, chart_range)
            spacing = self._spacing.get(chart_range, timedelta(0))
            for part in parts:
                if part.interval < spacing:
                    yield Known([], split([part], points[-1].timestamp)[0], NO_POINT)
                else:
                    yield Known(*match_chart(ticker, part, points), NO_POINT)

    async def _points(self, ticker: str, chart_range: str) -> list[ChartPoint]:
        asked, points = self._kept.get((ticker, chart_range), (0.0, []))
        if points and time.monotonic() - asked < _KEEP_SECONDS:
            return points
        async with self._background.request("get_index_chart_data"):
            points = await get_index_chart(self._http, ticker, chart_range)
        if len(points) > 1:
            self._spacing[chart_range] = median_low(
                later.timestamp - earlier.timestamp for earlier, later in pairwise(points)
            )
        self._kept = {key: kept for key, kept in self._kept.items() if time.monotonic() - kept[0] < _KEEP_SECONDS}
        self._kept[ticker, chart_range] = time.monotonic(), points
        return points
