"""What a worker counts, and METRICS_PORT, where Prometheus reads it.

The port is served by a thread: a job that holds the loop is just what should be seen. Whatever goes wrong with it, and
be it that another process has it, keeps no price from being collected.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any

import arq
from arq.typing import WorkerCoroutine
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric

from shared.config.settings import Settings
from shared.errors import describe
from shared.queue.fetches import FetchFailure
from shared.storage.database import Pool
from shared.storage.missed_slots import GapReason, MissedSlot
from shared.storage.pool_metrics import pool_metrics
from shared.storage.prices import Price, PriceSource
from shared.telemetry.metrics import Labels, Timing, build_info, counter, create_registry, histogram
from worker.exchange.errors import DeribitError

logger = logging.getLogger(__name__)

OK = "ok"
OUTCOMES = (OK, "failed", "retried", "cancelled")
STATUSES = ("succeeded", "partial", "failed")
REASONS = [reason.value for reason in GapReason if reason is not GapReason.NOT_COLLECTED]
"That a slot was not collected at all is written down by no worker, but seen when it is healed."

METHODS = ("get_index_price", "get_index_chart_data")

EXCHANGE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"Seconds. A warm request to the exchange takes 0.15 s; at 5 s it is given up."

JOB_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)

MOST_CODES = 40
"The exchange's numbers are its own affair; from one more on they are told as OTHER."

RETRY_SECONDS = 2.0


class Metrics:
    """One for a worker."""

    def __init__(self, tickers: Sequence[str], pool: Pool) -> None:
        self._pool = pool
        self._jobs: Counter[Labels] = Counter()
        self._job_timings: dict[str, Timing] = {}
        self._fetches: Counter[Labels] = Counter({(status,): 0 for status in STATUSES})
        self._calls: Counter[Labels] = Counter({(method, OK): 0 for method in METHODS})
        self._call_timings = {method: Timing(EXCHANGE_BUCKETS) for method in METHODS}
        self._codes: set[str] = set()
        every: dict[Labels, int] = {(ticker,): 0 for ticker in tickers}
        self._stored, self._requested = Counter(every), Counter(every)
        self._healed, self._unanswered = Counter(every), Counter(every)
        self._missed: Counter[Labels] = Counter({(ticker, reason): 0 for ticker in tickers for reason in REASONS})
        self._put_aside = 0
        self.registry = create_registry(self)

    def counted(self, job: WorkerCoroutine, name: str) -> WorkerCoroutine:
        """The job, whose runs are counted under this name."""
        self._jobs.update({(name, outcome): 0 for outcome in OUTCOMES})
        timing = self._job_timings.setdefault(name, Timing(JOB_BUCKETS))

        @wraps(job)
        async def run(*arguments: Any, **options: Any) -> Any:
            began, outcome = time.perf_counter(), "failed"
            try:
                result = await job(*arguments, **options)
                outcome = OK
                return result
            except arq.Retry:
                outcome = "retried"
                raise
            except asyncio.CancelledError:
                outcome = "cancelled"
                raise
            finally:
                self._jobs[name, outcome] += 1
                timing.add_since(began)

        return run

    @asynccontextmanager
    async def calling(self, method: str) -> AsyncIterator[None]:
        """Around one request to the exchange, and what is made of its reply."""
        began, code = time.perf_counter(), "FAULT"
        try:
            yield
            code = OK
        except DeribitError as error:
            code = error.code
            raise
        except asyncio.CancelledError:
            code = "TIMEOUT"  # the slot, or what was left of the job's time, is over
            raise
        finally:
            if code != OK and code not in self._codes:
                code = code if len(self._codes) < MOST_CODES else "OTHER"
                self._codes.add(code)
            self._calls[method, code] += 1
            self._call_timings[method].add_since(began)

    def note(self, prices: Sequence[Price], missed: Sequence[MissedSlot]) -> None:
        """What is new in the database."""
        kinds = {
            PriceSource.SCHEDULED: self._stored,
            PriceSource.REQUESTED: self._requested,
            PriceSource.BACKFILLED: self._healed,
        }
        for price in prices:
            kinds[price.source][price.ticker,] += 1
        for slot in missed:
            self._missed[slot.ticker, slot.reason.value] += 1

    def unanswered(self, ticker: str, slots: int) -> None:
        self._unanswered[ticker,] += slots

    def put_aside(self, prices: int) -> None:
        self._put_aside += prices

    def fetched(self, stored: Sequence[Price], failures: Sequence[FetchFailure]) -> None:
        """A fetch that somebody asked for has ended."""
        self._fetches["succeeded" if not failures else "partial" if stored else "failed",] += 1

    def collect(self) -> Iterator[Metric]:
        yield build_info()
        yield counter(
            "jobs",
            "Runs of jobs, by name and outcome: ok, failed, retried (to be run again), cancelled (took too long).",
            ["name", "outcome"],
            self._jobs,
        )
        yield histogram(
            "job_duration_seconds",
            "How long a run of a job took.",
            ["name"],
            [((name,), [timing]) for name, timing in self._job_timings.copy().items()],
        )
        yield counter("fetches", "Fetches somebody asked for that have ended, by outcome.", ["outcome"], self._fetches)
        yield counter(
            "exchange_requests",
            "Requests to the exchange, each attempt counted, by method and code: ok, or why there was no price.",
            ["method", "code"],
            self._calls,
        )
        yield histogram(
            "exchange_request_duration_seconds",
            "From a request to the exchange to what was made of its reply.",
            ["method"],
            [((method,), [timing]) for method, timing in self._call_timings.items()],
        )
        yield counter("slots_stored", "Slots whose observed price was stored.", ["ticker"], self._stored)
        yield counter(
            "slots_healed",
            "Slots that the exchange's chart has filled, a new ticker's past included.",
            ["ticker"],
            self._healed,
        )
        yield counter(
            "slots_missed",
            "Slots whose price could not be had or not be stored at first, by reason; most are made good later.",
            ["ticker", "reason"],
            self._missed,
        )
        yield counter(
            "slots_unanswered",
            "Missed slots that the exchange's chart has nothing for: they stay missing.",
            ["ticker"],
            self._unanswered,
        )
        yield counter("requested_prices_stored", "Prices stored that somebody asked for.", ["ticker"], self._requested)
        yield counter(
            "prices_deferred",
            "Prices put aside in Redis, for PostgreSQL did not take them.",
            [],
            {(): self._put_aside},
        )
        yield from pool_metrics({"main": self._pool})


@asynccontextmanager
async def serve_metrics(settings: Settings, registry: CollectorRegistry) -> AsyncIterator[None]:
    """On METRICS_PORT of HOST, where one is set."""
    if not settings.metrics_port:
        yield
        return
    serving = asyncio.create_task(_serve(settings.host, settings.metrics_port, registry))
    try:
        yield
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


async def _serve(host: str, port: int, registry: CollectorRegistry) -> None:
    is_told = False
    while True:
        try:
            # In a thread, for it asks the machine for its own name.
            server, _ = await asyncio.to_thread(start_http_server, port, host, registry)
            break
        except (OSError, UnicodeError) as error:  # the latter of a host's name
            if not is_told:
                logger.error("no metrics on HOST=%s METRICS_PORT=%d yet, trying again: %s", host, port, describe(error))
            is_told = True
            await asyncio.sleep(RETRY_SECONDS)
    logger.info("metrics on http://%s:%d/metrics", host, port)
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
