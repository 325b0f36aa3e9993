"""`fetchProgress`: the current state, every change, and the end; and event streams, which send the same as sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from arq.connections import ArqRedis
from gql import Client, GraphQLRequest, gql
from gql.transport.websockets import WebsocketsTransport

from server.subscriptions import event_stream as sse
from shared.config.settings import Settings
from shared.queue.fetches import FetchFailure, FetchJob, enqueue_fetch_prices, finish_fetch_job, start_fetch_job
from shared.storage.database import Pool
from shared.storage.prices import insert_prices
from tests.integration.live import FOLLOW, LiveApi, Socket, price, serve_live, spelled
from worker.context import Worker
from worker.jobs.requested import fetch_prices

PROGRESS = (
    "subscription($id: ID!) { fetchProgress(id: $id) { status startedAt finishedAt prices { ticker price } "
    "failures { ticker code } } }"
)
EVENT_STREAM = {"accept": "text/event-stream"}


@pytest.fixture(scope="module")
async def _live(settings: Settings, _migrated: None) -> AsyncIterator[LiveApi]:
    async with serve_live(settings) as api:
        yield api


@pytest.fixture
def live(_live: LiveApi, pool: Pool, redis: ArqRedis) -> LiveApi:
    return _live


async def states(socket: Socket) -> list[str]:
    """Until the subscription ends."""
    found = []
    while (message := await socket.receive())["type"] == "next":
        found.append(message["payload"]["data"]["fetchProgress"]["status"])
    assert message["type"] == "complete"
    return found


async def end(redis: ArqRedis, job: FetchJob, *failed: str) -> None:
    prices = [price(ticker, 0) for ticker in job.tickers if ticker not in failed]
    failures = [FetchFailure(ticker, "TIMEOUT", "no answer in time") for ticker in failed]
    await finish_fetch_job(redis, job.id, job.tickers, prices, failures)


async def test_the_progress_of_a_fetch_is_sent_from_queued_to_its_end(live: LiveApi, redis: ArqRedis) -> None:
    job = await enqueue_fetch_prices(redis, ["btc_usd", "eth_usd"])
    async with live.socket() as socket:
        await socket.subscribe(PROGRESS, id=job.id)
        first = (await socket.answer())["data"]["fetchProgress"]
        assert first == {"status": "QUEUED", "startedAt": None, "finishedAt": None, "prices": [], "failures": []}
        await start_fetch_job(redis, job.id)
        second = (await socket.answer(0.5))["data"]["fetchProgress"]
        assert (second["status"], second["finishedAt"], second["startedAt"] is None) == ("RUNNING", None, False)
        await end(redis, job, "eth_usd")
        third = (await socket.answer(0.5))["data"]["fetchProgress"]
        assert third.pop("finishedAt")
        assert third["status"] == "PARTIAL"
        assert third["prices"] == [{"ticker": "btc_usd", "price": "1.5"}]
        assert third["failures"] == [{"ticker": "eth_usd", "code": "TIMEOUT"}]
        assert await socket.receive() == {"type": "complete", "id": "1"}


@pytest.mark.parametrize(
    ("failed", "status"), [([], "SUCCEEDED"), (["btc_usd"], "PARTIAL"), (["btc_usd", "eth_usd"], "FAILED")]
)
async def test_each_state_is_sent_once_however_quick_the_fetch_is(
    live: LiveApi, redis: ArqRedis, failed: list[str], status: str
) -> None:
    job = await enqueue_fetch_prices(redis, ["btc_usd", "eth_usd"])
    async with live.socket() as one, live.socket() as two:
        for socket in (one, two):
            await socket.subscribe(PROGRESS, id=job.id)
            await socket.subscribe("{ tickers { name } }", "2")
        await asyncio.sleep(0.2)
        await start_fetch_job(redis, job.id)
        await end(redis, job, *failed)
        for socket in (one, two):
            came = [m["payload"]["data"] for m in await messages(socket, "1")]
            assert [found["fetchProgress"]["status"] for found in came] == ["QUEUED", "RUNNING", status]


async def messages(socket: Socket, key: str) -> list[dict[str, Any]]:
    """The statuses of one operation, until it completes."""
    found = []
    while (message := await socket.receive()) != {"type": "complete", "id": key}:
        found += [message] if message["id"] == key else []
    return found


async def test_a_late_subscriber_gets_the_last_state_and_completes(live: LiveApi, redis: ArqRedis) -> None:
    job = await enqueue_fetch_prices(redis, ["btc_usd"])
    await start_fetch_job(redis, job.id)
    async with live.socket() as early, live.socket() as late, live.socket() as later:
        await early.subscribe(PROGRESS, id=job.id)
        await asyncio.sleep(0.1)
        await late.subscribe(PROGRESS, id=job.id)
        await asyncio.sleep(0.1)
        await end(redis, job)
        assert await states(early) == ["RUNNING", "SUCCEEDED"]
        assert await states(late) == ["RUNNING", "SUCCEEDED"]
        await later.subscribe(PROGRESS, id=job.id)
        assert await states(later) == ["SUCCEEDED"]


async def test_the_progress_of_an_abandoned_fetch_ends(live: LiveApi, redis: ArqRedis) -> None:
    job = await enqueue_fetch_prices(redis, ["btc_usd"])
    async with live.socket() as socket:
        await socket.subscribe(PROGRESS, id=job.id)
        assert (await socket.answer())["data"]["fetchProgress"]["status"] == "QUEUED"
        await redis.delete(f"arq:job:{job.id}")
        assert await states(socket) == ["FAILED"]


async def test_the_progress_of_an_expired_fetch_ends(live: LiveApi, redis: ArqRedis) -> None:
    job = await enqueue_fetch_prices(redis, ["btc_usd"])
    async with live.socket() as socket:
        await socket.subscribe(PROGRESS, id=job.id)
        assert (await socket.answer())["data"]["fetchProgress"]["status"] == "QUEUED"
        await redis.flushdb()
        assert await states(socket) == []


async def test_a_real_client_asks_for_a_fetch_and_follows_it(live: LiveApi, worker: Worker, redis: ArqRedis) -> None:
    async with Client(transport=WebsocketsTransport(url=live.url)) as session:
        asked = (await session.execute(gql("mutation { fetchPrices { id status tickers } }")))["fetchPrices"]
        found = []
        async for event in session.subscribe(GraphQLRequest(PROGRESS, variable_values={"id": asked["id"]})):
            found.append(event["fetchProgress"]["status"])
            if found == ["QUEUED"]:
                await fetch_prices({"worker": worker, "job_id": asked["id"], "job_try": 1}, asked["tickers"])
    assert found == ["QUEUED", "RUNNING", "SUCCEEDED"]


class Events:
    """Reads an event stream."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self.lines = lines

    async def next(self) -> tuple[str, Any]:
        """(name, data) of the next event; a comment is `(":", None)`."""
        name, data = ":", None
        async with asyncio.timeout(10):
            async for line in self.lines:
                match line.partition(":"):
                    case ("event", _, value):
                        name = value.strip()
                    case ("data", _, value):
                        data = json.loads(value) if value.strip() else None
                    case ("", "", ""):
                        return name, data
        raise EOFError


async def test_an_event_stream_sends_prices_until_the_client_leaves(live: LiveApi, pool: Pool) -> None:
    await insert_prices(pool, [price("btc_usd", 0)])
    for method in ("POST", "GET"):
        asked: dict[str, Any] = {"query": FOLLOW, "variables": {"since": "2026-01-01T00:00:00Z"}}
        options: dict[str, Any] = {"json": asked}
        if method == "GET":
            options = {"params": asked | {"variables": json.dumps(asked["variables"])}}
        async with live.http.stream(method, "/graphql", headers=EVENT_STREAM, **options) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            events = Events(response.aiter_lines())
            assert await events.next() == (":", None)
            ticker, digits, timestamp = spelled([price("btc_usd", 0)])[0]
            expected = {"ticker": ticker, "price": digits, "timestamp": timestamp}
            assert await events.next() == ("next", {"data": {"priceUpdates": expected}})
            await insert_prices(pool, [price("eth_usd", len(method))])
            assert (await events.next())[1]["data"]["priceUpdates"]["ticker"] == "eth_usd"


async def test_an_event_stream_completes(live: LiveApi, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.2)
    job = await enqueue_fetch_prices(redis, ["btc_usd"])
    body = {"query": PROGRESS, "variables": {"id": job.id}}
    async with live.http.stream("POST", "/graphql", headers=EVENT_STREAM, json=body) as response:
        events = Events(response.aiter_lines())
        assert await events.next() == (":", None)
        assert (await events.next())[1]["data"]["fetchProgress"]["status"] == "QUEUED"
        assert await events.next() == (":", None)
        assert await events.next() == (":", None)
        await start_fetch_job(redis, job.id)
        await end(redis, job)
        found = []
        while (event := await events.next())[0] != "complete":
            found += [event[1]["data"]["fetchProgress"]["status"]] if event[1] else []
        assert found == ["RUNNING", "SUCCEEDED"]
        with pytest.raises(EOFError):
            await events.next()


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("{", "GRAPHQL_PARSE_FAILED"),
        ("subscription { nothing }", "GRAPHQL_VALIDATION_FAILED"),
        ('subscription { priceUpdates(tickers: ["x_y"]) { price } }', "UNKNOWN_TICKER"),
        ('{ latestPrice(ticker: "x_y") { price } }', "UNKNOWN_TICKER"),
    ],
)
async def test_a_request_error_is_an_event_and_completes_the_stream(live: LiveApi, query: str, code: str) -> None:
    response = await live.http.post("/graphql", headers=EVENT_STREAM, json={"query": query})
    lines = [line for line in response.text.splitlines() if line not in {"", ":"}]
    assert [line.partition(":")[0] for line in lines] == ["event", "data", "event", "data"]
    assert (lines[0], lines[2:]) == ("event: next", ["event: complete", "data:"])
    [error] = json.loads(lines[1].removeprefix("data: "))["errors"]
    assert error["extensions"] == {"code": code}


async def test_a_query_is_answered_as_an_event_stream(live: LiveApi) -> None:
    response = await live.http.post("/graphql", headers=EVENT_STREAM, json={"query": "{ latestPrices { price } }"})
    assert 'event: next\ndata: {"data":{"latestPrices":[]}}\n\nevent: complete\ndata:\n\n' in response.text
