"""GraphQL over HTTP: the audits of the reference implementation, and what they do not cover."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send
from strawberry.extensions import SchemaExtension
from strawberry.schema.config import StrawberryConfig

from server.http.endpoint import GraphQLView
from server.metrics import Metrics
from server.protection.admission import Admission
from server.protection.document_queue import DocumentQueue
from server.reads.context import Context
from server.schema.persisted_queries import PersistedQueries
from server.schema.root import Query, Schema, schema
from server.schema.scalars import SCALARS
from shared.config.settings import Settings
from tests.clients import node
from tests.integration.conftest import Api, serve
from worker.context import Worker

JSON = "application/json; charset=utf-8"
GRAPHQL_RESPONSE = "application/graphql-response+json; charset=utf-8"
ACCEPTS = {JSON: "application/json", GRAPHQL_RESPONSE: "application/graphql-response+json"}
QUERY = "{ latestPrices { price } }"
EMPTY: dict[str, Any] = {"data": {"latestPrices": []}}
FETCH = "mutation { fetchPrices { status } }"
METHODS = "GET, HEAD, OPTIONS, POST"


async def test_all_audits_of_graphql_http_pass(api: Api) -> None:
    await asyncio.to_thread(node.install)
    results = json.loads(await node.run(*node.node(), "audits.mjs", str(api.http.base_url.join("/graphql"))))
    assert [result for result in results if result["status"] != "ok"] == []
    assert len(results) == 61


def coded(response: httpx.Response) -> tuple[int, str, str | None]:
    """(status, media type, code) of an answer that has one error and no data."""
    answer = response.json()
    assert list(answer) == ["errors"]
    [error] = answer["errors"]
    assert error["message"]
    return response.status_code, response.headers["content-type"], error["extensions"]["code"]


# None of these is executed.
REQUEST_ERRORS = {
    "no document": ("{ latestPrices { ", None, "GRAPHQL_PARSE_FAILED"),
    "not of the schema": ("{ nothing }", None, "GRAPHQL_VALIDATION_FAILED"),
    "too complex": ("{ " + " ".join(f"a{n}: __typename" for n in range(51)) + " }", None, "QUERY_TOO_COMPLEX"),
    "variable missing": ("query ($n: Int!) { __typename @skip(if: false) }", None, "GRAPHQL_VALIDATION_FAILED"),
    "variable null": (
        'query ($n: Int!) { priceHistory(ticker: "btc_usd", limit: $n) { price } }',
        None,
        "BAD_USER_INPUT",
    ),
    "no such operation": ("query A { __typename } query B { __typename }", "C", "BAD_USER_INPUT"),
    "which operation": ("query A { __typename } query B { __typename }", None, "GRAPHQL_VALIDATION_FAILED"),
    "no operation": ("fragment F on Query { __typename }", None, "BAD_USER_INPUT"),
}


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("media_type", ACCEPTS)
@pytest.mark.parametrize("name", REQUEST_ERRORS)
async def test_a_request_error_has_no_data_and_status_400_only_with_graphql_response_json(
    api: Api, name: str, media_type: str, method: str
) -> None:
    query, operation_name, code = REQUEST_ERRORS[name]
    sent = {"query": query} | ({"operationName": operation_name} if operation_name else {})
    body = {"json" if method == "POST" else "params": sent}
    response = await api.send(method, "/graphql", headers={"accept": ACCEPTS[media_type]}, **body)
    assert coded(response) == (400 if media_type == GRAPHQL_RESPONSE else 200, media_type, code)


@pytest.mark.parametrize("media_type", ACCEPTS)
@pytest.mark.parametrize(
    ("query", "data", "codes"),
    [
        ('{ latestPrice(ticker: "x_usd") { price } }', {"latestPrice": None}, ["UNKNOWN_TICKER"]),
        (
            '{ latestPrices { price } bad: priceHistory(ticker: "btc_usd", limit: 0) { price } }',
            {"latestPrices": [], "bad": None},
            ["BAD_USER_INPUT"],
        ),
        ('mutation { fetchPrices(tickers: ["x_usd"]) { id } }', None, ["UNKNOWN_TICKER"]),
    ],
)
async def test_a_field_error_keeps_the_data_and_status_200(
    api: Api, query: str, data: Any, codes: list[str], media_type: str
) -> None:
    response = await api.send("POST", "/graphql", json={"query": query}, headers={"accept": ACCEPTS[media_type]})
    answer = response.json()
    assert (response.status_code, response.headers["content-type"]) == (200, media_type)
    assert answer["data"] == data
    assert [error["extensions"]["code"] for error in answer["errors"]] == codes


class Faulty(SchemaExtension):
    def on_validate(self) -> Iterator[None]:
        self.execution_context.query = f"secret {1 // 0}"
        yield


@pytest.mark.parametrize(("media_type", "status"), [(JSON, 200), (GRAPHQL_RESPONSE, 500)])
async def test_an_internal_fault_has_status_500_only_with_graphql_response_json(
    context: Context, media_type: str, status: int
) -> None:
    faulty = Schema(query=Query, extensions=[Faulty], config=StrawberryConfig(scalar_map=SCALARS))
    view = GraphQLView(faulty, PersistedQueries(), Metrics())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        state = {"pool": context.pool, "redis": context.redis, "settings": context.settings, "feeds": None}
        state["admission"] = Admission(context.pool)
        await view({**scope, "state": state}, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api.test") as http:
        response = await http.post("/graphql", json={"query": QUERY}, headers={"accept": ACCEPTS[media_type]})
    assert coded(response) == (status, media_type, "INTERNAL_SERVER_ERROR")
    assert "zero" not in response.text


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, JSON),
        ("*/*", JSON),
        ("application/json", JSON),
        ("application/graphql-response+json", GRAPHQL_RESPONSE),
        ("application/graphql-response+json, application/json;q=0.9", GRAPHQL_RESPONSE),
        ("application/json, application/graphql-response+json;q=0.9", JSON),
    ],
)
@pytest.mark.parametrize("query", [QUERY, "{ tickers { __typename } latestPrices { price } }"])
async def test_the_answer_has_the_accepted_media_type(
    api: Api, query: str, accept: str | None, media_type: str
) -> None:
    """PostgreSQL writes the answer to the first query, Strawberry that to the second."""
    client = api.http
    for method, body in (("POST", {"json": {"query": query}}), ("GET", {"params": {"query": query}})):
        request = client.build_request(method, "/graphql", **body)  # type: ignore[arg-type]
        request.headers.pop("accept")
        if accept:
            request.headers["accept"] = accept
        response = await client.send(request)
        assert (response.status_code, response.headers["content-type"]) == (200, media_type)
        assert response.json()["data"]["latestPrices"] == []


async def test_several_accept_headers_count_as_one(api: Api) -> None:
    headers = [("accept", "text/html"), ("accept", "application/graphql-response+json")]
    for query in (QUERY, "{ __typename }"):
        response = await api.send("POST", "/graphql", json={"query": query}, headers=headers)
        assert response.headers["content-type"] in {GRAPHQL_RESPONSE, JSON}
        assert response.status_code == 200


@pytest.mark.parametrize("accept", ["text/html", "image/png", "application/jsonp", "application/json;q=0"])
@pytest.mark.parametrize("query", [QUERY, FETCH])
async def test_a_client_that_accepts_no_offered_type_gets_406_and_nothing_runs(
    api: Api, worker: Worker, query: str, accept: str
) -> None:
    response = await api.send("POST", "/graphql", json={"query": query}, headers={"accept": accept})
    assert coded(response) == (406, JSON, "BAD_USER_INPUT")
    assert await worker.redis.keys("*") == []


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/graphql",
        "text/plain; application/json",
    ],
)
@pytest.mark.parametrize("query", [QUERY, FETCH])
async def test_a_body_that_is_not_json_in_utf_8_is_refused(
    api: Api, worker: Worker, query: str, content_type: str | None
) -> None:
    """Among them are those that a page of another origin may send without a preflight."""
    headers = {} if content_type is None else {"content-type": content_type}
    response = await api.send("POST", "/graphql", content=json.dumps({"query": query}), headers=headers)
    assert coded(response) == (415, JSON, "BAD_USER_INPUT")
    assert await worker.redis.keys("*") == []


@pytest.mark.parametrize("content_type", ["application/json", "application/json;charset=UTF-8", "Application/JSON"])
async def test_each_spelling_of_json_in_utf_8_is_accepted(api: Api, content_type: str) -> None:
    response = await api.send(
        "POST", "/graphql", content=json.dumps({"query": QUERY}), headers={"content-type": content_type}
    )
    assert (response.status_code, response.json()) == (200, EMPTY)


NO_JSON = {
    "UTF-16": json.dumps({"query": QUERY}).encode("utf-16"),
    "UTF-32": json.dumps({"query": QUERY}).encode("utf-32-le"),
    "half a surrogate pair": b'{"query": "{ latestPrices { price } }", "operationName": "\xed\xa0\x80"}',
    "NaN": b'{"query": "{ latestPrices { price } }", "variables": {"n": NaN}}',
    "infinity": b'{"query": "{ latestPrices { price } }", "variables": {"n": -Infinity}}',
    "two": b'{"query": "{ latestPrices { price } }"}{}',
}


@pytest.mark.parametrize("media_type", ACCEPTS)
@pytest.mark.parametrize("name", NO_JSON)
async def test_invalid_json_is_refused(api: Api, name: str, media_type: str) -> None:
    headers = {"content-type": "application/json", "accept": ACCEPTS[media_type]}
    response = await api.send("POST", "/graphql", content=NO_JSON[name], headers=headers)
    assert coded(response) == (400, media_type, "BAD_USER_INPUT")


async def test_a_batch_is_refused_and_nothing_runs(api: Api, worker: Worker) -> None:
    response = await api.send("POST", "/graphql", json=[{"query": FETCH}, {"query": FETCH}])
    assert coded(response) == (400, JSON, "BAD_USER_INPUT")
    assert await worker.redis.keys("*") == []


async def test_a_body_over_the_limit_is_refused(api: Api) -> None:
    response = await api.send("POST", "/graphql", json={"query": QUERY, "extensions": {"pad": "x" * 1024 * 1024}})
    assert coded(response) == (413, JSON, "BAD_USER_INPUT")


async def test_a_get_runs_no_mutation(api: Api, worker: Worker) -> None:
    both = f"query Read {QUERY} mutation Write {{ fetchPrices {{ status }} }}"
    for params in ({"query": FETCH}, {"query": both, "operationName": "Write"}):
        for accept in ("*/*", "application/graphql-response+json", "text/event-stream"):
            response = await api.send("GET", "/graphql", params=params, headers={"accept": accept})
            assert coded(response)[::2] == (405, "BAD_USER_INPUT")
            assert response.headers["allow"] == "POST"
    assert await worker.redis.keys("*") == []
    read = await api.send("GET", "/graphql", params={"query": both, "operationName": "Read"})
    assert (read.status_code, read.json()) == (200, EMPTY)


async def test_an_empty_parameter_of_a_get_counts_as_absent(api: Api) -> None:
    params = {"query": QUERY, "operationName": "", "variables": "", "extensions": ""}
    response = await api.send("GET", "/graphql", params=params)
    assert (response.status_code, response.json()) == (200, EMPTY)
    for name in ("variables", "extensions"):
        for value in ("{", "[1]", '"x"', "NaN"):
            assert coded(await api.send("GET", "/graphql", params=params | {name: value}))[0] == 400
    assert coded(await api.send("GET", "/graphql"))[0] == 400


async def test_a_head_is_a_get_without_its_body(api: Api) -> None:
    got = await api.send("GET", "/graphql", params={"query": QUERY})
    head = await api.send("HEAD", "/graphql", params={"query": QUERY})
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length", "vary"):
        assert head.headers[name] == got.headers[name]
    assert (await api.send("HEAD", "/graphql", params={"query": FETCH})).status_code == 405
    streamed = await api.send("HEAD", "/graphql", params={"query": QUERY}, headers={"accept": "text/event-stream"})
    assert streamed.status_code == 406


async def test_options_and_405_list_the_methods(api: Api) -> None:
    options = await api.send("OPTIONS", "/graphql")
    assert (options.status_code, options.content, options.headers["allow"]) == (204, b"", METHODS)
    for method in ("PUT", "DELETE", "PATCH", "TRACE"):
        response = await api.send(method, "/graphql", headers={"content-type": "application/json"})
        assert coded(response) == (405, JSON, "BAD_USER_INPUT")
        assert response.headers["allow"] == METHODS


async def test_the_answer_varies_by_accept(api: Api) -> None:
    for params in ({"query": QUERY}, {"query": "{"}, {}):
        response = await api.send("GET", "/graphql", params=params, headers={"accept": "application/json"})
        assert response.headers["vary"] == "Accept, Accept-Encoding"


def events(response: httpx.Response) -> list[tuple[str, str]]:
    """(event, data) of each, without the comments that keep a connection alive."""
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = (block.splitlines() for block in response.text.strip().split("\n\n") if not block.startswith(":"))
    return [tuple(line.partition(":")[2].strip() for line in block) for block in blocks]  # type: ignore[misc]


async def test_an_event_stream_of_a_query_is_its_answer_and_an_end(api: Api) -> None:
    for method, body in (("POST", "json"), ("GET", "params")):
        headers = {"accept": "text/event-stream"}
        response = await api.send(method, "/graphql", headers=headers, **{body: {"query": QUERY}})
        assert response.status_code == 200
        assert events(response) == [("next", json.dumps(EMPTY, separators=(",", ":"))), ("complete", "")]


async def test_an_event_stream_of_a_faulty_query_has_the_error_as_an_event(api: Api) -> None:
    headers = {"accept": "text/event-stream"}
    response = await api.send("POST", "/graphql", headers=headers, json={"query": "{ nothing }"})
    [(event, data), end] = events(response)
    assert (response.status_code, event, end) == (200, "next", ("complete", ""))
    answer = json.loads(data)
    assert list(answer) == ["errors"]
    assert [error["extensions"]["code"] for error in answer["errors"]] == ["GRAPHQL_VALIDATION_FAILED"]


async def test_a_subscription_over_plain_http_is_refused(api: Api) -> None:
    subscription = 'subscription { fetchProgress(id: "none") { status } }'
    for media_type, accept in ACCEPTS.items():
        for method, body in (("POST", "json"), ("GET", "params")):
            response = await api.send(method, "/graphql", headers={"accept": accept}, **{body: {"query": subscription}})
            assert coded(response) == (406, media_type, "BAD_USER_INPUT")


async def test_the_schema_is_sent_again_only_if_it_has_changed(api: Api) -> None:
    response = await api.send("GET", "/schema.graphql")
    assert (response.status_code, response.text) == (200, schema.as_str() + "\n")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    known = {"if-none-match": response.headers["etag"]}
    again = await api.send("GET", "/schema.graphql", headers=known)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", response.headers["etag"])
    other = await api.send("GET", "/schema.graphql", headers={"if-none-match": '"other"'})
    assert (other.status_code, other.text) == (200, response.text)


ORIGIN, ELSEWHERE = "https://charts.example", "https://elsewhere.example"
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "accept,authorization,content-type",
}


def cors(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-")}


async def test_pages_of_cors_origins_may_send_requests_and_read_answers(settings: Settings, api: Api) -> None:
    async with serve(settings.model_copy(update={"cors_origins": (ORIGIN,)})) as open_api:
        preflight = await open_api.send("OPTIONS", "/graphql", headers={"origin": ORIGIN} | PREFLIGHT)
        assert preflight.status_code == 200
        allowed = cors(preflight)
        assert (allowed["access-control-allow-origin"], allowed["access-control-max-age"]) == (ORIGIN, "7200")
        assert allowed["access-control-allow-methods"] == "GET, POST"
        assert allowed["access-control-allow-headers"] == PREFLIGHT["access-control-request-headers"]
        assert "access-control-allow-credentials" not in allowed
        assert "Origin" in preflight.headers["vary"]
        readable = {
            "access-control-allow-origin": ORIGIN,
            "access-control-expose-headers": "Content-Disposition, ETag, Retry-After, X-Request-ID",
        }
        for number, accept in enumerate((*ACCEPTS.values(), "text/event-stream", "image/png")):
            for query in (QUERY, "{ __typename }", "{"):  # by PostgreSQL, by Strawberry, by nobody
                headers = {"origin": ORIGIN, "accept": accept}
                response = await open_api.send("POST", "/graphql", json={"query": query}, headers=headers)
                assert (response.status_code == 406) == (number == 3)
                assert cors(response) == readable
                assert "Origin" in response.headers["vary"].split(", ")
        for refused in (
            await open_api.send("OPTIONS", "/graphql", headers={"origin": ELSEWHERE} | PREFLIGHT),
            await open_api.send("POST", "/graphql", json={"query": QUERY}, headers={"origin": ELSEWHERE}),
            await open_api.send("POST", "/graphql", json={"query": QUERY}),
        ):
            assert "access-control-allow-origin" not in refused.headers
            assert "Origin" in refused.headers["vary"]  # so that no cache gives it to the origin that may


@pytest.mark.parametrize("origins", [(ORIGIN,), ("*",)])
@pytest.mark.parametrize(
    "asked",
    [
        "apollo-require-preflight,apollographql-client-name,apollographql-client-version,authorization,content-type",
        "traceparent, tracestate",
        "sentry-trace, baggage",
        "Cache-Control,X-Requested-With",
        "x-anything-else",
    ],
)
async def test_allowed_origins_may_send_any_header(settings: Settings, origins: tuple[str, ...], asked: str) -> None:
    """By name, because `*` does not cover Authorization."""
    async with serve(settings.model_copy(update={"cors_origins": origins})) as open_api:
        headers = {**PREFLIGHT, "access-control-request-headers": asked}
        allowed = await open_api.send("OPTIONS", "/graphql", headers={"origin": ORIGIN} | headers)
        assert (allowed.status_code, cors(allowed)["access-control-allow-headers"]) == (200, asked)


async def test_no_cache_keeps_an_answer_that_says_nothing_else(api: Api) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/nothing", "/assets/nothing.js", "/graphql?query=%7B", "/graphql"):
        response = await api.send("GET", path, headers={"accept": "application/json"})
        assert (path, response.headers.get_list("cache-control")) == (path, ["no-store"])
    refused = await api.send("DELETE", "/graphql")
    assert (refused.status_code, refused.headers["cache-control"]) == (405, "no-store")


async def test_with_a_wildcard_every_origin_may_read_answers(settings: Settings, api: Api) -> None:
    async with serve(settings.model_copy(update={"cors_origins": ("*",)})) as open_api:
        for headers in ({"origin": ORIGIN}, {"origin": ORIGIN, "cookie": "a=b"}):
            response = await open_api.send("POST", "/graphql", json={"query": QUERY}, headers=headers)
            assert response.json() == EMPTY
            assert response.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in response.headers


async def test_without_cors_origins_there_are_no_cors_headers(api: Api) -> None:
    for response in (
        await api.send("OPTIONS", "/graphql", headers={"origin": ORIGIN} | PREFLIGHT),
        await api.send("POST", "/graphql", json={"query": QUERY}, headers={"origin": ORIGIN}),
        await api.send("GET", "/graphql", params={"query": QUERY}, headers={"origin": ORIGIN}),
    ):
        assert response.status_code < 300
        assert cors(response) == {}
        assert "Origin" not in response.headers.get("vary", "")


LONG_DOCUMENTS = {
    "compiled": ("{ latestPrices { %s } }", "application/json"),
    "by Strawberry": ('{ fetchJob(id: "0") { %s } }', "application/json"),
    "refused": ("{ nothing { %s } }", "application/json"),
    "an event stream": ('subscription { priceUpdates(tickers: ["x"]) { %s } }', "text/event-stream"),
}


@pytest.mark.parametrize("name", LONG_DOCUMENTS)
async def test_a_long_document_waits_for_one_turn(api: Api, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    turns: list[DocumentQueue] = []
    wait = DocumentQueue.wait

    async def count(queue: DocumentQueue) -> None:
        turns.append(queue)
        await wait(queue)

    monkeypatch.setattr(DocumentQueue, "wait", count)
    document, accept = LONG_DOCUMENTS[name]
    body = {"query": document % ("__typename " * 200)}
    response = await api.send("POST", "/graphql", json=body, headers={"Accept": accept})
    assert response.status_code == 200
    assert len(turns) == 1
