"""A process's log: one shape, and in each line its request or job."""

import asyncio
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from arq.connections import ArqRedis
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from shared.config.settings import Settings
from shared.local.servers import free_port
from shared.queue.fetches import enqueue_fetch_prices
from shared.queue.jobs import FETCH_PRICES, FETCH_SLOT, slot_job_id
from shared.telemetry.logs import create_formatter
from tests.integration.api_process import ApiProcess, run_api
from tests.integration.jobs.test_retry_slot import run_slot
from tests.integration.jobs.test_slots import arguments_of, running_slot
from tests.integration.live import serve_live
from tests.integration.queue.test_fetches import run_queued
from worker.context import Worker
from worker.simulator.app import Simulator
from worker.simulator.faults import Fault

PLANNED, UNPLANNED = "{ latestPrices { price } }", "{ tickers { name latest { price } } }"
TOKEN = "correct-horse-battery"
MADE = re.compile("[0-9a-f]{32}")
Lines = list[dict[str, Any]]


def lines_of(api: ApiProcess) -> Lines:
    lines: Lines = [json.loads(line) for line in api.log.splitlines()]
    for line in lines:
        assert list(line)[:4] == ["time", "level", "logger", "message"], line
    return lines


async def ask(api: ApiProcess, query: str, *request_ids: str) -> httpx.Response:
    headers = [(b"content-type", b"application/json"), *((b"X-Request-ID", value.encode()) for value in request_ids)]
    response = await api.http.post("/graphql", content=json.dumps({"query": query}), headers=headers)
    assert response.json()["errors"][0]["extensions"]["code"] == "STORAGE_UNAVAILABLE"
    return response


async def use_socket(api: ApiProcess, request_id: str, operation_id: str) -> None:
    """Ask for what the storage has, and be refused; the token is in the handshake and in the payload."""
    url, bearer = f"ws://127.0.0.1:{api.port}/graphql", {"Authorization": f"Bearer {TOKEN}"}
    protocols = [Subprotocol("graphql-transport-ws")]
    headers = {"X-Request-ID": request_id, **bearer}
    async with connect(url, subprotocols=protocols, additional_headers=headers, proxy=None) as socket:
        assert socket.response is not None
        assert socket.response.headers["X-Request-ID"] == request_id
        await socket.send(json.dumps({"type": "connection_init", "payload": bearer}))
        await socket.recv()
        await socket.send(json.dumps({"type": "subscribe", "id": operation_id, "payload": {"query": UNPLANNED}}))
        assert "STORAGE_UNAVAILABLE" in str(await socket.recv())


async def test_each_line_of_the_api_names_its_request(settings: Settings) -> None:
    away = settings.model_copy(update={"database_url": f"postgresql://u:hunter2@127.0.0.1:{free_port()}/none"})
    operation_id = 'an id\nwith "anything" in it'
    async with run_api(away, LOG_FORMAT="json", LOG_LEVEL="debug", API_TOKEN=TOKEN) as api:
        asked: set[str] = set()
        for query in (PLANNED, UNPLANNED):
            for request_ids in ((), ("x" * 65,), ("two words",), ("one", "two"), ("pröxy",)):
                named = (await ask(api, query, *request_ids)).headers["X-Request-ID"]
                assert MADE.fullmatch(named)
                asked.add(named)
            for request_id in ("a", "f" * 64, "Root=1-67891233:abc/d+e.f_g"):
                assert (await ask(api, query, request_id)).headers["X-Request-ID"] == request_id
                asked.add(request_id)
        together = [f"together-{number}" for number in range(20)]
        # No two alike, because requests that are alike share one statement, whose line is about none of them.
        await asyncio.gather(*(ask(api, f"{{ tickers {{ n{n}: name }} }}", name) for n, name in enumerate(together)))
        await use_socket(api, "a-socket", operation_id)
        assert (await api.http.get("/livez", headers={"X-Request-ID": "nothing-said"})).headers["X-Request-ID"] == (
            "nothing-said"
        )

        about = [line for line in lines_of(api) if "request_id" in line]
        assert {line["request_id"] for line in about} == {*asked, *together, "a-socket"}
        assert {line["logger"] for line in about} == {"shared.storage.database"}
        operations = {(line["request_id"], line["operation_id"]) for line in about if "operation_id" in line}
        assert operations == {("a-socket", operation_id)}
    others = [line for line in map(json.loads, api.final_log.splitlines()) if "request_id" not in line]
    assert {line["logger"] for line in others} <= {
        "uvicorn.error",
        "shared.storage.database",
        "server.http.pages",
        "asyncio",
    }
    assert [line["message"] for line in others if "socket" in line["message"].lower()] == []
    assert "Shutting down" in [line["message"] for line in others]
    for secret in (TOKEN, "hunter2"):
        assert secret not in api.final_log


async def test_an_answer_without_a_log_line_has_no_request_id(settings: Settings, redis: ArqRedis) -> None:
    """One that PostgreSQL writes carries no name: there is no line that it would lead to."""
    async with serve_live(settings) as api:
        headers = {"X-Request-ID": "mine"}
        planned = await api.http.post("/graphql", json={"query": PLANNED}, headers=headers)
        by_strawberry = await api.http.post("/graphql", json={"query": '{ fetchJob(id: "a") { id } }'}, headers=headers)
    assert ("X-Request-ID" in planned.headers, by_strawberry.headers["X-Request-ID"]) == (False, "mine")


@pytest.fixture
def lines(settings: Settings) -> Iterator[Callable[[], Lines]]:
    """What is logged in this process, as it would be written."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(create_formatter(settings.model_copy(update={"log_format": "json"})))
    logging.root.addHandler(handler)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logging.root.removeHandler(handler)


def about(line: dict[str, Any]) -> dict[str, Any]:
    return {name: line[name] for name in ("job_id", "function", "slot", "ticker") if name in line}


async def test_each_line_of_a_slots_job_names_it_and_its_ticker(
    worker: Worker, simulator: Simulator, lines: Callable[[], Lines]
) -> None:
    simulator.faults.put("btc_usd", Fault("maintenance", None, 0))
    simulator.faults.put("eth_usd", Fault("wrong_shape", 1, 0))
    slot = await running_slot(worker, seconds_left=4)
    await run_slot(worker, slot)
    job = {
        "job_id": slot_job_id(FETCH_SLOT, *arguments_of({"worker": worker}, slot)),
        "function": "fetch_slot",
        "slot": slot.isoformat(),
    }
    warnings = [line for line in lines() if line["logger"] == "worker.exchange.retries"]
    assert [(about(line), line["message"].split(":")[0]) for line in warnings] == [
        ({**job, "ticker": "btc_usd"}, "btc_usd")
    ]


async def test_arqs_lines_of_concurrent_jobs_name_their_job(
    worker: Worker, simulator: Simulator, redis: ArqRedis, lines: Callable[[], Lines]
) -> None:
    for ticker in ("btc_usd", "eth_usd"):
        simulator.faults.put(ticker, Fault("maintenance", None, 0))
    jobs = {ticker: (await enqueue_fetch_prices(redis, [ticker])).id for ticker in ("btc_usd", "eth_usd")}
    broken = "b" * 32
    await redis.enqueue_job(FETCH_PRICES, 5, _job_id=broken)
    with pytest.raises(Exception, match="1 jobs failed"):
        await run_queued(worker)
    written = [(line["logger"], about(line)) for line in lines() if line["level"] in {"warning", "error"}]
    assert sorted(written, key=str) == sorted(
        [
            *(
                ("worker.exchange.retries", {"job_id": job_id, "function": "fetch_prices", "ticker": ticker})
                for ticker, job_id in jobs.items()
            ),
            ("arq.worker", {"job_id": broken}),
        ],
        key=str,
    )


async def test_a_fault_of_ours_is_found_by_its_error_id_and_its_request(
    settings: Settings, redis: ArqRedis, lines: Callable[[], Lines], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("of ours\nin two lines")

    monkeypatch.setattr("shared.queue.fetches.select_fetch_job", fail)
    query = '{ fetchJob(id: "%s") { status } }' % ("0" * 32)
    async with serve_live(settings) as live:
        response = await live.http.post("/graphql", json={"query": query}, headers={"X-Request-ID": "mine"})
    [error] = response.json()["errors"]
    assert (error["message"], response.headers["X-Request-ID"]) == ("Internal error.", "mine")
    [line] = [line for line in lines() if line["logger"] == "server.schema.errors"]
    assert (line["level"], line["error_id"]) == ("error", error["extensions"]["errorId"])
    assert line["exception"].endswith("RuntimeError: of ours\nin two lines")
