"""Requests all tickers at once, and retries each with exponential backoff and jitter within a budget of seconds."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from structlog.contextvars import bind_contextvars

from shared.storage.missed_slots import GapReason
from worker.context import Worker
from worker.exchange.errors import DeribitError
from worker.exchange.errors import Retry as ExchangeRetry
from worker.exchange.index_check import is_unknown_index

logger = logging.getLogger(__name__)

T = TypeVar("T")

BUDGET_SECONDS = 12.0
"For all attempts at one ticker: shorter than the job's timeout, and never longer than the rest of the slot."

_FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 1.0, 8.0
_TOGETHER_SECONDS = 0.02


async def observe_each(
    worker: Worker,
    tickers: Sequence[str],
    observe: Callable[[str], Awaitable[T]],
    budget_seconds: float,
    receive: Callable[[list[T], dict[str, DeribitError]], Awaitable[None]],
    share: asyncio.Semaphore | None = None,
    streamed: Callable[[str, float | None], Awaitable[T | None]] | None = None,
) -> None:
    """All tickers at once, each with its own attempts, so that a slow or failing ticker does not delay another.

    `receive` gets results, and errors by ticker, as they arrive. If it raises, the error is raised after all tickers
    have been received, because the other results are worth keeping. `share`: bounds these requests further.
    `streamed`: what comes without a request, or `None`. It is asked again after requests have failed, with the seconds
    that are left.
    """

    loop = asyncio.get_running_loop()
    deadline = loop.time() + budget_seconds

    async def result_of(ticker: str) -> T:
        result = None if streamed is None else await streamed(ticker, None)
        if result is not None:
            return result
        try:
            return await with_retries(worker, lambda: observe(ticker), deadline - loop.time(), share)
        except DeribitError:
            result = None if streamed is None else await streamed(ticker, deadline - loop.time())
            if result is None:
                raise
            return result

    async def attempt(ticker: str) -> T | DeribitError:
        bind_contextvars(ticker=ticker)
        try:
            result = await result_of(ticker)
        except DeribitError as error:
            if not await is_unknown_index(worker, ticker, error):
                logger.warning("%s: %s", ticker, error)
            return error
        except Exception:
            logger.exception("%s: fault in the collector itself", ticker)
            return DeribitError("COLLECTOR_FAULT", "fault in the collector itself")
        worker.unknown_indices.pop(ticker, None)
        return result

    # In random order: if there is not enough time for all, it is not always the same tickers that lose.
    names = {asyncio.create_task(attempt(ticker)): ticker for ticker in random.sample(tickers, len(tickers))}
    pending = set(names)
    failure: Exception | None = None
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if pending:  # the others usually follow at once; wait for them, to insert all together
                more, pending = await asyncio.wait(pending, timeout=_TOGETHER_SECONDS)
                done |= more
            outcomes = [(names[task], task.result()) for task in done]
            errors = {ticker: outcome for ticker, outcome in outcomes if isinstance(outcome, DeribitError)}
            try:
                await receive([outcome for _, outcome in outcomes if not isinstance(outcome, DeribitError)], errors)
            except Exception as error:
                failure = error
    finally:
        for task in pending:
            task.cancel()
    if failure is not None:
        raise failure


async def with_retries(
    worker: Worker,
    attempt: Callable[[], Awaitable[T]],
    budget_seconds: float,
    share: asyncio.Semaphore | None = None,
) -> T:
    """Try until an attempt succeeds, a retry cannot succeed, or the next attempt would not fit in the budget."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + budget_seconds
    # A short slot has no time for a first pause of a second.
    pause = min(_FIRST_BACKOFF_SECONDS, budget_seconds / 2)
    while True:
        has_asked = False
        try:
            async with asyncio.timeout_at(deadline), share or contextlib.nullcontext(), worker.requests:
                has_asked = True
                with worker.background.live():
                    async with worker.metrics.calling("get_index_price"):
                        return await attempt()
        except TimeoutError as error:
            if not has_asked:
                raise DeribitError(
                    "NOT_ASKED", "the worker had too many other requests", reason=GapReason.NOT_COLLECTED
                ) from error
            raise DeribitError("TIMEOUT", "no answer in time") from error
        except DeribitError as error:
            # Jitter, so that several tickers or workers do not retry at the same instant.
            jittered = pause * random.uniform(0.75, 1.25)  # noqa: S311
            if error.retry is not ExchangeRetry.BACKOFF or loop.time() + jittered >= deadline:
                raise
        await asyncio.sleep(jittered)
        pause = min(pause * 2, _LONGEST_BACKOFF_SECONDS)
