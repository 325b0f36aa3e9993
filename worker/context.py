"""What every job of a worker needs, opened once per process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import arq
import httpx
from arq.connections import ArqRedis
from redis.exceptions import RedisError

from shared.config.settings import Settings
from shared.grid import slot_of
from shared.storage.database import Pool
from shared.storage.schedules import insert_schedules
from worker.clock import Clock
from worker.exchange.background import Background
from worker.exchange.chart import Chart
from worker.exchange.http import CONCURRENCY, HttpPrices
from worker.exchange.source import Live, Past
from worker.exchange.stream import Stream
from worker.exchange.trades import Trades
from worker.metrics import Metrics

REQUEUE_SECONDS = 18.0
"Shorter than the job's timeout, after which arq would end the job for good."

REQUESTED_SHARE = 4
"Of the requests at once, those for fetches that clients asked for; the others stay free for the schedule."


@dataclass
class Worker:
    settings: Settings
    pool: Pool
    redis: ArqRedis
    http: httpx.AsyncClient
    name: str
    "`host:pid`."
    requests: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENCY))
    requested_share: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(REQUESTED_SHARE))
    clock: Clock = field(default_factory=Clock)
    has_schedule: bool = False
    unknown_indices: dict[str, list[str]] = field(default_factory=dict)
    "Tickers that the exchange does not have, each with the names nearest to it; see exchange/index_check.py."
    metrics: Metrics = field(init=False)
    background: Background = field(init=False)
    live: Live = field(init=False)
    stream: Stream = field(init=False)
    past: tuple[Past, ...] = field(init=False)
    "In the order in which they are asked: the better source first. Only the last one's prices are averages."

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.settings.tickers, self.pool, self.clock)
        self.background = Background(self.redis, self.metrics)
        self.live = HttpPrices(self.http, self.clock.now)
        trades = Trades(self.http, self.settings.history_url, self.background, self.clock.now)
        self.past = (trades, Chart(self.http, self.background, self.clock.now))
        self.stream = Stream(self.settings, self.redis, self.clock.now)
        self.metrics.registry.register(self.stream)

    @property
    def first_slot(self) -> datetime:
        """The first slot that begins after this worker's start."""
        return slot_of(self.clock.started_at, self.interval) + self.interval

    @property
    def interval(self) -> timedelta:
        return timedelta(seconds=self.settings.fetch_interval_seconds)

    async def note_schedule(self) -> None:
        """Record once what this worker collects, from its first slot on. Raises `StorageUnavailable`.

        The jobs call it, not the start, so that a worker can start without PostgreSQL.
        """
        if not self.has_schedule:
            await insert_schedules(self.pool, self.settings.tickers, self.first_slot, self.interval)
            self.has_schedule = True


def worker_of(ctx: dict[str, Any]) -> Worker:
    """arq gives every job a dictionary; ours holds the worker."""
    worker: Worker = ctx["worker"]
    return worker


@asynccontextmanager
async def requeue_without_redis() -> AsyncIterator[None]:
    """Run a job again when Redis is back. arq would take any other error, or its own timeout, as the job's end."""
    try:
        async with asyncio.timeout(REQUEUE_SECONDS):
            yield
    except (RedisError, OSError) as error:
        raise arq.Retry(defer=1) from error
