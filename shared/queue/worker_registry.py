"""Which workers are alive: each reports to Redis every few seconds."""

import time

from arq.connections import ArqRedis

_WORKERS = "workers"
LIVE_WORKER_SECONDS = 15.0
_FORGET_WORKER_SECONDS = 3600


async def report_worker(redis: ArqRedis, name: str) -> None:
    """A worker's heartbeat, every few seconds. Removes workers that have been silent for an hour."""
    now = time.time()
    async with redis.pipeline(transaction=True) as pipe:
        pipe.zadd(_WORKERS, {name: now})
        pipe.zremrangebyscore(_WORKERS, "-inf", now - _FORGET_WORKER_SECONDS)
        await pipe.execute()


async def forget_worker(redis: ArqRedis, name: str) -> None:
    await redis.zrem(_WORKERS, name)


async def select_live_workers(redis: ArqRedis) -> list[str]:
    """The workers with a heartbeat in the last 15 s."""
    names = await redis.zrangebyscore(_WORKERS, time.time() - LIVE_WORKER_SECONDS, "+inf")
    return [name.decode() for name in names]
