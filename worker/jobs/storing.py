"""Stores prices and the reasons of missed slots. What PostgreSQL does not take is deferred in Redis."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any

import arq
import asyncpg

from shared.errors import StorageUnavailable
from shared.queue.deferred import defer, store_oldest_deferred
from shared.storage.missed_slots import GapReason, MissedSlot, insert_missed_slots
from shared.storage.prices import Price, PriceSource, insert_prices
from worker.context import Worker, worker_of

logger = logging.getLogger(__name__)

_MAX_STORE_PAUSE_SECONDS = 10
_STORE_DEFERRED_SECONDS = 10.0
"Shorter than the job's timeout. The next run stores the rest."
_STORE_SECONDS = 1.7
"How long an insert may take before its prices are deferred."


async def store_deferred(ctx: dict[str, Any]) -> bool:
    """Store what was deferred. Returns whether nothing is left.

    In as_stored with pauses, so that a database that has just come back can serve others too.
    """
    worker = worker_of(ctx)
    deadline = time.monotonic() + _STORE_DEFERRED_SECONDS
    try:
        while stored := await store_oldest_deferred(worker.redis, worker.pool, worker.metrics.note):
            logger.info("stored %d deferred %s", stored, "entry" if stored == 1 else "entries")
            await asyncio.sleep(0.05)
            if time.monotonic() > deadline:
                return False
    except StorageUnavailable:
        return False
    return True


async def store_deferred_until_done(ctx: dict[str, Any]) -> None:
    """The only job that stores what was deferred; one at a time is queued, whoever asks for it."""
    if not await store_deferred(ctx):
        raise arq.Retry(defer=min(2 ** ctx["job_try"], _MAX_STORE_PAUSE_SECONDS))


async def store(worker: Worker, prices: Sequence[Price], missed: Sequence[MissedSlot]) -> list[Price] | None:
    """Store prices and reasons; returns the prices as stored. If PostgreSQL is unavailable, defer them: `None`."""
    try:
        await worker.note_schedule()
        new = await insert_prices(worker.pool, prices, timeout=_STORE_SECONDS)
        worker.metrics.note(new, [])
        worker.metrics.note([], await insert_missed_slots(worker.pool, missed, timeout=_STORE_SECONDS))
    except (StorageUnavailable, asyncpg.PostgresError) as error:
        logger.warning("not stored, %d prices deferred: %s", len(prices), error)
        await defer(worker.redis, prices, missed)
        worker.metrics.deferred.inc(len(prices))
        if not isinstance(error, StorageUnavailable) or error.is_answered:
            # PostgreSQL answers but does not take prices, such as with a full disk: let the history say so meanwhile.
            with contextlib.suppress(StorageUnavailable):
                unstored = [_unstored(price) for price in prices if price.source is PriceSource.SCHEDULED]
                worker.metrics.note([], await insert_missed_slots(worker.pool, unstored, timeout=_STORE_SECONDS))
        return None
    as_stored = {(price.ticker, price.timestamp): price for price in new}
    return [as_stored.get((price.ticker, price.timestamp), price) for price in prices]


def _unstored(price: Price) -> MissedSlot:
    return MissedSlot(price.ticker, price.timestamp, GapReason.STORAGE_ERROR, "fetched, waits to be stored")
