"""Redis: the job queue (arq), and the few keys of ours beside it. `fetch_jobs` and `deferred` keep theirs themselves.

Jobs are JSON on both sides: with arq's pickle, whoever can write to Redis could run code here.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from arq.connections import ArqRedis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.config.settings import Settings
from shared.errors import QueueUnavailable, describe
from shared.queue.sentinel import open_pool

logger = logging.getLogger(__name__)

T = TypeVar("T")


DEADLINE_SECONDS = 1.4
"A client is promised an answer within 2 s when Redis is away or hangs."


def serialize(job: dict[str, Any]) -> bytes:
    """What arq stores for a job or its result; an exception, which JSON cannot hold, as its text."""
    return json.dumps(job, default=repr).encode()


def deserialize(job: bytes) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(job)
    return loaded


@asynccontextmanager
async def open_redis(settings: Settings, *, retries: int, timeout: float = DEADLINE_SECONDS) -> AsyncIterator[ArqRedis]:
    """A client that connects when first used, so that a process starts, and recovers, without Redis.

    `retries`: how often a command is tried again when the connection fails, 0.1 s after the first time and up to 2 s
    after the later ones. The API takes few, it has a client waiting; the worker takes many, it has a price in hand.
    `timeout`: seconds that one reply may take.
    """
    # Not arq's own settings: they leave %-escapes in a password as they are, and connect at once or not at all.
    async with open_pool(
        settings.redis_url,
        socket_connect_timeout=1,
        socket_timeout=timeout,
        health_check_interval=15,
        retry=Retry(ExponentialBackoff(cap=2, base=0.1), retries),
        retry_on_error=[RedisConnectionError, RedisTimeoutError, OSError],
    ) as pool:
        redis = ArqRedis(pool, job_serializer=serialize, job_deserializer=deserialize)
        try:
            yield redis
        finally:
            await redis.aclose(close_connection_pool=True)


async def within_deadline(command: Coroutine[Any, Any, T]) -> T:
    """Wait for a command. Raises `QueueUnavailable` when Redis is away, or after `DEADLINE_SECONDS`."""
    # Not asyncio.timeout: while redis-py connects it can lose a cancellation and wait on. The task is left behind.
    task = asyncio.ensure_future(command)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # what nobody waits for is no news
    try:
        done, _ = await asyncio.wait({task}, timeout=DEADLINE_SECONDS)
        if not done:
            raise TimeoutError
        return task.result()
    except (RedisError, OSError, TimeoutError) as error:
        logger.warning("queue is away: %s", describe(error))
        raise QueueUnavailable("The job queue is unavailable; try again shortly.") from error
    finally:
        task.cancel()
