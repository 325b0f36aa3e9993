"""Redis: the job queue (arq), and the few keys of ours beside it. `fetch_jobs` and `deferred` keep theirs themselves.

Jobs are JSON on both sides: with arq's pickle, whoever can write to Redis could run code here.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, TypeVar

from arq.connections import ArqRedis
from arq.jobs import Job
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.db import describe
from shared.errors import QueueUnavailable
from shared.sentinel import MasterPool, open_pool
from shared.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")

FETCH_PRICES = "fetch_prices"
STORE_DEFERRED = "store_deferred"

DEADLINE_SECONDS = 1.4
"A client is promised an answer within 2 s when Redis is away or hangs."

CONFIRM_SECONDS = 0.5
"How long a replica has to confirm what a master that can be replaced was told."

_CONFIRM_AGAIN_SECONDS = (1.0, 2.0)

_WORKERS = "workers"
LIVE_WORKER_SECONDS = 15.0
_FORGET_WORKER_SECONDS = 3600


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


class Unconfirmed(RedisConnectionError):
    """Written, but by no replica: should the master be replaced now, it would be lost."""


async def execute_confirmed(redis: ArqRedis, *commands: Sequence[Any]) -> list[Any]:
    """Run commands one after the other; their answers. Behind sentinels, not before a replica has what they wrote.

    They may be run twice. Raises `Unconfirmed`, and then they have been run all the same.
    """
    is_replicated = isinstance(redis.connection_pool, MasterPool)
    async with redis.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        if is_replicated:
            # WAIT is about what its own connection wrote; the commands may have found all written before.
            pipe.execute_command("INCR", "confirmations")
            pipe.execute_command("WAIT", 1, round(CONFIRM_SECONDS * 1000))
        answers = await pipe.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, ResponseError):
            raise answer
    if is_replicated and not answers[-1]:
        raise Unconfirmed("no replica has confirmed what was written")
    return answers[: len(commands)]


async def execute_confirmed_if_possible(redis: ArqRedis, *commands: Sequence[Any]) -> None:
    """As `execute_confirmed`, more than once, for what is better kept by one server than by none."""
    for pause in _CONFIRM_AGAIN_SECONDS:
        try:
            await execute_confirmed(redis, *commands)
            return
        except Unconfirmed as error:
            logger.warning("%s", error)
        await asyncio.sleep(pause)  # by then the sentinels may name another master
    with contextlib.suppress(Unconfirmed):
        await execute_confirmed(redis, *commands)


async def enqueue_store_deferred(redis: ArqRedis, *, after_seconds: float) -> None:
    """One such job is enough, however often it is asked for: it stores everything that waits."""
    await redis.enqueue_job(STORE_DEFERRED, _job_id=STORE_DEFERRED, _defer_by=after_seconds)


async def select_slot_result(redis: ArqRedis, slot: datetime) -> list[str] | None:
    """What the schedule's job for a slot answered; `None` while it has not ended, or when it failed."""
    milliseconds = round(slot.timestamp() * 1000)
    job = Job(f"cron:{FETCH_PRICES}:{milliseconds}", redis, _deserializer=deserialize)
    result = await job.result_info()
    return result.result if result and result.success else None


async def report_worker(redis: ArqRedis, name: str) -> None:
    """A worker's sign of life, given every few seconds; those that have been silent for long are forgotten."""
    now = time.time()
    async with redis.pipeline(transaction=True) as pipe:
        pipe.zadd(_WORKERS, {name: now})
        pipe.zremrangebyscore(_WORKERS, "-inf", now - _FORGET_WORKER_SECONDS)
        await pipe.execute()


async def forget_worker(redis: ArqRedis, name: str) -> None:
    await redis.zrem(_WORKERS, name)


async def select_live_workers(redis: ArqRedis) -> list[str]:
    """The workers that have reported lately."""
    names = await redis.zrangebyscore(_WORKERS, time.time() - LIVE_WORKER_SECONDS, "+inf")
    return [name.decode() for name in names]
