"""The decorator of every job: it counts and times a run, names the job in log lines, and opens its span."""

import contextlib
from functools import wraps
from typing import Any

import arq
from arq.typing import WorkerCoroutine
from structlog.contextvars import bound_contextvars

from shared.errors import QueueUnavailable
from shared.queue.client import within_deadline
from shared.queue.fetches import is_job_id, select_traceparent
from shared.telemetry.traces import is_recording, span
from worker.context import Worker


def instrumented(worker: Worker, job: WorkerCoroutine, metric_name: str | None = None) -> WorkerCoroutine:
    """`metric_name`: the job's name in metrics, by default the function's. Log lines and spans use the function's."""
    function = job.__qualname__
    label = metric_name or function
    worker.metrics.add_job(label)

    @wraps(job)
    async def run(ctx: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        with worker.metrics.running(label), bound_contextvars(function=function):
            if not is_recording():
                return await job(ctx, *arguments, **options)
            parent = await _traceparent(worker, ctx["job_id"])
            with span(function, "consumer", parent, expected=(arq.Retry,), job_try=ctx["job_try"]):
                return await job(ctx, *arguments, **options)

    return run


async def _traceparent(worker: Worker, job_id: str) -> str | None:
    """The request that asked for the fetch. A slot has none. If Redis is unavailable, the job begins a new trace."""
    if is_job_id(job_id):
        with contextlib.suppress(QueueUnavailable):
            return await within_deadline(select_traceparent(worker.redis, job_id))
    return None
