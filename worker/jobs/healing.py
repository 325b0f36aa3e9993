"""`heal_gaps`: fills missed slots from the exchange's chart.

A chart point is an average over the chart's spacing, so it is stored as BACKFILLED and only on a free slot. A slot that
the chart has no point for stays missing, and is not requested again.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from structlog.contextvars import bind_contextvars

from shared.errors import StorageUnavailable
from shared.grid import EPOCH, slot_of
from shared.storage.coverage import select_missing_runs
from shared.storage.missed_slots import MissingRun, insert_unanswered
from shared.storage.prices import insert_prices
from shared.storage.retention import select_kept_from
from shared.storage.schedules import finish_first_fill, select_first_fills
from worker.context import Worker, worker_of
from worker.exchange.errors import DeribitError
from worker.exchange.http import get_index_chart
from worker.exchange.index_check import is_unknown_index
from worker.jobs.chart_matching import match_chart, slots_between
from worker.jobs.storing import store_deferred

logger = logging.getLogger(__name__)

RANGES = {
    "1h": timedelta(hours=1),
    "1d": timedelta(days=1),
    "2d": timedelta(days=2),
    "1m": timedelta(days=28),
    "1y": timedelta(days=365),
    "all": timedelta(days=36_500),
}
"The exchange's chart ranges, finest spacing first. `1m` is a month; the shortest month is assumed."

_BATCH = 2000

FirstFill = tuple[datetime, timedelta]

_CONCURRENCY = 2
"Connections to the exchange that healing uses at once; the others stay free for the schedule."


async def heal_gaps(ctx: dict[str, Any]) -> None:
    """One pass over all tickers. Safe to run twice and on two workers: the database keeps the first row of a slot."""
    worker = worker_of(ctx)
    healing = asyncio.Semaphore(_CONCURRENCY)

    async def heal(ticker: str, first_fill: FirstFill | None, kept_from: datetime) -> None:
        bind_contextvars(ticker=ticker)
        async with healing:
            try:
                await _heal(worker, ticker, first_fill, kept_from)
            except DeribitError as error:
                if not await is_unknown_index(worker, ticker, error):
                    logger.warning("%s: the chart cannot be read, healing waits: %s", ticker, error)
            except StorageUnavailable:
                logger.warning("%s: storage is unavailable, healing waits", ticker)
            except Exception:  # a bug; the other tickers are healed all the same
                logger.exception("%s: fault in healing", ticker)

    try:
        await worker.note_schedule()
        # First, because a fetched price is better than the chart's average for the same slot.
        if not await store_deferred(ctx):
            return
        fills = await select_first_fills(worker.pool, worker.settings.tickers)
        kept_from = await select_kept_from(worker.pool, worker.settings.tickers)
        await asyncio.gather(
            *(heal(ticker, fills.get(ticker), kept_from.get(ticker, EPOCH)) for ticker in worker.settings.tickers)
        )
    except StorageUnavailable:
        logger.warning("storage is unavailable, healing waits")


async def _heal(worker: Worker, ticker: str, first_fill: FirstFill | None, kept_from: datetime) -> None:
    now = worker.clock.now()
    # PostgreSQL does not store dropped prices again, even if the look-back is longer now.
    oldest = max(now - timedelta(hours=worker.settings.heal_lookback_hours), kept_from)
    if first_fill is not None:
        # The next run heals the rest, so that a run requests each chart once.
        await _fill_past(worker, ticker, oldest, *first_fill)
        return
    runs = await select_missing_runs(worker.pool, ticker, oldest, now, now)
    _, unanswered = await _fill(worker, ticker, runs, now)
    await insert_unanswered(worker.pool, ticker, unanswered)
    worker.metrics.unanswered.labels(ticker).inc(sum((run.end - run.first) // run.interval for run in unanswered))


async def _fill_past(worker: Worker, ticker: str, oldest: datetime, first: datetime, interval: timedelta) -> None:
    """Start a new ticker with the chart's past, so that there is something to show."""
    past = MissingRun(slot_of(oldest, interval) + interval, first, interval)
    filled, unanswered = await _fill(worker, ticker, [past], worker.clock.now())
    # Only a past without holes counts as part of the schedule. A sparse past is shown, but not expected to be whole.
    last_hole = max((run.end for run in unanswered), default=past.first)
    whole = [slot for slot in filled if slot >= last_hole]
    await finish_first_fill(worker.pool, ticker, first, min(whole) if len(whole) > 1 else first)


async def _fill(
    worker: Worker, ticker: str, runs: Sequence[MissingRun], now: datetime
) -> tuple[list[datetime], list[MissingRun]]:
    """Request the smallest chart range that reaches each slot. Returns the slots filled and those without a point."""
    filled: list[datetime] = []
    unanswered: list[MissingRun] = []
    finer = timedelta(0)
    for chart_range, reach in RANGES.items():
        parts = [part for run in runs if (part := slots_between(run, now - reach, now - finer))]
        finer = reach
        if not parts:
            continue
        async with worker.metrics.calling("get_index_chart_data"):
            points = await get_index_chart(worker.http, ticker, chart_range)
        matched = [match_chart(ticker, part, points) for part in parts]
        prices = [price for found, _ in matched for price in found]
        for start in range(0, len(prices), _BATCH):
            batch = prices[start : start + _BATCH]
            worker.metrics.note(await insert_prices(worker.pool, batch), [])
            done = start + len(batch)
            slots = f"{done} slot{'' if done == 1 else 's'}"
            logger.info("%s: %s healed from the %s chart, %d to go", ticker, slots, chart_range, len(prices) - done)
        filled += [price.timestamp for price in prices]
        unanswered += [run for _, holes in matched for run in holes]
    return filled, unanswered
