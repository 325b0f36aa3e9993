"""Every job of a worker and when it runs."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from arq.cron import CronJob, cron
from arq.typing import WorkerCoroutine

from shared.grid import slot_of
from worker.context import Worker
from worker.instrument import instrumented
from worker.jobs.healing import heal_gaps
from worker.jobs.retention import drop_old_prices
from worker.jobs.slots import fetch_slot, retry_slot

JOB_SECONDS = 20
"arq runs the job of a killed worker again this long plus 10 s later: still within a slot of a minute."
JOB_TRIES = 3
KEEP_SLOT_SECONDS = 3600
"A worker that was paused for less finds the result of its slot, and does not run the slot again."
HEAL_EVERY = timedelta(minutes=1)
HEAL_TRIES = 1000
"A run that has more to heal than fits in its time goes on in the next try."
HEAL_AT = timedelta(seconds=45)
"Between the slots of a minute, after the attempts at the last slot and its retry at half-slot."
DROP_AT = timedelta(seconds=15)
"Also between the slots of a minute, and not while healing reads."


@dataclass
class GridCron(CronJob):
    """A cron job that is due at every slot of the grid, or `offset` later.

    arq's own cron misses the first second after a start, and after a sleep it runs once for every time it missed.
    """

    interval: timedelta = timedelta(0)
    offset: timedelta = timedelta(0)

    def calculate_next(self, prev_run: datetime) -> None:
        following = slot_of(prev_run, self.interval) + self.interval
        self.next_run = max(following, slot_of(datetime.now(UTC), self.interval)) + self.offset


def cron_jobs(worker: Worker) -> list[CronJob]:
    half = worker.interval / 2
    return [
        _grid_cron(worker, fetch_slot, worker.interval, first=worker.first_slot, max_tries=JOB_TRIES),
        _grid_cron(worker, retry_slot, worker.interval, offset=half, first=worker.first_slot + half),
        _grid_cron(worker, heal_gaps, HEAL_EVERY, offset=HEAL_AT, run_at_startup=True, max_tries=HEAL_TRIES),
        _grid_cron(worker, drop_old_prices, HEAL_EVERY, offset=DROP_AT),
    ]


def _grid_cron(
    worker: Worker,
    job: WorkerCoroutine,
    interval: timedelta,
    *,
    offset: timedelta = timedelta(0),
    first: datetime | None = None,
    max_tries: int = 1,
    **options: Any,
) -> GridCron:
    plain = cron(
        instrumented(worker, job), timeout=JOB_SECONDS, keep_result=KEEP_SLOT_SECONDS, max_tries=max_tries, **options
    )
    return GridCron(**vars(plain) | {"interval": interval, "offset": offset, "next_run": first})
