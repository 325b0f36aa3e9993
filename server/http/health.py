"""`/livez`: the process answers. `/readyz`: an entry for each dependency; 503 if PostgreSQL or Redis is unavailable.

`/readyz` also says 503 while the process drains, so that a proxy sends requests elsewhere before the process ends. If
reads go to standbys, these have an entry of their own, and an outage of the primary is a warning.
"""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from redis.exceptions import ResponseError
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from server.reads.context import Context
from server.schema.tickers import select_tickers
from server.standbys import StandbyPool
from shared.errors import QueueUnavailable, StorageUnavailable
from shared.migrate import read_migrations, select_version
from shared.queue.client import check_writes, within_deadline
from shared.queue.worker_registry import (
    describe_clock_offset,
    describe_unknown_index,
    select_clock_offsets,
    select_live_workers,
    select_unknown_indices,
)
from shared.storage.database import NOT_MIGRATED, Pool

logger = logging.getLogger(__name__)

T = TypeVar("T")

OK, WARNING, DOWN = "ok", "warning", "down"
DRAINING = {"status": "draining", "reason": "this process was told to end: ask another one", "dependencies": {}}


@dataclass(frozen=True)
class Dependency:
    """A warning keeps the API in service, because stored prices can still be read."""

    status: str
    reason: str | None = None


UNKNOWN = Dependency(WARNING, "unknown")
UNKNOWN_FAULT = Dependency(DOWN, "It cannot be checked; the log says why.")


async def livez(_: Request) -> Response:
    return PlainTextResponse("ok\n")


async def readyz(request: Request) -> Response:
    if request.app.state.is_draining:
        return JSONResponse(DRAINING, 503)
    state = request.state
    context = Context(state.primary, state.redis, state.settings)
    (postgres, prices), (redis, worker), standbys = await asyncio.gather(
        _never_failing(_storage(context), (UNKNOWN_FAULT, UNKNOWN)),
        _never_failing(_queue(context), (UNKNOWN_FAULT, UNKNOWN)),
        _never_failing(_standbys(state.pool, context), UNKNOWN_FAULT),
    )
    dependencies = {"postgres": postgres, "redis": redis, "worker": worker, "prices": prices}
    if standbys is not None:
        if postgres.status == DOWN and standbys.status != DOWN:
            # During a failover the API still answers queries.
            dependencies["postgres"] = Dependency(WARNING, f"{postgres.reason} The standbys are read from.")
        dependencies["standbys"] = standbys
    is_down = any(dependency.status == DOWN for dependency in dependencies.values())
    body = {
        "status": DOWN if is_down else OK,
        "dependencies": {name: asdict(dependency) for name, dependency in dependencies.items()},
    }
    return JSONResponse(body, 503 if is_down else 200)


async def _never_failing(check: Coroutine[Any, Any, T], otherwise: T) -> T:
    """A proxy reads 503 as "not now" and a plain 500 as it likes."""
    try:
        return await check
    except Exception:
        logger.exception("fault while checking a dependency")
        return otherwise


async def _storage(context: Context) -> tuple[Dependency, Dependency]:
    wanted = len(read_migrations())
    try:
        version = await select_version(context.pool)
        if version < wanted:
            outdated = f"the schema is at {version:04}, this release needs {wanted:04}: run python -m shared.migrate"
            return Dependency(DOWN, outdated if version else NOT_MIGRATED), UNKNOWN
        tickers = await select_tickers(context)
    except StorageUnavailable as error:
        return Dependency(DOWN, str(error)), UNKNOWN
    stale = [
        f"{t.name}: "
        + ("nothing collected yet" if t.lag_seconds is None else f"newest price {t.lag_seconds:.0f} s old")
        for t in tickers
        if t.stale
    ]
    return Dependency(OK), Dependency(WARNING, "; ".join(stale)) if stale else Dependency(OK)


async def _standbys(pool: Pool, context: Context) -> Dependency | None:
    """Whether a standby can be read from and has recent prices; `None` without DATABASE_READ_URL."""
    if not isinstance(pool, StandbyPool):
        return None
    reads, prices = await _storage(replace(context, pool=pool))
    if reads.status == DOWN:
        return reads
    if pool.fault is not None:
        return Dependency(WARNING, f"reads go to the primary: {pool.fault}")
    return prices


async def _queue(context: Context) -> tuple[Dependency, Dependency]:
    try:
        faults = await within_deadline(_worker_faults(context))
    except QueueUnavailable as error:
        is_refusal = isinstance(error.__cause__, ResponseError)
        reason = f"Redis refuses writes: {error.__cause__}" if is_refusal else str(error)
        return Dependency(DOWN, reason), UNKNOWN
    return Dependency(OK), Dependency(WARNING, "; ".join(faults)) if faults else Dependency(OK)


async def _worker_faults(context: Context) -> list[str]:
    redis = context.redis
    await check_writes(redis)
    workers = await select_live_workers(redis)
    if not workers:
        return ["no worker has reported lately"]
    unknown = await select_unknown_indices(redis, context.settings.tickers)
    offsets = await select_clock_offsets(redis, workers)
    return [
        *(describe_unknown_index(ticker, near) for ticker, near in unknown.items()),
        *(describe_clock_offset(worker, seconds) for worker, seconds in offsets.items()),
    ]
