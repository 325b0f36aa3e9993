"""The exchange's chart as a source of past slots. Its points are averages, and only of the last two days as fine as a
minute. A chart that is coarser than the grid answers nothing."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta

import httpx

from shared.storage.missed_slots import MissingRun
from worker.exchange.background import Background
from worker.exchange.chart_matching import match_chart, slots_inside, spacing_of
from worker.exchange.http import ChartPoint, get_index_chart, own_clock
from worker.exchange.runs import slots_between
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
        """Each slot is asked of the shortest range that reaches it. Raises `DeribitError`.

        A slot that is between two points of a chart, and near none, is looked for in the next range. A slot beyond the
        ends of its chart gets no answer yet, because the chart may still reach it.
        """
        now = self._now()
        finer = timedelta(0)
        between: list[MissingRun] = []
        for chart_range, reach in RANGES.items():
            left, between = between, []
            asked = [part for run in runs if (part := slots_between(run, now - reach, now - finer))]
            finer = reach
            parts = left + asked
            known_spacing = self._spacing.get(chart_range, timedelta(0))
            if coarse := [part for part in parts if part.interval < known_spacing]:
                yield Known([], _in_order(coarse), NO_POINT)
            parts = [part for part in parts if part.interval >= known_spacing]
            if not parts:
                continue
            points = await self._points(ticker, chart_range)
            spacing = self._spacing.get(chart_range, timedelta(0))
            prices, empty, again = [], list[MissingRun](), set(left)
            for part in parts:
                if spacing <= part.interval:
                    found, holes = match_chart(ticker, part, points)
                    prices += found
                    between += holes
                elif part in again:
                    empty.append(part)
                elif inside := slots_inside(part, points):
                    empty.append(inside)
            yield Known(prices, _in_order(empty), NO_POINT)
        if between:
            yield Known([], _in_order(between), NO_POINT)

    async def _points(self, ticker: str, chart_range: str) -> list[ChartPoint]:
        asked, points = self._kept.get((ticker, chart_range), (0.0, []))
        if points and time.monotonic() - asked < _KEEP_SECONDS:
            return points
        async with self._background.request("get_index_chart_data"):
            points = await get_index_chart(self._http, ticker, chart_range)
        if spacing := spacing_of(points):
            self._spacing[chart_range] = spacing
        self._kept = {key: kept for key, kept in self._kept.items() if time.monotonic() - kept[0] < _KEEP_SECONDS}
        self._kept[ticker, chart_range] = time.monotonic(), points
        return points


def _in_order(runs: list[MissingRun]) -> list[MissingRun]:
    return sorted(runs, key=lambda run: run.first)
