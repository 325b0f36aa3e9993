"""The jobs of release 0.2.0, which an upgrade finds in arq's default queue. Remove this in the release after the next.

Its jobs do not carry what they need: their slot is in the job's id, the interval and the tickers are the worker's own.
"""

import asyncio
import contextlib
from typing import Any

from arq.connections import ArqRedis
from arq.constants import default_queue_name, in_progress_key_prefix, job_key_prefix
from redis.exceptions import RedisError

from shared.grid import from_microseconds, slot_of, to_microseconds
from shared.queue.client import QUEUE, deserialize
from shared.queue.jobs import FETCH_PRICES, STORE_DEFERRED
from worker.context import Worker, worker_of
from worker.jobs.healing import heal_gaps
from worker.jobs.retention import drop_old_prices
from worker.jobs.slots import retry_slot

_MOVE_EVERY_SECONDS = 0.5
_MAX_MOVED = 1000


async def fetch_released_slot(ctx: dict[str, Any]) -> None:
    """The slot's job and its repetition at half-slot alike: fetch what is not stored."""
    worker = worker_of(ctx)
    milliseconds = int(ctx["job_id"].rpartition(":")[2])
    slot = slot_of(from_microseconds(milliseconds * 1000), worker.interval)
    tickers = sorted(worker.settings.tickers)
    await retry_slot(ctx, to_microseconds(slot) // 1_000_000, worker.settings.fetch_interval_seconds, tickers)


RELEASED_JOBS = {
    "cron:fetch_prices": fetch_released_slot,
    "cron:fetch_again": fetch_released_slot,
    "cron:heal_gaps": heal_gaps,
    "cron:drop_old_prices": drop_old_prices,
}


async def move_released_jobs(worker: Worker) -> None:
    """Move due jobs from the default queue to ours, until cancelled. Jobs of other applications stay."""
    while True:
        with contextlib.suppress(RedisError, OSError):
            await _move(worker.redis)
        await asyncio.sleep(_MOVE_EVERY_SECONDS)


async def _move(redis: ArqRedis) -> None:
    seconds, microseconds = await redis.time()
    due = f"{seconds * 1000 + microseconds // 1000}"
    for name in await redis.zrangebyscore(default_queue_name, "-inf", due, start=0, num=_MAX_MOVED):
        job_id = name.decode()
        job, running = await redis.mget(job_key_prefix + job_id, in_progress_key_prefix + job_id)
        if job and not running and _is_ours(job):
            async with redis.pipeline(transaction=True) as pipe:
                pipe.zrem(default_queue_name, job_id)
                pipe.zadd(QUEUE, {job_id: 1})
                await pipe.execute()


def _is_ours(job: bytes) -> bool:
    try:
        return deserialize(job)["f"] in {*RELEASED_JOBS, FETCH_PRICES, STORE_DEFERRED}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
