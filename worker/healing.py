"""`heal_gaps`: fill slots that were missed from the exchange's chart, where the chart can answer.

A chart's point is an average over its spacing, so it is stored as BACKFILLED, on free slots of the grid only. A slot
the chart cannot answer stays missing, and is not asked about again.
"""

import asyncio
import logging
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from shared.coverage import MissingRun, select_missing_runs
from shared.errors import StorageUnavailable
from shared.grid import slot_of
from shared.prices import Price, PriceSource, insert_prices
from shared.queue import add_worker
from shared.schedules import (
    GapReason,
    MissedSlot,
    finish_first_fill,
    insert_missed_slots,
    select_first_fills,
)
from worker.context import Worker, worker_of
from worker.deribit import ChartPoint, get_index_chart
from worker.deribit_errors import DeribitError
from worker.jobs import store_deferred

logger = logging.getLogger(__name__)

RANGES = {
    "1h": timedelta(hours=1),
    "1d": timedelta(days=1),
    "2d": timedelta(days=2),
    "1m": timedelta(days=28),
    "1y": timedelta(days=365),
    "all": timedelta(days=36_500),
}
"The exchange's chart ranges, finest spacing first; `1m` is a month, the shortest one to be sure."

_BATCH = 2000

_CONCURRENCY = 2
"Healing never keeps more than these connections to the exchange from the schedule's own fetches."


async def heal_gaps(ctx: dict[str, Any]) -> None:
    """One pass over all tickers. Safe to run twice and from two workers: the database keeps the first row of a slot."""
    worker = worker_of(ctx)
    healing = asyncio.Semaphore(_CONCURRENCY)

    async def heal(ticker: str, first_fill: datetime | None) -> None:
        async with healing:
            await _heal(worker, ticker, first_fill)

    try:
        await add_worker(worker.redis, worker.health_key)
        await worker.note_schedule()
        # What was fetched comes before what the chart says of the same slots.
        if not await store_deferred(ctx):
            return
        fills = await select_first_fills(worker.pool, worker.settings.tickers)
        await asyncio.gather(*(heal(ticker, fills.get(ticker)) for ticker in worker.settings.tickers))
    except StorageUnavailable:
        logger.warning("storage is away, healing waits")


async def _heal(worker: Worker, ticker: str, first_fill: datetime | None) -> None:
    now = datetime.now(UTC)
    oldest = now - timedelta(hours=worker.settings.heal_lookback_hours)
    try:
        if first_fill is not None:
            await _fill_past(worker, ticker, oldest, first_fill)
        runs = await select_missing_runs(worker.pool, ticker, oldest, now, now)
        _, unanswered = await _fill(worker, ticker, runs, now)
    except DeribitError as error:
        logger.warning("%s: the chart cannot be read, healing waits: %s", ticker, error)
        return
    reasons = [MissedSlot(ticker, slot, GapReason.NOT_COLLECTED, None, unanswered=True) for slot in unanswered]
    await insert_missed_slots(worker.pool, reasons)


async def _fill_past(worker: Worker, ticker: str, oldest: datetime, first: datetime) -> None:
    """A ticker that was never collected starts with what the chart offers, so that there is something to show."""
    past = MissingRun(slot_of(oldest, worker.interval) + worker.interval, first, worker.interval)
    filled, unanswered = await _fill(worker, ticker, [past], datetime.now(UTC))
    # Where the chart is as fine as the grid, the history begins with it; a sparse past is shown, not counted on.
    last_hole = max(unanswered, default=past.first - worker.interval)
    whole = [slot for slot in filled if slot > last_hole]
    await finish_first_fill(worker.pool, ticker, first, min(whole) if len(whole) > 1 else first)


async def _fill(
    worker: Worker, ticker: str, runs: Sequence[MissingRun], now: datetime
) -> tuple[list[datetime], list[datetime]]:
    """Ask one chart per range that is the smallest for some of the slots. Answers the slots filled and those not."""
    filled: list[datetime] = []
    unanswered: list[datetime] = []
    finer = timedelta(0)
    for chart_range, reach in RANGES.items():
        slots = [(slot, run.interval) for run in runs for slot in _slots(run) if finer <= now - slot < reach]
        finer = reach
        if not slots:
            continue
        points = await get_index_chart(worker.http, ticker, chart_range)
        prices, in_vain = match_chart(ticker, slots, points)
        for start in range(0, len(prices), _BATCH):
            batch = prices[start : start + _BATCH]
            await insert_prices(worker.pool, batch)
            logger.info("%s: %d of %d slots healed, %s chart", ticker, start + len(batch), len(prices), chart_range)
        filled += [price.timestamp for price in prices]
        unanswered += in_vain
    return filled, unanswered


def match_chart(
    ticker: str, slots: Sequence[tuple[datetime, timedelta]], points: Sequence[ChartPoint]
) -> tuple[list[Price], list[datetime]]:
    """Give each slot the chart point nearest to it, within half an interval (of two as near, the earlier).

    `slots` are (slot, interval) pairs, `points` ascend. Answers the prices found, and the slots that lie between
    points and have none near. A slot beyond either end is in neither: the chart may yet come to it.
    """
    times = [point.timestamp for point in points]
    filled, missing = [], []
    for slot, interval in slots:
        after = bisect_left(times, slot)
        nearest = min(
            (point for point in points[max(after - 1, 0) : after + 1]),
            key=lambda point: (abs(point.timestamp - slot), point.timestamp),
            default=None,
        )
        if nearest is not None and abs(nearest.timestamp - slot) <= interval / 2:
            filled.append(
                Price(ticker, nearest.price, slot, nearest.timestamp, PriceSource.BACKFILLED, nearest.testnet)
            )
        elif times and times[0] < slot < times[-1]:
            missing.append(slot)
    return filled, missing


def _slots(run: MissingRun) -> Iterator[datetime]:
    slot = run.first
    while slot < run.end:
        yield slot
        slot += run.interval
