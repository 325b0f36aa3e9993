"""Subscribers keep their sockets and miss nothing when PostgreSQL or Valkey is killed, silent or restarted."""

import asyncio
import contextlib
import shutil
import socket as sockets
import subprocess
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest

from server.transport import websocket as protocol
from shared.config.settings import Settings
from shared.errors import StorageUnavailable
from shared.migrate import migrate
from shared.queue.client import open_redis
from shared.queue.fetches import enqueue_fetch_prices, finish_fetch_job, start_fetch_job
from shared.storage.database import Pool, create_pool
from shared.storage.prices import Price, insert_prices
from tests.embedded import start_postgres, start_valkey
from tests.integration.live import FOLLOW, LiveApi, Socket, at, price, serve_live, spelled
from tests.integration.test_api_outages import silent
from tests.reads import select_price_history

CUT = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'server, live'"
PROGRESS = "subscription($id: ID!) { fetchProgress(id: $id) { status } }"


class Outage:
    """PostgreSQL and Valkey for this test alone, the API that uses them, and a connection for writing."""

    def __init__(self, folder: Any, settings: Settings) -> None:
        self.folder = folder
        self.postgres = start_postgres(folder / "postgres", options={"fsync": "off"})
        self.valkey = start_valkey(folder / "valkey")
        self.settings = settings.model_copy(update={"database_url": self.postgres.url, "redis_url": self.valkey.url})

    def kill_postgres(self) -> None:
        self.postgres.process.kill()
        self.postgres.process.wait()

    def restart_postgres(self) -> None:
        self.postgres = start_postgres(self.folder / "postgres", port=self.postgres.port, options={"fsync": "off"})

    def back_up(self) -> None:
        self.postgres.stop(5)
        subprocess.run(["cp", "-a", self.folder / "postgres", self.folder / "backup"], check=True)
        self.restart_postgres()

    def restore(self) -> None:
        """As after a failover that lost what was stored last."""
        self.kill_postgres()
        shutil.rmtree(self.folder / "postgres")
        shutil.move(self.folder / "backup", self.folder / "postgres")
        self.restart_postgres()

    def kill_valkey(self) -> None:
        self.valkey.process.kill()
        self.valkey.process.wait()

    def restart_valkey(self) -> None:
        self.valkey = start_valkey(self.folder / "valkey", port=self.valkey.port)

    @contextlib.asynccontextmanager
    async def writer(self) -> AsyncIterator[Pool]:
        async with create_pool(self.settings, name="tests", size=1) as pool:
            yield pool


async def store(pool: Pool, prices: list[Price]) -> None:
    """Retries until PostgreSQL is back, as the worker does."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(StorageUnavailable):
                await insert_prices(pool, prices)
                return
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def own(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    folder = tmp_path_factory.mktemp("live")
    folder.chmod(0o755)
    outage = Outage(folder, settings)
    try:
        yield outage
    finally:
        outage.postgres.stop(5)
        outage.valkey.stop(5)


@pytest.fixture
async def live(own: Outage) -> AsyncIterator[LiveApi]:
    await migrate(own.postgres.url)
    async with serve_live(own.settings) as api:
        yield api
    await execute(own, "truncate prices, replaced_prices")


async def execute(own: Outage, sql: str) -> None:
    connection = await asyncpg.connect(own.postgres.url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def test_sockets_stay_open_and_catch_up_after_postgres_was_killed(own: Outage, live: LiveApi) -> None:
    async with own.writer() as pool, live.socket() as one, live.socket() as two:
        await one.subscribe(FOLLOW)
        await two.subscribe(FOLLOW, tickers=["eth_usd"])
        await asyncio.sleep(0.1)
        await store(pool, [price("btc_usd", 0), price("eth_usd", 0)])
        assert await one.prices(2) == spelled([price("btc_usd", 0), price("eth_usd", 0)])
        assert await two.price() == spelled([price("eth_usd", 0)])[0]
        own.kill_postgres()
        async with live.socket() as new:
            await new.subscribe(FOLLOW, since=at(0))
            [error] = (await new.answer())["errors"]
            assert (error["path"], error["extensions"]) == (["priceUpdates"], {"code": "STORAGE_UNAVAILABLE"})
            assert await new.receive() == {"type": "complete", "id": "1"}
        own.restart_postgres()
        # Both before and after the API can connect again.
        for minute in range(1, 20):
            await store(pool, [price("btc_usd", minute), price("eth_usd", minute)])
            await asyncio.sleep(0.1)
        expected = [price(ticker, minute) for minute in range(1, 20) for ticker in ("btc_usd", "eth_usd")]
        assert await one.prices(len(expected)) == spelled(expected)
        assert await two.prices(19) == spelled(expected[1::2])


async def test_a_feed_that_lost_its_connection_reads_the_prices_it_was_not_notified_of(
    own: Outage, live: LiveApi
) -> None:
    """Others can still write, as when a firewall drops one connection."""
    async with own.writer() as pool, live.socket() as socket:
        await socket.subscribe(FOLLOW)
        await asyncio.sleep(0.1)
        expected = []
        for minute in range(30):
            if minute % 5 == 0:
                await execute(own, CUT)
            expected.append(price("btc_usd", minute))
            await store(pool, expected[-1:])
            await asyncio.sleep(0.02)
        assert await socket.prices(30) == spelled(expected)


async def test_a_silent_postgres(own: Outage, live: LiveApi) -> None:
    async with own.writer() as pool, live.socket() as socket:
        await socket.subscribe(FOLLOW)
        await asyncio.sleep(0.1)
        with silent(own.postgres):
            await asyncio.sleep(4)
        await store(pool, [price("btc_usd", 0)])
        assert await socket.price() == spelled([price("btc_usd", 0)])[0]


async def test_prices_are_sent_while_valkey_is_unavailable_and_progress_continues_after(
    own: Outage, live: LiveApi
) -> None:
    async with own.writer() as pool, live.socket() as socket, live.socket() as follower:
        async with open_redis(own.settings, retries=1) as redis:
            job = await enqueue_fetch_prices(redis, ["btc_usd"])
        await follower.subscribe(PROGRESS, id=job.id)
        assert (await follower.answer())["data"]["fetchProgress"] == {"status": "QUEUED"}
        await asyncio.sleep(1.5)  # the append-only file is written once a second
        await socket.subscribe(FOLLOW)
        own.kill_valkey()
        await asyncio.sleep(0.2)
        await store(pool, [price("btc_usd", 0)])
        assert await socket.price() == spelled([price("btc_usd", 0)])[0]
        await socket.subscribe(PROGRESS, "2", id=job.id)
        [error] = (await socket.answer())["errors"]
        assert error["extensions"] == {"code": "QUEUE_UNAVAILABLE"}
        assert await socket.receive() == {"type": "complete", "id": "2"}
        assert await follower.is_silent(1.5)
        own.restart_valkey()
        async with open_redis(own.settings, retries=5) as redis:
            await start_fetch_job(redis, job.id)
            assert (await follower.answer(20))["data"]["fetchProgress"] == {"status": "RUNNING"}
            await asyncio.sleep(2)  # it hears again
            await finish_fetch_job(redis, job.id, ["btc_usd"], [price("btc_usd", 0)], [])
            assert (await follower.answer())["data"]["fetchProgress"] == {"status": "SUCCEEDED"}
        assert (await follower.receive()) == {"type": "complete", "id": "1"}


async def test_a_client_reconnects_to_another_api_with_the_last_timestamp(own: Outage, live: LiveApi) -> None:
    async with own.writer() as pool:
        async with live.socket() as socket:
            await socket.subscribe(FOLLOW)
            await asyncio.sleep(0.1)
            await store(pool, [price("btc_usd", 0), price("eth_usd", 0)])
            last = (await socket.prices(2))[-1][2]
        missed = [price("btc_usd", 1), price("eth_usd", 1), price("eth_usd", -1)]
        await store(pool, missed[:2])
        await store(pool, missed[2:])
        async with serve_live(own.settings) as another, another.socket() as socket:
            await socket.subscribe(FOLLOW, since=last)
            assert await socket.prices(3) == spelled([missed[2], *missed[:2]])
            await store(pool, [price("btc_usd", 2)])
            assert await socket.price() == spelled([price("btc_usd", 2)])[0]


RESUME = "subscription($after: ID) { priceUpdates(after: $after) { ticker price timestamp } }"


@pytest.mark.parametrize("lost", [3, 30])
async def test_followers_go_on_after_a_restore_that_lost_prices(own: Outage, live: LiveApi, lost: int) -> None:
    """With fewer new prices than were lost, and with more."""
    kept = [price("btc_usd", minute) for minute in range(5)]
    async with own.writer() as pool, live.socket() as first:
        assert await follows(first)
        await store(pool, kept)
        assert await first.prices(5) == spelled(kept)  # else the feed would read them only after the backup
    own.back_up()
    gone = [price("btc_usd", 10 + minute) for minute in range(lost)]
    new = [price("btc_usd", 100 + minute) for minute in range(10)]
    # Their batches are those of lost prices.
    async with live.socket() as plain, live.socket() as since, live.socket() as after:
        while not await follows(plain):
            pass
        await since.subscribe(FOLLOW, since=at(3))
        async with own.writer() as pool:
            [last] = await select_price_history(pool, "btc_usd", None, 1)
            await after.subscribe(RESUME, after=last.cursor)
            assert await since.price() == spelled(kept[4:])[0]
            for one in gone:
                await store(pool, [one])
            [lost_price] = await select_price_history(pool, "btc_usd", None, 1)
        for socket in (plain, since, after):
            assert await socket.prices(lost) == spelled(gone)
        own.restore()
        async with own.writer() as pool:
            for one in new:
                await store(pool, [one])
            [last] = await select_price_history(pool, "btc_usd", price("btc_usd", 104).timestamp, 1)
        for socket in (plain, since, after):
            assert await socket.prices(10) == spelled(new)
            assert await socket.is_silent()
        async with live.socket() as socket:
            await socket.subscribe(RESUME, "lost", after=lost_price.cursor)
            [error] = (await socket.answer())["errors"]
            assert error["extensions"] == {"code": "BAD_USER_INPUT"}
            assert await socket.receive() == {"type": "complete", "id": "lost"}
            await socket.subscribe(RESUME, after=last.cursor)
            assert await socket.prices(6) == spelled(new[4:])


async def follows(socket: Socket) -> bool:
    """Subscribe; returns whether the storage was available."""
    await socket.subscribe(FOLLOW)
    try:
        message = await socket.receive(1.5)
    except TimeoutError:
        return True
    assert message["payload"]["errors"][0]["extensions"] == {"code": "STORAGE_UNAVAILABLE"}
    assert await socket.receive() == {"type": "complete", "id": "1"}
    return False


async def test_an_api_that_started_before_its_servers_follows_prices_once_they_run(own: Outage, live: LiveApi) -> None:
    """Until the feed knows its position, it reports the outage instead of starting at a later price."""
    own.kill_postgres()
    own.kill_valkey()
    try:
        async with serve_live(own.settings) as api, api.socket() as socket, own.writer() as pool:
            await socket.subscribe(FOLLOW)
            [error] = (await socket.answer())["errors"]
            assert error["extensions"] == {"code": "STORAGE_UNAVAILABLE"}
            assert await socket.receive() == {"type": "complete", "id": "1"}
            own.restart_postgres()
            own.restart_valkey()
            async with asyncio.timeout(30):
                while not await follows(socket):
                    pass
            stored = [price("btc_usd", minute) for minute in range(20)]
            for one in stored:
                await store(pool, [one])
            assert await socket.prices(20) == spelled(stored)
    finally:
        for server, restart in ((own.postgres, own.restart_postgres), (own.valkey, own.restart_valkey)):
            if server.process.poll() is not None:
                restart()


async def test_a_peer_with_a_closed_tcp_window_is_disconnected(
    settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers TCP probes but reads nothing, so the kernel would keep its connection for ever."""
    monkeypatch.setattr(protocol, "LINGER_SECONDS", 0.3)
    async with serve_live(settings) as api:
        api.server.config.ws_ping_interval = api.server.config.ws_ping_timeout = 0.5
        own = sockets.socket()
        own.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        own.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(own, ("127.0.0.1", api.port))
        async with api.open(sock=own) as socket:
            await socket.send(type="connection_init")
            await socket.receive()
            await socket.subscribe(FOLLOW)
            await asyncio.sleep(0.1)
            socket.connection.transport.pause_reading()
            for start in range(0, 3000, 500):
                await insert_prices(pool, [price("btc_usd", minute) for minute in range(start, start + 500)])
            async with asyncio.timeout(10):
                while api.server.server_state.connections:
                    await asyncio.sleep(0.05)
            socket.connection.transport.abort()
