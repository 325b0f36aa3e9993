"""`Price.cursor` and `priceUpdates(after:)`: a follower goes on exactly behind the last price that it got."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from arq.connections import ArqRedis
from websockets.exceptions import ConnectionClosed

from server.feeds import price_feed
from server.subscriptions.websocket import Limits
from shared.config.settings import Settings
from shared.cursor import Position, encode_cursor
from shared.queue.fetches import enqueue_fetch_prices, finish_fetch_job, start_fetch_job
from shared.storage.database import Pool, fetch
from shared.storage.prices import COLUMNS, Price, PriceSource, dump_price, insert_prices, load_price, price_of
from tests.integration.live import LiveApi, Socket, at, price, serve_live
from tests.integration.queue.test_fetches import run_queued
from worker.context import Worker

RESUME = """
    subscription($tickers: [String!], $since: DateTime, $after: ID) {
        priceUpdates(tickers: $tickers, since: $since, after: $after) { ticker price timestamp cursor }
    }
"""


@pytest.fixture(scope="module")
async def _live(settings: Settings, _migrated: None) -> AsyncIterator[LiveApi]:
    async with serve_live(settings) as api:
        yield api


@pytest.fixture
async def live(_live: LiveApi, pool: Pool) -> LiveApi:
    return _live


@asynccontextmanager
async def without_log(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, behind: int = 10_000
) -> AsyncIterator[LiveApi]:
    """An API that has just started with an almost empty log, so that what is stored comes from the table in pages."""
    monkeypatch.setattr(price_feed, "_RECENT", 1)
    monkeypatch.setattr(price_feed, "_PAGE", 7)
    async with serve_live(settings, Limits(prices_behind=behind)) as api:
        await asyncio.sleep(0.3)
        yield api


def feeds_of(api: LiveApi) -> Any:
    return api.server.lifespan.state["feeds"]


def spelled(prices: list[Price]) -> list[tuple[str, str, str, str]]:
    return [(p.ticker, str(p.price), f"{p.timestamp:%Y-%m-%dT%H:%M:%S.%fZ}", p.cursor) for p in prices]


async def receive(socket: Socket, count: int) -> list[tuple[str, str, str, str]]:
    return [tuple((await socket.answer())["data"]["priceUpdates"].values()) for _ in range(count)]


async def refusal(api: LiveApi, **variables: Any) -> tuple[str, str]:
    async with api.socket() as socket:
        await socket.subscribe(RESUME, **variables)
        [error] = (await socket.answer())["errors"]
        assert await socket.receive() == {"type": "complete", "id": "1"}
    return error["extensions"]["code"], error["message"]


async def in_order_of_storing(pool: Pool) -> list[Price]:
    sql = f"select {COLUMNS} from prices order by batch, timestamp, ticker"
    return [price_of(row) for row in await fetch(pool, sql)]


FIELDS = "{ ticker price timestamp cursor }"
READS = {
    'latestPrice(ticker: "btc_usd")': [1],
    'latestPrice(ticker: "btc_usd", maxAgeSeconds: 2147483647)': [1],
    "latestPrices": [1, 2],
    'priceHistory(ticker: "btc_usd")': [1, 0],
    f'pricesInPeriod(ticker: "btc_usd", fromDt: "{at(0)}", toDt: "{at(9)}")': [0, 1],
}


async def test_a_fetched_price_has_the_cursor_that_queries_answer(live: LiveApi, worker: Worker) -> None:
    job = await enqueue_fetch_prices(worker.redis, ["btc_usd", "eth_usd"])
    await run_queued(worker)
    query = f'{{ fetchJob(id: "{job.id}") {{ prices {{ cursor }} }} latestPrices {{ cursor }} }}'
    answer = (await live.http.post("/graphql", json={"query": query})).json()["data"]
    assert len(answer["latestPrices"]) == 2
    assert answer["fetchJob"]["prices"] == answer["latestPrices"]


@pytest.mark.parametrize("query", READS)
async def test_a_price_has_the_same_cursor_wherever_it_is_read(live: LiveApi, pool: Pool, query: str) -> None:
    async with live.socket() as socket:
        await socket.subscribe(RESUME)
        await asyncio.sleep(0.1)
        stored = await insert_prices(pool, [price("btc_usd", 0), price("btc_usd", 1)])
        stored += await insert_prices(pool, [price("eth_usd", 0)])
        assert await receive(socket, 3) == spelled(stored)
    # Compiled, and by Strawberry because of the unknown ticker.
    for rest in ("", ' refused: latestPrice(ticker: "x") { price }'):
        answer = await live.http.post("/graphql", json={"query": f"{{ found: {query} {FIELDS}{rest} }}"})
        found = answer.json()["data"]["found"]
        rows = found if isinstance(found, list) else [found]
        assert [tuple(row.values()) for row in rows] == spelled([stored[n] for n in READS[query]])
    answer = await live.http.post("/graphql", json={"query": "{ tickers { latest { cursor } } }"})
    assert answer.json() == {"data": {"tickers": [{"latest": {"cursor": stored[n].cursor}} for n in (1, 2)]}}


async def test_the_prices_of_a_fetch_have_cursors(live: LiveApi, pool: Pool, redis: ArqRedis) -> None:
    job = await enqueue_fetch_prices(redis, ["btc_usd", "eth_usd"])
    await start_fetch_job(redis, job.id)
    stored = await insert_prices(pool, [price("btc_usd", 0), price("eth_usd", 0)])
    old = {name: value for name, value in dump_price(stored[1]).items() if name != "batch"}
    await finish_fetch_job(redis, job.id, job.tickers, [stored[0], load_price(old)], [])
    query = f'{{ fetchJob(id: "{job.id}") {{ prices {{ cursor }} }} }}'
    answer = (await live.http.post("/graphql", json={"query": query})).json()
    new, from_old = [found["cursor"] for found in answer["data"]["fetchJob"]["prices"]]
    assert new == stored[0].cursor
    # A worker of the release before stores no batch: the cursor leads to the price's present place.
    later = await insert_prices(pool, [price("btc_usd", 1)])
    async with live.socket() as socket:
        await socket.subscribe(RESUME, after=from_old)
        assert await receive(socket, 1) == spelled(later)


async def store_in_any_order(pool: Pool) -> list[Price]:
    for minute in random.Random(3).sample(range(40), 40):
        await insert_prices(pool, [price(ticker, minute) for ticker in ("btc_usd", "eth_usd")])
    return await in_order_of_storing(pool)


async def goes_on_behind_any_price(api: LiveApi, pool: Pool, stored: list[Price]) -> None:
    for n in (0, 1, 37, 78, 79):
        for tickers in (None, ["eth_usd"]):
            async with api.socket() as socket:
                await socket.subscribe(RESUME, after=stored[n].cursor, tickers=tickers)
                expected = [p for p in stored[n + 1 :] if tickers is None or p.ticker in tickers]
                assert await receive(socket, len(expected)) == spelled(expected)
                assert await socket.is_silent(0.1)
    async with api.socket() as socket:
        await socket.subscribe(RESUME, after=stored[77].cursor)
        assert await receive(socket, 2) == spelled(stored[78:])
        new = await insert_prices(pool, [price("eth_usd", -1)])
        assert await receive(socket, 1) == spelled(new)


async def test_after_goes_on_in_the_log_behind_any_price(live: LiveApi, pool: Pool) -> None:
    await goes_on_behind_any_price(live, pool, await store_in_any_order(pool))


async def test_after_goes_on_in_the_table_behind_any_price(
    settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = await store_in_any_order(pool)
    async with without_log(settings, monkeypatch) as api:
        await goes_on_behind_any_price(api, pool, stored)


async def get_each_price_once(api: LiveApi, pool: Pool) -> None:
    rng = random.Random(7)
    [first] = await insert_prices(pool, [price("btc_usd", -100)])
    minutes = rng.sample(range(120), 120)

    async def write() -> None:
        for n in range(0, 120, 3):
            batch = [price(ticker, minute) for minute in minutes[n : n + 3] for ticker in ("btc_usd", "eth_usd")]
            await insert_prices(pool, batch)
            await asyncio.sleep(0.01)

    writing = asyncio.create_task(write())
    came: list[tuple[str, str, str, str]] = []
    while len(came) < 240:
        with contextlib.suppress(ConnectionClosed):  # too slow for a short log
            # The client's own close would wait ten seconds if it stopped reading with a full queue.
            async with api.socket(close_timeout=0.1) as socket:
                await socket.subscribe(RESUME, after=came[-1][3] if came else first.cursor)
                for _ in range(min(rng.randint(1, 25), 240 - len(came))):
                    came += await receive(socket, 1)
    await writing
    assert came == spelled((await in_order_of_storing(pool))[1:])


async def test_a_client_that_is_cut_anywhere_gets_each_price_once(live: LiveApi, pool: Pool) -> None:
    """Also between two tickers of one statement, which `since` cannot tell apart."""
    await get_each_price_once(live, pool)


async def test_a_client_that_the_log_does_not_reach_gets_each_price_once(
    settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with without_log(settings, monkeypatch, behind=5) as api:
        await get_each_price_once(api, pool)


async def test_a_price_that_was_replaced_or_dropped_since_is_still_a_place(
    settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    averages = await insert_prices(pool, [price("btc_usd", n, PriceSource.BACKFILLED) for n in (0, 1)])
    between = await insert_prices(pool, [price("eth_usd", 0)])
    replaced = await insert_prices(pool, [price("btc_usd", 0, digits="1.75")])
    dropped = await insert_prices(pool, [price("eth_usd", -1440)])
    await fetch(pool, "delete from prices where ticker = 'eth_usd' and timestamp < $1", between[0].timestamp)
    sql = "insert into dropped_prices (ticker, kept_from) values ('eth_usd', date_bin('1 day', $1, 'epoch'))"
    await fetch(pool, sql, between[0].timestamp)
    last = await insert_prices(pool, [price("eth_usd", 1)])
    places = {
        averages[0].cursor: [averages[1], *between, *replaced, *last],
        averages[1].cursor: [*between, *replaced, *last],
        replaced[0].cursor: last,
        dropped[0].cursor: last,
    }
    try:
        async with without_log(settings, monkeypatch) as api:
            for cursor, expected in places.items():
                async with api.socket() as socket:
                    await socket.subscribe(RESUME, after=cursor)
                    assert await receive(socket, len(expected)) == spelled(expected)
    finally:
        await fetch(pool, "delete from dropped_prices")


async def test_prices_without_a_batch_come_first_by_timestamp(
    settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored before the column was there, or with triggers off."""
    numbered = await insert_prices(pool, [price("btc_usd", n) for n in range(10)])
    count = len(await insert_prices(pool, [price(t, n) for n in range(-20, 0) for t in ("btc_usd", "eth_usd")]))
    await fetch(pool, "alter table prices disable trigger user")
    try:
        await fetch(pool, "update prices set batch = 0 where timestamp < $1", numbered[0].timestamp)
    finally:
        await fetch(pool, "alter table prices enable trigger user")
    unnumbered = (await in_order_of_storing(pool))[:count]
    assert {one.batch for one in unnumbered} == {0}
    async with without_log(settings, monkeypatch) as api:
        for n in (0, 1, 38, 39):
            async with api.socket() as socket:
                await socket.subscribe(RESUME, after=unnumbered[n].cursor)
                expected = [*unnumbered[n + 1 :], *numbered]
                assert await receive(socket, len(expected)) == spelled(expected)
                assert await socket.is_silent(0.1)


async def test_a_cursor_that_the_database_never_gave_is_refused(live: LiveApi, pool: Pool) -> None:
    await insert_prices(pool, [price("btc_usd", -1)])
    [stored] = await insert_prices(pool, [price("btc_usd", 0)])
    batch, timestamp, ticker = stored.batch, stored.timestamp, stored.ticker
    never = [
        Position(batch + 1, timestamp, ticker),  # a restored database has lost it
        Position(batch - 1, timestamp, ticker),  # or has healed it since
        Position(batch, timestamp + timedelta(seconds=1), ticker),
        Position(batch, timestamp, "eth_usd"),
        Position(-1, timestamp, "eth_usd"),
        Position(0, timestamp, "eth_usd"),
        Position(2**63 - 1, timestamp, ticker),
        Position(-(2**63), timestamp, ticker),
    ]
    for text in ["", "x", "ф", "0", stored.cursor + "A", stored.cursor[:-4], *map(encode_cursor, never)]:
        code, message = await refusal(live, after=text)
        assert code == "BAD_USER_INPUT"
        assert message == (
            f"after is {text!r}; accepted is the cursor of a price that this database has stored. If it was restored "
            "from a backup since, go on with `since`."
        )


async def test_since_and_after_at_once_are_refused(live: LiveApi, pool: Pool) -> None:
    [stored] = await insert_prices(pool, [price("btc_usd", 0)])
    refused = ("BAD_USER_INPUT", "since and after are both given; accepted is one of them.")
    assert await refusal(live, after=stored.cursor, since=at(0)) == refused


async def test_a_crowd_that_reconnects_is_answered_from_the_log(settings: Settings, pool: Pool) -> None:
    """Also right after the process restarted, without a statement of its own for any of them."""
    stored = await insert_prices(pool, [price("btc_usd", minute) for minute in range(50)])
    async with serve_live(settings) as api, contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(api.socket()) for _ in range(100)]
        await asyncio.gather(*(socket.subscribe(RESUME, after=stored[9].cursor) for socket in sockets))
        for came in await asyncio.gather(*(receive(socket, 40) for socket in sockets)):
            assert came == spelled(stored[10:])
        assert feeds_of(api).pool.open == 0


async def test_followers_far_in_the_past_leave_the_pool_to_queries(
    settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = await insert_prices(pool, [price("btc_usd", minute) for minute in range(400)])

    async def follow(api: LiveApi, number: int) -> None:
        async with api.socket() as socket:
            given = {"after": stored[0].cursor} if number % 2 else {"since": at(0)}
            await socket.subscribe(RESUME, **given)
            assert await receive(socket, 399) == spelled(stored[1:])
            assert await socket.is_silent(1), "no statement is cancelled, which would keep its connection for longer"

    async with without_log(settings, monkeypatch) as api:
        await asyncio.gather(*(follow(api, number) for number in range(12)))
        assert 0 < feeds_of(api).pool.open <= price_feed._READERS, "it opens what is used at the same time"
