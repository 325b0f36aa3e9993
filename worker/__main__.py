"""`python -m worker` starts a worker. `python -m worker --health` checks that one of this host is alive."""

import asyncio
import contextlib
import logging
import os
import socket
import sys

from redis.exceptions import RedisError

from shared.config.settings import Settings, SettingsError, load_settings
from shared.config.unknown_names import warn_about_unknown_names
from shared.errors import QueueUnavailable
from shared.queue.client import open_redis, within_deadline
from shared.queue.deployment import ForeignRedis
from shared.queue.worker_registry import forget_worker, select_live_workers
from shared.storage.database import create_pool
from shared.telemetry.logs import configure_logging
from shared.telemetry.traces import open_traces
from worker.context import Worker
from worker.exchange.http import create_http
from worker.exchange.index_check import check_tickers
from worker.jobs.filling import fill_histories
from worker.jobs.released import move_released_jobs
from worker.metrics import serve_metrics
from worker.reporting import claim_at_start, report
from worker.runner import work
from worker.schedule import conduct

logger = logging.getLogger(__name__)

REDIS_RETRIES = 10
REDIS_SECONDS = 5.0


async def run(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT, then finish the running jobs. Goes on through outages of Redis and PostgreSQL."""
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
        await claim_at_start(worker)
        background = [
            report(worker),
            conduct(worker),
            move_released_jobs(worker),
            check_tickers(worker),
            fill_histories(worker),
        ]
        if settings.streams:
            background.append(worker.stream.run())
        if settings.metrics_port:
            background.append(serve_metrics(settings, worker.metrics.registry))
        async with asyncio.TaskGroup() as group:  # if one of them fails, the process ends, and is started again
            tasks = [group.create_task(coroutine) for coroutine in background]
            await work(worker)
            for task in tasks:
                task.cancel()
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(1):  # without Redis, the registry forgets it soon
                await forget_worker(redis, worker.name)
    logger.info("stopped")


async def is_healthy(settings: Settings) -> bool:
    """Whether a worker of this host has sent a heartbeat in the last seconds."""
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
    warn_about_unknown_names()
    code = 0
    try:
        asyncio.run(run(settings))
    except* (ForeignRedis, SettingsError) as refusal:  # the latter of a proxy or certificates for the exchange
        print(refusal.exceptions[0], file=sys.stderr)
        code = 2
    return code


if __name__ == "__main__":
    sys.exit(main())
