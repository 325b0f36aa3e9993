"""Each limit is the same over POST, GET, event stream and socket, for compiled and other queries."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from arq.connections import ArqRedis

from server.reads.context import MAX_ROWS, MAX_VALUES
from server.schema.documents import MAX_ALIASES, MAX_DEPTH, MAX_FIELDS, MAX_LENGTH, MAX_NAME_LENGTH, MAX_TOKENS
from shared.config.settings import Settings
from shared.storage.database import Pool
from tests.integration.live import LiveApi, serve_live
from tests.integration.ways import EVENT_STREAM, GRAPHQL_RESPONSE, JSON, WAYS, ask, refusals

HISTORY = 'priceHistory(ticker: "btc_usd", limit: {}) {{ {} }}'
PLAIN = "latestPrices { price }"
TOO_COMPLEX = "QUERY_TOO_COMPLEX"


def rows(more: int) -> str:
    limits = 10_000, MAX_ROWS - 10_001, 1 + more
    return " ".join(f"a{limit}: {HISTORY.format(limit, 'price')}" for limit in limits)


def values(more: int) -> str:
    fields = MAX_VALUES // 10_000
    return HISTORY.format(10_000, " ".join(f"a{n}: price" for n in range(fields + more)))


# What is just allowed where `more` is 0, and refused where it is 1. None of them is a document in itself: whether it is
# planned depends on what stands beside it.
LIMITS: dict[str, tuple[Callable[[int], str], str]] = {
    "characters": (
        lambda more: f"{PLAIN} #{'x' * (MAX_LENGTH - len('{  # }') - len(PLAIN) - 1 + more)}\n",
        f"A document may have at most {MAX_LENGTH} characters.",
    ),
    "tokens": (
        lambda more: "#\n" * (MAX_TOKENS - 6 + more) + PLAIN,
        f"A document may have at most {MAX_TOKENS} tokens.",
    ),
    "fields": (
        lambda more: f"latestPrices {{ {'price ' * (MAX_FIELDS - 1 + more)}}}",
        f"A document may have at most {MAX_FIELDS} fields.",
    ),
    "fields of fragments": (
        lambda more: "...{ latestPrices { " + "price " * (MAX_FIELDS - 2 + more) + "} __typename }",
        f"A document may have at most {MAX_FIELDS} fields.",
    ),
    "aliases": (
        lambda more: " ".join(f"a{n}: {PLAIN}" for n in range(MAX_ALIASES + more)),
        f"A document may have at most {MAX_ALIASES} aliases.",
    ),
    "a name": (
        lambda more: f"{'a' * (MAX_NAME_LENGTH + more)}: {PLAIN}",
        f"A name may have at most {MAX_NAME_LENGTH} characters.",
    ),
    "rows": (rows, f"All fields of one request may ask for at most {MAX_ROWS} rows together."),
    "values": (values, f"All rows of one request may have at most {MAX_VALUES} values together."),
}
TOO_DEEP = f"A document may be at most {MAX_DEPTH} levels deep."


@pytest.fixture(scope="module")
async def _live(settings: Settings, _migrated: None) -> AsyncIterator[LiveApi]:
    async with serve_live(settings) as api:
        yield api


@pytest.fixture
def live(_live: LiveApi, pool: Pool, redis: ArqRedis) -> LiveApi:
    return _live


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("limit", LIMITS)
async def test_a_limit_is_the_same_over_every_transport(live: LiveApi, limit: str, way: str) -> None:
    """`POST application/json` is planned, all of it; with a directive nothing is."""
    write, message = LIMITS[limit]
    documents: list[Callable[[int], str]] = [lambda more: f"{{ {write(more)} }}"]
    if limit not in {"characters", "tokens", "fields", "fields of fragments"}:  # to which a directive would add
        documents.append(lambda more: f"{{ __typename @include(if: true) {write(more)} }}")
    for document in documents:
        assert refusals(await ask(live, way, document(0))) == set()
        assert refusals(await ask(live, way, document(1))) == {(TOO_COMPLEX, message)}


@pytest.mark.parametrize("way", WAYS)
async def test_depth_is_the_same_over_every_transport(live: LiveApi, way: str) -> None:
    """Nothing of the schema is as deep but its introspection."""
    for levels, expected in ((MAX_DEPTH, set()), (MAX_DEPTH + 1, {(TOO_COMPLEX, TOO_DEEP)})):
        # __schema, types, fields, type and the braces of what is asked about them
        query = "{ __schema { types { fields { type { %s name %s } } } } }"
        inner = "ofType { " * (levels - 5), "} " * (levels - 5)
        assert refusals(await ask(live, way, query % inner)) == expected


@pytest.mark.parametrize("way", WAYS)
async def test_rows_from_a_variable_are_counted_with_a_cached_plan(live: LiveApi, way: str) -> None:
    query = """query ($n: Int!) {
        a: priceHistory(ticker: "btc_usd", limit: 10000) { price }
        b: priceHistory(ticker: "btc_usd", limit: $n) { price }
        c: priceHistory(ticker: "btc_usd", limit: $n) { price }
    }"""
    assert refusals(await ask(live, way, query, {"n": 5000})) == set()
    [(code, _)] = refusals(await ask(live, way, query, {"n": 5001}))
    assert code == TOO_COMPLEX
    assert refusals(await ask(live, way, query, {"n": 5000})) == set()


@pytest.mark.parametrize("accept", [JSON, GRAPHQL_RESPONSE, EVENT_STREAM])
@pytest.mark.parametrize("count", [0, 1, 2, 1000])
async def test_batches_are_refused_over_http(live: LiveApi, accept: str, count: int) -> None:
    batch = [{"query": f"{{ {PLAIN} }}"}] * count
    response = await live.http.post("/graphql", json=batch, headers={"accept": accept})
    refused = {("BAD_USER_INPUT", "The body must be one JSON object; batches are not supported.")}
    assert (response.status_code, refusals(response.json())) == (400, refused)
    several = {name: [value, value] for name, value in {"variables": "[{}]", "extensions": "[{}]"}.items()}
    response = await live.http.get("/graphql", params={"query": "{ tickers { name } }", **several})
    assert (response.status_code, {code for code, _ in refusals(response.json())}) == (400, {"BAD_USER_INPUT"})


@pytest.mark.parametrize("is_list_of", ["messages", "payloads", "queries"])
async def test_a_batch_closes_a_socket(live: LiveApi, is_list_of: str) -> None:
    payload: Any = {"query": f"{{ {PLAIN} }}"}
    if is_list_of == "queries":
        payload = {"query": [payload["query"]] * 2}
    elif is_list_of == "payloads":
        payload = [payload] * 2
    message = {"type": "subscribe", "id": "1", "payload": payload}
    async with live.socket() as socket:
        await socket.connection.send(json.dumps([message] * 2 if is_list_of == "messages" else message))
        assert await socket.closed() == (4400, "Invalid message")
