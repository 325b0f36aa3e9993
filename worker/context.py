"""What every job of a worker is given, opened once per process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import arq
import httpx
from arq.connections import ArqRedis
from redis.exceptions import RedisError

from shared.config.settings import Settings
from shared.grid import slot_of
from shared.storage.database import Pool
from shared.storage.schedules import insert_schedules
from worker.exchange.http import CONCURRENCY
from worker.metrics import Metrics

GIVE_BACK_SECONDS = 18.0
"Short of the time after which arq would end the job, for good."


@dataclass
class Worker:
    settings: Settings
    pool: Pool
    redis: ArqRedis
    http: httpx.AsyncClient
    name: str
    "Host and process."
    requests: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENCY))
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    has_schedule: bool = False
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.settings.tickers, self.pool)

    @property
    def first_slot(self) -> datetime:
        """The first slot this worker is in time for."""
        return slot_of(self.started_at, self.interval) + self.interval

    @property
    def interval(self) -> timedelta:
        return timedelta(seconds=self.settings.fetch_interval_seconds)

    async def note_schedule(self) -> None:
        """Note once what this worker collects, from the first slot it is in time for. Raises `StorageUnavailable`.

        Part of the jobs rather than of the start, so that a worker can start without PostgreSQL.
        """
        if not self.has_schedule:
            await insert_schedules(self.pool, self.settings.tickers, self.first_slot, self.interval)
            self.has_schedule = True


def worker_of(ctx: dict[str, Any]) -> Worker:
    """arq hands every job a dictionary; ours holds one thing."""
    worker: Worker = ctx["worker"]
    return worker


@asynccontextmanager
async def given_back_without_redis() -> AsyncIterator[None]:
    """A job that loses Redis is run again when it is back. To arq any other error, or too long a wait, is its end."""
    try:
        async with asyncio.timeout(GIVE_BACK_SECONDS):
            yield
    except (RedisError, OSError) as error:
        raise arq.Retry(defer=1) from error
