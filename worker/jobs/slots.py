"""`fetch_slot` and `retry_slot`: one observed price per ticker for each slot of the schedule.

Both ask the exchange for every ticker at once, store the prices that arrive, and record why the others are missing.
"""

import contextlib
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from structlog.contextvars import bind_contextvars

from shared.errors import StorageUnavailable
from shared.grid import from_microseconds, slot_of
from shared.queue.jobs import select_slot_result
from shared.storage.missed_slots import GapReason, MissedSlot
from shared.storage.prices import Price, PriceSource, select_observed_tickers
from worker.context import Worker, worker_of
from worker.exchange.errors import DeribitError
from worker.exchange.errors import Retry as ExchangeRetry
from worker.exchange.retries import BUDGET_SECONDS, attempts
from worker.exchange.source import Observation
from worker.jobs.storing import store

logger = logging.getLogger(__name__)

_TOLERATED_SKEW = timedelta(seconds=5)
_LOGGED_SKEW = timedelta(seconds=1)


async def fetch_slot(ctx: dict[str, Any]) -> list[str]:
    """The schedule's job. Returns the tickers to retry at half-slot."""
    worker = worker_of(ctx)
    return await _fetch_slot(worker, _slot(ctx["job_id"], worker.interval), worker.settings.tickers)


async def retry_slot(ctx: dict[str, Any]) -> None:
    """The retry at half-slot: fetch what `fetch_slot` did not get, or everything if it has left no result."""
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


async def _fetch_slot(worker: Worker, slot: datetime, tickers: Sequence[str]) -> list[str]:
    bind_contextvars(slot=slot.isoformat())
    end = slot + worker.interval
    seconds_left = (end - datetime.now(UTC)).total_seconds()
    if seconds_left <= 0:
        # The worker was paused or delayed. A price observed now belongs to another slot, so healing fills this one.
        logger.warning("slot %s is over, left to healing", slot.isoformat())
        return []

    async def observe(ticker: str) -> Price:
        observation = await worker.live.observe(ticker)
        _check_clock(observation, slot, worker.interval)
        return observation.as_price(slot, PriceSource.SCHEDULED)

    retryable: list[str] = []
    async for prices, errors in attempts(worker, tickers, observe, min(seconds_left, BUDGET_SECONDS)):
        missed = [MissedSlot(ticker, slot, error.reason, str(error)) for ticker, error in errors.items()]
        await store(worker, prices, missed)
        retryable += [ticker for ticker, error in errors.items() if error.retry is not ExchangeRetry.NEVER]
    return retryable


def _slot(job_id: str, interval: timedelta) -> datetime:
    """From the job's id, `cron:<name>:<ms of its time>`, which stays the same if the job is late or runs again."""
    return slot_of(from_microseconds(int(job_id.rpartition(":")[2]) * 1000), interval)


def _check_clock(observation: Observation, slot: datetime, interval: timedelta) -> None:
    """Raise `DeribitError` unless the price was observed in its slot, by the exchange's clock.

    Our clock may run ahead of the exchange's by half an interval, at most 5 s.
    """
    skew = observation.skew()
    if abs(skew) > _LOGGED_SKEW:
        logger.warning("%s: our clock differs from the exchange's by %+.1f s", observation.ticker, skew.total_seconds())
    if not slot - min(interval / 2, _TOLERATED_SKEW) <= observation.observed_at < slot + interval:
        raise DeribitError(
            "CLOCK_OUTSIDE_SLOT",
            "the exchange's clock is outside the slot",
            retry=ExchangeRetry.LATER,
            reason=GapReason.REJECTED_VALUE,
        )
