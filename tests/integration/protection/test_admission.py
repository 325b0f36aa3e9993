"""Overload: what is refused, what is still answered, and that refusals end with the overload."""

import asyncio
import itertools
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import pytest
import uvloop

from server.app import create_app
from server.protection.admission import MAX_UNDER_WAY, Admission
from server.transport.connections import accept_more
from shared.config.settings import Settings
from shared.migrate import migrate
from shared.storage.database import Pool, create_pool
from shared.storage.prices import insert_prices
from tests.integration.api_process import run_api
from tests.integration.conftest import serve
from tests.integration.examples import example_price

LATEST = '{ latestPrice(ticker: "btc_usd") { price } }'
PRICE = {"latestPrice": {"price": "91234.56"}}
UNPLANNED = "{ __typename }"
BEFORE = 'query ($at: DateTime) { priceHistory(ticker: "btc_usd", limit: 1, before: $at) { price } }'
ASK = {"content-type": "application/json"}
BUSY = {
    "errors": [
        {
            "message": "The server is busy; try again in 1 s.",
            "extensions": {"code": "RATE_LIMITED", "retryAfter": 1},
        }
    ]
}
CLIENTS = 60
ENOUGH = 20
SLOW = """
    alter table prices rename to stored;
    create view prices as
    select stored.*
    from stored
    cross join lateral (select pg_sleep(case when stored.price is null then 0 else 0.1 end) as slept) as slow;
"""


@asynccontextmanager
async def in_process(settings: Settings) -> AsyncIterator[tuple[httpx.AsyncClient, Admission]]:
    """The whole application without a network."""
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:
        assert state is not None

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app(scope | {"state": dict(state)}, receive, send)

        transport = httpx.ASGITransport(with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as http:
            yield http, state["admission"]


@pytest.mark.parametrize("accept", ["application/json", "application/graphql-response+json"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("POST", {"json": {"query": LATEST}}),
        ("POST", {"json": {"query": UNPLANNED}}),
        ("POST", {"json": {"query": "mutation { fetchPrices { id } }"}}),
        ("POST", {"json": {"query": "{ no document"}}),
        ("GET", {"params": {"query": LATEST}}),
        ("HEAD", {"params": {"query": LATEST}}),
    ],
    ids=str,
)
async def test_a_refusal_has_its_status_and_code(
    settings: Settings, pool: Pool, accept: str, method: str, options: dict[str, Any]
) -> None:
    async with in_process(settings.model_copy(update={"cors_origins": ("https://page.test",)})) as (http, admission):
        admission.under_way = MAX_UNDER_WAY
        headers = {"accept": accept, "origin": "https://page.test"}
        refused = await http.request(method, "/graphql", headers=headers, **options)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.headers["content-type"] == f"{accept}; charset=utf-8"
        assert refused.headers["access-control-allow-origin"] == "https://page.test"
        assert refused.headers["x-content-type-options"] == "nosniff"
        if method != "HEAD":
            assert refused.json() == BUSY
        admission.under_way = 0
        again = await http.request(method, "/graphql", headers=headers, **options)
        assert again.status_code in {200, 400}
        assert admission.under_way == 0


async def test_health_and_schema_are_answered_under_overload(settings: Settings, pool: Pool) -> None:
    async with in_process(settings) as (http, admission):
        admission.under_way = MAX_UNDER_WAY
        for path in ("/livez", "/readyz", "/schema.graphql"):
            assert (await http.get(path)).status_code == 200
        stream = await http.post("/graphql", json={"query": LATEST}, headers={"accept": "text/event-stream"})
        assert stream.status_code == 200
        assert "RATE_LIMITED" in stream.text
        counted = 'deribit_collector_requests_total{code="RATE_LIMITED",operation="refused"} 1.0'
        assert counted in (await http.get("/metrics")).text


async def test_the_first_request_of_a_document_counts_as_work(
    settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling a document takes as long as executing it by Strawberry."""
    async with in_process(settings) as (http, admission):
        known, unknown = {"query": "{ latestPrices { price } }"}, {"query": "{ latestPrices { ticker } }"}
        assert (await http.post("/graphql", json=known)).status_code == 200
        monkeypatch.setattr(admission, "is_full_for_work", lambda: True)
        assert [(await http.post("/graphql", json=body)).status_code for body in (known, unknown)] == [200, 503]


async def test_a_burst_of_three_hundred_requests_is_answered(settings: Settings, pool: Pool) -> None:
    """As when many open pages reconnect. Half of the requests are compiled queries."""
    await insert_prices(pool, [example_price()])
    async with run_api(settings) as api:
        for query in (LATEST, UNPLANNED):
            await api.execute(query)
        connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        try:
            for _ in range(300):  # if one fails, those before it are closed
                connections.append(await asyncio.open_connection("127.0.0.1", api.port))  # noqa: PERF401
            for number, (_, writer) in enumerate(connections):
                body = json.dumps({"query": (LATEST, UNPLANNED)[number % 2]})
                head = "POST /graphql HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            lines = [await reader.readline() for reader, _ in connections]
        finally:
            for _, writer in connections:
                writer.close()
    assert lines == [b"HTTP/1.1 200 OK\r\n"] * 300


def test_simultaneous_connections_are_accepted_in_a_few_iterations_of_the_loop() -> None:
    """uvloop by itself needs one iteration for each connection."""

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.append(transport)

    accepted: list[asyncio.BaseTransport] = []

    async def count_iterations() -> int:
        server = await asyncio.get_running_loop().create_server(Accepted, "127.0.0.1", 0, backlog=200)
        servers = [server, *await accept_more([server], Accepted)]
        address = server.sockets[0].getsockname()
        clients = [socket.create_connection(address) for _ in range(100)]
        iterations = 0
        while len(accepted) < 100:
            await asyncio.sleep(0)
            iterations += 1
        for client in clients:
            client.close()
        for transport in accepted:
            transport.close()
        for one in servers:
            one.close()
            await one.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        return iterations

    assert uvloop.run(count_iterations()) <= 10


@pytest.fixture
async def slow(settings: Settings) -> AsyncIterator[Settings]:
    """A database that takes 100 ms to read a price."""
    connection = await asyncpg.connect(settings.database_url)
    await connection.execute("create database slow")
    try:
        url = urlunsplit(urlsplit(settings.database_url)._replace(path="/slow"))
        own = settings.model_copy(update={"database_url": url})
        await migrate(url)
        async with create_pool(own, name="tests", size=1) as pool:
            await insert_prices(pool, [example_price()])
        there = await asyncpg.connect(url)
        await there.execute(SLOW)
        await there.close()
        yield own
    finally:
        await connection.execute("drop database slow with (force)")
        await connection.close()


async def test_requests_beyond_what_a_slow_database_can_answer_are_refused(slow: Settings) -> None:
    """It reads 100 prices a second, and 60 clients ask without a pause."""
    answered, refused, other = 0, 0, []
    async with serve(slow) as api, asyncio.timeout(60):
        is_enough = asyncio.Event()
        instants = (datetime(2100, 1, 1, tzinfo=UTC) + n * timedelta(seconds=1) for n in itertools.count())

        async def ask_on() -> None:
            nonlocal answered, refused
            while not is_enough.is_set():
                # An answer to the same question would be shared and cached.
                body = {"query": BEFORE, "variables": {"at": next(instants).isoformat()}}
                answer = await api.http.post("/graphql", json=body)
                if answer.status_code == 503 and answer.json() == BUSY:
                    refused += 1
                    await asyncio.sleep(0.1)
                elif answer.json() == {"data": {"priceHistory": [PRICE["latestPrice"]]}}:
                    answered += refused > 0
                else:
                    other.append(answer.json()["errors"][0]["extensions"]["code"])
                if min(answered, refused) >= ENOUGH:
                    is_enough.set()

        clients = [asyncio.create_task(ask_on()) for _ in range(CLIENTS)]
        while not refused:
            await asyncio.sleep(0.05)
        for path in ("/livez", "/readyz"):
            assert (await api.send("GET", path)).status_code == 200
        await asyncio.gather(*clients)
        # Each admitted request was answered; on a busy machine some may have missed their deadline.
        assert set(other) <= {"STORAGE_UNAVAILABLE"}
        while (await api.http.post("/graphql", json={"query": LATEST})).status_code == 503:
            await asyncio.sleep(0.05)
        one_by_one = [await api.execute(LATEST) for _ in range(5)]
        assert one_by_one == [{"data": PRICE}] * 5
