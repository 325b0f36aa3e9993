"""`/metrics`: what this process counts, and the state that all processes share in PostgreSQL and Redis.

Each process exports the same shared state, so take its maximum over the processes, not the sum. Shared state that
cannot be read is left out, and `dependency_up` says so.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

import asyncpg
from arq.connections import ArqRedis
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from server.metrics import Metrics
from server.protection.auth import is_authenticated
from shared.config.settings import Settings
from shared.errors import QueueUnavailable, StorageUnavailable
from shared.queue.client import within_deadline
from shared.queue.deferred import count_deferred
from shared.queue.fetches import count_unfinished_fetches
from shared.queue.worker_registry import select_live_workers
from shared.storage.coverage import select_coverages
from shared.storage.database import Pool
from shared.storage.pool_metrics import pool_metrics
from shared.storage.prices import select_latest_prices
from shared.telemetry.metrics import gauge

COVERED = timedelta(hours=1)
SETTLED = timedelta(minutes=5)
"Healing runs once a minute, so it has failed on slots that are still missing after this time."


class Scrape:
    """The part of a registry that prometheus_client's encoders use."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


async def metrics(request: Request) -> Response:
    """Needs a token if reads do, because it shows how much the API is used."""
    state = request.state
    if state.settings.require_token_for_reads and not is_authenticated(request.scope):
        headers = {"WWW-Authenticate": "Bearer"}
        return PlainTextResponse("This needs the header `Authorization: Bearer <API_TOKEN>`.\n", 401, headers)
    counted: Metrics = state.metrics
    shared = await asyncio.gather(_stored(state.primary, state.settings), _queued(state.redis))
    encode, content_type = choose_encoder(", ".join(request.headers.getlist("accept")))
    pools = {"main": state.primary} if state.pool is state.primary else {"main": state.primary, "standbys": state.pool}
    found = [*counted.collect(), *pool_metrics(pools), *_shared(state.settings, *shared)]
    return Response(encode(Scrape(found)), headers={"Content-Type": content_type})


async def _stored(pool: Pool, settings: Settings) -> list[Metric] | None:
    """`None` if PostgreSQL is unavailable."""
    now = datetime.now(UTC)
    # Only slots that have ended: a slot of an hour counts during the hour after it.
    until = now - SETTLED - timedelta(seconds=settings.fetch_interval_seconds)
    try:
        latest, coverages = await asyncio.gather(
            select_latest_prices(pool, settings.tickers),
            select_coverages(pool, settings.tickers, until - COVERED, until, now),
        )
    except (StorageUnavailable, asyncpg.PostgresError):  # the latter if we lack the privilege to read
        return None
    newest = dict.fromkeys(settings.tickers, 0.0) | {price.ticker: price.timestamp.timestamp() for price in latest}
    ages = {ticker: time.time() - timestamp for ticker, timestamp in newest.items() if timestamp}
    return [
        gauge(
            "newest_price_timestamp_seconds",
            "The newest stored price's timestamp, in Unix time; 0 without a price.",
            ["ticker"],
            {(ticker,): timestamp for ticker, timestamp in newest.items()},
        ),
        gauge(
            "newest_price_age_seconds",
            "Time since the newest stored price's timestamp; left out without a price.",
            ["ticker"],
            {(ticker,): age for ticker, age in ages.items()},
        ),
        gauge(
            "slots_expected",
            "Slots of the schedule that ended in the hour until five minutes ago.",
            ["ticker"],
            {(ticker,): coverage.expected for ticker, coverage in coverages.items()},
        ),
        gauge(
            "slots_present",
            "Slots of slots_expected that have a price, observed or healed.",
            ["ticker"],
            {(ticker,): coverage.present for ticker, coverage in coverages.items()},
        ),
    ]


async def _queued(redis: ArqRedis) -> list[Metric] | None:
    """`None` if Redis is unavailable."""

    async def read() -> tuple[int, int, list[str]]:
        return await asyncio.gather(count_unfinished_fetches(redis), count_deferred(redis), select_live_workers(redis))

    try:
        fetches, deferred, workers = await within_deadline(read())
    except QueueUnavailable:
        return None
    return [
        gauge("fetches_queued", "Requested fetches that are queued or running.", [], {(): fetches}),
        gauge(
            "deferred_prices",
            "Prices and reasons of missed slots that wait in Redis until PostgreSQL is available.",
            [],
            {(): deferred},
        ),
        gauge("workers", "Workers that have reported within the last 15 seconds.", [], {(): len(workers)}),
    ]


def _shared(settings: Settings, stored: list[Metric] | None, queued: list[Metric] | None) -> Iterator[Metric]:
    yield gauge("fetch_interval_seconds", "The schedule's interval.", [], {(): settings.fetch_interval_seconds})
    yield gauge(
        "dependency_up",
        "Whether PostgreSQL (postgres) and Redis or Valkey (redis) answered this scrape.",
        ["dependency"],
        {("postgres",): stored is not None, ("redis",): queued is not None},
    )
    yield from stored or []
    yield from queued or []
