"""`python -m worker`: everything a worker runs, and when. `python -m worker --health` asks for this host's workers."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import arq
from arq.cron import CronJob, cron
from arq.worker import func
from redis.exceptions import RedisError

from shared.db import create_pool, describe
from shared.errors import QueueUnavailable
from shared.grid import slot_of
from shared.log import configure_logging
from shared.queue import (
    FETCH_PRICES,
    STORE_DEFERRED,
    deserialize,
    forget_worker,
    open_redis,
    report_worker,
    select_live_workers,
    serialize,
    within_deadline,
)
from shared.settings import Settings, SettingsError, load_settings
from shared.traces import open_traces
from worker.arq_worker import ArqWorker
from worker.context import Worker
from worker.deribit import create_http
from worker.healing import heal_gaps
from worker.jobs import fetch_again, fetch_prices, store_deferred_until_done
from worker.metrics import serve_metrics
from worker.retention import drop_old_prices

logger = logging.getLogger(__name__)

JOB_SECONDS = 20
"arq runs a job again, after its worker died, this long plus 10 s later: within a minute's slot."

JOB_TRIES = 3
KEEP_SLOT_SECONDS = 3600
"A worker that was paused for less finds that its slot has been run."

POLL_SECONDS = 0.05
REPORT_SECONDS = 5
HEAL_EVERY = timedelta(minutes=1)
HEAL_AT = timedelta(seconds=45)
"Between the slots of a minute, when the attempts at the last one, and the second look, are over."

DROP_AT = timedelta(seconds=15)
"Between the slots of a minute, too, and not while healing reads."

RECONNECT_SECONDS = 1.0
REDIS_RETRIES = 10
REDIS_SECONDS = 5.0


@dataclass
class GridCron(CronJob):
    """A job for every slot of the grid, its time the slot's, or `offset` later.

    arq's own cron leaves out the first second after a start, and works off every time it was asleep for.
    """

    interval: timedelta = timedelta(0)
    offset: timedelta = timedelta(0)

    def calculate_next(self, prev_run: datetime) -> None:
        following = slot_of(prev_run, self.interval) + self.interval
        self.next_run = max(following, slot_of(datetime.now(UTC), self.interval)) + self.offset


def cron_jobs(worker: Worker) -> list[CronJob]:
    counted = worker.metrics.counted
    schedule = cron(
        counted(fetch_prices, "fetch_slot"), max_tries=JOB_TRIES, timeout=JOB_SECONDS, keep_result=KEEP_SLOT_SECONDS
    )
    slots = GridCron(**vars(schedule) | {"interval": worker.interval, "next_run": worker.first_slot})
    half = worker.interval / 2
    second = cron(counted(fetch_again, "fetch_again"), max_tries=1, timeout=JOB_SECONDS, keep_result=KEEP_SLOT_SECONDS)
    again = GridCron(
        **vars(second) | {"interval": worker.interval, "offset": half, "next_run": worker.first_slot + half}
    )
    third = cron(
        counted(heal_gaps, "heal_gaps"),
        run_at_startup=True,
        max_tries=1,
        timeout=JOB_SECONDS,
        keep_result=KEEP_SLOT_SECONDS,
    )
    heal = GridCron(**vars(third) | {"interval": HEAL_EVERY, "offset": HEAL_AT})
    fourth = cron(
        counted(drop_old_prices, "drop_old_prices"), max_tries=1, timeout=JOB_SECONDS, keep_result=KEEP_SLOT_SECONDS
    )
    drop = GridCron(**vars(fourth) | {"interval": HEAL_EVERY, "offset": DROP_AT})
    return [slots, again, heal, drop]


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


async def run(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT, then finish what runs. Losing Redis or PostgreSQL ends nothing."""
    async with (
        open_traces(settings, "worker"),
        create_pool(settings, name="worker", size=4) as pool,
        open_redis(settings, retries=REDIS_RETRIES, timeout=REDIS_SECONDS) as redis,
        create_http(settings) as http,
    ):
        worker = Worker(settings, pool, redis, http, name=f"{socket.gethostname()}:{os.getpid()}")
        logger.info("collecting %s every %d s", ", ".join(settings.tickers), settings.fetch_interval_seconds)
        if settings.retention_days is not None:
            logger.info("prices older than %d days are dropped, their candles stay", settings.retention_days)
        reporting = asyncio.create_task(_report(worker))
        async with serve_metrics(settings, worker.metrics.registry):
            await _work(worker)
        reporting.cancel()
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(1):  # without Redis there is nobody to tell
                await forget_worker(redis, worker.name)
    logger.info("stopped")


async def _work(worker: Worker) -> None:
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


async def _report(worker: Worker) -> None:
    while True:
        with contextlib.suppress(RedisError, OSError):
            await report_worker(worker.redis, worker.name)
        await asyncio.sleep(REPORT_SECONDS)


async def is_healthy(settings: Settings) -> bool:
    """Whether a worker of this host has renewed its health within the last seconds."""
    async with open_redis(settings, retries=0) as redis:
        workers = await within_deadline(select_live_workers(redis))
    return any(name.rpartition(":")[0] == socket.gethostname() for name in workers)


def main() -> int:
    try:
        settings = load_settings()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    configure_logging(settings)
    if sys.argv[1:] == ["--health"]:
        with contextlib.suppress(QueueUnavailable):
            return 0 if asyncio.run(is_healthy(settings)) else 1
        return 1
    asyncio.run(run(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
