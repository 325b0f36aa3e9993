"""`heal_gaps`: fills missed slots of the look-back, the newest first, from the exchange's trades and its chart.

A slot that neither has anything for stays missing, with their reasons, and is not requested again. A slot that got an
average, because trades could not be read, is asked of them again.
"""

import asyncio
import logging
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import arq
from redis.exceptions import RedisError
from structlog.contextvars import bind_contextvars

from shared.errors import StorageUnavailable, describe
from shared.grid import EPOCH
from shared.queue.deferred import count_deferred
from shared.queue.jobs import enqueue_store_deferred
from shared.queue.spacing import lock, unlock
from shared.storage.gaps import select_averaged_runs, select_missing_runs
from shared.storage.missed_slots import MissingRun, insert_unanswered
from shared.storage.retention import select_kept_from
from shared.storage.schedules import UNREPORTED, end_schedules, insert_schedules, report_collected
from worker.context import Worker, worker_of
from worker.exchange.background import CONCURRENCY, HEALING
from worker.exchange.runs import pieces
from worker.jobs.recovering import note_missing, piece_length, recover

logger = logging.getLogger(__name__)

BUDGET_SECONDS = 8.0
"Then a run begins no other piece, and the job runs again at once."

LONGEST_SECONDS = 16.0
"Then the piece in hand is left to the next run: arq takes the job's timeout as its end. What was stored stays."


async def heal_gaps(ctx: dict[str, Any]) -> None:
    """One pass over all tickers. Safe to run twice and on two workers: the database keeps the best row of a slot.

    Raises `arq.Retry` if there is more to do than fits in a run.
    """
    worker = worker_of(ctx)
    holder = uuid.uuid4().hex
    is_finished = True
    try:
        await worker.note_schedule()
        await _report_schedules(worker)
        # A fetched price is better than one of the past for the same slot, so the deferred ones are stored first.
        if await count_deferred(worker.redis):
            await enqueue_store_deferred(worker.redis, after_seconds=0)
            return
        if not await lock(worker.redis, HEALING, holder):
            return
        try:
            is_finished = await _heal_all(worker)
        finally:
            await unlock(worker.redis, HEALING, holder)
    except StorageUnavailable:
        logger.warning("storage is unavailable, healing waits")
    except (RedisError, OSError) as error:
        logger.warning("queue is unavailable, healing waits: %s", describe(error))
    if not is_finished:
        raise arq.Retry(defer=0)


async def _report_schedules(worker: Worker) -> None:
    """Report what this worker collects, and note the end of what no worker collects any more."""
    if ended := await report_collected(worker.pool, worker.settings.tickers):
        await insert_schedules(worker.pool, ended, worker.first_slot, worker.interval)
    if worker.clock.now() - worker.clock.started_at > UNREPORTED:
        for ticker, until in (await end_schedules(worker.pool)).items():
            logger.info("%s: no worker collects it any more, nothing is expected from %s on", ticker, until.isoformat())


async def _heal_all(worker: Worker) -> bool:
    """Returns whether every ticker was done in time."""
    began = asyncio.get_running_loop().time()
    healing = asyncio.Semaphore(CONCURRENCY)
    now = worker.clock.now()
    tickers = worker.settings.tickers
    kept_from = await select_kept_from(worker.pool, tickers)

    async def heal(ticker: str) -> bool:
        bind_contextvars(ticker=ticker)
        # PostgreSQL does not store dropped prices again, even if the look-back is longer now.
        oldest = max(now - timedelta(hours=worker.settings.heal_lookback_hours), kept_from.get(ticker, EPOCH))
        async with healing:
            try:
                async with asyncio.timeout_at(began + LONGEST_SECONDS):
                    return await _heal(worker, ticker, oldest, now, began + BUDGET_SECONDS)
            except TimeoutError:
                return False
            except StorageUnavailable:
                logger.warning("%s: storage is unavailable, healing waits", ticker)
            except (RedisError, OSError) as error:
                logger.warning("%s: queue is unavailable, healing waits: %s", ticker, describe(error))
            except Exception:  # a bug; the other tickers are healed all the same
                logger.exception("%s: fault in healing", ticker)
            return True

    return all(await asyncio.gather(*map(heal, tickers)))


async def _heal(worker: Worker, ticker: str, oldest: datetime, now: datetime, deadline: float) -> bool:
    missing = await select_missing_runs(worker.pool, ticker, oldest, now, now)
    averaged = await select_averaged_runs(worker.pool, ticker, oldest, now, now)
    for piece in _pieces(missing):
        if asyncio.get_running_loop().time() > deadline:
            return False
        await note_missing(worker, ticker, await recover(worker, ticker, piece, worker.past))
    # After an outage of the better sources, what the last one averaged is asked of them again.
    for piece in _pieces(averaged):
        if asyncio.get_running_loop().time() > deadline:
            return False
        holes = await recover(worker, ticker, piece, worker.past[:-1])
        await insert_unanswered(worker.pool, ticker, holes.unanswered, holes.detail)
    return True


def _pieces(runs: Sequence[MissingRun]) -> Iterator[list[MissingRun]]:
    """Of runs, the newest first."""
    return pieces(runs[::-1], piece_length(max((run.interval for run in runs), default=timedelta(0))))
