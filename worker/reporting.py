"""Every few seconds a worker reports to Redis, reads the time there, and claims Redis for its deployment."""

import asyncio
import contextlib

from redis.exceptions import RedisError

from shared.errors import QueueUnavailable, StorageUnavailable
from shared.queue.client import within_deadline
from shared.queue.deployment import claim_redis, select_deployment
from shared.queue.worker_registry import report_worker
from worker.clock import TOLERATED_SECONDS
from worker.context import Worker

REPORT_SECONDS = 5
RETRY_SECONDS = 0.5
"After Redis was unavailable: the schedule begins only when Redis has told the time."


async def claim_at_start(worker: Worker) -> None:
    """Raises `ForeignRedis`. Without PostgreSQL or Redis, `report` finds that out later."""
    with contextlib.suppress(StorageUnavailable, QueueUnavailable):
        await within_deadline(claim_redis(worker.redis, await select_deployment(worker.pool)))


async def report(worker: Worker) -> None:
    """Until cancelled. Raises `ForeignRedis`."""
    deployment: str | None = None
    while True:
        pause = RETRY_SECONDS
        with contextlib.suppress(RedisError, OSError, StorageUnavailable):
            await worker.clock.synchronize(worker.redis)
            offset = worker.clock.own_offset_seconds()
            await report_worker(
                worker.redis, worker.name, worker.unknown_indices, offset if abs(offset) > TOLERATED_SECONDS else None
            )
            pause = REPORT_SECONDS
            deployment = deployment or await select_deployment(worker.pool)
            await claim_redis(worker.redis, deployment)
        await asyncio.sleep(pause)
