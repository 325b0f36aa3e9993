"""Fetches on demand: request one, and read its progress."""

from datetime import datetime
from enum import Enum
from typing import Annotated

import strawberry

from server.reads.context import Info
from server.request_ids import current_request_id, traceparent
from server.schema.prices import Price, Tickers
from shared.errors import BadUserInput, RateLimited
from shared.queue import fetches as fetch_jobs
from shared.queue.client import within_deadline
from shared.queue.rate_limit import limits_of
from shared.telemetry.traces import span

JobId = Annotated[strawberry.ID, strawberry.argument(description="The `id` from fetchPrices.")]


@strawberry.enum(description="The state of a fetch.")
class FetchStatus(Enum):
    QUEUED = strawberry.enum_value("QUEUED", description="Waits for a worker.")
    RUNNING = strawberry.enum_value("RUNNING", description="A worker runs it.")
    SUCCEEDED = strawberry.enum_value("SUCCEEDED", description="Ended: the price of every ticker is stored.")
    PARTIAL = strawberry.enum_value("PARTIAL", description="Ended: the prices of some tickers are stored.")
    FAILED = strawberry.enum_value("FAILED", description="Ended: no price is stored.")


@strawberry.type(description="Why one ticker of a fetch has no price.")
class FetchFailure:
    ticker: str = strawberry.field(description="The index name.")
    code: str = strawberry.field(
        description="What failed: RPC_<n> and HTTP_<n> are the exchange's, TIMEOUT, BAD_PRICE, STORAGE_UNAVAILABLE, …"
    )
    message: str = strawberry.field(description="The same in words.")


@strawberry.type(description="A requested fetch. It can be read until an hour after its end.")
class FetchJob:
    id: strawberry.ID = strawberry.field(description="To read it with fetchJob, or follow it with fetchProgress.")
    status: FetchStatus = strawberry.field(description="The state.")
    tickers: list[str] = strawberry.field(description="The index names it fetches.")
    enqueued_at: datetime = strawberry.field(description="When it was requested.")
    started_at: datetime | None = strawberry.field(description="When a worker started it.")
    finished_at: datetime | None = strawberry.field(description="When it ended.")
    prices: list[Price] = strawberry.field(description="The prices it stored.")
    failures: list[FetchFailure] = strawberry.field(description="The tickers it has no price for, and why.")


@strawberry.field(
    graphql_type=FetchJob | None,
    description="A fetch by its id; null when it is unknown, or ended more than an hour ago.",
)
async def fetch_job(info: Info, id: JobId) -> fetch_jobs.FetchJob | None:
    if not fetch_jobs.is_job_id(id):
        return None
    return await within_deadline(fetch_jobs.select_fetch_job(info.context.redis, id))


@strawberry.type
class JobMutation:
    @strawberry.mutation(
        graphql_type=FetchJob,
        description=(
            "Enqueues a fetch of all tickers, or of the ones named. While the same fetch is queued or running, answers "
            "that job."
        ),
    )
    async def fetch_prices(self, info: Info, tickers: Tickers = None) -> fetch_jobs.FetchJob:
        context = info.context
        context.require_token()
        names = context.tickers(tickers)
        if not names:
            raise BadUserInput("tickers is empty; accepted are one or more, or null for all.")
        settings = context.settings
        limits = limits_of(context.client, settings.fetch_limit_per_client, settings.fetch_limit_overall)
        named = {"request_id": current_request_id()}
        with span("mutation fetchPrices", "server", traceparent(), expected=(RateLimited,), **named) as note:
            job = await within_deadline(fetch_jobs.enqueue_fetch_prices(context.redis, names, limits))
            note("job_id", job.id)
            return job
