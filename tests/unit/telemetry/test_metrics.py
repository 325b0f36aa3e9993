"""Labels of operations and codes, and histograms."""

import asyncio
import time
from typing import Any

import arq
import pytest
from graphql import GraphQLError
from prometheus_client import generate_latest
from starlette.types import Message

from server.metrics import CountedSockets, Metrics, operation_of
from shared.telemetry.metrics import Timing, create_registry, histogram
from worker import metrics as worker
from worker.exchange.errors import DeribitError

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
def test_an_operation_is_labelled_with_its_field(query: str, operation_name: str | None, operation: str) -> None:
    assert operation_of(query, operation_name) == operation


@pytest.mark.parametrize("code", ["GRAPHQL_PARSE_FAILED", "QUERY_TOO_COMPLEX"])
def test_a_refused_document_is_not_parsed_for_its_label(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.metrics.load_document", lambda _: pytest.fail("it is read"))
    assert operation_of("{ tickers }", None, [GraphQLError("Refused.", extensions={"code": code})]) == "refused"


def test_a_histogram_counts_by_bound() -> None:
    one, other = Timing((0.1, 1.0)), Timing((0.1, 1.0))
    for seconds, timing in ((0.05, one), (0.5, one), (0.5, other), (20, other)):
        timing.add_since(time.perf_counter() - seconds)
    [*samples] = histogram("took_seconds", "Help.", ["what"], [(("it",), [one, other])]).samples
    told = [(s.name.removeprefix(f"{PREFIX}took_seconds_"), s.labels.get("le"), s.value) for s in samples]
    assert told[:4] == [("bucket", "0.1", 1), ("bucket", "1.0", 3), ("bucket", "+Inf", 4), ("count", None, 4)]
    assert told[4][0] == "sum"
    assert 21.05 <= told[4][2] < 22


async def test_each_registry_counts_its_own_app_only() -> None:
    first, second = Metrics(), Metrics()
    first.answered("tickers", "ok", time.perf_counter())
    told = [generate_latest(create_registry(metrics)).decode() for metrics in (first, second)]
    line = 'requests_total{code="ok",operation="tickers"} %s\n'
    assert [line % "1.0" in told[0], line % "0.0" in told[1]] == [True, True]


@pytest.mark.parametrize(
    ("outcome", "error"),
    [("ok", None), ("retried", arq.Retry(1)), ("failed", OSError()), ("cancelled", asyncio.CancelledError())],
)
async def test_a_job_is_counted_by_what_became_of_it(outcome: str, error: BaseException | None) -> None:
    async def job(ctx: dict[Any, Any], *_: Any, **__: Any) -> str:
        if error is not None:
            raise error
        return "done"

    metrics = worker.Metrics((), UNUSED)
    counted = metrics.counted(job, "job")
    if error is None:
        assert await counted({}) == "done"
    else:
        with pytest.raises(type(error)):
            await counted({})
    assert dict(metrics._jobs) == {("job", name): int(name == outcome) for name in worker.OUTCOMES}
    assert counted.__qualname__ == job.__qualname__


async def test_the_number_of_exchange_codes_is_bounded() -> None:
    metrics = worker.Metrics((), UNUSED)
    for number in range(100):
        with pytest.raises(DeribitError):
            async with metrics.calling("get_index_price"):
                raise DeribitError(f"RPC_{number}", "")
    with pytest.raises(ZeroDivisionError):
        async with metrics.calling("get_index_chart_data"):
            raise ZeroDivisionError
    codes = {code: count for (method, code), count in metrics._calls.items() if method == "get_index_price"}
    assert codes == {"ok": 0} | {f"RPC_{n}": 1 for n in range(worker.MOST_CODES)} | {"OTHER": 60}
    assert metrics._calls["get_index_chart_data", "OTHER"] == 1


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
