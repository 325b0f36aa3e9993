"""Runs arq's worker until a signal, also through an outage of Redis, and reports the worker as alive."""

import asyncio
import contextlib
import logging
import signal
from datetime import UTC
from typing import Any

import arq
from arq.worker import func
from redis.exceptions import RedisError
from structlog.contextvars import bound_contextvars

from shared.errors import describe
from shared.queue.client import QUEUE, deserialize, serialize
from shared.queue.fetches import is_job_id
from shared.queue.jobs import DROP_OLD_PRICES, FETCH_PRICES, FETCH_SLOT, HEAL_GAPS, RETRY_SLOT, STORE_DEFERRED
from worker.context import Worker
from worker.instrument import instrumented
from worker.jobs.healing import heal_gaps
from worker.jobs.released import RELEASED_JOBS
from worker.jobs.requested import fetch_prices
from worker.jobs.retention import drop_old_prices
from worker.jobs.slots import fetch_slot, retry_slot
from worker.jobs.storing import store_deferred_until_done

logger = logging.getLogger(__name__)

JOB_SECONDS = 20
"arq runs the job of a killed worker again this long plus 10 s later: still within a slot of a minute."
JOB_TRIES = 3
HEAL_TRIES = 1000
"A run that has more to heal than fits in its time goes on in the next try."
MAX_JOBS = 20
MAX_REQUESTED_JOBS = 4
"Of the jobs at once, those that clients asked for; the others stay free for the schedule."
POLL_SECONDS = 0.05
RECONNECT_SECONDS = 1.0


async def work(worker: Worker) -> None:
    stopping = asyncio.Event()
    unfinished: set[asyncio.Task[Any]] = set()
    current: arq.Worker | None = None

    def stop(number: signal.Signals) -> None:
        stopping.set()
        if current is not None:
            current.handle_sig_wait_for_completion(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    while not stopping.is_set():
        # A new arq worker each time, because one that fails while it takes a job never releases that job's slot.
        current = create_worker(worker, handle_signals=False)
        try:
            await current.async_run()
        except asyncio.CancelledError:
            break
        except (RedisError, OSError) as error:
            logger.warning("queue is unavailable: %s", describe(error))
            unfinished = {task for task in (*unfinished, *current.tasks.values()) if not task.done()}
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), RECONNECT_SECONDS)
    await asyncio.gather(*unfinished, return_exceptions=True)


def create_worker(worker: Worker, **options: Any) -> arq.Worker:
    """`options` go to arq, for the tests' burst mode."""
    jobs = [
        (FETCH_SLOT, instrumented(worker, fetch_slot), JOB_TRIES),
        (RETRY_SLOT, instrumented(worker, retry_slot), 1),
        (HEAL_GAPS, instrumented(worker, heal_gaps), HEAL_TRIES),
        (DROP_OLD_PRICES, instrumented(worker, drop_old_prices), 1),
        (FETCH_PRICES, instrumented(worker, fetch_prices, "fetch_requested"), JOB_TRIES),
        (STORE_DEFERRED, instrumented(worker, store_deferred_until_done, "store_deferred"), 10**6),
        *((name, instrumented(worker, job), JOB_TRIES) for name, job in RELEASED_JOBS.items()),
    ]
    return ArqWorker(
        # No results are kept: PostgreSQL says what is stored, and a kept result keeps a fixed id from being queued.
        functions=[
            func(job, name=name, timeout=JOB_SECONDS, max_tries=tries, keep_result=0) for name, job, tries in jobs
        ],
        queue_name=QUEUE,
        redis_pool=worker.redis,
        ctx={"worker": worker},
        job_serializer=serialize,
        job_deserializer=deserialize,
        timezone=UTC,
        max_jobs=MAX_JOBS,
        poll_delay=POLL_SECONDS,
        job_completion_wait=JOB_SECONDS,
        health_check_key=f"arq:health:{worker.name}",
        **options,
    )


class ArqWorker(arq.Worker):
    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Start no more requested fetches than their share.

        Skip jobs that run here already: a replica just promoted may list them again, and arq would fail on them.
        """
        names = [job_id.decode() for job_id in job_ids]
        requested = [name for name in names if is_job_id(name) and name not in self.tasks]
        left_out = {*self.tasks, *requested[max(MAX_REQUESTED_JOBS - sum(map(is_job_id, self.tasks)), 0) :]}
        await super().start_jobs([name.encode() for name in names if name not in left_out])

    async def run_job(self, job_id: str, score: int) -> None:
        with bound_contextvars(job_id=job_id):
            await super().run_job(job_id, score)
