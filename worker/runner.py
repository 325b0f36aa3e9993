"""Runs arq's worker until a signal. It survives the loss of Redis; log lines and traces name the job."""

import asyncio
import contextlib
import functools
import logging
import signal
from dataclasses import replace
from datetime import UTC
from typing import Any

import arq
from arq.cron import CronJob
from arq.typing import WorkerCoroutine
from arq.worker import func
from redis.exceptions import RedisError
from structlog.contextvars import bind_contextvars, bound_contextvars

from shared.errors import QueueUnavailable, describe
from shared.queue.client import deserialize, serialize, within_deadline
from shared.queue.fetches import is_job_id, select_traceparent
from shared.queue.jobs import FETCH_PRICES, STORE_DEFERRED
from shared.queue.worker_registry import report_worker
from shared.telemetry.traces import is_recording, span
from worker.context import Worker, worker_of
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
    left_behind: set[asyncio.Task[Any]] = set()
    current: arq.Worker | None = None

    def stop(number: signal.Signals) -> None:
        stopping.set()
        if current is not None:
            current.handle_sig_wait_for_completion(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    while not stopping.is_set():
        # A new arq worker each time: one that failed in the middle of taking a job never gives its place back.
        current = create_worker(worker, jobs, handle_signals=False)
        try:
            await current.async_run()
        except asyncio.CancelledError:
            break
        except (RedisError, OSError) as error:
            logger.warning("queue is away: %s", describe(error))
            left_behind = {task for task in (*left_behind, *current.tasks.values()) if not task.done()}
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), RECONNECT_SECONDS)
    await asyncio.gather(*left_behind, return_exceptions=True)


async def report(worker: Worker) -> None:
    while True:
        with contextlib.suppress(RedisError, OSError):
            await report_worker(worker.redis, worker.name)
        await asyncio.sleep(REPORT_SECONDS)


def create_worker(worker: Worker, jobs: list[CronJob], **options: Any) -> arq.Worker:
    """`options` go to arq, for the tests' burst mode."""
    fetch = worker.metrics.counted(fetch_prices, "fetch_requested")
    store = worker.metrics.counted(store_deferred_until_done, "store_deferred")
    return ArqWorker(
        # Nothing is kept of these: a fixed id that stayed known would keep the next job of that id from being queued.
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
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.functions = {
            name: replace(function, coroutine=_named(function.coroutine)) for name, function in self.functions.items()
        }

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Not what runs here already: a Redis that has just become the master may not know that, and arq would fail."""
        await super().start_jobs([job_id for job_id in job_ids if job_id.decode() not in self.tasks])

    async def run_job(self, job_id: str, score: int) -> None:
        with bound_contextvars(job_id=job_id):
            await super().run_job(job_id, score)


def _named(function: WorkerCoroutine) -> WorkerCoroutine:
    name = function.__qualname__

    @functools.wraps(function)
    async def named(ctx: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        bind_contextvars(function=name)
        if not is_recording():
            return await function(ctx, *arguments, **options)
        parent = await _parent(ctx)
        with span(name, "consumer", parent, expected=(arq.Retry,), job_try=ctx["job_try"]):
            return await function(ctx, *arguments, **options)

    return named


async def _parent(ctx: dict[str, Any]) -> str | None:
    """What asked for the fetch. A slot has none, and no price is lost for a trace: without Redis it begins anew."""
    if is_job_id(ctx["job_id"]):
        with contextlib.suppress(QueueUnavailable):
            return await within_deadline(select_traceparent(worker_of(ctx).redis, ctx["job_id"]))
    return None
