"""`fetch_prices`: a fetch that a client asked for."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from shared.errors import StorageUnavailable
from shared.queue.fetches import FetchFailure, finish_fetch_job, start_fetch_job
from shared.storage.prices import Price, PriceSource
from worker.context import Worker, requeue_without_redis, worker_of
from worker.exchange.errors import DeribitError
from worker.exchange.retries import BUDGET_SECONDS, observe_each
from worker.jobs.storing import store

_TOLERATED_SKEW = timedelta(hours=1)


async def fetch_prices(ctx: dict[str, Any], tickers: list[str]) -> None:
    """Fetch these tickers now and record the outcome for the client. If Redis is lost, the job runs again."""
    async with requeue_without_redis():
        await _fetch(worker_of(ctx), ctx["job_id"], tickers)


async def _fetch(worker: Worker, job_id: str, tickers: Sequence[str]) -> None:
    if not await start_fetch_job(worker.redis, job_id):
        return

    async def observe(ticker: str) -> Price:
        observation = await worker.live.observe(ticker)
        skew = worker.clock.now() - observation.observed_at
        if skew < -_TOLERATED_SKEW:  # it would stay the newest price for that long
            raise DeribitError("CLOCK_AHEAD", "the exchange's clock is more than an hour ahead of ours")
        if skew > _TOLERATED_SKEW:  # 0, or milliseconds, would be a price of 1970
            raise DeribitError("CLOCK_BEHIND", "the exchange's clock is more than an hour behind ours")
        return observation.as_price(observation.observed_at, PriceSource.REQUESTED)

    stored: list[Price] = []
    failures: list[FetchFailure] = []

    async def receive(prices: list[Price], errors: dict[str, DeribitError]) -> None:
        failures.extend(FetchFailure(ticker, error.code, error.detail) for ticker, error in errors.items())
        as_stored = await store(worker, prices, [])
        if as_stored is not None:
            stored.extend(as_stored)
        else:
            message = "The price was fetched and will be stored when the storage is back."
            failures.extend(FetchFailure(price.ticker, StorageUnavailable.code, message) for price in prices)

    await observe_each(worker, tickers, observe, BUDGET_SECONDS, receive, worker.requested_share)
    stored.sort(key=lambda price: price.ticker)
    failures.sort(key=lambda failure: failure.ticker)
    await finish_fetch_job(worker.redis, job_id, tickers, stored, failures)
    worker.metrics.fetched(stored, failures)
