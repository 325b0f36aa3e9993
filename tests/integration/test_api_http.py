"""HTTP around GraphQL: methods, bodies, headers, tokens, origins, pages."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from graphql import get_introspection_query

from server.schema.root import schema
from shared.config.settings import Settings
from shared.local.servers import free_port
from shared.storage.database import Pool
from tests.integration.conftest import Api, serve

QUERY = "{ latestPrices { price } }"
FETCH = "mutation { fetchPrices { status } }"
JSON = {"content-type": "application/json"}
TOKEN = "correct-horse-battery"


async def test_a_query_may_come_as_post_or_get(api: Api) -> None:
    expected: dict[str, Any] = {"data": {"latestPrices": []}}
    for response in (
        await api.send("POST", "/graphql", json={"query": QUERY}),
        await api.send("GET", "/graphql", params={"query": QUERY}),
        await api.send("POST", "/graphql", content=json.dumps({"query": QUERY}), headers=JSON),
    ):
        assert (response.status_code, response.json()) == (200, expected)


async def test_variables_and_the_operations_name_may_come_either_way(api: Api) -> None:
    query = (
        'query A($n: Int!) { priceHistory(ticker: "btc_usd", limit: $n) { price } } query B { latestPrices { price } }'
    )
    for name, field in (("A", "priceHistory"), ("B", "latestPrices")):
        body = {"query": query, "variables": {"n": 5}, "operationName": name}
        posted = await api.send("POST", "/graphql", json=body)
        got = await api.send("GET", "/graphql", params=body | {"variables": '{"n": 5}'})
        assert posted.json() == got.json() == {"data": {field: []}}


async def test_a_mutation_by_get_is_refused_and_queues_nothing(api: Api, pool: Pool) -> None:
    response = await api.send("GET", "/graphql", params={"query": FETCH})
    assert 400 <= response.status_code < 500
    [error] = response.json()["errors"]
    assert error["extensions"]["code"] == "BAD_USER_INPUT"
    assert "mutation" in error["message"].lower()
    queued = await api.execute("mutation { fetchPrices { status enqueuedAt startedAt } }")
    assert queued["data"]["fetchPrices"]["status"] == "QUEUED"


MALFORMED: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 400),
    "not JSON": (b"query", 400),
    "half": (b'{"query": "{ a', 400),
    "null": (b"null", 400),
    "number": (b"5", 400),
    "text": (b'"{ latestPrices { price } }"', 400),
    "true": (b"true", 400),
    "list": (b"[]", 400),
    "batch": (json.dumps([{"query": QUERY}]).encode(), 400),
    "batch of null": (b"[null]", 400),
    "object without query": (b"{}", 400),
    "query null": (b'{"query": null}', 400),
    "query a number": (b'{"query": 5}', 400),
    "query a list": (b'{"query": ["{ a }"]}', 400),
    "query empty": (b'{"query": ""}', 400),
    "variables a list": (json.dumps({"query": QUERY, "variables": [1]}).encode(), 400),
    "variables a text": (json.dumps({"query": QUERY, "variables": "x"}).encode(), 400),
    "operation name a number": (json.dumps({"query": QUERY, "operationName": 5}).encode(), 400),
    "extensions a text": (json.dumps({"query": QUERY, "extensions": "x"}).encode(), 400),
    "invalid UTF-8": (b'{"query": "\xff\xfe"}', 400),
    "lone surrogate": (b'{"query": "{ latestPrice(ticker: \\"\\ud800\\") { price } }"}', 200),
    "deep nesting": (b"[" * 100_000, 400),
    "deep variables": (b'{"query": "{ a }", "variables": ' + b'{"a":' * 20_000 + b"1" + b"}" * 20_001, 400),
    "deep document": (json.dumps({"query": "{a" * 900 + "}" * 900}).encode(), 200),
    "many digits": (b'{"query": ' + b"1" * 5_000 + b"}", 400),
    "2 MB": (json.dumps({"query": QUERY + " " * 2_000_000}).encode(), 413),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_body_that_is_no_request_gets_a_coded_answer(api: Api, name: str) -> None:
    body, status = MALFORMED[name]
    response = await api.send("POST", "/graphql", content=body, headers=JSON)
    assert response.status_code == status, response.text
    answer = response.json()
    assert all(error["message"] and error["extensions"]["code"] for error in answer["errors"])
    codes = {error["extensions"]["code"] for error in answer["errors"]}
    assert codes & {"INTERNAL_SERVER_ERROR", "STORAGE_UNAVAILABLE"} == set()


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_another_content_type_is_refused(api: Api, content_type: str) -> None:
    """Among them are those that a page of another origin may send without a preflight."""
    body = json.dumps({"query": FETCH})
    response = await api.send("POST", "/graphql", content=body, headers={"content-type": content_type})
    assert 400 <= response.status_code < 500
    assert response.json()["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


@pytest.mark.parametrize("params", [{}, {"query": ""}, {"query": QUERY, "variables": "{"}, {"query": "\ufffd"}])
async def test_a_get_that_is_no_request_gets_a_coded_answer(api: Api, params: dict[str, str]) -> None:
    response = await api.send("GET", "/graphql", params=params, headers={"accept": "application/json"})
    assert response.status_code in {200, 400, 404}
    assert response.json()["errors"][0]["extensions"]["code"] in {"BAD_USER_INPUT", "GRAPHQL_PARSE_FAILED"}


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
async def test_other_methods_are_refused(api: Api, method: str) -> None:
    response = await api.send(method, "/graphql", json={"query": QUERY})
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert response.json()["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_the_other_pages(api: Api) -> None:
    live = await api.send("GET", "/livez")
    assert (live.status_code, live.text) == (200, "ok\n")
    sdl = await api.send("GET", "/schema.graphql")
    assert (sdl.status_code, sdl.text) == (200, schema.as_str() + "\n")
    assert "type Query {" in sdl.text
    missing = await api.send("GET", "/nothing")
    assert missing.status_code == 404


async def test_the_introspection_of_graphiql_fits_the_limits(api: Api) -> None:
    answer = await api.execute(get_introspection_query())
    assert "errors" not in answer
    assert {"Price", "Coverage", "FetchJob"} <= {one["name"] for one in answer["data"]["__schema"]["types"]}


async def test_a_mutation_needs_the_token_and_a_query_does_not(settings: Settings, api: Api) -> None:
    async with serve(settings.model_copy(update={"api_token": TOKEN})) as guarded:
        refusal = ("UNAUTHENTICATED", "This needs the header `Authorization: Bearer <API_TOKEN>`.")
        for header in ("", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer", f"Bearer {TOKEN[:-1]}"):
            assert await guarded.error(FETCH, Authorization=header) == refusal
        assert await guarded.error(FETCH) == refusal
        garbled = await guarded.send(
            "POST", "/graphql", json={"query": FETCH}, headers=[(b"authorization", b"Bearer \xff\xe9")]
        )
        assert garbled.json()["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"
        assert await guarded.execute(QUERY) == {"data": {"latestPrices": []}}
        for header in (f"Bearer {TOKEN}", f"bearer {TOKEN}"):
            answer = await guarded.execute(FETCH, Authorization=header)
            assert answer == {"data": {"fetchPrices": {"status": "QUEUED"}}}


async def test_only_the_origins_that_are_set_may_read_answers(settings: Settings, api: Api) -> None:
    origin = "https://charts.example"
    preflight = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }

    async def allowed(asked: Api, method: str, by: str, **headers: str) -> str | None:
        body: dict[str, Any] = {"json": {"query": QUERY}} if method == "POST" else {}
        response = await asked.send(method, "/graphql", headers={"origin": by} | headers, **body)
        answer: str | None = response.headers.get("access-control-allow-origin")
        return answer

    async with serve(settings.model_copy(update={"cors_origins": (origin,)})) as open_api:
        assert await allowed(open_api, "POST", origin) == origin
        assert await allowed(open_api, "OPTIONS", origin, **preflight) == origin
        assert await allowed(open_api, "POST", "https://elsewhere.example") is None
        assert await allowed(open_api, "OPTIONS", "https://elsewhere.example", **preflight) is None
    assert await allowed(api, "POST", origin) is None
    assert await allowed(api, "OPTIONS", origin, **preflight) is None


def test_the_server_is_one_plain_command(settings: Settings, pool: Pool, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    port = free_port()
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(root),
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "PORT": str(port),
        "DRAIN_SECONDS": "0",
    }
    command = [sys.executable, "-m", "server"]
    exposed = subprocess.run(
        command, env=env | {"HOST": "0.0.0.0"}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert exposed.returncode == 2
    assert exposed.stderr.count("\n") == 1
    assert "set API_TOKEN, or ALLOW_ANONYMOUS_MUTATIONS=1 to allow that" in exposed.stderr

    with subprocess.Popen(command, env=env, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if b"running on" in line:
                break
        try:
            url = f"http://127.0.0.1:{port}/graphql"
            response = httpx.post(url, json={"query": QUERY}, trust_env=False)
            assert response.json() == {"data": {"latestPrices": []}}
        finally:
            process.terminate()
            process.stderr.read()
        assert process.wait(10) == 0
