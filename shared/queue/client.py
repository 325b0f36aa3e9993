"""The client of Redis: arq's queue, and our own keys beside it.

Jobs are JSON on both sides: with arq's pickle, anyone who can write to Redis could run code here.
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

QUEUE = "deribit:queue"
"Not arq's default, because another application's jobs may be in that one, and its workers would take ours."

DEADLINE_SECONDS = 1.4
"Clients get an answer within 2 s even if Redis is unavailable or hangs."


def serialize(job: dict[str, Any]) -> bytes:
    """A job or its result as JSON; an exception becomes its text."""
    return json.dumps(job, default=repr).encode()


def deserialize(job: bytes) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(job)
    return loaded


@asynccontextmanager
async def open_redis(settings: Settings, *, retries: int, timeout: float = DEADLINE_SECONDS) -> AsyncIterator[ArqRedis]:
    """A client that connects when first used, so that a process can start without Redis.

    `retries`: attempts after a connection error, the first after 0.1 s, later ones after up to 2 s. The API takes few
    because a client waits; the worker takes many because it holds a price. `timeout`: seconds for one reply.
    """
    # Not arq's RedisSettings: it does not decode %-escapes in a password, and connects at the start or never.
    async with open_pool(
        settings.redis_url,
        socket_connect_timeout=1,
        socket_timeout=timeout,
        health_check_interval=15,
        retry=Retry(ExponentialBackoff(cap=2, base=0.1), retries),
        retry_on_error=[RedisConnectionError, RedisTimeoutError, OSError],
    ) as pool:
        redis = ArqRedis(pool, serialize, deserialize, default_queue_name=QUEUE)
        try:
            yield redis
        finally:
            await redis.aclose(close_connection_pool=True)


async def within_deadline(command: Coroutine[Any, Any, T]) -> T:
    """Wait for a command. Raises `QueueUnavailable` if Redis is unavailable, or after `DEADLINE_SECONDS`."""
    # Not asyncio.timeout: redis-py can swallow a cancellation while it connects. The task is left to end by itself.
    task = asyncio.ensure_future(command)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # mark as retrieved
    try:
        done, _ = await asyncio.wait({task}, timeout=DEADLINE_SECONDS)
        if not done:
            raise TimeoutError
        return task.result()
    except (RedisError, OSError, TimeoutError) as error:
        logger.warning("queue is unavailable: %s", describe(error))
        raise QueueUnavailable("The job queue is unavailable; try again shortly.") from error
    finally:
        task.cancel()


async def check_writes(redis: ArqRedis) -> None:
    """Raises what Redis answers to a write: it may be full (OOM), a read-only replica, or unable to save (MISCONF).

    The command changes nothing, because the key does not exist.
    """
    await redis.set("write-check", "", xx=True)
