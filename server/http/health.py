"""`/livez`: the process answers. `/readyz`: what it needs, one entry each; 503 when PostgreSQL or Redis is away.

And as soon as the process is told to end, so that a proxy asks others before it does. Where standbys are read from they
have an entry of their own, and the primary's outage is a warning.
"""

import asyncio
from dataclasses import asdict, dataclass, replace

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from server.reads.context import Context
from server.schema.tickers import select_tickers
from server.standbys import StandbyPool
from shared.errors import QueueUnavailable, StorageUnavailable
from shared.migrate import read_migrations, select_version
from shared.queue.client import within_deadline
from shared.queue.worker_registry import select_live_workers
from shared.storage.database import NOT_MIGRATED, Pool

OK, WARNING, DOWN = "ok", "warning", "down"
DRAINING = {"status": "draining", "reason": "this process was told to end: ask another one", "dependencies": {}}


@dataclass(frozen=True)
class Dependency:
    """A warning keeps the API in service: what is stored can be read, whoever collects."""

    status: str
    reason: str | None = None


async def livez(_: Request) -> Response:
    return PlainTextResponse("ok\n")


async def readyz(request: Request) -> Response:
    if request.app.state.is_draining:
        return JSONResponse(DRAINING, 503, headers={"Cache-Control": "no-store"})
    state = request.state
    context = Context(state.primary, state.redis, state.settings)
    (postgres, prices), (redis, worker), standbys = await asyncio.gather(
        _storage(context), _queue(context), _standbys(state.pool, context)
    )
    dependencies = {"postgres": postgres, "redis": redis, "worker": worker, "prices": prices}
    if standbys is not None:
        if postgres.status == DOWN and standbys.status != DOWN:
            # As when another server is about to take the primary's place: what is asked meanwhile is answered.
            dependencies["postgres"] = Dependency(WARNING, f"{postgres.reason} The standbys are read from.")
        dependencies["standbys"] = standbys
    is_down = any(dependency.status == DOWN for dependency in dependencies.values())
    body = {
        "status": DOWN if is_down else OK,
        "dependencies": {name: asdict(dependency) for name, dependency in dependencies.items()},
    }
    return JSONResponse(body, 503 if is_down else 200, headers={"Cache-Control": "no-store"})


async def _storage(context: Context) -> tuple[Dependency, Dependency]:
    wanted = len(read_migrations())
    try:
        version = await select_version(context.pool)
        if version < wanted:
            outdated = f"the schema is at {version:04}, this release needs {wanted:04}: run python -m shared.migrate"
            return Dependency(DOWN, outdated if version else NOT_MIGRATED), Dependency(WARNING, "unknown")
        tickers = await select_tickers(context)
    except StorageUnavailable as error:
        return Dependency(DOWN, str(error)), Dependency(WARNING, "unknown")
    stale = [
        f"{t.name}: "
        + ("nothing collected yet" if t.lag_seconds is None else f"newest price {t.lag_seconds:.0f} s old")
        for t in tickers
        if t.stale
    ]
    return Dependency(OK), Dependency(WARNING, "; ".join(stale)) if stale else Dependency(OK)


async def _standbys(pool: Pool, context: Context) -> Dependency | None:
    """Whether there is something to read from, and what of it is behind; `None` where no standbys are named."""
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
        workers = await within_deadline(select_live_workers(context.redis))
    except QueueUnavailable as error:
        return Dependency(DOWN, str(error)), Dependency(WARNING, "unknown")
    return Dependency(OK), Dependency(OK) if workers else Dependency(WARNING, "no worker has reported lately")
