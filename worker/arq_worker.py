"""arq's worker, whose jobs run once, and say which one they are in the trace and in the log, on arq's own lines too."""

import contextlib
import functools
from dataclasses import replace
from typing import Any

import arq
from arq.typing import WorkerCoroutine
from structlog.contextvars import bind_contextvars, bound_contextvars

from shared.errors import QueueUnavailable
from shared.fetch_jobs import is_job_id, select_traceparent
from shared.queue import within_deadline
from shared.traces import is_recording, span
from worker.context import worker_of


class ArqWorker(arq.Worker):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.functions = {
            name: replace(function, coroutine=_named(function.coroutine)) for name, function in self.functions.items()
        }

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Not what runs here already: a Redis that has just become the master may not know that, and arq would fail."""
        await super().start_jobs([job_id for job_id in job_ids if job_id.decode() not in self.tasks])

    async def run_job(self, job_id: str, score: int) -> None:
        with bound_contextvars(job_id=job_id):
            await super().run_job(job_id, score)


def _named(function: WorkerCoroutine) -> WorkerCoroutine:
    name = function.__qualname__

    @functools.wraps(function)
    async def named(ctx: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        bind_contextvars(function=name)
        if not is_recording():
            return await function(ctx, *arguments, **options)
        parent = await _parent(ctx)
        with span(name, "consumer", parent, expected=(arq.Retry,), job_try=ctx["job_try"]):
            return await function(ctx, *arguments, **options)

    return named


async def _parent(ctx: dict[str, Any]) -> str | None:
    """What asked for the fetch. A slot has none, and no price is lost for a trace: without Redis it begins anew."""
    if is_job_id(ctx["job_id"]):
        with contextlib.suppress(QueueUnavailable):
            return await within_deadline(select_traceparent(worker_of(ctx).redis, ctx["job_id"]))
    return None
