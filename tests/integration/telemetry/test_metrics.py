"""`/metrics` of the API and of a worker after traffic known to the last request, and what draws and alerts on it."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse
from prometheus_client.samples import Sample
from websockets.exceptions import InvalidStatus

from server.metrics import OUR_CODES, all_labels
from server.schema.root import schema
from shared.config.settings import Settings
from shared.grid import slot_of
from shared.local.servers import free_port
from shared.queue.client import open_redis
from shared.queue.fetches import enqueue_fetch_prices
from shared.queue.worker_registry import report_worker
from shared.storage.database import Pool, create_pool, fetch
from shared.storage.prices import insert_prices, select_latest_prices
from shared.version import VERSION
from tests.integration.examples import MINUTE, example_price, insert_schedule_rows
from tests.integration.jobs.test_slots import arguments_of, running_slot
from tests.integration.live import FOLLOW, LiveApi, serve_live
from tests.promql import asked
from tests.unit.operations.test_monitoring import DRAWN, PROMTOOL, ROOT, RULES, needs_promtool
from worker.context import Worker
from worker.exchange.http import Observation, create_http
from worker.metrics import serve_metrics
from worker.runner import create_worker
from worker.simulator.app import create_app
from worker.simulator.faults import Fault

PREFIX = "deribit_collector_"

Told = dict[tuple[str, ...], float]


class Scrape:
    def __init__(self, text: str) -> None:
        self.text = text
        self.samples: list[Sample] = [sample for family in parse(text) for sample in family.samples]

    def told(self, name: str, *labels: str) -> Told:
        """By the values of these labels, which have to be all that it has."""
        found = [sample for sample in self.samples if sample.name == PREFIX + name]
        assert all(sample.labels.keys() == set(labels) for sample in found), name
        return {tuple(sample.labels[label] for label in labels): sample.value for sample in found}

    def counted(self, name: str, *labels: str) -> Told:
        """As `told`, less what never happened."""
        return {values: count for values, count in self.told(name, *labels).items() if count}


async def scraped(port: int, **headers: str) -> Scrape:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as http:
        response = await http.get(f"http://127.0.0.1:{port}/metrics", headers=headers)
    assert (response.status_code, response.headers["content-type"]) == (
        200,
        "text/plain; version=0.0.4; charset=utf-8",
    )
    return Scrape(response.text)


@dataclass
class Known:
    """Both scrapes, and what they have to agree with."""

    api: Scrape
    worker: Scrape
    began: float
    ended: float
    newest: dict[str, float]
    recovered: Told
    sent: int


PLANNED = '{ latestPrice(ticker: "btc_usd") { price } }'
SENT = [
    {"query": PLANNED},
    {"query": PLANNED},
    {"query": PLANNED},
    {"query": PLANNED, "variables": {}},
    {"query": '{ a: latestPrice(ticker: "btc_usd") { price } b: latestPrices { price } }'},
    {"query": '{ latestPrice(ticker: "doge_usd") { price } }'},
    {"query": "query TheClientsOwnName { tickers { name } }", "operationName": "TheClientsOwnName"},
    {"query": "{ __typename __schema { queryType { name } } }"},
    {"query": "{ nonsense"},
    {"query": "{ nonsense }"},
    {"query": "{ latestPrice { price } }"},
    {"query": "query A { tickers { name } } query B { tickers { name } }", "operationName": "C"},
    {"query": 'mutation { fetchPrices(tickers: ["eth_usd"]) { id } }'},
    {"nothing": 1},
]


async def ask(api: LiveApi) -> None:
    for body in SENT:
        await api.http.post("/graphql", json=body)
    await api.http.get("/graphql", params={"query": "{ tickers { name } }"})
    await api.http.post("/graphql", content="{ tickers { name } }", headers={"content-type": "text/plain"})
    await api.http.options("/graphql")


async def follow(api: LiveApi, pool: Pool) -> None:
    """Sockets that are closed, for every kind of reason."""
    async with api.socket() as socket:
        await socket.subscribe(FOLLOW, tickers=["btc_usd"])
        await socket.subscribe("subscription { nonsense }", "2")
        assert (await socket.receive())["type"] == "error"
        await socket.subscribe("{ tickers { name } }", "3")
        await socket.answer()
        assert (await socket.receive())["type"] == "complete"
        await insert_prices(pool, [example_price(datetime.now(UTC) - timedelta(days=2), "1.5")])
        await socket.price()
        await socket.subscribe('subscription { fetchProgress(id: "0") { status } }', "4")
        assert "errors" in await socket.answer()
    async with api.socket() as socket:
        await socket.send(type="what is this")
        assert (await socket.closed())[0] == 4400
    async with api.open() as socket:
        await socket.connection.close(3210)
    with pytest.raises(InvalidStatus):
        async with api.open(additional_headers={"origin": "https://elsewhere.example"}):
            pass


async def run_job(worker: Worker, name: str, *arguments: Any) -> None:
    """As the schedule has it, at once."""
    job = create_worker(worker, handle_signals=False).functions[name]
    await job.coroutine({"worker": worker, "job_id": name, "job_try": 1}, *arguments)


async def run_queued(worker: Worker, jobs: int) -> None:
    runner = create_worker(worker, burst=True, handle_signals=False, max_burst_jobs=jobs)
    assert await runner.run_check() == jobs


async def work(worker: Worker, faults: Any, away: Pool) -> None:
    """A slot with a fault in it, a hole that is healed, fetches of every outcome, a price that waits."""
    now = slot_of(datetime.now(UTC), MINUTE)
    for ticker in worker.settings.tickers:
        await insert_schedule_rows(worker.pool, [(ticker, now - 30 * MINUTE, 60)])
        there = [now - n * MINUTE for n in range(30, 0, -1) if n not in {10, 11, 12}]
        await insert_prices(worker.pool, [example_price(slot, ticker=ticker) for slot in there])
    await run_job(worker, "heal_gaps")

    faults.put("eth_usd", Fault("nan", None, 0))
    slot = await running_slot(worker, seconds_left=4)
    await run_job(worker, "fetch_slot", *arguments_of({"worker": worker}, slot))
    worker.stream.receive(Observation("btc_usd", Decimal(1), worker.clock.now(), testnet=True))
    for tickers in (["btc_usd"], ["btc_usd", "eth_usd"]):
        await enqueue_fetch_prices(worker.redis, tickers)
    await run_queued(worker, 3)  # with the one of eth_usd that the API was asked for
    faults.remove("eth_usd")
    pool, worker.pool = worker.pool, away
    await enqueue_fetch_prices(worker.redis, ["btc_usd"])
    await run_queued(worker, 1)
    worker.pool = pool
    await enqueue_fetch_prices(worker.redis, ["btc_usd"])


@pytest.fixture(scope="module")
async def known(settings: Settings, _pool: Pool) -> AsyncIterator[Known]:
    began = time.time()
    exchange = create_app()
    nowhere = settings.model_copy(update={"database_url": f"postgresql://u:p@127.0.0.1:{free_port()}/db"})
    own = settings.model_copy(update={"metrics_port": free_port()})
    async with (
        serve_live(settings) as api,
        open_redis(settings, retries=1) as redis,
        create_pool(nowhere, name="nowhere") as away,
        create_http(settings, httpx.ASGITransport(exchange)) as http,
        api.socket() as open_socket,
    ):
        try:
            await open_socket.subscribe(FOLLOW, tickers=["eth_usd"])
            await ask(api)
            await follow(api, _pool)
            worker = Worker(own, _pool, redis, http, name="tests:1")
            await report_worker(redis, worker.name, {})
            serving = asyncio.create_task(serve_metrics(own, worker.metrics.registry))
            try:
                await work(worker, exchange.state.simulator.faults, away)
                newest = {p.ticker: p.timestamp.timestamp() for p in await select_latest_prices(_pool, own.tickers)}
                sql = "select ticker, count(*) as n from prices where source = 'RECOVERED' group by ticker"
                recovered: Told = {(row["ticker"],): float(row["n"]) for row in await fetch(_pool, sql)}
                [row] = await fetch(_pool, "select count(*) from prices where ticker = 'eth_usd'")
                await open_socket.prices(row[0])
                scrapes = await scraped(api.port), await eventually_scraped(own.metrics_port)
                yield Known(*scrapes, began, time.time(), newest, recovered, 1 + row[0])
            finally:
                serving.cancel()
        finally:
            await redis.flushdb()
            await fetch(_pool, "truncate prices, replaced_prices, schedules, missed_slots")


async def eventually_scraped(port: int) -> Scrape:
    """Its thread listens a moment after the worker has begun."""
    until = time.monotonic() + 20
    while True:
        try:
            return await scraped(port)
        except httpx.TransportError:
            assert time.monotonic() < until
            await asyncio.sleep(0.05)


def test_requests_are_counted_by_field_and_code(known: Known) -> None:
    assert known.api.counted("requests_total", "operation", "code") == {
        ("latestPrice", "ok"): 4,
        ("several", "ok"): 1,
        ("latestPrice", "UNKNOWN_TICKER"): 1,
        ("tickers", "ok"): 3,  # by POST, GET and socket
        ("introspection", "ok"): 1,
        ("refused", "GRAPHQL_PARSE_FAILED"): 1,
        ("refused", "GRAPHQL_VALIDATION_FAILED"): 2,  # one of them on a socket
        ("latestPrice", "GRAPHQL_VALIDATION_FAILED"): 1,
        ("fetchPrices", "ok"): 1,
        ("refused", "BAD_USER_INPUT"): 3,  # no such operation, no query, no JSON
        ("priceUpdates", "ok"): 1,
        ("fetchProgress", "BAD_USER_INPUT"): 1,
    }
    assert "TheClientsOwnName" not in known.api.text
    from_the_start = {(name, code) for name in all_labels(schema._schema) for code in OUR_CODES}
    assert from_the_start <= known.api.told("requests_total", "operation", "code").keys()


def test_every_answer_is_timed(known: Known) -> None:
    timed = known.api.told("request_duration_seconds_count", "operation")
    subscribed = {"priceUpdates", "fetchProgress"}
    answered: dict[tuple[str, ...], float] = {}
    for (name, _), count in known.api.counted("requests_total", "operation", "code").items():
        if name not in subscribed:
            answered[name,] = answered.get((name,), 0) + count
    answered["refused",] -= 1  # the subscription
    assert timed == answered
    for (name,), seconds in known.api.told("request_duration_seconds_sum", "operation").items():
        assert 0 < seconds < known.ended - known.began, name
    buckets = known.api.told("request_duration_seconds_bucket", "operation", "le")
    for (name,), count in timed.items():
        ascending = [value for (operation, _), value in buckets.items() if operation == name]
        assert ascending == sorted(ascending)
        assert buckets[name, "+Inf"] == count


def test_what_the_api_holds_and_sends(known: Known) -> None:
    api = known.api
    assert api.told("plan_lookups_total", "result") == {("hit",): 4, ("miss",): 4, ("unplanned",): 8}
    assert (api.told("sockets"), api.told("prices_sent_total")) == ({(): 1}, {(): known.sent})
    assert api.told("subscriptions", "operation") == {("priceUpdates",): 1, ("fetchProgress",): 0}
    assert api.told("sockets_closed_total", "code") == {("1000",): 1, ("4400",): 1, ("other",): 1, ("403",): 1}
    states = api.told("pool_connections", "pool", "state")
    assert states.keys() == {("main", "in_use"), ("main", "idle")}
    assert states["main", "in_use"] == 0
    assert 1 <= states["main", "idle"] <= 10
    assert api.told("pool_connections_max", "pool") == {("main",): 10}
    assert (api.told("pool_waiting", "pool"), api.told("pool_waits_total", "pool")) == ({("main",): 0},) * 2
    assert api.told("pool_timeouts_total", "pool", "kind") == {("main", "wait"): 0, ("main", "statement"): 0}
    assert api.told("build_info", "version") == known.worker.told("build_info", "version") == {(VERSION,): 1}


def test_what_all_processes_share(known: Known) -> None:
    api = known.api
    assert api.told("newest_price_timestamp_seconds", "ticker") == {(t,): at for t, at in known.newest.items()}
    for (ticker,), age in api.told("newest_price_age_seconds", "ticker").items():
        assert known.ended - 30 - known.newest[ticker] < age < known.ended - known.newest[ticker]
    assert api.told("fetch_interval_seconds") == {(): 60}
    assert api.told("dependency_up", "dependency") == {("postgres",): 1, ("redis",): 1}
    assert (api.told("workers"), api.told("fetches_queued"), api.told("deferred_prices")) == ({(): 1}, {(): 1}, {(): 1})
    expected, present = api.told("slots_expected", "ticker"), api.told("slots_present", "ticker")
    assert expected == present
    assert set(expected) == {("btc_usd",), ("eth_usd",)}
    assert all(20 <= count <= 30 for count in expected.values())


def test_what_the_worker_did(known: Known) -> None:
    worker = known.worker
    assert worker.counted("jobs_total", "name", "outcome") == {
        ("heal_gaps", "ok"): 1,
        ("fetch_slot", "ok"): 1,
        ("fetch_requested", "ok"): 4,
    }
    assert worker.told("fetches_total", "outcome") == {("succeeded",): 1, ("partial",): 1, ("failed",): 2}
    assert worker.counted("exchange_requests_total", "method", "code") == {
        ("get_index_price", "ok"): 4,
        ("get_index_price", "BAD_PRICE"): 3,
        ("get_instruments", "ok"): 1,
        ("get_last_trades_by_instrument_and_time", "ok"): 2,
    }
    assert worker.told("exchange_request_duration_seconds_count", "method") == {
        ("get_index_price",): 7,
        ("get_index_chart_data",): 0,
        ("get_instruments",): 1,
        ("get_last_trades_by_instrument_and_time",): 2,
    }
    assert worker.told("slots_stored_total", "ticker") == {("btc_usd",): 1, ("eth_usd",): 0}
    recovered, healed = (worker.told(f"slots_{name}_total", "ticker") for name in ("recovered", "healed"))
    assert recovered == known.recovered
    assert min(known.recovered.values()) >= 3
    assert healed == {("btc_usd",): 0, ("eth_usd",): 0}
    assert worker.told("slots_observed_total", "source") == {("stream",): 0, ("http",): 1}
    assert worker.counted("stream_messages_total", "outcome") == {("used",): 1}
    assert (worker.told("stream_sockets"), worker.counted("stream_reconnects_total", "cause")) == ({(): 0}, {})
    assert worker.told("stream_age_seconds", "ticker")[("btc_usd",)] >= 0
    assert worker.counted("slots_missed_total", "ticker", "reason") == {("eth_usd", "REJECTED_VALUE"): 1}
    assert worker.told("slots_unanswered_total", "ticker") == {("btc_usd",): 0, ("eth_usd",): 0}
    assert worker.told("requested_prices_stored_total", "ticker") == {("btc_usd",): 2, ("eth_usd",): 0}
    assert worker.told("prices_deferred_total") == {(): 1}
    assert worker.told("pool_connections_max", "pool") == {("main",): 10}
    counts = worker.told("job_duration_seconds_count", "name")
    assert {name: count for name, count in counts.items() if count} == {
        ("heal_gaps",): 1,
        ("fetch_slot",): 1,
        ("fetch_requested",): 4,
    }


def names_and_labels(scrapes: Iterable[Scrape]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"up": set()}  # Prometheus's own
    for scrape in scrapes:
        for sample in scrape.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return {name: labels | {"job", "instance"} for name, labels in found.items()}


def test_all_that_is_drawn_and_alerted_on_is_told(known: Known) -> None:
    told = names_and_labels((known.api, known.worker))
    expressions = [*DRAWN, *(rule["expr"] for rule in RULES)]
    used: set[str] = set()
    for expression in expressions:
        wanted = asked(expression)
        assert wanted.metrics, expression
        assert wanted.metrics.keys() <= told.keys(), expression
        for name, labels in wanted.metrics.items():
            assert labels <= told[name], (name, expression)
            used.add(name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count"))
        assert wanted.grouped <= set().union(*(told[name] for name in wanted.metrics)), expression
    families = {family.name for scrape in (known.api, known.worker) for family in parse(scrape.text)}
    own = {name for name in families if name.startswith(PREFIX)}
    assert {name.removesuffix("_total") for name in used} >= own, "told, and neither drawn nor alerted on"
    page = (ROOT / "shared/operations/monitoring.md").read_text(encoding="utf-8")
    assert [name for name in sorted(own) if f"`{name.removeprefix(PREFIX)}" not in page] == []


def test_labels_match_what_they_are_matched_by(known: Known) -> None:
    """A matcher of a value that is never told would be silent for ever."""
    samples = [*known.api.samples, *known.worker.samples]
    for rule in RULES:
        for name, labels in asked(rule["expr"]).metrics.items():
            for label in labels - {"job"}:
                values = {sample.labels[label] for sample in samples if sample.name == name}
                matched = [
                    v for v in values if f'"{v}"' in rule["expr"] or f"{v}|" in rule["expr"] or f"|{v}" in rule["expr"]
                ]
                assert matched, (rule["alert"], name, label, values)


@needs_promtool
@pytest.mark.parametrize("side", ["api", "worker"])
def test_names_and_units_are_as_prometheus_has_them(known: Known, side: str) -> None:
    text: str = getattr(known, side).text
    done = subprocess.run([str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
