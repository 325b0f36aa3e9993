"""`python -m worker`: everything a worker runs, and when. `python -m worker --health` asks for this host's workers."""

import asyncio
import contextlib
import logging
import os
import socket
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import arq
from arq.cron import CronJob, cron
from arq.worker import func
from redis.exceptions import RedisError

from shared.db import create_pool
from shared.errors import QueueUnavailable
from shared.grid import slot_of
from shared.log import configure_logging
from shared.queue import (
    FETCH_PRICES,
    STORE_DEFERRED,
    add_worker,
    deserialize,
    open_redis,
    select_live_workers,
    serialize,
    within_deadline,
)
from shared.settings import Settings, SettingsError, load_settings
from worker.context import Worker
from worker.deribit import create_http
from worker.healing import heal_gaps
from worker.jobs import fetch_again, fetch_prices, store_deferred_until_done

logger = logging.getLogger(__name__)

JOB_SECONDS = 20
"arq runs a job again, after its worker died, this long plus 10 s later: within a minute's slot."

JOB_TRIES = 3
KEEP_SLOT_SECONDS = 3600
"A worker that was paused for less finds that its slot has been run."

POLL_SECONDS = 0.05
HEALTH_SECONDS = 5
HEAL_AT_SECOND = 40
"Between the slots of a minute, when the attempts at the last one are over."

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
    schedule = cron(fetch_prices, max_tries=JOB_TRIES, timeout=JOB_SECONDS, keep_result=KEEP_SLOT_SECONDS)
    slots = GridCron(**vars(schedule) | {"interval": worker.interval, "next_run": worker.first_slot})
    half = worker.interval / 2
    second = cron(fetch_again, max_tries=1, timeout=JOB_SECONDS, keep_result=KEEP_SLOT_SECONDS)
    again = GridCron(
        **vars(second) | {"interval": worker.interval, "offset": half, "next_run": worker.first_slot + half}
    )
    heal = cron(
        heal_gaps,
        second=HEAL_AT_SECOND,
        microsecond=0,
        run_at_startup=True,
        max_tries=1,  # the next minute's run is the retry
        timeout=JOB_SECONDS,
        keep_result=KEEP_SLOT_SECONDS,
    )
    return [slots, again, heal]


def create_worker(worker: Worker, jobs: list[CronJob], **options: Any) -> arq.Worker:
    """`options` go to arq, for the tests' burst mode."""
    return arq.Worker(
        # Nothing is kept of these: a fixed id that stayed known would keep the next job of that id from being queued.
        functions=[
            func(fetch_prices, name=FETCH_PRICES, timeout=JOB_SECONDS, max_tries=JOB_TRIES, keep_result=0),
            func(store_deferred_until_done, name=STORE_DEFERRED, timeout=JOB_SECONDS, max_tries=10**6, keep_result=0),
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
        health_check_interval=HEALTH_SECONDS,
        health_check_key=worker.health_key,
        **options,
    )


async def run(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT, then finish what runs. Losing Redis or PostgreSQL ends nothing."""
    stopping = asyncio.Event()

    async with (
        await create_pool(settings, name="worker", size=4) as pool,
        open_redis(settings, retries=REDIS_RETRIES, timeout=REDIS_SECONDS) as redis,
        create_http(settings) as http,
    ):
        worker = Worker(settings, pool, redis, http, health_key=f"worker:{socket.gethostname()}:{os.getpid()}")
        jobs = cron_jobs(worker)
        left_behind: list[asyncio.Task[Any]] = []
        logger.info("collecting %s every %d s", ", ".join(settings.tickers), settings.fetch_interval_seconds)
        while not stopping.is_set():
            arq_worker = create_worker(worker, jobs)
            arq_worker.on_stop = lambda _: stopping.set()
            try:
                await add_worker(redis, worker.health_key)
                await arq_worker.async_run()
            except asyncio.CancelledError:
                break
            except (RedisError, OSError) as error:
                # A new arq worker, because one that failed in the middle of taking a job never gives the place back.
                logger.warning("queue is away: %s: %s", type(error).__name__, error)
                left_behind += arq_worker.tasks.values()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), RECONNECT_SECONDS)
        await asyncio.gather(*left_behind, return_exceptions=True)
        with contextlib.suppress(RedisError, OSError):
            await redis.delete(worker.health_key)
    logger.info("stopped")


async def is_healthy(settings: Settings) -> bool:
    """Whether a worker of this host has renewed its health within the last seconds."""
    async with open_redis(settings, retries=0) as redis:
        workers = await within_deadline(select_live_workers(redis))
    return any(key.split(":")[1] == socket.gethostname() for key in workers)


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
