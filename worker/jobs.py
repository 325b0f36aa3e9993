"""`fetch_prices`: ask the exchange for every ticker, store what came, write down what did not.

The same steps for a slot of the schedule and for a fetch that somebody asked for; they differ in what a price's
timestamp is, and in who is told of the outcome.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import arq
import asyncpg
from structlog.contextvars import bind_contextvars

from shared.deferred import defer, store_oldest_deferred
from shared.errors import StorageUnavailable
from shared.fetch_jobs import FetchFailure, finish_fetch_job, start_fetch_job
from shared.grid import from_microseconds, slot_of
from shared.prices import Price, PriceSource, insert_prices, select_observed_tickers
from shared.queue import select_slot_result
from shared.schedules import GapReason, MissedSlot, insert_missed_slots
from worker import deribit
from worker.attempts import BUDGET_SECONDS, attempts
from worker.context import Worker, given_back_without_redis, worker_of
from worker.deribit import Observation
from worker.deribit_errors import DeribitError
from worker.deribit_errors import Retry as ExchangeRetry

logger = logging.getLogger(__name__)

_TOLERATED_SKEW = timedelta(seconds=5)
_LOGGED_SKEW = timedelta(seconds=1)
_MOST_AHEAD = timedelta(hours=1)

_LONGEST_STORE_PAUSE_SECONDS = 10
_STORE_SECONDS = 1.7
"How long a price in hand waits for PostgreSQL before it is put aside in Redis."


async def fetch_prices(ctx: dict[str, Any], tickers: list[str] | None = None) -> list[str]:
    """With `tickers`, a fetch somebody asked for; without, the schedule's, whose slot the job's own id carries.

    Answers the tickers of the slot that are worth asking for once more.
    """
    worker = worker_of(ctx)
    if tickers is not None:
        async with given_back_without_redis():
            await _fetch_requested(worker, ctx["job_id"], tickers)
        return []
    return await _fetch_slot(worker, _slot(ctx["job_id"], worker.interval), worker.settings.tickers)


async def fetch_again(ctx: dict[str, Any]) -> None:
    """Half a slot later: what the slot's own job did not get; everything, when the worker that has it is silent."""
    worker = worker_of(ctx)
    slot = _slot(ctx["job_id"], worker.interval)
    tickers = await select_slot_result(worker.redis, slot)
    if tickers is None:
        stored: set[str] = set()
        with contextlib.suppress(StorageUnavailable):
            stored = await select_observed_tickers(worker.pool, worker.settings.tickers, slot)
        tickers = [ticker for ticker in worker.settings.tickers if ticker not in stored]
    if tickers:
        await _fetch_slot(worker, slot, tickers)


async def store_deferred(ctx: dict[str, Any]) -> bool:
    """Store what PostgreSQL could not take when it was fetched. Answers whether it is back.

    Batch by batch with a pause in between: a database that has just come back has others to serve too.
    """
    worker = worker_of(ctx)
    try:
        while stored := await store_oldest_deferred(worker.redis, worker.pool, worker.metrics.note):
            logger.info("stored %d deferred entries", stored)
            await asyncio.sleep(0.05)
    except StorageUnavailable:
        return False
    return True


async def store_deferred_until_done(ctx: dict[str, Any]) -> None:
    if not await store_deferred(ctx):
        raise arq.Retry(defer=min(2 ** ctx["job_try"], _LONGEST_STORE_PAUSE_SECONDS))


async def _fetch_slot(worker: Worker, slot: datetime, tickers: Sequence[str]) -> list[str]:
    bind_contextvars(slot=slot.isoformat())
    end = slot + worker.interval
    seconds_left = (end - datetime.now(UTC)).total_seconds()
    if seconds_left <= 0:
        # The worker was paused or overtaken. Any price it got now would belong to another slot; the healer sees to it.
        logger.warning("slot %s is over, left to the healer", slot.isoformat())
        return []

    async def observe(ticker: str) -> Price:
        observation = await deribit.get_index_price(worker.http, ticker)
        _check_clock(observation, slot, worker.interval)
        return _stored_as(observation, slot, PriceSource.SCHEDULED)

    worth_another: list[str] = []
    async for prices, errors in attempts(worker, tickers, observe, min(seconds_left, BUDGET_SECONDS)):
        missed = [MissedSlot(ticker, slot, error.reason, str(error)) for ticker, error in errors.items()]
        await _store(worker, prices, missed)
        worth_another += [ticker for ticker, error in errors.items() if error.retry is not ExchangeRetry.NEVER]
    return worth_another


async def _fetch_requested(worker: Worker, job_id: str, tickers: Sequence[str]) -> None:
    if not await start_fetch_job(worker.redis, job_id):
        return

    async def observe(ticker: str) -> Price:
        observation = await deribit.get_index_price(worker.http, ticker)
        if _skew(observation) < -_MOST_AHEAD:  # it would be the newest price for as long
            raise DeribitError("CLOCK_AHEAD", "the exchange's clock is more than an hour ahead of ours")
        return _stored_as(observation, observation.observed_at, PriceSource.REQUESTED)

    stored: list[Price] = []
    failures: list[FetchFailure] = []
    async for prices, errors in attempts(worker, tickers, observe, BUDGET_SECONDS):
        failures += [FetchFailure(ticker, error.code, error.detail) for ticker, error in errors.items()]
        if await _store(worker, prices, []):
            stored += prices
        else:
            message = "The price was fetched and will be stored when the storage is back."
            failures += [FetchFailure(price.ticker, StorageUnavailable.code, message) for price in prices]
    stored.sort(key=lambda price: price.ticker)
    failures.sort(key=lambda failure: failure.ticker)
    await finish_fetch_job(worker.redis, job_id, tickers, stored, failures)
    worker.metrics.fetched(stored, failures)


async def _store(worker: Worker, prices: Sequence[Price], missed: Sequence[MissedSlot]) -> bool:
    """Store prices and reasons; where PostgreSQL is away, put them aside. Answers whether they are stored."""
    try:
        await worker.note_schedule()
        worker.metrics.note(await insert_prices(worker.pool, prices, timeout=_STORE_SECONDS), [])
        worker.metrics.note([], await insert_missed_slots(worker.pool, missed, timeout=_STORE_SECONDS))
    except (StorageUnavailable, asyncpg.PostgresError) as error:
        logger.warning("not stored, %d prices put aside: %s", len(prices), error)
        await defer(worker.redis, prices, missed)
        worker.metrics.put_aside(len(prices))
        if not isinstance(error, StorageUnavailable) or error.is_answered:
            # PostgreSQL is there but does not take prices (a full disk): until it does, the history can say so.
            with contextlib.suppress(StorageUnavailable):
                unstored = [_unstored(price) for price in prices if price.source is PriceSource.SCHEDULED]
                worker.metrics.note([], await insert_missed_slots(worker.pool, unstored, timeout=_STORE_SECONDS))
        return False
    return True


def _unstored(price: Price) -> MissedSlot:
    return MissedSlot(price.ticker, price.timestamp, GapReason.STORAGE_ERROR, "fetched, waits to be stored")


def _slot(job_id: str, interval: timedelta) -> datetime:
    """arq names a job of the schedule `cron:<name>:<ms of its time>`, however late it is enqueued or run again."""
    return slot_of(from_microseconds(int(job_id.rpartition(":")[2]) * 1000), interval)


def _stored_as(observation: Observation, timestamp: datetime, source: PriceSource) -> Price:
    return Price(observation.ticker, observation.price, timestamp, observation.observed_at, source, observation.testnet)


def _skew(observation: Observation) -> timedelta:
    """How far our clock runs ahead of the exchange's, the reply's way included."""
    return datetime.now(UTC) - observation.observed_at


def _check_clock(observation: Observation, slot: datetime, interval: timedelta) -> None:
    """A scheduled price has to be observed in its slot, by the exchange's clock.

    Ours may run ahead of it by half an interval, at most 5 s. Raises `DeribitError` beyond that.
    """
    skew = _skew(observation)
    if abs(skew) > _LOGGED_SKEW:
        logger.warning("%s: our clock differs from the exchange's by %+.1f s", observation.ticker, skew.total_seconds())
    if not slot - min(interval / 2, _TOLERATED_SKEW) <= observation.observed_at < slot + interval:
        raise DeribitError(
            "CLOCK_OUTSIDE_SLOT",
            "the exchange's clock is outside the slot",
            retry=ExchangeRetry.LATER,
            reason=GapReason.REJECTED_VALUE,
        )
