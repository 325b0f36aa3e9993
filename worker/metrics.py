"""The worker's metrics, and the port METRICS_PORT where Prometheus reads them.

A thread serves the port, so that a job that blocks the event loop can still be seen. A fault of the port, such as
another process that uses it, never stops the collecting.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from functools import partial

import arq
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from shared.config.settings import Settings
from shared.errors import describe
from shared.queue.fetches import FetchFailure
from shared.storage.database import Pool
from shared.storage.missed_slots import GapReason, MissedSlot
from shared.storage.pool_metrics import pool_metrics
from shared.storage.prices import Price, PriceSource
from shared.telemetry.metrics import PREFIX, build_info, create_registry, gauge
from worker.clock import Clock
from worker.exchange.errors import DeribitError

logger = logging.getLogger(__name__)

OK = "ok"
OUTCOMES = (OK, "failed", "retried", "cancelled")
STATUSES = ("succeeded", "partial", "failed")
REASONS = [reason.value for reason in GapReason]

METHODS = (
    "get_index_price",
    "get_index_chart_data",
    "get_last_trades_by_instrument_and_time",
    "get_instruments",
)

EXCHANGE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"Seconds. A warm request to the exchange takes 0.15 s; at 5 s it is given up."

JOB_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)

MAX_CODES = 40
"The exchange defines the codes, so their number is bounded here: further ones count as OTHER."

RETRY_SECONDS = 2.0

NAMESPACE = PREFIX.rstrip("_")

disable_created_metrics()  # type: ignore[no-untyped-call] # a second sample per counter that nothing reads


class Metrics(Collector):
    """One per worker. The locks of prometheus-client's counters cost a worker nothing that can be measured."""

    def __init__(self, tickers: Sequence[str], pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._codes = {OK}
        self.registry = create_registry(self)
        counter = partial(Counter, namespace=NAMESPACE, registry=self.registry)
        histogram = partial(Histogram, namespace=NAMESPACE, registry=self.registry)
        self._jobs = counter(
            "jobs",
            "Runs of jobs, by name and outcome: ok, failed, retried (to be run again), cancelled (took too long).",
            ["name", "outcome"],
        )
        self._job_seconds = histogram(
            "job_duration_seconds", "How long a run of a job took.", ["name"], buckets=JOB_BUCKETS
        )
        self._fetches = counter("fetches", "Fetches somebody asked for that have ended, by outcome.", ["outcome"])
        self._calls = counter(
            "exchange_requests",
            "Requests to the exchange, each attempt counted, by method and code: ok, or why there was no price.",
            ["method", "code"],
        )
        self._call_seconds = histogram(
            "exchange_request_duration_seconds",
            "From a request to the exchange to what was made of its reply.",
            ["method"],
            buckets=EXCHANGE_BUCKETS,
        )
        healed = "Slots that the exchange's chart has filled, the history before the first start included."
        recovered = "Slots that the exchange's trades have filled, the history before the first start included."
        self._stored = {
            PriceSource.SCHEDULED: counter("slots_stored", "Slots whose observed price was stored.", ["ticker"]),
            PriceSource.RECOVERED: counter("slots_recovered", recovered, ["ticker"]),
            PriceSource.BACKFILLED: counter("slots_healed", healed, ["ticker"]),
            PriceSource.REQUESTED: counter(
                "requested_prices_stored", "Prices stored that somebody asked for.", ["ticker"]
            ),
        }
        self._missed = counter(
            "slots_missed",
            "Slots whose price could not be had or not be stored at first, by reason; most are made good later.",
            ["ticker", "reason"],
        )
        self.unanswered = counter(
            "slots_unanswered",
            "Missed slots that neither the exchange's trades nor its chart have anything for: they stay missing.",
            ["ticker"],
        )
        self.dropped = counter(
            "prices_dropped", "Prices deleted because they are older than RETENTION_DAYS.", ["ticker"]
        )
        self.deferred = counter("prices_deferred", "Prices put aside in Redis, for PostgreSQL did not take them.")
        self._history_from = Gauge(
            "history_from_timestamp_seconds",
            "Where the history of a ticker begins, as far as it is filled; 0 in a worker that does not fill.",
            ["ticker"],
            namespace=NAMESPACE,
            registry=self.registry,
        )
        self._filling_to = Gauge(
            "history_filling_to_timestamp_seconds",
            "How far back the history is being filled (HISTORY_FROM); 0 when it is there.",
            ["ticker"],
            namespace=NAMESPACE,
            registry=self.registry,
        )
        self._start_at_zero(tickers)

    def _start_at_zero(self, tickers: Sequence[str]) -> None:
        """Prometheus sees an increase only in a series that it has read before."""
        for status in STATUSES:
            self._fetches.labels(status)
        for method in METHODS:
            self._calls.labels(method, OK)
            self._call_seconds.labels(method)
        for ticker in tickers:
            for by_ticker in (
                *self._stored.values(),
                self.unanswered,
                self.dropped,
                self._history_from,
                self._filling_to,
            ):
                by_ticker.labels(ticker)
            for reason in REASONS:
                self._missed.labels(ticker, reason)

    def collect(self) -> Iterator[Metric]:
        """What is read at each scrape instead of being counted."""
        yield build_info()
        yield from pool_metrics({"main": self._pool})
        yield gauge(
            "clock_offset_seconds",
            "How far this worker's own clock runs ahead of Redis's, which the schedule follows.",
            [],
            {(): self._clock.own_offset_seconds()},
        )

    def add_job(self, name: str) -> None:
        self._job_seconds.labels(name)
        for outcome in OUTCOMES:
            self._jobs.labels(name, outcome)

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Around one run of a job."""
        began, outcome = time.perf_counter(), "failed"
        try:
            yield
            outcome = OK
        except arq.Retry:
            outcome = "retried"
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._jobs.labels(name, outcome).inc()
            self._job_seconds.labels(name).observe(time.perf_counter() - began)

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
            if code not in self._codes:
                code = code if len(self._codes) <= MAX_CODES else "OTHER"
                self._codes.add(code)
            self._calls.labels(method, code).inc()
            self._call_seconds.labels(method).observe(time.perf_counter() - began)

    def note(self, prices: Sequence[Price], missed: Sequence[MissedSlot]) -> None:
        """Count what is new in the database."""
        for price in prices:
            self._stored[price.source].labels(price.ticker).inc()
        for slot in missed:
            self._missed.labels(slot.ticker, slot.reason.value).inc()

    def note_history(self, ticker: str, since: datetime, filling_to: datetime | None) -> None:
        self._history_from.labels(ticker).set(since.timestamp())
        self._filling_to.labels(ticker).set(filling_to.timestamp() if filling_to else 0)

    def fetched(self, stored: Sequence[Price], failures: Sequence[FetchFailure]) -> None:
        """Count a fetch that a client asked for, when it has ended."""
        self._fetches.labels("succeeded" if not failures else "partial" if stored else "failed").inc()


async def serve_metrics(settings: Settings, registry: CollectorRegistry) -> None:
    """Serve METRICS_PORT of HOST until cancelled."""
    host, port = settings.host, settings.metrics_port
    has_logged = False
    while True:
        try:
            # In a thread, because it resolves this machine's own name.
            server, _ = await asyncio.to_thread(start_http_server, port, host, registry)
            break
        except (OSError, UnicodeError) as error:  # UnicodeError: of a host name
            if not has_logged:
                logger.error("no metrics on HOST=%s METRICS_PORT=%d yet, trying again: %s", host, port, describe(error))
            has_logged = True
            await asyncio.sleep(RETRY_SECONDS)
    logger.info("metrics on http://%s:%d/metrics", host, port)
    try:
        await asyncio.Event().wait()
    finally:
        server.shutdown()
        server.server_close()
