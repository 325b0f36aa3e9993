"""`drop_old_prices`: deletes raw prices older than RETENTION_DAYS; their candles stay."""

import asyncio
import logging
from datetime import datetime, timedelta
from typing import Any

from shared.errors import StorageUnavailable
from shared.storage.retention import drop_oldest_prices, move_kept_from, select_to_drop
from worker.context import Worker, worker_of

logger = logging.getLogger(__name__)

BATCH = 2000
"Rows deleted in one transaction. It holds the lock that every insert of prices needs, for some 10 ms."

PAUSE_SECONDS = 0.05
BUDGET_SECONDS = 10.0
"Shorter than the job's timeout. The next run, a minute later, deletes the rest."


async def drop_old_prices(ctx: dict[str, Any]) -> None:
    """Safe to run twice and on two workers, and to be killed at any point: the limit is in the database."""
    worker = worker_of(ctx)
    days = worker.settings.retention_days
    if days is None:
        return
    try:
        moved = await move_kept_from(worker.pool, worker.clock.now(), timedelta(days=days))
        for ticker, kept_from in sorted(moved.items()):
            logger.info(
                "%s: prices before %s are dropped, RETENTION_DAYS is %d; their candles stay",
                ticker,
                kept_from.isoformat(),
                days,
            )
        await _drop(worker, await select_to_drop(worker.pool))
    except StorageUnavailable:
        logger.warning("storage is unavailable, old prices stay for now")


async def _drop(worker: Worker, kept_from: dict[str, datetime]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + BUDGET_SECONDS
    dropped = dict.fromkeys(kept_from, 0)
    left = list(kept_from)
    try:
        while left and loop.time() < deadline:
            for ticker in tuple(left):  # in turns, because the time may not suffice for all of one ticker
                count = await drop_oldest_prices(worker.pool, ticker, BATCH)
                dropped[ticker] += count
                worker.metrics.dropped.labels(ticker).inc(count)
                if count < BATCH:
                    left.remove(ticker)
                await asyncio.sleep(PAUSE_SECONDS)
    finally:
        for ticker, count in dropped.items():
            if count:
                logger.info("%s: %d prices from before %s dropped", ticker, count, kept_from[ticker].isoformat())
