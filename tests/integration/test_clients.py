"""Public clients as their users have them: gql of Python; graphql-request, graphql-ws, Apollo and urql under Node."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from gql import Client, GraphQLRequest
from gql.transport.exceptions import TransportQueryError
from gql.transport.httpx import HTTPXAsyncTransport
from gql.transport.websockets import WebsocketsTransport
from graphql import print_schema

from server.schema.root import schema
from shared.config.settings import Settings
from shared.storage.prices import insert_prices
from tests.clients import node
from tests.clients.api import serve_process
from tests.integration.examples import MINUTE, NOON, example_price
from tests.integration.queue.test_fetches import run_queued
from worker.context import Worker

HISTORY = "query History($ticker: String!) { priceHistory(ticker: $ticker) { price timestamp } }"
UPDATES = "subscription ($since: DateTime) { priceUpdates(since: $since) { price timestamp } }"
PROGRESS = "subscription ($id: ID!) { fetchProgress(id: $id) { status prices { ticker } failures { code } } }"
FIRST = {"price": "91234.56", "timestamp": "2026-01-31T12:00:00.000000Z"}
SECOND = {"price": "91235.1", "timestamp": "2026-01-31T12:01:00.000000Z"}


@pytest.fixture(scope="module")
async def host(settings: Settings, _migrated: None) -> AsyncIterator[str]:
    async with serve_process(settings) as host:
        yield host


@pytest.fixture
async def stored(host: str, worker: Worker) -> str:
    await insert_prices(worker.pool, [example_price(), example_price(NOON + MINUTE, "91235.1")])
    return host


def coded(refused: pytest.ExceptionInfo[TransportQueryError]) -> list[str]:
    return [error["extensions"]["code"] for error in refused.value.errors or []]


async def test_gql_over_http(stored: str, worker: Worker) -> None:
    transport = HTTPXAsyncTransport(url=f"http://{stored}/graphql", trust_env=False)
    async with Client(transport=transport, fetch_schema_from_transport=True) as client:
        # The client reads the whole schema by introspection, and checks documents against it.
        assert client.client.schema is not None
        assert set(client.client.schema.type_map) >= set(schema._schema.type_map) - {"_Any"}
        assert "type Subscription" in print_schema(client.client.schema)
        answer = await client.execute(GraphQLRequest(HISTORY, variable_values={"ticker": "btc_usd"}))
        assert answer == {"priceHistory": [SECOND, FIRST]}
        with pytest.raises(TransportQueryError) as refused:
            await client.execute(GraphQLRequest(HISTORY, variable_values={"ticker": "doge_usd"}))
        assert coded(refused) == ["UNKNOWN_TICKER"]
        queued = await client.execute(GraphQLRequest("mutation { fetchPrices { status tickers } }"))
        assert queued == {"fetchPrices": {"status": "QUEUED", "tickers": ["btc_usd", "eth_usd"]}}


async def test_gql_over_a_socket(stored: str, worker: Worker) -> None:
    transport = WebsocketsTransport(url=f"ws://{stored}/graphql", connect_args={"proxy": None})
    async with Client(transport=transport) as client:
        answer = await client.execute(GraphQLRequest(HISTORY, variable_values={"ticker": "btc_usd"}))
        assert answer == {"priceHistory": [SECOND, FIRST]}

        since = {"since": "2026-01-31T12:00:00Z"}
        updates = client.subscribe(GraphQLRequest(UPDATES, variable_values=since))
        assert await anext(updates) == {"priceUpdates": SECOND}
        await insert_prices(worker.pool, [example_price(NOON + MINUTE * 2, "7", ticker="eth_usd")])
        third = {"price": "7", "timestamp": "2026-01-31T12:02:00.000000Z"}
        assert await anext(updates) == {"priceUpdates": third}
        await updates.aclose()

        started = await client.execute(GraphQLRequest("mutation { fetchPrices { id } }"))
        seen: list[dict[str, Any]] = []
        async for state in client.subscribe(GraphQLRequest(PROGRESS, variable_values=started["fetchPrices"])):
            seen.append(state["fetchProgress"])
            if len(seen) == 1:
                await run_queued(worker)
        assert [state["status"] for state in seen] == ["QUEUED", "RUNNING", "SUCCEEDED"]
        assert seen[-1]["prices"] == [{"ticker": "btc_usd"}, {"ticker": "eth_usd"}]

        with pytest.raises(TransportQueryError) as refused:
            await anext(client.subscribe(GraphQLRequest(PROGRESS, variable_values={"id": "none"})))
        assert coded(refused) == ["BAD_USER_INPUT"]


async def test_graphql_request(stored: str) -> None:
    await asyncio.to_thread(node.install)
    assert json.loads(await node.run(*node.node(), "request.mjs", f"http://{stored}/graphql")) == {
        "priceHistory": [SECOND, FIRST],
        "codes": [[200, "UNKNOWN_TICKER"], [400, "BAD_USER_INPUT"], [400, "GRAPHQL_PARSE_FAILED"]],
        "fetchPrices": {"status": "QUEUED"},
    }


async def test_graphql_ws(stored: str) -> None:
    await asyncio.to_thread(node.install)
    since = "2026-01-31T11:59:59Z"
    assert json.loads(await node.run(*node.node(), "socket.mjs", f"ws://{stored}/graphql", since)) == {
        "query": [{"latestPrices": [{"price": "91235.1"}]}],
        "updates": [{"priceUpdates": FIRST}, {"priceUpdates": SECOND}],
        "unknownTicker": [["UNKNOWN_TICKER"]],
        "unknownField": ["GRAPHQL_VALIDATION_FAILED"],
        "sockets": 1,
    }


@pytest.mark.parametrize("client", ["apollo", "urql"])
async def test_persisted_queries_of_apollo_and_urql(stored: str, client: str) -> None:
    await asyncio.to_thread(node.install)
    found = json.loads(await node.run(*node.node(), "persisted.mjs", f"http://{stored}/graphql", client))
    prices = [["91235.1"], ["91235.1", "91234.56"]]
    unknown, known = [False, 200, "PERSISTED_QUERY_NOT_FOUND"], [False, 200, "ok"]
    registered = [True, 200, "ok"]
    by_get = "POST" if client == "apollo" else "GET"
    assert found == {
        "POST": {"prices": prices, "requests": [["POST", *unknown], ["POST", *registered], ["POST", *known]]},
        "GET": {"prices": prices, "requests": [["GET", *unknown], [by_get, *registered], ["GET", *known]]},
    }
