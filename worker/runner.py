"""Runs arq's worker until a signal, also through an outage of Redis, and reports the worker as alive."""

import asyncio
import contextlib
import logging
import signal
from datetime import UTC
from typing import Any

import arq
from arq.cron import CronJob
from arq.worker import func
from redis.exceptions import RedisError
from structlog.contextvars import bound_contextvars

from shared.errors import describe
from shared.queue.client import deserialize, serialize
from shared.queue.jobs import FETCH_PRICES, STORE_DEFERRED
from shared.queue.worker_registry import report_worker
from worker.context import Worker
from worker.instrument import instrumented
from worker.jobs.requested import fetch_prices
from worker.jobs.storing import store_deferred_until_done
from worker.schedule import JOB_SECONDS, JOB_TRIES, cron_jobs

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
REPORT_SECONDS = 5
RECONNECT_SECONDS = 1.0


async def work(worker: Worker) -> None:
    stopping = asyncio.Event()
    jobs = cron_jobs(worker)
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
        current = create_worker(worker, jobs, handle_signals=False)
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


async def report(worker: Worker) -> None:
    while True:
        with contextlib.suppress(RedisError, OSError):
            await report_worker(worker.redis, worker.name, worker.unknown_indices)
        await asyncio.sleep(REPORT_SECONDS)


def create_worker(worker: Worker, jobs: list[CronJob], **options: Any) -> arq.Worker:
    """`options` go to arq, for the tests' burst mode."""
    fetch = instrumented(worker, fetch_prices, "fetch_requested")
    store = instrumented(worker, store_deferred_until_done, "store_deferred")
    return ArqWorker(
        # keep_result=0, because a kept result would keep the next job with the same fixed id from being queued.
        functions=[
            func(fetch, name=FETCH_PRICES, timeout=JOB_SECONDS, max_tries=JOB_TRIES, keep_result=0),
            func(store, name=STORE_DEFERRED, timeout=JOB_SECONDS, max_tries=10**6, keep_result=0),
        ],
        cron_jobs=jobs,
        redis_pool=worker.redis,
        ctx={"worker": worker},
        job_serializer=serialize,
        job_deserializer=deserialize,
        timezone=UTC,
        max_jobs=20,
        poll_delay=POLL_SECONDS,
        job_completion_wait=JOB_SECONDS,
        health_check_key=f"arq:health:{worker.name}",
        **options,
    )


class ArqWorker(arq.Worker):
    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Skip jobs that run here already: a replica just promoted may list them again, and arq would fail on them."""
        await super().start_jobs([job_id for job_id in job_ids if job_id.decode() not in self.tasks])

    async def run_job(self, job_id: str, score: int) -> None:
        with bound_contextvars(job_id=job_id):
            await super().run_job(job_id, score)
