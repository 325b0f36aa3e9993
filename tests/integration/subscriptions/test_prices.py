"""`priceUpdates`: each stored price is sent once, whatever stored it; and `since`."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from arq.connections import ArqRedis
from gql import Client, gql
from gql.transport.exceptions import TransportQueryError
from gql.transport.websockets import WebsocketsTransport
from graphql import execute_subscription_event
from websockets.exceptions import ConnectionClosed

from server.subscriptions import operations as streams
from server.subscriptions.websocket import Limits
from shared.config.settings import Settings
from shared.queue.deferred import defer, store_oldest_deferred
from shared.storage.database import Pool, fetch
from shared.storage.prices import PriceSource, insert_prices
from tests.integration.live import FOLLOW, PRICES, LiveApi, at, price, serve_live, spelled

SOCKETS = 20


@pytest.fixture(scope="module")
async def _live(settings: Settings, _migrated: None) -> AsyncIterator[LiveApi]:
    async with serve_live(settings) as api:
        yield api


@pytest.fixture
async def live(_live: LiveApi, pool: Pool, redis: ArqRedis) -> LiveApi:
    return _live


async def test_every_kind_of_stored_price_is_sent(live: LiveApi, pool: Pool, redis: ArqRedis) -> None:
    async with live.socket() as socket:
        await socket.subscribe(PRICES % "ticker timestamp source price observedAt testnet")
        await asyncio.sleep(0.1)
        for source in PriceSource:
            stored = price("btc_usd", list(PriceSource).index(source), source)
            await insert_prices(pool, [stored])
            assert (await socket.answer())["data"]["priceUpdates"] == {
                "ticker": "btc_usd",
                "timestamp": spelled([stored])[0][2],
                "source": source.value,
                "price": "1.5",
                "observedAt": spelled([stored])[0][2],
                "testnet": False,
            }
        deferred = price("eth_usd", 3)
        await defer(redis, [deferred], [])
        await store_oldest_deferred(redis, pool)
        assert await socket.price() == spelled([deferred])[0]
        # By hand, in a transaction of several statements: sent at its commit, and not before.
        connection = await asyncpg.connect(live.settings.database_url)
        try:
            async with connection.transaction():
                for minute in (4, 5):
                    await connection.execute(INSERT, "btc_usd", price("btc_usd", minute).timestamp)
                assert await socket.is_silent()
            assert await socket.prices(2) == spelled([price("btc_usd", 4), price("btc_usd", 5)])
        finally:
            await connection.close()


INSERT = """
    insert into prices (ticker, price, timestamp, observed_at, source, testnet)
    values ($1, 1.5, $2, $2, 'SCHEDULED', false)
"""


async def test_a_duplicate_or_rolled_back_price_is_not_sent_and_a_replaced_average_is(
    live: LiveApi, pool: Pool
) -> None:
    average = price("btc_usd", 0, PriceSource.BACKFILLED, "1.25")
    observed = price("btc_usd", 0, digits="1.5")
    async with live.socket() as socket:
        await socket.subscribe(FOLLOW)
        await asyncio.sleep(0.1)
        await insert_prices(pool, [average])
        assert await socket.price() == spelled([average])[0]
        await insert_prices(pool, [average])
        await insert_prices(pool, [observed])
        await insert_prices(pool, [average, observed])
        with pytest.raises(asyncpg.CheckViolationError):
            await insert_prices(pool, [price("btc_usd", 1), price("btc_usd", 2, digits="-1")])
        await insert_prices(pool, [price("btc_usd", 3)])
        assert await socket.prices(2) == spelled([observed, price("btc_usd", 3)])
        assert await socket.is_silent()


async def test_only_prices_of_the_requested_tickers_are_sent(live: LiveApi, pool: Pool) -> None:
    async with live.socket() as socket:
        await socket.subscribe(FOLLOW, tickers=["ETH_USD"])
        await asyncio.sleep(0.1)
        await insert_prices(pool, [price("btc_usd", 0), price("eth_usd", 0)])
        await insert_prices(pool, [price("btc_usd", 1)])
        await insert_prices(pool, [price("eth_usd", 1)])
        assert await socket.prices(2) == spelled([price("eth_usd", 0), price("eth_usd", 1)])


async def test_since_begins_after_the_price_of_that_instant(live: LiveApi, pool: Pool) -> None:
    stored = [price(ticker, minute) for minute in range(5) for ticker in ("btc_usd", "eth_usd")]
    await insert_prices(pool, stored)
    for tickers in (None, ["btc_usd"], ["btc_usd", "eth_usd"]):
        async with live.socket() as socket:
            await socket.subscribe(FOLLOW, since=at(2), tickers=tickers)
            expected = [p for p in stored if p.timestamp > price("", 2).timestamp and p.ticker in (tickers or p.ticker)]
            assert await socket.prices(len(expected)) == spelled(expected)
            assert await socket.is_silent()
            await insert_prices(pool, [price("btc_usd", 10 + len(tickers or ()))])
            assert await socket.price() == spelled([price("btc_usd", 10 + len(tickers or ()))])[0]
        await fetch(pool, "delete from prices where timestamp > $1", price("", 9).timestamp)


async def test_since_includes_earlier_prices_that_were_stored_late(live: LiveApi, pool: Pool) -> None:
    """Stored after the price of that instant, with an earlier timestamp: healed, deferred, or of a slower ticker."""
    await insert_prices(pool, [price("btc_usd", 0), price("eth_usd", 0)])
    await insert_prices(pool, [price("btc_usd", 3)])
    late = [price("eth_usd", 3), price("btc_usd", 1, PriceSource.BACKFILLED), price("eth_usd", 2), price("btc_usd", -5)]
    for one in late:
        await insert_prices(pool, [one])
    newer = [price("btc_usd", 4), price("eth_usd", 5)]
    await insert_prices(pool, reversed(newer))
    async with live.socket() as socket:
        await socket.subscribe(FOLLOW, since=at(3))
        assert await socket.prices(6) == spelled([*late, *newer])
        assert await socket.is_silent()


async def test_an_average_that_was_replaced_while_a_client_was_disconnected_is_sent(live: LiveApi, pool: Pool) -> None:
    await insert_prices(pool, [price("btc_usd", 0)])
    averages = [price("btc_usd", minute, PriceSource.BACKFILLED) for minute in (1, 2, 3)]
    await insert_prices(pool, averages)
    observed = [price("btc_usd", minute, digits="1.75") for minute in (3, 1)]
    for one in observed:
        await insert_prices(pool, [one])
    async with live.socket() as socket:
        await socket.subscribe(FOLLOW, since=at(3))
        assert await socket.prices(2) == spelled(observed)
        assert await socket.is_silent()


async def test_a_client_that_reconnects_while_the_log_is_behind_gets_each_price_once(live: LiveApi, pool: Pool) -> None:
    """As after the first backfill, which stores prices faster than the feed reads them."""
    stored = [price("btc_usd", minute) for minute in range(6000)]
    await insert_prices(pool, stored)
    async with live.socket() as socket:
        await socket.subscribe(FOLLOW, since=at(5995))
        assert await socket.prices(4) == spelled(stored[5996:])
        await asyncio.sleep(1.5)  # until the log has read them all
        await insert_prices(pool, [price("btc_usd", 6000)])
        assert await socket.price() == spelled([price("btc_usd", 6000)])[0]


async def test_since_with_an_empty_table_or_a_future_instant_sends_only_new_prices(live: LiveApi, pool: Pool) -> None:
    async with live.socket() as socket:
        await socket.subscribe(FOLLOW, "1", since="0001-01-01T00:00:00Z")
        await socket.subscribe(PRICES % "ticker", "2", since="9999-12-31T23:59:59Z")
        assert await socket.is_silent()
        await insert_prices(pool, [price("btc_usd", 0)])
        assert {(await socket.receive())["id"] for _ in range(2)} == {"1", "2"}


async def test_since_reads_page_by_page(live: LiveApi, pool: Pool) -> None:
    stored = [price(ticker, minute) for minute in range(1300) for ticker in ("btc_usd", "eth_usd")]
    await insert_prices(pool, stored[2:])
    await insert_prices(pool, stored[:2])  # late, from the point of view of the third
    async with live.socket() as socket:
        await socket.subscribe(FOLLOW, since="2026-01-01T00:00:00Z")
        assert await socket.prices(len(stored)) == spelled(stored)
    async with live.socket() as socket:
        await socket.subscribe(FOLLOW, since=at(1))
        assert await socket.prices(len(stored) - 2) == spelled([*stored[:2], *stored[4:]])
        assert await socket.is_silent()


async def test_no_price_is_lost_or_doubled_while_subscribers_join_and_writers_write(live: LiveApi, pool: Pool) -> None:
    """Writers commit in any order, and each subscriber starts at a random time."""
    rng = random.Random(5)
    everything = [price(ticker, minute) for minute in range(300) for ticker in ("btc_usd", "eth_usd")]

    async def write(own: list[Any]) -> None:
        while own:
            size = rng.randint(1, 6)
            await insert_prices(pool, own[:size])
            del own[:size]
            await asyncio.sleep(rng.random() * 0.02)

    async def follow(delay: float) -> list[tuple[str, str, str]]:
        await asyncio.sleep(delay)
        async with live.socket() as socket:
            await socket.subscribe(FOLLOW, since="2026-01-01T00:00:00Z")
            return await socket.prices(len(everything))

    followers = [asyncio.create_task(follow(n * 0.05)) for n in range(SOCKETS)]
    await asyncio.gather(*(write(everything[n::4]) for n in range(4)))
    for came in await asyncio.gather(*followers):
        assert sorted(came) == sorted(spelled(everything))


async def test_a_client_that_reconnects_with_the_last_timestamp_misses_nothing(live: LiveApi, pool: Pool) -> None:
    """One ticker, with late prices among them. Only a price that was late may come twice."""
    rng = random.Random(7)
    minutes = list(range(200))
    for n in range(0, 200, 9):
        minutes.insert(min(n + rng.randint(2, 30), 199), minutes.pop(n))
    everything = [price("btc_usd", minute) for minute in minutes]

    async def write() -> None:
        for one in everything:
            await insert_prices(pool, [one])
            await asyncio.sleep(0.005)

    writing = asyncio.create_task(write())
    came: list[tuple[str, str, str]] = []
    while len(set(came)) < len(everything):
        async with live.socket() as socket:
            last = max((found[2] for found in came), default="2026-01-01T00:00:00Z")
            await socket.subscribe(FOLLOW, tickers=["btc_usd"], since=last)
            wanted = rng.randint(1, 30)
            while wanted and len(set(came)) < len(everything):
                came.append(await socket.price())
                wanted -= 1
    await writing
    assert set(came) == set(spelled(everything))


async def test_a_real_client_follows(live: LiveApi, pool: Pool) -> None:
    async with Client(transport=WebsocketsTransport(url=live.url)) as session:
        stream = session.subscribe(gql(FOLLOW))
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.2)
        await insert_prices(pool, [price("btc_usd", 0)])
        ticker, digits, timestamp = spelled([price("btc_usd", 0)])[0]
        assert await first == {"priceUpdates": {"ticker": ticker, "price": digits, "timestamp": timestamp}}
        await stream.aclose()
        refused = session.subscribe(gql('subscription { priceUpdates(tickers: ["x_y"]) { price } }'))
        with pytest.raises(TransportQueryError) as caught:
            await anext(refused)
        assert caught.value.errors is not None
        assert caught.value.errors[0]["extensions"] == {"code": "UNKNOWN_TICKER"}


async def test_an_event_is_serialised_once_for_identical_requests(
    live: LiveApi, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[object] = []

    def execute(executor: Any) -> Any:
        written.append(executor.root_value)
        return execute_subscription_event(executor)

    monkeypatch.setattr(streams, "execute_subscription_event", execute)
    # Digits that no other test uses, because serialised events are cached.
    stored = [price("btc_usd", minute, digits="7.25") for minute in range(4)]
    await insert_prices(pool, stored[:2])
    await asyncio.sleep(0.3)
    async with live.socket() as one, live.socket() as two:
        for n, socket in enumerate((one, one, two)):
            await socket.subscribe(FOLLOW, str(n), since="2026-01-01T00:00:00Z" if n else at(-1))
        await two.subscribe(PRICES % "price", "other")
        await asyncio.sleep(0.3)
        await insert_prices(pool, stored[2:])
        assert len([await one.receive() for _ in range(8)]) == 8
        assert len([await two.receive() for _ in range(6)]) == 6
    assert sorted(written, key=repr) == sorted([*stored, *stored[2:]], key=repr)


async def test_a_subscriber_that_does_not_read_is_closed_and_delays_no_other(settings: Settings, pool: Pool) -> None:
    stored = [price("btc_usd", minute) for minute in range(6000)]
    async with (
        serve_live(settings, Limits(prices_behind=2000)) as api,
        api.socket() as quick,
        api.socket(max_queue=1) as slow,
    ):
        for socket in (slow, quick):
            await socket.subscribe(PRICES % ("ticker price timestamp " + "observedAt " * 5))
        await asyncio.sleep(0.1)
        slow.connection.transport.pause_reading()

        for start in range(0, len(stored), 500):
            await insert_prices(pool, stored[start : start + 500])
            assert await quick.prices(500) == spelled(stored[start : start + 500])
        slow.connection.transport.resume_reading()
        with contextlib.suppress(ConnectionClosed):
            while await slow.price():
                pass
        assert await slow.closed() == (1013, "Too slow: reconnect with `after`")
