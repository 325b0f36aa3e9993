"""PostgreSQL or Valkey stopped or silent: answers with a code within 2 s, and recovery without a restart."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from redis.asyncio import Redis

from shared.config.settings import Settings
from shared.migrate import migrate
from shared.storage.database import Pool
from tests.embedded import Server, free_port, start_postgres, start_valkey
from tests.integration.conftest import Api, serve

LIMIT_SECONDS = 4.0
"Clients are promised 2 s; a machine that does much else must not fail this, a wait without a deadline must."
PERIOD = 'ticker: "btc_usd", fromDt: "2026-01-31T00:00:00Z", toDt: "2026-02-01T00:00:00Z"'
STORAGE_QUERIES = [
    '{ latestPrice(ticker: "btc_usd") { price } }',
    "{ latestPrices { price } }",
    '{ priceHistory(ticker: "btc_usd") { price } }',
    f"{{ pricesInPeriod({PERIOD}) {{ price }} }}",
    "{ tickers { name latest { price } } }",
    f"{{ coverage({PERIOD}) {{ expected gaps {{ missing }} }} }}",
]
QUEUE_QUERIES = ['{ fetchJob(id: "%s") { status } }' % ("0" * 32), "mutation { fetchPrices { status } }"]
NOT_MIGRATED = "The database is not migrated; run python -m shared.migrate"
STORAGE_AWAY = ("STORAGE_UNAVAILABLE", "The price storage is unavailable; try again shortly.")
QUEUE_AWAY = ("QUEUE_UNAVAILABLE", "The job queue is unavailable; try again shortly.")


class Outage:
    """PostgreSQL and Valkey for this test alone, and the API that uses them."""

    def __init__(self, api: Api, postgres: Server, valkey: Server) -> None:
        self.api = api
        self.postgres = postgres
        self.valkey = valkey

    async def codes(self, query: str) -> list[tuple[str, str]]:
        """The codes of the query's errors, which must come within the promised time."""
        began = time.monotonic()
        answer = await self.api.execute(query)
        took = time.monotonic() - began
        assert took < LIMIT_SECONDS, f"{query} took {took:.2f} s"
        return [(error["extensions"]["code"], error["message"]) for error in answer.get("errors", [])]

    async def readiness(self) -> tuple[int, dict[str, str]]:
        began = time.monotonic()
        response = await self.api.send("GET", "/readyz")
        took = time.monotonic() - began
        assert took < LIMIT_SECONDS, f"/readyz took {took:.2f} s"
        return response.status_code, {n: d["status"] for n, d in response.json()["dependencies"].items()}

    async def check_works(self) -> None:
        """Until the query succeeds, because a server needs a moment to start."""
        deadline = time.monotonic() + 3
        while (await self.readiness())[0] != 200 and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for query in STORAGE_QUERIES + QUEUE_QUERIES:
            assert await self.codes(query) == [], query


@contextlib.contextmanager
def silent(server: Server) -> Iterator[None]:
    """Stops all processes of the server with SIGSTOP: the kernel accepts connections, but nothing answers."""
    group = [server.process.pid]
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if status.read_text().rpartition(")")[2].split()[1] == str(server.process.pid):
                group.append(int(status.parent.name))
    for pid in group:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in group:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("outages")
    folder.chmod(0o755)
    servers: dict[str, Any] = {
        "postgres": start_postgres(folder / "postgres", options={"fsync": "off"}),
        "valkey": start_valkey(folder / "valkey"),
        "folder": folder,
    }
    try:
        yield servers
    finally:
        servers["postgres"].stop(5)
        servers["valkey"].stop(5)


@pytest.fixture(scope="module")
async def _outage(settings: Settings, own_servers: dict[str, Any]) -> AsyncIterator[Outage]:
    postgres, valkey = own_servers["postgres"], own_servers["valkey"]
    await migrate(postgres.url)
    own = settings.model_copy(update={"database_url": postgres.url, "redis_url": valkey.url})
    async with serve(own) as api:
        yield Outage(api, postgres, valkey)


@pytest.fixture
async def outage(_outage: Outage) -> Outage:
    """Both servers run, and the pools hold connections that will break."""
    await asyncio.gather(*(_outage.check_works() for _ in range(3)))
    return _outage


async def test_postgres_stopped_and_started_again(outage: Outage, own_servers: dict[str, Any]) -> None:
    outage.postgres.stop()
    try:
        for query in STORAGE_QUERIES:
            assert await outage.codes(query) == [STORAGE_AWAY], query
        for query in QUEUE_QUERIES:
            assert await outage.codes(query) == [], query
        down = {"postgres": "down", "redis": "ok", "worker": "warning", "prices": "warning"}
        assert await outage.readiness() == (503, down)
        assert (await outage.api.send("GET", "/livez")).status_code == 200
    finally:
        again = start_postgres(own_servers["folder"] / "postgres", port=outage.postgres.port, options={"fsync": "off"})
        outage.postgres = own_servers["postgres"] = again
    await outage.check_works()


async def test_valkey_stopped_and_started_again(outage: Outage, own_servers: dict[str, Any]) -> None:
    outage.valkey.stop()
    try:
        for query in QUEUE_QUERIES:
            assert await outage.codes(query) == [QUEUE_AWAY], query
        for query in STORAGE_QUERIES:
            assert await outage.codes(query) == [], query
        down = {"postgres": "ok", "redis": "down", "worker": "warning", "prices": "warning"}
        assert await outage.readiness() == (503, down)
        assert (await outage.api.send("GET", "/livez")).status_code == 200
    finally:
        again = start_valkey(own_servers["folder"] / "valkey", port=outage.valkey.port)
        outage.valkey = own_servers["valkey"] = again
    await outage.check_works()


async def test_postgres_silent(outage: Outage) -> None:
    """First on open connections, then on new ones."""
    with silent(outage.postgres):
        for _ in range(2):
            answers = await asyncio.gather(*(outage.codes(query) for query in STORAGE_QUERIES[:-1]))
            assert answers == [[STORAGE_AWAY]] * len(answers)
        assert await outage.codes(QUEUE_QUERIES[1]) == []
    await outage.check_works()


async def test_coverage_while_postgres_is_silent(outage: Outage) -> None:
    """A slow count may take longer, but silence is noticed within 2 s."""
    with silent(outage.postgres):
        assert await outage.codes(STORAGE_QUERIES[-1]) == [STORAGE_AWAY]
    await outage.check_works()


async def test_postgres_silent_while_many_ask(outage: Outage) -> None:
    with silent(outage.postgres):
        answers = await asyncio.gather(*(outage.codes(STORAGE_QUERIES[n % 3]) for n in range(40)))
    assert answers == [[STORAGE_AWAY]] * 40
    await outage.check_works()


async def test_readiness_while_postgres_is_silent(outage: Outage) -> None:
    with silent(outage.postgres):
        status, states = await outage.readiness()
    assert (status, states["postgres"], states["redis"]) == (503, "down", "ok")
    await outage.check_works()


async def test_valkey_silent(outage: Outage) -> None:
    with silent(outage.valkey):
        answers = await asyncio.gather(*(outage.codes(QUEUE_QUERIES[n % 2]) for n in range(20)))
        assert answers == [[QUEUE_AWAY]] * 20
        assert await outage.codes(STORAGE_QUERIES[0]) == []
    await outage.check_works()


async def test_many_fields_while_either_is_silent(outage: Outage) -> None:
    """They take no longer than one field, because a server that is unavailable is not asked again."""
    with silent(outage.valkey):
        fields = " ".join(f"a{n}: fetchPrices {{ status }}" for n in range(50))
        assert await outage.codes(f"mutation {{ {fields} }}") == [QUEUE_AWAY]
        fields = " ".join(f'a{n}: fetchJob(id: "{n:032}") {{ status }}' for n in range(50))
        assert await outage.codes(f"{{ {fields} }}") == [QUEUE_AWAY] * 50
    with silent(outage.postgres):
        fields = " ".join(f"a{n}: coverage({PERIOD}) {{ expected }}" for n in range(50))
        assert await outage.codes(f"{{ {fields} }}") == [STORAGE_AWAY] * 50
    await outage.check_works()


async def test_readiness_while_valkey_is_silent(outage: Outage) -> None:
    with silent(outage.valkey):
        status, states = await outage.readiness()
    assert (status, states["postgres"], states["redis"]) == (503, "ok", "down")
    await outage.check_works()


async def test_servers_that_were_never_there(settings: Settings) -> None:
    def closed(url: str) -> str:
        parts = urlsplit(url)
        credentials = parts.netloc.rpartition("@")[0]
        return urlunsplit(parts._replace(netloc=f"{credentials}@127.0.0.1:{free_port()}"))

    own = {"database_url": closed(settings.database_url), "redis_url": closed(settings.redis_url)}
    async with serve(settings.model_copy(update=own)) as api:
        outage = Outage(api, postgres=None, valkey=None)  # type: ignore[arg-type]
        for query in STORAGE_QUERIES:
            assert await outage.codes(query) == [STORAGE_AWAY]
        for query in QUEUE_QUERIES:
            assert await outage.codes(query) == [QUEUE_AWAY]
        down = {"postgres": "down", "redis": "down", "worker": "warning", "prices": "warning"}
        assert await outage.readiness() == (503, down)
        response = await api.send("GET", "/readyz")
        assert "secret" not in response.text
        assert str(urlsplit(own["database_url"]).password) not in response.text


async def test_a_database_without_the_migrations_is_not_ready(settings: Settings, pool: Pool) -> None:
    connection = await asyncpg.connect(settings.database_url)
    await connection.execute("create database not_migrated")
    try:
        url = urlunsplit(urlsplit(settings.database_url)._replace(path="/not_migrated"))
        async with serve(settings.model_copy(update={"database_url": url})) as api:
            response = await api.send("GET", "/readyz")
            assert response.status_code == 503
            assert response.json()["dependencies"]["postgres"] == {"status": "down", "reason": NOT_MIGRATED}
            for query in STORAGE_QUERIES:
                assert await api.error(query) == ("STORAGE_UNAVAILABLE", NOT_MIGRATED)
            await migrate(url)
            assert (await api.send("GET", "/readyz")).status_code == 200
            assert await api.execute(STORAGE_QUERIES[0]) == {"data": {"latestPrice": None}}
    finally:
        await connection.execute("drop database not_migrated with (force)")
        await connection.close()


@pytest.mark.parametrize(
    "options",
    ["-c%20no_such_setting=1", "-csearch_path%3Dpublic%20-c%20statement_timeout%3Dsoon", "-clog_directory%3D/"],
)
async def test_a_connection_that_postgresql_refuses_is_an_outage(settings: Settings, options: str) -> None:
    """Only the server knows its settings, so a bad one cannot be refused at the start."""
    url = f"{settings.database_url}?options={options}"
    async with serve(settings.model_copy(update={"database_url": url})) as api:
        outage = Outage(api, postgres=None, valkey=None)  # type: ignore[arg-type]
        for query in STORAGE_QUERIES:
            assert await outage.codes(query) == [STORAGE_AWAY]
        status, states = await outage.readiness()
        assert (status, states["postgres"]) == (503, "down")


async def test_readiness_is_never_an_internal_error(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("unforeseen")

    for name in ("select_version", "select_live_workers"):
        monkeypatch.setattr(f"server.http.health.{name}", fail)
    async with serve(settings) as api:
        response = await api.send("GET", "/readyz")
    assert response.status_code == 503
    down = {"status": "down", "reason": "It cannot be checked; the log says why."}
    unknown = {"status": "warning", "reason": "unknown"}
    assert response.json()["dependencies"] == {"postgres": down, "redis": down, "worker": unknown, "prices": unknown}
    assert caplog.text.count("RuntimeError: unforeseen") == 2


@pytest.mark.parametrize("option", ["maxmemory", "min-replicas-to-write"])
async def test_a_redis_that_refuses_writes_is_not_ready(outage: Outage, option: str) -> None:
    async with Redis.from_url(outage.valkey.url) as redis:
        await redis.config_set(option, 1)
        try:
            response = await outage.api.send("GET", "/readyz")
            assert response.status_code == 503
            found = response.json()["dependencies"]["redis"]
            assert found["status"] == "down"
            assert found["reason"].startswith("Redis refuses writes: ")
        finally:
            await redis.config_set(option, 0)
    await outage.check_works()
