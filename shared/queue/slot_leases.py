"""Leases on the tickers that a slot's job is fetching, so that the retry at half-slot does not ask for them too.

A lease expires soon after its worker dies, and the retry then takes over.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from arq.connections import ArqRedis
from redis.exceptions import RedisError

_MAX_LEASE_SECONDS = 2.0
_END_SECONDS = 0.1


def lease_seconds(interval_seconds: float) -> float:
    """Short enough that half a slot is left after the worker of a slot's job has died."""
    return min(interval_seconds / 4, _MAX_LEASE_SECONDS)


@asynccontextmanager
async def lease(redis: ArqRedis, job_id: str, pending: Collection[str], seconds: float) -> AsyncIterator[None]:
    """Renew a lease on `pending`, which the caller may shrink meanwhile. Without Redis there is none."""

    ended = asyncio.Event()

    async def renew() -> None:
        while not ended.is_set():
            with contextlib.suppress(RedisError, OSError):
                await redis.set(_key(job_id), json.dumps(sorted(pending)), px=round(seconds * 1000))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), seconds / 3)

    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        ended.set()
        # Not cancelled, because that would cost a connection; and not waited for if Redis hangs.
        await asyncio.wait({renewing}, timeout=_END_SECONDS)


async def select_leased(redis: ArqRedis, job_id: str) -> set[str]:
    """The tickers that a job is fetching now."""
    pending: bytes | None = await redis.get(_key(job_id))
    return set(json.loads(pending)) if pending else set()


def _key(job_id: str) -> str:
    return f"lease:{job_id}"
