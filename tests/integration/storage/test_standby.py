"""Reads from a real hot standby: behind, in conflict, unavailable, promoted; and reading one's own fetch."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from server import standbys as reading
from server.standbys import StandbyPool
from shared.config.settings import Settings
from shared.errors import StorageUnavailable
from shared.local.data_folder import log_text
from shared.local.servers import spawn_postgres
from shared.migrate import migrate
from shared.queue.client import open_redis
from shared.queue.fetches import enqueue_fetch_prices, finish_fetch_job
from shared.storage.database import Pool, create_pool, fetch
from shared.storage.prices import Price, PriceSource, insert_prices
from shared.storage.schedules import insert_schedules
from tests.embedded import Server, start_postgres
from tests.integration.live import FOLLOW, PRICES, LiveApi, price, serve_live, spelled
from tests.integration.standby import ask, both, is_followed, promote, start_standby
from tests.integration.test_api_outages import silent

OPTIONS = {"fsync": "off", "max_standby_streaming_delay": "0"}
LATEST = '{ latestPrice(ticker: "btc_usd") { timestamp } }'
LIMIT_SECONDS = 4.0
"Clients are promised 2 s; a machine that does much else must not fail this, a wait without a deadline must."


class Pair:
    def __init__(self, folder: Path, settings: Settings, primary: Server, standby: Server) -> None:
        self.folder = folder
        self.settings = settings
        self.primary = primary
        self.standby = standby

    def read_from(self, url: str, write_to: str | None = None) -> Settings:
        urls = {"database_url": write_to or self.primary.url, "database_read_url": url}
        return self.settings.model_copy(update=urls)

    @contextmanager
    def standby_away(self) -> Iterator[None]:
        self.standby.process.kill()
        self.standby.process.wait()
        try:
            yield
        finally:
            self.standby = Server(**vars(spawn_postgres(self.folder / "standby", self.standby.port, OPTIONS)))

    @asynccontextmanager
    async def replay_paused(self) -> AsyncIterator[None]:
        await ask(self.standby, "select pg_wal_replay_pause()")
        try:
            async with asyncio.timeout(20):
                while await ask(self.standby, "select pg_get_wal_replay_pause_state()") != "paused":
                    await asyncio.sleep(0.01)
            yield
        finally:
            await ask(self.standby, "select pg_wal_replay_resume()")

    async def caught_up(self) -> None:
        """All that the primary has written so far is replayed, what another test has truncated among it."""
        written = await ask(self.primary, "select pg_current_wal_lsn()::text")
        async with asyncio.timeout(20):
            while not await ask(self.standby, f"select pg_last_wal_replay_lsn() >= '{written}'"):
                await asyncio.sleep(0.01)

    async def followed(self) -> None:
        async with asyncio.timeout(30):
            while not await is_followed(self.primary, self.standby):
                await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
async def pair(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    folder.chmod(0o755)
    primary = start_postgres(folder / "primary", options={"fsync": "off"})
    try:
        await migrate(primary.url)
        pair = Pair(folder, settings, primary, await start_standby(folder / "standby", primary, options=OPTIONS))
        try:
            yield pair
        finally:
            pair.standby.process.kill()
            pair.standby.process.wait()
    finally:
        primary.stop(5)


@pytest.fixture
async def writer(pair: Pair) -> AsyncIterator[Pool]:
    """On the primary, whichever is named first; its tables are empty again after the test."""
    settings = pair.settings.model_copy(update={"database_url": both(pair.standby, pair.primary)})
    async with create_pool(settings, name="tests", size=2) as pool:
        yield pool
        await fetch(pool, "truncate prices, replaced_prices, schedules, missed_slots")


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_CHECK_SECONDS", 0.2)


async def data(api: LiveApi, query: str, **variables: Any) -> Any:
    answer = await answer_of(api, query, **variables)
    assert "errors" not in answer, answer
    return answer["data"]


async def answer_of(api: LiveApi, query: str, **variables: Any) -> Any:
    began = time.monotonic()
    response = await api.http.post("/graphql", json={"query": query, "variables": variables})
    took = time.monotonic() - began
    assert took < LIMIT_SECONDS, f"{query} took {took:.2f} s"
    return response.json()


async def readiness(api: LiveApi) -> tuple[int, dict[str, str]]:
    response = await api.http.get("/readyz")
    dependencies = response.json()["dependencies"]
    return response.status_code, {name: dependencies[name]["status"] for name in ("postgres", "standbys")}


async def reached(api: LiveApi, status: int, postgres: str, standbys: str) -> None:
    async with asyncio.timeout(30):
        while await readiness(api) != (status, {"postgres": postgres, "standbys": standbys}):
            await asyncio.sleep(0.05)


def stored_at(slot: datetime) -> Price:
    return Price("btc_usd", price("btc_usd", 0).price, slot, slot, PriceSource.SCHEDULED, False)


async def test_a_standby_that_is_behind(pair: Pair, writer: Pool) -> None:
    """What it shows is old and says so; subscriptions and a fetch show what is stored."""
    slots = [datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=m) for m in (10, 9, 8)]
    told = [slot.strftime("%Y-%m-%dT%H:%M:%S.%fZ") for slot in slots]
    period = f'ticker: "btc_usd", fromDt: "{told[0]}", toDt: "{(slots[2] + timedelta(minutes=1)).isoformat()}"'
    coverage = f"{{ coverage({period}) {{ expected present complete }} }}"
    freshness = "{ tickers { name lagSeconds stale } }"
    async with serve_live(pair.read_from(pair.standby.url)) as api, open_redis(pair.settings, retries=1) as redis:
        await insert_schedules(writer, ["btc_usd"], slots[0], timedelta(minutes=1))
        await insert_prices(writer, [stored_at(slots[0])])
        async with asyncio.timeout(20):
            while (await data(api, LATEST))["latestPrice"] is None:
                await asyncio.sleep(0.02)
        async with pair.replay_paused(), api.socket() as socket:
            before = await data(api, coverage)
            await socket.subscribe(PRICES % "ticker price timestamp", since=told[0], tickers=["btc_usd"])
            await insert_prices(writer, [stored_at(slots[1])])
            assert (await socket.price())[2] == told[1]
            await insert_prices(writer, [stored_at(slots[2])])
            assert (await socket.price())[2] == told[2]
            # Who comes with `since` is given what is stored, not what the standby has of it.
            await socket.subscribe(PRICES % "ticker price timestamp", "2", since=told[0], tickers=["btc_usd"])
            assert [stamp for _, _, stamp in await socket.prices(2)] == told[1:]
            job = await enqueue_fetch_prices(redis, ["btc_usd"])
            await finish_fetch_job(redis, job.id, ["btc_usd"], [stored_at(slots[2])], [])
            fetched = await data(api, f'{{ fetchJob(id: "{job.id}") {{ status prices {{ timestamp }} }} }}')
            assert fetched["fetchJob"] == {"status": "SUCCEEDED", "prices": [{"timestamp": told[2]}]}

            assert await data(api, LATEST) == {"latestPrice": {"timestamp": told[0]}}
            assert await data(api, coverage) == before
            assert before["coverage"] == {"expected": 3, "present": 1, "complete": False}
            [btc, _] = (await data(api, freshness))["tickers"]
            assert (btc["name"], btc["stale"], btc["lagSeconds"] >= 600) == ("btc_usd", True, True)
            assert await readiness(api) == (200, {"postgres": "ok", "standbys": "warning"})
        async with asyncio.timeout(20):
            while (await data(api, LATEST))["latestPrice"]["timestamp"] != told[2]:
                await asyncio.sleep(0.02)
        assert (await data(api, coverage))["coverage"] == {"expected": 3, "present": 3, "complete": True}
        await redis.flushdb()


async def test_with_synchronous_standbys_a_stored_price_is_read_at_once(pair: Pair, writer: Pool) -> None:
    """So that a client that saw its fetch end reads its prices everywhere."""
    waiting = {"synchronous_standby_names": "'*'", "synchronous_commit": "remote_apply"}
    try:
        for name, value in waiting.items():
            await ask(pair.primary, f"alter system set {name} = {value}")
        await ask(pair.primary, "select pg_reload_conf()")
        async with asyncio.timeout(20):
            while await ask(pair.primary, "select sync_state from pg_stat_replication") != "sync":
                await asyncio.sleep(0.02)
        async with serve_live(pair.read_from(pair.standby.url)) as api:
            for minute in range(20):
                await insert_prices(writer, [price("btc_usd", minute)])
                [(_, _, stamp)] = spelled([price("btc_usd", minute)])
                assert await data(api, LATEST) == {"latestPrice": {"timestamp": stamp}}
    finally:
        for name in waiting:
            await ask(pair.primary, f"alter system reset {name}")
        await ask(pair.primary, "select pg_reload_conf()")


def reads_of(pair: Pair, url: str) -> StandbyPool:
    return StandbyPool(pair.read_from(url), url, size=2, statement_seconds=6)


async def test_a_read_cancelled_by_recovery_is_retried(pair: Pair, writer: Pool) -> None:
    at_work = "select count(*) from pg_stat_activity where application_name = 'server, reading' and state = 'active'"
    await pair.caught_up()
    async with reads_of(pair, pair.standby.url) as reads:
        asked = asyncio.create_task(fetch(reads, "select count(*)::int from prices, pg_sleep(0.5)", timeout=30))
        async with asyncio.timeout(20):
            while not await ask(pair.standby, at_work):
                await asyncio.sleep(0.01)
        await fetch(writer, "do $$ begin lock table prices in access exclusive mode; end $$")
        assert [tuple(row) for row in await asked] == [(0,)]
    assert log_text(pair.standby.log).count("canceling statement due to conflict with recovery") == 1


async def test_a_standby_without_the_schema_is_not_read_from(
    pair: Pair, writer: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a release is started before the standby has replayed its migrations."""
    monkeypatch.setattr(reading, "read_migrations", lambda: range(9999))
    async with reads_of(pair, pair.standby.url) as reads:
        assert not (await fetch(reads, "select pg_is_in_recovery()"))[0][0]
        assert reads.fault is not None
        assert "this release needs 9999" in reads.fault


async def test_writes_find_the_primary_behind_a_silent_server_and_a_standby(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        silent_and_standby = f"127.0.0.1:{nobody.getsockname()[1]},127.0.0.1:{pair.standby.port},127.0.0.1"
        url = pair.primary.url.replace("127.0.0.1", silent_and_standby)
        settings = pair.settings.model_copy(update={"database_url": url})
        async with create_pool(settings, name="tests", size=2) as pool:
            for _ in range(2):
                began = time.monotonic()
                assert not (await fetch(pool, "select pg_is_in_recovery()"))[0][0]
                assert time.monotonic() - began < LIMIT_SECONDS
        assert await migrate(url) == []


async def test_a_silent_primary(pair: Pair, writer: Pool) -> None:
    """Reads from standbys go on, so the API stays in service."""
    await insert_prices(writer, [price("btc_usd", 0)])
    alone = pair.settings.model_copy(update={"database_url": both(pair.primary, pair.standby)})
    reading_too = pair.read_from(pair.standby.url, both(pair.primary, pair.standby))
    async with serve_live(reading_too) as api, serve_live(alone) as other:
        await reached(api, 200, "ok", "warning")
        expected = await data(other, LATEST)
        with silent(pair.primary):
            assert await data(api, LATEST) == expected
            [error] = (await answer_of(other, LATEST))["errors"]
            assert error["extensions"] == {"code": "STORAGE_UNAVAILABLE"}
            assert await readiness(api) == (200, {"postgres": "warning", "standbys": "warning"})
        assert await data(other, LATEST) == expected
    await pair.followed()


async def test_a_silent_standby(pair: Pair, writer: Pool) -> None:
    """Requests at that moment fail in time; later ones are answered by the primary."""
    await insert_prices(writer, [price("btc_usd", 0)])
    async with serve_live(pair.read_from(pair.standby.url)) as api:
        await reached(api, 200, "ok", "warning")
        with silent(pair.standby):
            async with asyncio.timeout(20):
                while (answer := await answer_of(api, LATEST)).get("errors"):
                    assert answer["errors"][0]["extensions"] == {"code": "STORAGE_UNAVAILABLE"}
            assert answer["data"]["latestPrice"] is not None
            assert "reads go to the primary" in (await api.http.get("/readyz")).text
    await pair.followed()


async def test_an_unavailable_standby(pair: Pair, writer: Pool, caplog: pytest.LogCaptureFixture) -> None:
    """Reads go to the primary, and the log and /readyz say so; unless standbys alone are wanted. Then back again."""
    await insert_prices(writer, [stored_at(datetime.now(UTC)), price("eth_usd", 0)])
    strict = pair.read_from(f"{pair.standby.url}?target_session_attrs=standby")
    where = "select pg_is_in_recovery()"
    async with serve_live(pair.read_from(pair.standby.url)) as api, serve_live(strict) as other:
        await reached(api, 200, "ok", "warning")
        assert (await data(other, LATEST))["latestPrice"] is not None
        with pair.standby_away():
            expected = await data(api, LATEST)
            assert expected["latestPrice"] is not None
            [error] = (await answer_of(other, LATEST))["errors"]
            assert error["extensions"] == {"code": "STORAGE_UNAVAILABLE"}
            assert await readiness(api) == (200, {"postgres": "ok", "standbys": "warning"})
            assert await readiness(other) == (503, {"postgres": "ok", "standbys": "down"})
            assert "no standby is usable, all reads go to the primary: " in caplog.text
        async with asyncio.timeout(30):
            while "reads go to the standbys again" not in caplog.text:
                await asyncio.sleep(0.05)
        assert await data(api, LATEST) == await data(other, LATEST) == expected
        busy = "select count(*) from pg_stat_activity where application_name = 'server, reading'"
        assert (await ask(pair.primary, busy), await ask(pair.standby, busy), await ask(pair.standby, where)) == (
            0,
            2,
            True,
        )
    await pair.followed()


async def test_a_standby_promoted(pair: Pair, writer: Pool) -> None:
    """Last, for the pair is none afterwards. Who follows prices is given those that the new primary stores."""
    servers = both(pair.primary, pair.standby)
    async with serve_live(pair.read_from(servers, servers)) as api, api.socket() as follower:
        await insert_prices(writer, [price("btc_usd", 0)])
        await reached(api, 200, "ok", "warning")
        await follower.subscribe(FOLLOW)
        await insert_prices(writer, [price("btc_usd", 1)])
        assert [await follower.price()] == spelled([price("btc_usd", 1)])
        await pair.followed()
        pair.primary.process.kill()
        pair.primary.process.wait()
        assert (await data(api, LATEST))["latestPrice"] is not None
        await promote(pair.standby)
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(StorageUnavailable):
                    await insert_prices(writer, [price("btc_usd", 2)])
                    break
        assert [await follower.price()] == spelled([price("btc_usd", 2)])
        async with asyncio.timeout(20):
            while "reads go to the primary" not in (await api.http.get("/readyz")).text:
                await asyncio.sleep(0.05)
        assert (await data(api, LATEST))["latestPrice"]["timestamp"] == spelled([price("btc_usd", 2)])[0][2]
