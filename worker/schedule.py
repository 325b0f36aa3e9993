"""Every job of a worker and when it runs.

Each worker enqueues every job; the id of a job makes all of them enqueue it once. Time is that of `worker.clock`.
"""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from redis.exceptions import RedisError

from shared.errors import describe
from shared.grid import EPOCH, slot_of
from shared.queue.jobs import DROP_OLD_PRICES, FETCH_SLOT, HEAL_GAPS, RETRY_SLOT, enqueue_once, slot_job_id
from worker.context import Worker

logger = logging.getLogger(__name__)

HEAL_EVERY = timedelta(minutes=1)
HEAL_AT = timedelta(seconds=45)
"Between the slots of a minute, after the attempts at the last slot and its retry at half-slot."
DROP_AT = timedelta(seconds=15)
"Also between the slots of a minute, and not while healing reads."

MAX_SLEEP = timedelta(seconds=1)
"The clock may be corrected meanwhile."
_LEAST_MARK_SECONDS = 120
"Longer than the clocks of two workers can differ, and than Redis's clock is likely to be set back."


@dataclass(frozen=True)
class Entry:
    """A job that is due at every slot of a grid, or `offset` later."""

    job: str
    every: timedelta
    offset: timedelta = timedelta(0)
    tickers: tuple[str, ...] | None = None
    "Of a slot's job."

    def due(self, now: datetime) -> datetime:
        """The last instant at which the job was due."""
        return slot_of(now - self.offset, self.every) + self.offset

    async def enqueue(self, worker: Worker, due: datetime) -> bool:
        slot, seconds = round((due - self.offset - EPOCH).total_seconds()), round(self.every.total_seconds())
        job_id, arguments = f"{self.job}:{slot}", list[Any]()
        if self.tickers is not None:
            job_id = slot_job_id(self.job, slot, seconds, self.tickers)
            arguments = [slot, seconds, sorted(self.tickers)]
        return await enqueue_once(worker.redis, self.job, arguments, job_id, max(2 * seconds, _LEAST_MARK_SECONDS))


def entries(worker: Worker) -> list[Entry]:
    tickers = worker.settings.tickers
    return [
        Entry(FETCH_SLOT, worker.interval, tickers=tickers),
        Entry(RETRY_SLOT, worker.interval, worker.interval / 2, tickers),
        Entry(HEAL_GAPS, HEAL_EVERY, HEAL_AT),
        Entry(DROP_OLD_PRICES, HEAL_EVERY, DROP_AT),
    ]


async def conduct(worker: Worker) -> None:
    """Enqueue each job when it is due, until cancelled. After a pause or a step of the clock, only what is due now."""
    await worker.clock.synchronized.wait()
    # At once, because nothing may have been collected for long.
    start_id = f"{HEAL_GAPS}:{worker.name}:{worker.clock.started_at.timestamp()}"
    await _enqueue([enqueue_once(worker.redis, HEAL_GAPS, [], start_id, _LEAST_MARK_SECONDS)])
    schedule = entries(worker)
    enqueued = {entry: entry.due(worker.clock.started_at) for entry in schedule}
    while True:
        now = worker.clock.now()
        due = {entry: at for entry in schedule if (at := entry.due(now)) != enqueued[entry]}
        await _enqueue([entry.enqueue(worker, at) for entry, at in due.items()])
        enqueued |= due
        pause = min(entry.due(now) + entry.every for entry in schedule) - worker.clock.now()
        await asyncio.sleep(min(pause, MAX_SLEEP).total_seconds())


async def _enqueue(jobs: Sequence[Coroutine[Any, Any, bool]]) -> None:
    for outcome in await asyncio.gather(*jobs, return_exceptions=True):
        if isinstance(outcome, RedisError | OSError):
            logger.warning("a job is not enqueued, because the queue is unavailable: %s", describe(outcome))
        elif isinstance(outcome, BaseException):
            raise outcome
