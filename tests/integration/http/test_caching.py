"""HTTP caching, compression and persisted queries, by every way of asking."""

import gzip
import json
import re
import time
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import asyncpg
import httpx
import pytest

from server.http.compression import IN_THREAD_BYTES
from shared.config.settings import Settings
from shared.storage.database import Pool
from shared.storage.prices import insert_prices
from tests.integration.conftest import Api, serve
from tests.integration.examples import MINUTE, NOON, example_price
from tests.integration.live import serve_live

QUERY = '{ latestPrice(ticker: "btc_usd") { price } }'
HISTORY = '{ priceHistory(ticker: "btc_usd", limit: %d) { price timestamp observedAt } }'
NO_CACHE = {"cache-control": "no-cache", "vary": "Accept, Accept-Encoding"}
ANSWER = {"data": {"latestPrice": {"price": "91234.56"}}}


def caching(response: httpx.Response) -> dict[str, str | None]:
    return {name: response.headers.get(name) for name in ("cache-control", "vary")}


async def get(api: Api, query: str = QUERY, tags: str | None = None, **headers: str) -> httpx.Response:
    if tags is not None:
        headers["If-None-Match"] = tags
    return await api.send("GET", "/graphql", params={"query": query}, headers=headers)


@pytest.fixture
async def tag(api: Api, pool: Pool) -> str:
    await insert_prices(pool, [example_price()])
    return str((await get(api)).headers["etag"])


async def test_the_tag_stays_until_the_data_change(api: Api, pool: Pool, tag: str) -> None:
    assert re.fullmatch(r'W/"[0-9a-f]{32}"', tag)
    first = await get(api)
    assert (first.status_code, first.json(), first.headers["etag"], caching(first)) == (200, ANSWER, tag, NO_CACHE)
    known = await get(api, tags=tag)
    assert (known.status_code, known.content, known.headers["etag"], caching(known)) == (304, b"", tag, NO_CACHE)
    await insert_prices(pool, [example_price(NOON + MINUTE, "2")])
    changed = await get(api, tags=tag)
    assert (changed.status_code, changed.json()) == (200, {"data": {"latestPrice": {"price": "2"}}})
    assert changed.headers["etag"] != tag


async def test_a_known_tag_does_not_run_the_query(api: Api, settings: Settings, tag: str) -> None:
    connection = await asyncpg.connect(settings.database_url)
    try:
        async with connection.transaction():
            await connection.execute("lock table prices in access exclusive mode")
            assert (await get(api, tags=tag)).status_code == 304
            assert (await get(api)).json() == ANSWER  # kept
            assert "STORAGE_UNAVAILABLE" in (await get(api, QUERY + " # new", tags='"other"')).text
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("written", "status"),
    [
        ("{}", 304),
        ('"other", {}', 304),
        ('W/"other" ,{},"x"', 304),
        ("{strong}", 304),
        ("{}0", 200),
        ("*", 200),
        ("", 200),
        ('"', 200),
        ('W/"{digest}-"', 304),
        ('W/"{digest}-99999999999999999"', 200),
        ('"a",' * 10 + "{}", 200),
    ],
)
async def test_lists_of_tags(api: Api, tag: str, written: str, status: int) -> None:
    strong = tag.removeprefix("W/")
    tags = written.replace("{}", tag).replace("{strong}", strong).replace("{digest}", strong.strip('"'))
    response = await get(api, tags=tags)
    assert (response.status_code, response.headers["etag"]) == (status, tag)


async def test_another_process_gives_the_same_tag_and_other_questions_another(
    api: Api, settings: Settings, tag: str
) -> None:
    async with serve(settings) as restarted:
        assert (await get(restarted, tags=tag)).status_code == 304
        assert (await get(restarted)).headers["etag"] == tag
    others = [QUERY.replace("btc", "eth"), QUERY.replace("{ price }", "{ ticker }"), "{ latestPrices { price } }"]
    found = [(await get(api, other, tags=tag)) for other in others]
    assert [response.status_code for response in found] == [200] * 3
    assert len({response.headers["etag"] for response in found} | {tag}) == 4


@pytest.mark.parametrize(
    ("query", "later"),
    [
        ("{ tickers { name stale } }", '"stale":true'),
        ('{ latestPrice(ticker: "btc_usd", maxAgeSeconds: 120) { price } }', "PRICE_STALE"),
    ],
)
async def test_a_tag_ends_at_the_instant_at_which_time_alone_changes_the_answer(
    api: Api, pool: Pool, query: str, later: str
) -> None:
    timestamp = datetime.now(UTC) - timedelta(seconds=118)
    await insert_prices(pool, [example_price(timestamp), example_price(timestamp, ticker="eth_usd")])
    first = await get(api, query)
    tag = first.headers["etag"]
    ends_at = int(tag.strip('W/"').partition("-")[2]) / 1e6
    assert ends_at == pytest.approx(timestamp.timestamp() + 120, abs=1e-5)
    forged = tag.replace("-", "-9")
    assert (await get(api, query, tags=forged)).status_code == 200
    statuses = []
    while True:
        asked = time.time()
        response = await get(api, query, tags=tag)
        statuses.append(response.status_code)
        if response.status_code == 200:
            break
        assert asked < ends_at
    assert 304 in statuses
    assert time.time() >= ends_at
    assert later in response.text
    if "errors" in response.text:
        assert (response.headers.get("etag"), response.headers["cache-control"]) == (None, "no-store")


async def test_head_has_the_headers_of_get(api: Api, tag: str) -> None:
    head = await api.send("HEAD", "/graphql", params={"query": QUERY})
    assert (head.status_code, head.content, head.headers["etag"], caching(head)) == (200, b"", tag, NO_CACHE)
    assert int(head.headers["content-length"]) == len((await get(api)).content)
    known = await api.send("HEAD", "/graphql", params={"query": QUERY}, headers={"If-None-Match": tag})
    assert (known.status_code, known.headers["etag"]) == (304, tag)


async def test_what_needs_a_token_is_private(settings: Settings, tag: str) -> None:
    closed = settings.model_copy(update={"api_token": "a-token-of-the-tests", "require_token_for_reads": True})
    async with serve(closed) as api:
        assert (await get(api, tags=tag)).status_code == 401
        for status, tags in ((200, None), (304, tag)):
            response = await get(api, tags=tags, Authorization="Bearer a-token-of-the-tests")
            assert (response.status_code, response.headers["cache-control"]) == (status, "private, no-cache")
            assert response.headers["vary"] == "Accept, Accept-Encoding, Authorization"


async def test_with_cors_an_answer_varies_by_origin(settings: Settings, tag: str) -> None:
    async with serve(settings.model_copy(update={"cors_origins": ("https://charts.example",)})) as api:
        for status, tags in ((200, None), (304, tag)):
            response = await get(api, tags=tags, Origin="https://charts.example")
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == "https://charts.example"
            assert set(response.headers["vary"].split(", ")) == {"Accept", "Accept-Encoding", "Origin"}


@pytest.mark.parametrize(
    ("method", "path", "sent"),
    [
        ("POST", "/graphql", {"json": {"query": QUERY}}),
        ("POST", "/graphql", {"json": {"query": "mutation { fetchPrices { id } }"}}),
        ("POST", "/graphql", {"json": {"query": "{"}}),
        ("POST", "/graphql", {"content": "{", "headers": {"content-type": "application/json"}}),
        ("POST", "/graphql", {"json": {"query": QUERY}, "headers": {"accept": "image/png"}}),
        ("POST", "/graphql", {"json": {"query": QUERY}, "headers": {"accept": "text/event-stream"}}),
        ("GET", "/graphql", {"params": {"query": "{ tickers { name lagSeconds } }"}}),
        ("GET", "/graphql", {"params": {"query": '{ fetchJob(id: "x") { id } latestPrices { price } }'}}),
        ("GET", "/graphql", {"params": {"query": '{ fetchJob(id: "x") { id } }'}}),
        ("GET", "/graphql", {"params": {"query": '{ latestPrice(ticker: "doge_usd") { price } }'}}),
        ("GET", "/graphql", {"params": {"query": "mutation { fetchPrices { id } }"}}),
        ("GET", "/graphql", {}),
        ("PUT", "/graphql", {}),
        ("GET", "/nothing", {}),
        ("GET", "/assets/nothing", {}),
        ("GET", "/livez", {}),
        ("GET", "/readyz", {}),
        ("GET", "/metrics", {}),
    ],
)
async def test_everything_else_is_not_to_be_stored(api: Api, method: str, path: str, sent: dict[str, Any]) -> None:
    response = await api.send(method, path, **sent)
    assert (response.headers["cache-control"], response.headers.get("etag")) == ("no-store", None)


async def raw(api: Api, accepted: str, method: str = "POST", path: str = "/graphql", **sent: Any) -> httpx.Response:
    """The answer with its bytes as they were sent."""
    request = api.http.build_request(method, path, headers={"accept-encoding": accepted}, **sent)
    response = await api.http.send(request, stream=True)
    response._content = b"".join([part async for part in response.aiter_raw()])
    await response.aclose()
    return response


@pytest.mark.parametrize("query", [HISTORY % 100, HISTORY % 10_000, "{ __schema { types { name fields { name } } } }"])
async def test_large_answers_are_compressed_for_clients_that_accept_gzip(api: Api, pool: Pool, query: str) -> None:
    """Those that PostgreSQL writes, on and off the event loop, and Strawberry's."""
    await insert_prices(pool, [example_price(NOON + n * MINUTE) for n in range(1000)])
    plain = await raw(api, "identity", json={"query": query})
    assert "content-encoding" not in plain.headers
    assert (len(plain.content) > IN_THREAD_BYTES) == ("10000" in query)
    for accepted in ("gzip", "br, GZIP;q=0.5", "x-gzip"):
        for _ in range(2):
            packed = await raw(api, accepted, json={"query": query})
            assert packed.headers["content-encoding"] == "gzip"
            assert int(packed.headers["content-length"]) == len(packed.content) < len(plain.content) / 2
            assert gzip.decompress(packed.content) == plain.content
            assert packed.headers["vary"] == plain.headers["vary"] == "Accept, Accept-Encoding"
    for refused in ("gzip;q=0", "br", "*;q=0", ""):
        assert (await raw(api, refused, json={"query": query})).content == plain.content


async def test_small_answers_and_event_streams_are_not_compressed(api: Api, tag: str) -> None:
    for query in (QUERY, "{ __typename }"):
        response = await raw(api, "gzip", json={"query": query})
        assert "content-encoding" not in response.headers
    stream = await api.send("POST", "/graphql", json={"query": HISTORY % 100}, headers={"accept": "text/event-stream"})
    assert "content-encoding" not in stream.headers


async def test_the_schema_is_compressed_and_its_tag_is_the_same(api: Api) -> None:
    plain, packed = [await raw(api, accepted, "GET", "/schema.graphql") for accepted in ("identity", "gzip")]
    assert gzip.decompress(packed.content) == plain.content
    assert packed.headers["etag"] == plain.headers["etag"]
    assert (packed.headers["cache-control"], packed.headers["vary"]) == ("no-cache", "Accept-Encoding")


@pytest.mark.parametrize("query", [QUERY, "{ __typename }"])
@pytest.mark.parametrize(("encoding", "status"), [("gzip", 415), ("br, identity", 415), ("Identity", 200)])
async def test_a_compressed_body_is_refused(api: Api, query: str, encoding: str, status: int) -> None:
    body = json.dumps({"query": query}).encode()
    headers = {"content-type": "application/json", "content-encoding": encoding}
    response = await api.send("POST", "/graphql", content=body, headers=headers)
    assert response.status_code == status
    if status == 415:
        assert response.json()["errors"][0]["extensions"] == {"code": "BAD_USER_INPUT"}


COMPILED = '{ latestPrices { price } } # "%s"'
LEFT = '{ __typename } # "%s"'
WAYS = [
    *(f"{method} {accept}" for method in ("POST", "GET") for accept in ("application/json", "text/event-stream")),
    "POST application/graphql-response+json",
    "socket",
]


def persisted(text: str, **changed: object) -> dict[str, Any]:
    return {"persistedQuery": {"version": 1, "sha256Hash": sha256(text.encode()).hexdigest()} | changed}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("document", [COMPILED, LEFT])
async def test_persisted_queries_over_every_transport(settings: Settings, pool: Pool, way: str, document: str) -> None:
    query = document % way
    data: dict[str, Any] = {"latestPrices": []} if document is COMPILED else {"__typename": "Query"}
    answer = {"data": data}
    unknown = {"errors": [{"message": "PersistedQueryNotFound", "extensions": {"code": "PERSISTED_QUERY_NOT_FOUND"}}]}
    refused = 200 if way == "socket" or "event-stream" in way else 400

    async with serve_live(settings) as live, live.socket() as socket:

        async def ask(**sent: Any) -> tuple[int, dict[str, Any]]:
            if way == "socket":
                await socket.send(type="subscribe", id="1", payload=sent)
                message = await socket.receive()
                if message["type"] == "error":
                    return 200, {"errors": message["payload"]}
                assert (await socket.receive())["type"] == "complete"
                return 200, message["payload"]
            method, accept = way.split()
            if method == "GET":
                given = {name: value if isinstance(value, str) else json.dumps(value) for name, value in sent.items()}
                response = await live.http.get("/graphql", params=given, headers={"accept": accept})
            else:
                response = await live.http.post("/graphql", json=sent, headers={"accept": accept})
            text = response.text
            if accept == "text/event-stream":
                [text] = re.findall(r"^data: (.+)$", text, re.MULTILINE)
            return response.status_code, json.loads(text)

        by_hash = persisted(query)
        assert await ask(extensions=by_hash) == (200, unknown)
        assert await ask(query=query, extensions=by_hash) == (200, answer)
        assert await ask(extensions=by_hash) == (200, answer)
        assert await ask(extensions=persisted(query, sha256Hash=by_hash["persistedQuery"]["sha256Hash"].upper())) == (
            (200, answer)
        )
        assert await ask(query=query, operationName="", extensions={}) == (200, answer)
        for wrong in ({"extensions": persisted("other")}, {"extensions": persisted(query, version=2)}):
            status, found = await ask(query=query, **wrong)
            assert (status, found["errors"][0]["extensions"]) == (refused, {"code": "BAD_USER_INPUT"})
        assert await ask(extensions=persisted("other")) == (200, unknown)  # a wrong hash stores nothing


@pytest.mark.parametrize("document", [COMPILED, LEFT])
async def test_the_tag_of_a_persisted_query_is_its_documents(api: Api, pool: Pool, document: str) -> None:
    query = document % "tags"
    await api.send("POST", "/graphql", json={"query": query, "extensions": persisted(query)})
    by_hash = {"extensions": json.dumps(persisted(query))}
    first = await api.send("GET", "/graphql", params=by_hash)
    assert first.headers.get("etag") == (await get(api, query)).headers.get("etag")
    if document is COMPILED:
        known = {"If-None-Match": first.headers["etag"]}
        assert (await api.send("GET", "/graphql", params=by_hash, headers=known)).status_code == 304
