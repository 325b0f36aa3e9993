"""`heal_gaps`: fills missed slots from the exchange's chart.

A chart point is an average over the chart's spacing, so it is stored as BACKFILLED and only on a free slot, and only if
the chart is as fine as the grid. A slot that every chart around it has no point for stays missing, and is not requested
again.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from structlog.contextvars import bind_contextvars

from shared.errors import StorageUnavailable
from shared.grid import EPOCH, slot_of
from shared.queue.deferred import count_deferred
from shared.queue.jobs import enqueue_store_deferred
from shared.storage.gaps import select_missing_runs
from shared.storage.missed_slots import MissingRun, insert_unanswered
from shared.storage.prices import Price, insert_prices
from shared.storage.retention import select_kept_from
from shared.storage.schedules import (
    UNREPORTED,
    end_schedules,
    finish_first_fill,
    insert_schedules,
    report_collected,
    select_first_fills,
)
from worker.context import Worker, worker_of
from worker.exchange.errors import DeribitError
from worker.exchange.http import get_index_chart
from worker.exchange.index_check import is_unknown_index
from worker.jobs.chart_matching import match_chart, slots_between, slots_inside, spacing_of

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

_BATCH = 500
"Prices stored in one transaction. It holds the lock that every insert of prices needs, for some 10 ms."

_PAUSE_SECONDS = 0.05
"Between batches, so that the slots of the schedule never wait behind a fill."

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
        await _report_schedules(worker)
        # A fetched price is better than the chart's average for the same slot, so the deferred ones are stored first.
        if await count_deferred(worker.redis):
            await enqueue_store_deferred(worker.redis, after_seconds=0)
            return
        fills = await select_first_fills(worker.pool, worker.settings.tickers)
        kept_from = await select_kept_from(worker.pool, worker.settings.tickers)
        await asyncio.gather(
            *(heal(ticker, fills.get(ticker), kept_from.get(ticker, EPOCH)) for ticker in worker.settings.tickers)
        )
    except StorageUnavailable:
        logger.warning("storage is unavailable, healing waits")


async def _report_schedules(worker: Worker) -> None:
    """Report what this worker collects, and note the end of what no worker collects any more."""
    if ended := await report_collected(worker.pool, worker.settings.tickers):
        await insert_schedules(worker.pool, ended, worker.first_slot, worker.interval)
    if time.monotonic() - worker.started > UNREPORTED.total_seconds():
        for ticker, until in (await end_schedules(worker.pool)).items():
            logger.info("%s: no worker collects it any more, nothing is expected from %s on", ticker, until.isoformat())


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
    """Request charts, the finest that reaches a slot first. Returns the slots filled, and those no chart can answer.

    A slot that is between two points of a chart, and near none, is looked for in the next coarser chart. A slot that
    is not between two points is in neither result: the chart may reach it later, or a coarser one will.
    """
    filled: list[datetime] = []
    unanswered: list[MissingRun] = []
    between: list[MissingRun] = []
    finer = timedelta(0)
    for chart_range, reach in RANGES.items():
        left, between = between, []
        asked = [part for run in runs if (part := slots_between(run, now - reach, now - finer))]
        finer = reach
        if not left and not asked:
            continue
        async with worker.metrics.calling("get_index_chart_data"):
            points = await get_index_chart(worker.http, ticker, chart_range)
        prices: list[Price] = []
        spacing = spacing_of(points)
        for run in left + asked:
            if spacing <= run.interval:
                found, holes = match_chart(ticker, run, points)
                prices += found
                between += holes
        # A chart that is too coarse answers nothing, and neither do the coarser ones after it.
        unanswered += [run for run in left if spacing > run.interval]
        unanswered += [part for run in asked if spacing > run.interval and (part := slots_inside(run, points))]
        await _store(worker, ticker, chart_range, prices)
        filled += [price.timestamp for price in prices]
    return filled, unanswered + between


async def _store(worker: Worker, ticker: str, chart_range: str, prices: Sequence[Price]) -> None:
    for start in range(0, len(prices), _BATCH):
        batch = prices[start : start + _BATCH]
        worker.metrics.note(await insert_prices(worker.pool, batch), [])
        done = start + len(batch)
        slots = f"{done} slot{'' if done == 1 else 's'}"
        logger.info("%s: %s healed from the %s chart, %d to go", ticker, slots, chart_range, len(prices) - done)
        await asyncio.sleep(_PAUSE_SECONDS)
