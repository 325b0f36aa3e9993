"""Subscriptions: new prices, and the progress of a fetch."""

from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import datetime
from typing import Annotated

import strawberry

from server.feeds.background import Feeds
from server.reads.context import Info
from server.schema.jobs import FetchJob, JobId
from server.schema.prices import Price, Tickers
from server.schema.scalars import instant
from shared.cursor import Position, decode_cursor
from shared.errors import BadUserInput
from shared.queue import fetches as fetch_jobs
from shared.queue.client import within_deadline
from shared.storage import prices


@strawberry.type(description="What can be followed, over a WebSocket (graphql-transport-ws) or as an event stream.")
class Subscription:
    @strawberry.subscription(
        graphql_type=Price,
        description=(
            "Every price as it is stored. With `since`, first everything stored after that instant; with `after`, a "
            "price's `cursor`, everything stored behind it, whatever the ticker. Then live, none lost or doubled. Both "
            "at once, or a cursor that this database never gave: BAD_USER_INPUT."
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
                    "To begin at an instant. First come the prices with a later timestamp, oldest first; before them "
                    "those with this or an earlier one that were stored after it: backfilled, delayed, or of another "
                    "ticker."
                )
            ),
        ] = None,
        after: Annotated[
            strawberry.ID | None,
            strawberry.argument(
                description=(
                    "To go on after a break: the `cursor` of the last price that came. First come the prices stored "
                    "behind it, in the order of storing."
                )
            ),
        ] = None,
    ) -> AsyncGenerator[prices.Price]:
        context = info.context
        names = context.tickers(tickers)
        if not names:
            raise BadUserInput("tickers is empty; accepted are one or more, or null for all.")
        if since is not None and after is not None:
            raise BadUserInput("since and after are both given; accepted is one of them.")
        start = None if since is None else instant(since, "since")
        feeds = context.require_feeds()
        position = None if after is None else await _find(feeds, after)
        return feeds.prices.updates(feeds.pool, names, start, position)

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


async def _find(feeds: Feeds, cursor: str) -> Position:
    """Raises `BadUserInput` if the database never gave this cursor, and `StorageUnavailable`."""
    position = None
    with suppress(ValueError):
        position = await feeds.prices.find(feeds.pool, decode_cursor(cursor))
    if position is None:
        raise BadUserInput(
            f"after is {cursor[:60]!r}; accepted is the cursor of a price that this database has stored. If it was "
            "restored from a backup since, go on with `since`."
        )
    return position
