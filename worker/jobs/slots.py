"""`fetch_slot` and `retry_slot`: one observed price per ticker for each slot of the schedule.

Both take the price from the stream, or ask the exchange for it, for every ticker at once; they store the prices that
arrive, and record why the others are missing.
Their arguments say everything: `slot` in Unix seconds, `interval` in seconds, and the tickers.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from redis.exceptions import RedisError
from structlog.contextvars import bind_contextvars

from shared.errors import StorageUnavailable
from shared.queue.jobs import FETCH_SLOT, slot_job_id
from shared.queue.slot_leases import lease, lease_seconds, select_leased
from shared.storage.missed_slots import GapReason, MissedSlot
from shared.storage.prices import Price, PriceSource, select_observed_tickers
from worker.context import Worker, worker_of
from worker.exchange.errors import DeribitError
from worker.exchange.retries import BUDGET_SECONDS, observe_each
from worker.exchange.sockets.feed import MAX_SKEW
from worker.exchange.source import Observation
from worker.jobs.storing import store

logger = logging.getLogger(__name__)

_TOLERATED_SKEW = timedelta(seconds=5)
_LOGGED_SKEW = timedelta(seconds=1)


async def fetch_slot(ctx: dict[str, Any], slot: int, interval: int, tickers: list[str]) -> None:
    """The schedule's job."""
    if ctx["job_try"] > 1:  # the worker of its first run died
        await retry_slot(ctx, slot, interval, tickers)
    else:
        await _fetch(worker_of(ctx), slot, interval, tickers, tickers)


async def retry_slot(ctx: dict[str, Any], slot: int, interval: int, tickers: list[str]) -> None:
    """The retry at half-slot: fetch what is not stored. What `fetch_slot` is still fetching waits for its outcome."""
    worker = worker_of(ctx)
    left = tickers
    while left and not _is_over(worker, slot, interval):
        leased: set[str] = set()
        with contextlib.suppress(RedisError, OSError):
            leased = await select_leased(worker.redis, slot_job_id(FETCH_SLOT, slot, interval, tickers))
        lacking = await _select_lacking(worker, slot, [ticker for ticker in left if ticker not in leased])
        if lacking:
            await _fetch(worker, slot, interval, tickers, lacking)
        left = [ticker for ticker in left if ticker in leased]
        if left:
            await asyncio.sleep(lease_seconds(interval))


async def _select_lacking(worker: Worker, slot: int, tickers: Sequence[str]) -> list[str]:
    """The tickers without an observed price; all of them if PostgreSQL cannot say. An unknown index is left out."""
    stored: set[str] = set()
    with contextlib.suppress(StorageUnavailable):
        stored = await select_observed_tickers(worker.pool, tickers, _instant(slot))
    return [ticker for ticker in tickers if ticker not in stored and ticker not in worker.unknown_indices]


async def _fetch(worker: Worker, slot: int, interval: int, tickers: Sequence[str], wanted: Sequence[str]) -> None:
    """Fetch `wanted`, some of the job's `tickers`."""
    begin, length = _instant(slot), timedelta(seconds=interval)
    bind_contextvars(slot=begin.isoformat())
    if _is_over(worker, slot, interval):
        # The worker was paused or delayed. A price observed now belongs to another slot, so healing fills this one,
        # unless the stream's price came in time.
        wanted = [ticker for ticker in wanted if worker.stream.has(ticker, begin, length)]
        if not wanted:
            logger.warning("slot %s is over, left to healing", begin.isoformat())
            return

    async def observe(ticker: str) -> Price:
        observation = await worker.live.observe(ticker)
        _check_clock(observation, begin, length, worker.clock.now())
        worker.stream.note_http(ticker)
        return observation.as_price(begin, PriceSource.SCHEDULED)

    async def streamed(ticker: str, seconds_left: float | None) -> Price | None:
        """`seconds_left`: after HTTP has failed."""
        observation = None if seconds_left is not None else await worker.stream.observe(ticker, begin, length)
        if observation is None and (seconds_left is not None or _is_over(worker, slot, interval)):
            # HTTP does not have it, so wait as long as a message of the slot may be late.
            until = worker.clock.now() + timedelta(seconds=seconds_left or 0) + MAX_SKEW
            observation = await worker.stream.observe(ticker, begin, length, until)
        if observation is not None:
            worker.stream.slots["stream"] += 1
            return observation.as_price(begin, PriceSource.SCHEDULED)
        if seconds_left is None and _is_over(worker, slot, interval):
            raise DeribitError("NO_MESSAGE", "the stream's price of this slot, which was due at its end, did not come")
        return None

    pending = set(wanted)

    async def receive(prices: list[Price], errors: dict[str, DeribitError]) -> None:
        missed = [
            MissedSlot(ticker, begin, error.reason, worker.stream.state_of(ticker) or str(error))
            for ticker, error in errors.items()
        ]
        await store(worker, prices, missed)
        pending.difference_update([price.ticker for price in prices], errors)

    seconds_left = (begin + length - worker.clock.now()).total_seconds()
    job_id = slot_job_id(FETCH_SLOT, slot, interval, tickers)
    async with lease(worker.redis, job_id, pending, lease_seconds(interval)):
        await observe_each(worker, wanted, observe, min(seconds_left, BUDGET_SECONDS), receive, streamed=streamed)


def _is_over(worker: Worker, slot: int, interval: int) -> bool:
    return worker.clock.now() >= _instant(slot + interval)


def _instant(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _check_clock(observation: Observation, slot: datetime, interval: timedelta, now: datetime) -> None:
    """Raise `DeribitError` unless the price was observed in its slot, by the exchange's clock.

    Our clock may run ahead of the exchange's by half an interval, at most 5 s.
    """
    skew = now - observation.observed_at
    if abs(skew) > _LOGGED_SKEW:
        logger.warning("%s: our clock differs from the exchange's by %+.1f s", observation.ticker, skew.total_seconds())
    if not slot - min(interval / 2, _TOLERATED_SKEW) <= observation.observed_at < slot + interval:
        raise DeribitError(
            "CLOCK_OUTSIDE_SLOT", "the exchange's clock is outside the slot", reason=GapReason.REJECTED_VALUE
        )
