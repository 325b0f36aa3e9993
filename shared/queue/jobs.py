"""The names of the jobs, and how they are enqueued."""

from datetime import datetime

from arq.connections import ArqRedis
from arq.jobs import Job

from shared.queue.client import deserialize

FETCH_SLOT = "fetch_slot"
FETCH_PRICES = "fetch_prices"
STORE_DEFERRED = "store_deferred"


async def enqueue_store_deferred(redis: ArqRedis, *, after_seconds: float) -> None:
    """One job in the queue is enough, because it stores everything that is deferred."""
    await redis.enqueue_job(STORE_DEFERRED, _job_id=STORE_DEFERRED, _defer_by=after_seconds)


async def select_slot_result(redis: ArqRedis, slot: datetime) -> list[str] | None:
    """The result of a slot's job; `None` if it failed or has not ended."""
    milliseconds = round(slot.timestamp() * 1000)
    job = Job(f"cron:{FETCH_SLOT}:{milliseconds}", redis, _deserializer=deserialize)
    result = await job.result_info()
    return result.result if result and result.success else None
