"""Through pgbouncer in transaction mode, with two connections to PostgreSQL for all clients."""

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import pytest
from starlette.applications import Starlette

from shared.config.settings import Settings
from shared.local.data_folder import log_text, own_folder, spawn_server
from shared.local.servers import free_port
from shared.migrate import migrate, read_migrations
from shared.queue.client import open_redis
from shared.storage import coverage
from shared.storage.database import DEADLINE_SECONDS, create_pool, fetch
from shared.storage.failover import Hosts
from tests.integration.jobs.test_slots import arguments_of
from tests.integration.live import FOLLOW, serve_live
from worker.context import Worker
from worker.exchange.http import create_http
from worker.jobs import slots as jobs
from worker.jobs.healing import heal_gaps
from worker.jobs.slots import fetch_slot
from worker.simulator.app import Simulator

PROGRAM = Path("/usr/sbin/pgbouncer")
pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="pgbouncer is not installed")

CONFIGURATION = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = 2
max_client_conn = 100
"""
DAY = 'ticker: "btc_usd", fromDt: "2026-01-31T00:00:00Z", toDt: "2026-02-01T00:00:00Z"'
QUESTIONS = [
    '{ latestPrice(ticker: "btc_usd") { price timestamp } }',
    '{ latestPrice(ticker: "btc_usd", maxAgeSeconds: 2000000000) { price } }',
    "{ latestPrices { ticker price } tickers { name latest { price } firstTimestamp } }",
    '{ priceHistory(ticker: "btc_usd", limit: 7) { price observedAt source } }',
    f"{{ pricesInPeriod({DAY}, limit: 5) {{ price testnet }} }}",
    f"{{ candles({DAY}, interval: ONE_HOUR) {{ start open close samples complete }} }}",
    f"{{ candles({DAY}, interval: ONE_MINUTE) {{ start high low }} }}",
    f"{{ coverage({DAY}) {{ expected present complete gaps {{ fromDt missing reason }} }} }}",
]


@dataclass
class Pooled:
    settings: Settings
    "With the pooler's URL."
    direct: str


@pytest.fixture(scope="module")
async def pooled(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pooled]:
    """A database of its own, migrated through the pooler."""
    folder = tmp_path_factory.mktemp("pooler")
    folder.chmod(0o755)
    parts, name, listen = urlsplit(settings.database_url), f"pooled_{uuid.uuid4().hex}", free_port()
    folder, account = own_folder(folder)
    (folder / "users").write_text(f'"{parts.username}" "{parts.password}"\n')
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(CONFIGURATION.format(host=parts.hostname, port=parts.port, listen=listen, folder=folder))
    for file in (folder / "users", configuration):
        file.chmod(0o644)
    connection = await asyncpg.connect(settings.database_url)
    log = folder / "pgbouncer.log"
    process = spawn_server([PROGRAM, configuration], signal.SIGTERM, account, folder, log)
    try:
        await connection.execute(f"create database {name}")
        direct = urlunsplit(parts._replace(path=f"/{name}"))
        url = direct.replace(f":{parts.port}/", f":{listen}/")
        async with asyncio.timeout(20):
            while "process up" not in log_text(log):
                assert process.poll() is None, log_text(log)
                await asyncio.sleep(0.02)
        assert await migrate(url) == [migration.name for migration in read_migrations()]
        assert await migrate(url) == []
        pooler = {"database_url": url, "database_pooler": True, "heal_lookback_hours": 2}
        yield Pooled(settings.model_copy(update=pooler), direct)
    finally:
        process.terminate()
        process.wait()
        await connection.execute(f"drop database {name} with (force)")
        await connection.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines have tests of their own; here a machine that does much else must not meet them."""
    defaults = fetch.__kwdefaults__ or {}
    assert defaults["timeout"] == DEADLINE_SECONDS
    monkeypatch.setitem(defaults, "timeout", 30.0)
    monkeypatch.setattr(Hosts.connect, "__defaults__", (30.0,))
    monkeypatch.setattr(jobs, "_STORE_SECONDS", 30.0)
    monkeypatch.setattr(coverage, "COVERAGE_DEADLINE_SECONDS", 30.0)


@pytest.mark.usefixtures("patient")
async def test_everything_through_a_pooler(pooled: Pooled, exchange: Starlette, simulator: Simulator) -> None:
    """200 questions while prices are collected, healed and followed: nothing fails, and no two answers are mixed up."""
    at_a_time = asyncio.Semaphore(20)
    async with (
        create_pool(pooled.settings, name="worker", size=4) as pool,
        open_redis(pooled.settings, retries=1) as redis,
        create_http(pooled.settings, httpx.ASGITransport(exchange)) as http,
        serve_live(pooled.settings) as api,
        api.socket(close_timeout=0.2) as follower,  # most of what it is sent is not read
    ):
        await follower.subscribe(FOLLOW, tickers=["btc_usd"])
        worker = Worker(pooled.settings, pool, redis, http, name="tests:1")
        slot = datetime.now(UTC).replace(second=0, microsecond=0)

        async def ask(question: str) -> Any:
            async with at_a_time:
                response = await api.http.post("/graphql", json={"query": question})
            return response.json()

        work = asyncio.gather(
            fetch_slot({"worker": worker, "job_try": 1}, *arguments_of({"worker": worker}, slot)),
            heal_gaps({"worker": worker, "job_try": 1}),
        )
        answers = await asyncio.gather(*(ask(QUESTIONS[n % len(QUESTIONS)]) for n in range(100)))
        assert [answer for answer in answers if "errors" in answer] == []
        await work
        [stored] = (await ask(QUESTIONS[0]))["data"].values()
        assert (await follower.answer(20))["data"]["priceUpdates"]["ticker"] == "btc_usd"
        # Half of these are asked in words that are planned anew each time, half in the same.
        answers = await asyncio.gather(*(ask(QUESTIONS[0] + " " * (n % 2 * n)) for n in range(100)))
        assert answers == [{"data": {"latestPrice": stored}}] * 100
        response = await api.http.get("/readyz")
        assert response.json()["dependencies"]["postgres"] == {"status": "ok", "reason": None}
        await redis.flushdb()


async def test_a_cancelled_statement_leaves_nothing_on_the_shared_connection(pooled: Pooled) -> None:
    """Statements that are cancelled, or cut off at their deadline, on connections that others share."""
    async with create_pool(pooled.settings, name="tests", size=8) as pool:
        for _ in range(3):
            given_up = [asyncio.create_task(fetch(pool, "select pg_sleep(30)", timeout=0.2)) for _ in range(2)]
            cancelled = asyncio.create_task(fetch(pool, "select pg_sleep(30)"))
            await asyncio.sleep(0.1)
            cancelled.cancel()
            await asyncio.gather(*given_up, cancelled, return_exceptions=True)
            for number in range(20):
                assert [tuple(row) for row in await fetch(pool, "select $1::int, $2::text", number, "x")] == [
                    (number, "x")
                ]


async def test_settings_of_a_role_apply_behind_a_pooler(pooled: Pooled) -> None:
    """As shared/operations/replicas.md says: the pooler refuses them as settings of a connection."""
    connection = await asyncpg.connect(pooled.direct)
    try:
        await connection.execute(f"alter database {urlsplit(pooled.direct).path[1:]} set statement_timeout = '6s'")
        kill = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> $1"
        await connection.execute("select 1")
        await connection.fetch(kill, connection.get_server_pid())
    finally:
        await connection.close()
    async with create_pool(pooled.settings, name="tests", only_reads=True) as pool:
        assert [tuple(row) for row in await fetch(pool, "show statement_timeout")] == [("6s",)]
