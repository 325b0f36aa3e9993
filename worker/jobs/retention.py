"""`drop_old_prices`: with RETENTION_DAYS, raw prices that are older are dropped; their candles stay."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from shared.errors import StorageUnavailable
from shared.storage.retention import drop_oldest_prices, move_kept_from, select_to_drop
from worker.context import Worker, worker_of

logger = logging.getLogger(__name__)

BATCH = 2000
"Deleted at a time, with the lock that all who store prices take turns by: some hundredths of a second."

PAUSE_SECONDS = 0.05
BUDGET_SECONDS = 10.0
"Short of the job's own timeout. What is left is the next run's, a minute later."


async def drop_old_prices(ctx: dict[str, Any]) -> None:
    """Safe to run twice and from two workers, and to be killed anywhere: the database knows what is to go."""
    worker = worker_of(ctx)
    days = worker.settings.retention_days
    if days is None:
        return
    try:
        moved = await move_kept_from(worker.pool, datetime.now(UTC), timedelta(days=days))
        for ticker, kept_from in sorted(moved.items()):
            logger.info(
                "%s: prices before %s are dropped, RETENTION_DAYS is %d; their candles stay",
                ticker,
                kept_from.isoformat(),
                days,
            )
        await _drop(worker, await select_to_drop(worker.pool))
    except StorageUnavailable:
        logger.warning("storage is away, old prices stay for now")


async def _drop(worker: Worker, kept_from: dict[str, datetime]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + BUDGET_SECONDS
    dropped = dict.fromkeys(kept_from, 0)
    left = list(kept_from)
    try:
        while left and loop.time() < deadline:
            for ticker in tuple(left):  # each has its turn: the time may not be enough for all of one
                count = await drop_oldest_prices(worker.pool, ticker, BATCH)
                dropped[ticker] += count
                if count < BATCH:
                    left.remove(ticker)
                await asyncio.sleep(PAUSE_SECONDS)
    finally:
        for ticker, count in dropped.items():
            if count:
                logger.info("%s: %d prices from before %s dropped", ticker, count, kept_from[ticker].isoformat())
