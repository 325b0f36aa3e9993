"""Labels of operations and codes, and histograms."""

import asyncio
import time
from typing import Any

import arq
import pytest
from graphql import GraphQLError
from prometheus_client import Counter, generate_latest
from starlette.types import Message

from server.metrics import CountedSockets, Metrics, operation_label
from server.schema.documents import GraphQLRequest
from server.schema.root import schema
from shared.telemetry.metrics import Timing, create_registry, histogram
from tests.unit.replies import settings_for
from worker import metrics as worker
from worker.context import Worker
from worker.exchange.errors import DeribitError
from worker.instrument import instrumented

UNUSED: Any = None
PREFIX = "deribit_collector_"


@pytest.mark.parametrize(
    ("query", "operation_name", "operation"),
    [
        ("{ latestPrice { price } }", None, "latestPrice"),
        ("query Name { name: latestPrice { price } also: latestPrice { price } __typename }", "Name", "latestPrice"),
        ("{ latestPrice latestPrices }", None, "several"),
        ("{ ...F } fragment F on Query { tickers { name } ... on Query { tickers { name } } }", None, "tickers"),
        ("{ ...F } fragment F on Query { tickers ...G } fragment G on Query { ...F coverage }", None, "several"),
        ("mutation { fetchPrices { id } }", None, "fetchPrices"),
        ("subscription { priceUpdates { price } }", None, "priceUpdates"),
        ("{ __schema { types { name } } __typename }", None, "introspection"),
        ("{ __schema { types { name } } tickers { name } }", None, "tickers"),
        ("query A { tickers } query B { coverage }", "B", "coverage"),
        ("query A { tickers } query B { coverage }", "C", "refused"),
        ("query A { tickers } query B { coverage }", None, "refused"),
        ("{ nonsense }", None, "refused"),
        ("{ tickers nonsense }", None, "refused"),
        ("{ ...Missing }", None, "refused"),
        ("{ nonsense", None, "refused"),
        ("", None, "refused"),
        ("{ tickers }" + " " * 20_000, None, "refused"),
    ],
)
def test_the_label_of_an_operation_is_its_root_field(query: str, operation_name: str | None, operation: str) -> None:
    assert operation_label(schema._schema, GraphQLRequest(query, operation_name)) == operation


@pytest.mark.parametrize(
    ("variables", "operation"),
    [({"all": True}, "several"), ({"all": False}, "tickers"), ({}, "tickers"), ({"all": "what"}, "refused")],
)
def test_the_label_follows_skip_and_include(variables: dict[str, Any], operation: str) -> None:
    query = """query ($all: Boolean = false, $limit: Int!) {
        tickers { name } ... @include(if: $all) { latestPrices { price } } coverage @skip(if: true) { ratio }
    }"""
    assert operation_label(schema._schema, GraphQLRequest(query, None, variables)) == operation


@pytest.mark.parametrize("code", ["GRAPHQL_PARSE_FAILED", "QUERY_TOO_COMPLEX"])
def test_a_document_that_could_not_be_parsed_is_not_parsed_again(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.metrics.load_document", lambda _: pytest.fail("it is parsed"))
    errors = [GraphQLError("Refused.", extensions={"code": code})]
    assert operation_label(schema._schema, GraphQLRequest("{ tickers }"), errors) == "refused"


def test_durations_are_counted_by_bucket() -> None:
    one, other = Timing((0.1, 1.0)), Timing((0.1, 1.0))
    for seconds, timing in ((0.05, one), (0.5, one), (0.5, other), (20, other)):
        timing.add_since(time.perf_counter() - seconds)
    [*samples] = histogram("took_seconds", "Help.", ["what"], [(("it",), [one, other])]).samples
    told = [(s.name.removeprefix(f"{PREFIX}took_seconds_"), s.labels.get("le"), s.value) for s in samples]
    assert told[:4] == [("bucket", "0.1", 1), ("bucket", "1.0", 3), ("bucket", "+Inf", 4), ("count", None, 4)]
    assert told[4][0] == "sum"
    assert 21.05 <= told[4][2] < 22


async def test_registries_are_of_one_app_or_worker_alone() -> None:
    first, second = Metrics(["tickers"]), Metrics(["tickers"])
    first.answered("tickers", "ok", time.perf_counter())
    told = [generate_latest(create_registry(metrics)).decode() for metrics in (first, second)]
    line = 'requests_total{code="ok",operation="tickers"} %s\n'
    assert [line % "1.0" in told[0], line % "0.0" in told[1]] == [True, True]


def counts(counter: Counter) -> list[tuple[dict[str, str], float]]:
    """Labels and value of each series of a counter."""
    [family] = counter.collect()
    return [(sample.labels, sample.value) for sample in family.samples]


@pytest.mark.parametrize(
    ("outcome", "error"),
    [("ok", None), ("retried", arq.Retry(1)), ("failed", OSError()), ("cancelled", asyncio.CancelledError())],
)
async def test_a_job_is_counted_by_what_became_of_it(outcome: str, error: BaseException | None) -> None:
    async def job(ctx: dict[Any, Any], *_: Any, **__: Any) -> str:
        if error is not None:
            raise error
        return "done"

    collector = Worker(settings_for(), UNUSED, UNUSED, UNUSED, name="unit:1")
    counted = instrumented(collector, job, "job")
    if error is None:
        assert await counted({}) == "done"
    else:
        with pytest.raises(type(error)):
            await counted({})
    runs = {labels["outcome"]: n for labels, n in counts(collector.metrics._jobs) if labels["name"] == "job"}
    assert runs == {name: int(name == outcome) for name in worker.OUTCOMES}
    assert counted.__qualname__ == job.__qualname__


async def test_the_number_of_exchange_codes_is_bounded() -> None:
    metrics = worker.Metrics((), UNUSED, UNUSED)
    for number in range(100):
        with pytest.raises(DeribitError):
            async with metrics.calling("get_index_price"):
                raise DeribitError(f"RPC_{number}", "")
    with pytest.raises(ZeroDivisionError):
        async with metrics.calling("get_index_chart_data"):
            raise ZeroDivisionError
    calls = counts(metrics._calls)
    codes = {labels["code"]: n for labels, n in calls if labels["method"] == "get_index_price"}
    assert codes == {"ok": 0} | {f"RPC_{n}": 1 for n in range(worker.MAX_CODES)} | {"OTHER": 60}
    assert ({"method": "get_index_chart_data", "code": "OTHER"}, 1) in calls


@pytest.mark.parametrize(
    ("sent", "received", "code"),
    [
        (["accept"], 1000, "1000"),
        (["accept"], 1012, "1012"),
        (["accept"], 4999, "other"),
        (["accept"], 65_536, "other"),
        (["accept", 4400], None, "4400"),
        (["accept", 1013], None, "1013"),
        ([None], None, "403"),
        (["accept"], None, "1006"),
    ],
)
async def test_a_socket_is_counted_by_why_it_was_closed(sent: list[Any], received: int | None, code: str) -> None:
    metrics = Metrics()
    open_then = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for one in sent:
            await send({"type": "websocket.accept"} if one == "accept" else {"type": "websocket.close", "code": one})
            open_then.append(metrics.sockets)
        if received:
            await receive()

    async def receive() -> Message:
        return {"type": "websocket.disconnect", "code": received}

    async def send(message: Message) -> None: ...

    await CountedSockets(app, metrics)({}, receive, send)
    assert dict(metrics._closed) == {(code,): 1}
    assert (open_then[0], metrics.sockets) == (int(sent[0] == "accept"), 0)
