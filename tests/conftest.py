"""Real PostgreSQL and Valkey for the whole run, started here; the exchange is the simulator."""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
from arq.connections import ArqRedis
from starlette.applications import Starlette

from server.reads.context import Context
from shared.config.settings import Settings, load_settings
from shared.migrate import migrate
from shared.queue.client import open_redis
from shared.storage.database import Pool, create_pool, fetch
from tests.embedded import start_postgres, start_valkey
from worker.context import Worker
from worker.exchange.http import create_http
from worker.simulator.app import Simulator, create_app

BASE_URL = "http://exchange.test/api/v2"

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("untimed")


@dataclass(frozen=True)
class Servers:
    database_url: str
    redis_url: str


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    """A developer's own settings, in the environment or in `.env`, decide nothing here."""
    names = {name.upper() for name in Settings.model_fields}
    others = [name for name in os.environ if name.upper() in names or name.startswith("PG")]
    saved = {name: os.environ.pop(name) for name in others}
    Settings.model_config["env_file"] = None
    yield
    os.environ.update(saved)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with tempfile.TemporaryDirectory() as folder:
        # What these hold is thrown away; the faults' tests, which kill servers, start their own with fsync on.
        postgres = start_postgres(Path(folder, "postgres"), options={"fsync": "off", "synchronous_commit": "off"})
        valkey = start_valkey(Path(folder, "valkey"))
        try:
            yield Servers(postgres.url, valkey.url)
        finally:
            valkey.stop(5)
            postgres.stop(5)


@pytest.fixture(scope="session")
async def _migrated(servers: Servers) -> None:
    await migrate(servers.database_url)


@pytest.fixture(scope="session")
def settings(servers: Servers) -> Settings:
    return load_settings(
        database_url=servers.database_url, redis_url=servers.redis_url, deribit_base_url=BASE_URL, log_level="debug"
    )


@pytest.fixture(scope="session")
async def _pool(settings: Settings, _migrated: None) -> AsyncIterator[Pool]:
    async with create_pool(settings, name="tests") as pool:
        yield pool


@pytest.fixture
async def pool(_pool: Pool) -> AsyncIterator[Pool]:
    """The run's one pool; every table is empty again after the test."""
    yield _pool
    await fetch(_pool, "truncate prices, replaced_prices, schedules, missed_slots")


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[ArqRedis]:
    async with open_redis(settings, retries=1) as redis:
        await redis.flushdb()  # tests without this fixture may have left jobs
        yield redis
        await redis.flushdb()


@pytest.fixture
def exchange() -> Starlette:
    """The exchange's stand-in, without a network in between; `tests/faults` has it as a process."""
    return create_app()


@pytest.fixture
def simulator(exchange: Starlette) -> Simulator:
    """Its clock, faults and memory of what it gave out."""
    simulator: Simulator = exchange.state.simulator
    return simulator


@pytest.fixture
async def worker(settings: Settings, pool: Pool, redis: ArqRedis, exchange: Starlette) -> AsyncIterator[Worker]:
    async with create_http(settings, httpx.ASGITransport(exchange)) as http:
        yield Worker(settings, pool, redis, http, name="tests:1")


@pytest.fixture
def context(pool: Pool, redis: ArqRedis, settings: Settings) -> Context:
    return Context(pool, redis, settings)


@pytest.fixture
def ctx(worker: Worker) -> dict[str, Any]:
    """What arq hands to a job, less the job's own id."""
    return {"worker": worker, "job_try": 1}
