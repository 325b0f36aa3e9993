"""One trace from a mutation through Redis to the job's calls and its insert, with and without a collector."""

import asyncio
import json
import logging
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import arq
import pytest
from arq.connections import ArqRedis
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.reads.context import Context
from server.request_ids import remember_request
from server.schema.root import schema
from shared.config.settings import Settings
from shared.local.checks import until_listening
from shared.local.servers import free_port
from shared.queue.client import deserialize, open_redis
from shared.queue.fetches import FetchStatus, enqueue_fetch_prices, select_fetch_job
from shared.queue.jobs import FETCH_SLOT, slot_job_id
from shared.storage.database import Pool
from shared.storage.prices import select_observed_tickers
from shared.telemetry.logs import create_formatter
from shared.telemetry.traces import is_recording, open_traces, recording, span
from tests.integration.api_process import ROOT, ApiProcess, run_api
from tests.integration.jobs.test_retry_slot import run_slot
from tests.integration.jobs.test_slots import arguments_of, running_slot
from tests.integration.queue.test_fetches import BOTH, run_queued
from worker.context import Worker
from worker.runner import create_worker
from worker.simulator.app import Simulator
from worker.simulator.faults import Fault

FETCH = "mutation { fetchPrices { id status } }"
FETCH_ONE = 'mutation { fetchPrices(tickers: ["eth_usd"]) { id status } }'
EXCHANGE = {"server.address": "exchange.test"}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
LONGEST_END_SECONDS = 20
"""Without a collector: two for the spans, and what the process itself takes on a busy machine."""


@dataclass(frozen=True)
class SpanRecord:
    """A span without its times."""

    trace: str
    id: str
    parent: str | None
    name: str
    kind: str
    attributes: dict[str, Any]
    is_error: bool = False
    service: str = ""

    @property
    def summary(self) -> tuple[str, str, dict[str, Any], bool]:
        return self.name, self.kind, self.attributes, self.is_error


def tree(spans: Sequence[SpanRecord], parent: str | None) -> list[Any]:
    """Each span below `parent` with those below it, whatever order they came in."""
    branches = [[span.summary, tree(spans, span.id)] for span in spans if span.parent == parent]
    return sorted(branches, key=partial(json.dumps, sort_keys=True))


def record_of(span: ReadableSpan) -> SpanRecord:
    context, parent = span.get_span_context(), span.parent
    assert context is not None
    return SpanRecord(
        f"{context.trace_id:032x}",
        f"{context.span_id:016x}",
        None if parent is None else f"{parent.span_id:016x}",
        span.name,
        span.kind.name,
        dict(span.attributes or {}),
        not span.status.is_unset,
    )


@contextmanager
def recorded() -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with recording(provider):
        yield exporter


@pytest.fixture(autouse=True)
def _stored_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, one insert takes the prices of all tickers."""
    monkeypatch.setattr("worker.exchange.retries._TOGETHER_SECONDS", 20)


def fetched_together(request_id: str, job_id: str, host: str, tickers: Sequence[str] = BOTH) -> list[Any]:
    """The trace of a fetch as a tree of spans."""
    job = {"job_id": job_id, "function": "fetch_prices"}
    calls = [
        [("get_index_price", "CLIENT", {**job, "ticker": ticker, "server.address": host}, False), []]
        for ticker in tickers
    ]
    insert = [("insert prices", "CLIENT", {**job, "db.system.name": "postgresql", "prices": len(tickers)}, False), []]
    consumer = [("fetch_prices", "CONSUMER", {**job, "job_try": 1}, False), [*calls, insert]]
    server = {"request_id": request_id, "job_id": job_id}
    return [[("mutation fetchPrices", "SERVER", server, False), [consumer]]]


async def ask(context: Context, **headers: str) -> str:
    """The mutation as a request with these headers; answers the job's id."""
    given = [(b"x-request-id", b"mine"), *((name.encode(), value.encode()) for name, value in headers.items())]
    remember_request({"type": "http", "headers": given})
    result = await schema.execute(FETCH, context_value=context)
    assert result.errors is None, result.errors
    assert result.data is not None
    job_id: str = result.data["fetchPrices"]["id"]
    return job_id


async def test_one_trace_from_the_mutation_to_the_insert(context: Context, worker: Worker) -> None:
    with recorded() as exporter:
        job_id = await ask(context, traceparent=f"00-{TRACE}-{PARENT}-01")
        await run_queued(worker)
    spans = [record_of(span) for span in exporter.get_finished_spans()]
    assert tree(spans, PARENT) == fetched_together("mine", job_id, "exchange.test")
    assert ({span.trace for span in spans}, len(spans)) == ({TRACE}, 5)


@pytest.mark.parametrize("traceparent", ["", "00-0-0-01", f"00-{TRACE}-{PARENT}", "x" * 10_000])
async def test_an_invalid_traceparent_is_ignored(context: Context, worker: Worker, traceparent: str) -> None:
    with recorded() as exporter:
        job_id = await ask(context, traceparent=traceparent)
        await run_queued(worker)
    spans = [record_of(span) for span in exporter.get_finished_spans()]
    assert tree(spans, None) == fetched_together("mine", job_id, "exchange.test")
    assert len({span.trace for span in spans}) == 1


async def test_a_slots_job_is_a_trace_of_its_own(worker: Worker) -> None:
    slot = await running_slot(worker)
    with recorded() as exporter:
        await run_slot(worker, slot)
    job = {"job_id": slot_job_id(FETCH_SLOT, *arguments_of({"worker": worker}, slot)), "function": "fetch_slot"}
    at_slot = {**job, "slot": slot.isoformat()}
    parts = [
        *(("get_index_price", "CLIENT", {**at_slot, "ticker": ticker, **EXCHANGE}, False) for ticker in BOTH),
        ("insert prices", "CLIENT", {**at_slot, "db.system.name": "postgresql", "prices": 2}, False),
    ]
    assert tree([record_of(span) for span in exporter.get_finished_spans()], None) == (
        [[("fetch_slot", "CONSUMER", {**job, "job_try": 1}, False), [[part, []] for part in parts]]]
    )


async def test_tracing_loses_no_price_while_redis_is_unavailable(worker: Worker, settings: Settings) -> None:
    """A running slot needs Redis no more; a fetch is retried, as it is without traces."""
    nowhere = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port()}"})
    slot = await running_slot(worker)
    async with open_redis(nowhere, retries=0) as away:
        cut_off = replace(worker, redis=away)
        jobs = create_worker(cut_off, handle_signals=False).functions
        ctx = {"worker": cut_off, "job_id": "slot", "job_try": 1}
        with recorded():
            await jobs["fetch_slot"].coroutine(ctx, *arguments_of(ctx, slot))
            with pytest.raises(arq.Retry):
                await jobs["fetch_prices"].coroutine(ctx | {"job_id": "0" * 32}, ["btc_usd"])
    assert await select_observed_tickers(worker.pool, BOTH, slot) == set(BOTH)


def test_a_log_line_names_its_trace(settings: Settings) -> None:
    formatter = create_formatter(settings.model_copy(update={"log_format": "json"}))
    record = logging.makeLogRecord({"msg": "m"})
    with recorded() as exporter, span("work"):
        line = json.loads(formatter.format(record))
    assert line["trace_id"] == record_of(exporter.get_finished_spans()[0]).trace
    assert "trace_id" not in json.loads(formatter.format(record))


async def test_a_failed_call_notes_its_error_code_only(context: Context, worker: Worker, simulator: Simulator) -> None:
    simulator.faults.put("eth_usd", Fault("maintenance", None, 0))
    with recorded() as exporter:
        await ask(context)
        await run_queued(worker)
    spans = {(span.name, (span.attributes or {}).get("ticker")): span for span in exporter.get_finished_spans()}
    failed = record_of(spans["get_index_price", "eth_usd"])
    assert (failed.is_error, failed.attributes["error.type"]) == (True, "RPC_11051")
    assert [name for name, span in spans.items() if record_of(span).is_error] == [("get_index_price", "eth_usd")]
    assert [(span.status.description, span.events) for span in spans.values()] == [(None, ())] * len(spans)


async def test_a_rate_limit_does_not_mark_the_span_as_failed(context: Context) -> None:
    limited = Context(
        context.pool, context.redis, context.settings.model_copy(update={"fetch_limit_overall": 1}), client="c"
    )
    with recorded() as exporter:
        await schema.execute('mutation { fetchPrices(tickers: ["btc_usd"]) { id } }', context_value=limited)
        await schema.execute('mutation { fetchPrices(tickers: ["eth_usd"]) { id } }', context_value=limited)
    errors = [(span.name, (span.attributes or {}).get("error.type")) for span in exporter.get_finished_spans()]
    assert errors.count(("mutation fetchPrices", "RATE_LIMITED")) == 1
    assert [record_of(span).name for span in exporter.get_finished_spans() if record_of(span).is_error] == []


async def test_releases_with_and_without_traces_run_each_others_jobs(
    context: Context, worker: Worker, redis: ArqRedis
) -> None:
    with recorded():
        traced = await ask(context)
    # What the release before reads: the job's arguments, which it calls its function with, and JSON in the record.
    job = deserialize(await redis.get(f"arq:job:{traced}"))
    assert (job["f"], job["a"], job["k"]) == ("fetch_prices", [["btc_usd", "eth_usd"]], {})
    record = await redis.execute_command("HGETALL", f"fetch:{traced}")
    assert record.keys() == {b"tickers", b"enqueued_at", b"traceparent"}
    assert all(json.loads(value) for value in record.values())
    await run_queued(worker)
    finished = await select_fetch_job(redis, traced)
    assert finished is not None
    assert finished.status is FetchStatus.SUCCEEDED

    untraced = await enqueue_fetch_prices(redis, ["btc_usd"])
    assert await redis.execute_command("HKEYS", f"fetch:{untraced.id}") == [b"tickers", b"enqueued_at"]
    with recorded() as exporter:
        await run_queued(worker)
    spans = [record_of(span) for span in exporter.get_finished_spans()]
    assert [span.name for span in spans if span.parent is None] == ["fetch_prices"]


# --- a collector


class Collector(ThreadingHTTPServer):
    """Receives spans by OTLP over HTTP."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Collecting)
        self.spans: list[SpanRecord] = []
        self.paths: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def note(self, path: str, body: bytes) -> None:
        self.paths.add(path)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = {pair.key: value_of(pair.value) for pair in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [self._record_of(span, attributes["service.name"]) for span in scope.spans]

    def _record_of(self, span: ProtoSpan, service: str) -> SpanRecord:
        return SpanRecord(
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex() or None,
            span.name,
            ProtoSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
            {pair.key: value_of(pair.value) for pair in span.attributes},
            span.status.code == 2,
            service,
        )


class Collecting(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.note(self.path, self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def value_of(value: AnyValue) -> Any:
    return getattr(value, value.WhichOneof("value") or "string_value")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


@contextmanager
def running(module: str, *arguments: str, cwd: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module`, told to end when this ends, its output in a file."""
    env |= {"PYTHONPATH": str(ROOT), "PATH": ""}
    with (cwd / f"{module}.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=cwd, env=env, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(LONGEST_END_SECONDS)
        finally:
            process.kill()


async def finished(api: ApiProcess, job_id: str) -> None:
    async with asyncio.timeout(30):
        while (await api.execute(f'{{ fetchJob(id: "{job_id}") {{ status }} }}'))["data"]["fetchJob"]["status"] != (
            "SUCCEEDED"
        ):
            await asyncio.sleep(0.05)


async def test_api_and_worker_send_one_trace_to_the_collector(
    settings: Settings, pool: Pool, redis: ArqRedis, collector: Collector, tmp_path: Path
) -> None:
    port = free_port()
    variables = {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "DERIBIT_BASE_URL": f"http://127.0.0.1:{port}/api/v2",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"{collector.url}/",
        "LOG_FORMAT": "json",
    }
    with running("worker.simulator", "--port", str(port), cwd=tmp_path):
        await until_listening(port)
        async with run_api(settings, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as api:
            with running("worker", cwd=tmp_path, **variables):
                asked = await api.execute(FETCH_ONE, **{"X-Request-ID": "mine"})
                job_id = asked["data"]["fetchPrices"]["id"]
                await finished(api, job_id)
    # Both have ended, and what they had not sent yet they sent then.
    [trace] = {span.trace for span in collector.spans if span.name == "mutation fetchPrices"}
    spans = [span for span in collector.spans if span.trace == trace]
    assert tree(spans, None) == fetched_together("mine", job_id, "127.0.0.1", ["eth_usd"])
    ours = {"SERVER": "api", "CONSUMER": "worker", "CLIENT": "worker"}
    assert {span.service for span in spans} == {f"deribit-price-collector-{process}" for process in ours.values()}
    assert all(span.service.endswith(ours[span.kind]) for span in spans)
    assert collector.paths == {"/v1/traces"}
    lines = [json.loads(line) for line in (tmp_path / "worker.log").read_text().splitlines()]
    assert lines[0]["message"] == f"traces go to {collector.url}/"
    assert lines[-1]["message"] == "stopped"


class Silent(socketserver.ThreadingTCPServer):
    """Accepts connections and never answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.was_asked = threading.Event()
        self._open: list[Any] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.append(request)
        self.was_asked.set()

    def server_close(self) -> None:
        super().server_close()
        for request in self._open:
            request.close()


async def test_a_silent_collector_delays_nothing(settings: Settings, pool: Pool, redis: ArqRedis) -> None:
    with Silent() as silent:
        thread = threading.Thread(target=silent.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": silent.url, "OTEL_BSP_SCHEDULE_DELAY": "20"}
        async with run_api(settings, FETCH_LIMIT_OVERALL="0", FETCH_LIMIT_PER_CLIENT="0", **endpoint) as api:
            for _ in range(20):
                answer = await api.execute(FETCH)
                assert answer["data"]["fetchPrices"]["status"] == "QUEUED"
            assert await asyncio.to_thread(silent.was_asked.wait, 20)
            began = time.monotonic()
        assert time.monotonic() - began < LONGEST_END_SECONDS
        silent.shutdown()
        thread.join()
    assert "Traceback" not in api.final_log


async def test_missing_packages_are_named_in_one_warning(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    endpoint = {"otel_exporter_otlp_endpoint": "http://127.0.0.1:1"}
    with caplog.at_level(logging.WARNING, "shared.telemetry.traces"):
        async with open_traces(settings.model_copy(update=endpoint), "api"):
            assert not is_recording()
    [message] = caplog.messages
    missing = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    assert message == (
        f"OTEL_EXPORTER_OTLP_ENDPOINT is set, but there will be no traces: the package of {missing} is not installed "
        "(the extra `traces` of this project has it)"
    )
