"""Matches chart points to missing slots."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median_low

from shared.storage.missed_slots import MissingRun
from shared.storage.prices import Price, PriceSource
from worker.exchange.http import ChartPoint
from worker.exchange.runs import slots_between


def slots_inside(run: MissingRun, points: Sequence[ChartPoint]) -> MissingRun | None:
    """The slots of the run that are between two points of the chart."""
    if not points:
        return None
    return slots_between(run, points[0].timestamp, points[-1].timestamp - timedelta(microseconds=1))


def spacing_of(points: Sequence[ChartPoint]) -> timedelta:
    """The usual time from one point of the chart to the next. The exchange documents it for no range but two."""
    if len(points) < 2:
        return timedelta(0)
    return median_low(after.timestamp - before.timestamp for before, after in pairwise(points))


def match_chart(ticker: str, run: MissingRun, points: Sequence[ChartPoint]) -> tuple[list[Price], list[MissingRun]]:
    """Give each slot the nearest chart point within half an interval; of two equally near points, the earlier one.

    `points` ascend. Returns the prices found, and the slots that lie between points without one near. A slot beyond
    either end of the chart is in neither, because the chart may still reach it. Loops over points, not over slots,
    because a grid of seconds has far more slots than a chart has points.
    """
    nearest: dict[datetime, ChartPoint] = {}
    reach = run.interval / 2
    low = bisect_left(points, run.first - reach, key=_time)
    high = bisect_right(points, run.end + reach, key=_time)
    for point in points[low:high]:
        below = run.first + (point.timestamp - run.first) // run.interval * run.interval
        for slot in (below, below + run.interval):
            distance = abs(point.timestamp - slot)
            if run.first <= slot < run.end and distance <= run.interval / 2:
                known = nearest.get(slot)
                if known is None or distance < abs(known.timestamp - slot):
                    nearest[slot] = point
    prices = [
        Price(ticker, point.price, slot, point.timestamp, PriceSource.BACKFILLED, point.testnet)
        for slot, point in sorted(nearest.items())
    ]
    # The slots between the ends that were given no point.
    between = slots_inside(run, points)
    holes = []
    if between:
        first = between.first
        for slot in [*(slot for slot in sorted(nearest) if between.first <= slot < between.end), between.end]:
            if first < slot:
                holes.append(MissingRun(first, slot, run.interval))
            first = slot + run.interval
    return prices, holes


def _time(point: ChartPoint) -> datetime:
    return point.timestamp
