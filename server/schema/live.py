"""Subscriptions: new prices, and the progress of a fetch."""

from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Annotated

import strawberry

from server.reads.context import Info
from server.schema.jobs import FetchJob, JobId
from server.schema.prices import Price, Tickers
from server.schema.scalars import instant
from shared.errors import BadUserInput
from shared.queue import fetches as fetch_jobs
from shared.queue.client import within_deadline
from shared.storage import prices


@strawberry.type(description="What can be followed, over a WebSocket (graphql-transport-ws) or as an event stream.")
class Subscription:
    @strawberry.subscription(
        graphql_type=Price,
        description=(
            "Every price as it is stored. With `since`, first everything stored after that instant, then live, none "
            "lost or doubled."
        ),
    )
    async def price_updates(
        self,
        info: Info,
        tickers: Tickers = None,
        since: Annotated[
            datetime | None,
            strawberry.argument(
                description=(
                    "To go on after a break, the latest timestamp that came. First come the prices with a later "
                    "timestamp, oldest first; before them those with this or an earlier one that were stored after it: "
                    "backfilled, delayed, or of another ticker."
                )
            ),
        ] = None,
    ) -> AsyncGenerator[prices.Price]:
        context = info.context
        names = context.tickers(tickers)
        if not names:
            raise BadUserInput("tickers is empty; accepted are one or more, or null for all.")
        start = None if since is None else instant(since, "since")
        feeds = context.require_feeds()
        return feeds.prices.updates(feeds.pool, names, start)

    @strawberry.subscription(
        graphql_type=FetchJob,
        description=(
            "The job now, then at every change, ending when it ends. An id that is unknown, or ended more than an hour "
            "ago, is answered with BAD_USER_INPUT."
        ),
    )
    async def fetch_progress(self, info: Info, id: JobId) -> AsyncGenerator[fetch_jobs.FetchJob]:
        context = info.context
        job = None
        if fetch_jobs.is_job_id(id):
            job = await within_deadline(fetch_jobs.select_fetch_job(context.redis, id))
        if job is None:
            raise BadUserInput(f"id is {id[:40]!r}; accepted is one that fetchPrices answered within the hour.")
        return context.require_feeds().jobs.progress(job)
