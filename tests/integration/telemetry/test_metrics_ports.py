"""`/metrics`: formats, tokens, outages of PostgreSQL and Redis, and the worker's own port."""

import asyncio
import http.server
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from server.http import prometheus as scrape
from shared.config.settings import Settings
from shared.local.servers import free_port
from shared.storage.database import Pool
from shared.storage.prices import insert_prices
from tests.integration.conftest import Api, serve
from tests.integration.examples import NOON, example_price, insert_schedule_rows

ROOT = Path(__file__).parents[3]
TOKEN = "a-token-of-the-test"
PREFIX = "deribit_collector_"
TICKERS = ("btc_usd", "eth_usd")
SECONDS = 30.0
LIMIT_SECONDS = 4.0
"Two are promised; see test_api_outages.py."
SHARED = ("newest_price", "slots_expected", "slots_present", "workers", "fetches_queued", "deferred_prices")


def told(text: str, parsed: Callable[[str], Iterable[Metric]] = parse) -> dict[tuple[str, ...], float]:
    """By name and the labels' values, in the order of the labels' names."""
    samples = (sample for family in parsed(text) for sample in family.samples)
    return {(sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value for sample in samples}


def as_openmetrics(text: str) -> Iterable[Metric]:
    families: Iterable[Metric] = parse_openmetrics(text)  # type: ignore[no-untyped-call]
    return families


async def test_it_is_read_by_get_and_head(api: Api) -> None:
    read = await api.send("GET", "/metrics")
    headers = (read.headers["content-type"], read.headers["cache-control"])
    assert (read.status_code, headers) == (200, ("text/plain; version=0.0.4; charset=utf-8", "no-store"))
    head = await api.send("HEAD", "/metrics")
    assert (head.status_code, head.text) == (200, "")
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        refused = await api.send(method, "/metrics")
        assert (refused.status_code, set(refused.headers["allow"].split(", "))) == (405, {"GET", "HEAD"}), method


async def test_openmetrics_if_the_client_accepts_it(api: Api, pool: Pool) -> None:
    await insert_prices(pool, [example_price(NOON)])
    accept = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5"
    read = await api.send("GET", "/metrics", headers={"accept": accept})
    assert read.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    plain = await api.send("GET", "/metrics")
    assert [f.name for f in as_openmetrics(read.text) if f.name.startswith("deribit")] == [
        f.name for f in parse(plain.text) if f.name.startswith("deribit")
    ]
    for text in (told(plain.text), told(read.text, as_openmetrics)):
        newest = {ticker: text.get((f"{PREFIX}newest_price_timestamp_seconds", ticker)) for ticker in TICKERS}
        assert newest == {"btc_usd": NOON.timestamp(), "eth_usd": 0}
        assert [ticker for ticker in TICKERS if (f"{PREFIX}newest_price_age_seconds", ticker) in text] == ["btc_usd"]


@pytest.mark.parametrize("interval", [1, 1800, 3600])
async def test_whenever_it_is_asked_an_hour_of_slots_is_told(
    pool: Pool, settings: Settings, monkeypatch: pytest.MonkeyPatch, interval: int
) -> None:
    """A rule that waits for ten minutes sees a slot that is missing, however long a slot is."""
    await insert_schedule_rows(pool, [("btc_usd", NOON - timedelta(days=1), interval)])
    for minutes in range(0, 60, 7):
        now = NOON + timedelta(minutes=minutes, seconds=0.5)
        monkeypatch.setattr(scrape, "datetime", SimpleNamespace(now=lambda _, now=now: now))
        found = await scrape._stored(pool, settings.model_copy(update={"fetch_interval_seconds": interval}))
        assert found is not None
        samples = {(s.name, s.labels["ticker"]): s.value for family in found for s in family.samples}
        assert samples[f"{PREFIX}slots_expected", "btc_usd"] == 3600 / interval, now
        assert samples[f"{PREFIX}slots_present", "btc_usd"] == 0


async def test_it_needs_a_token_if_reads_do(settings: Settings) -> None:
    closed = settings.model_copy(update={"api_token": TOKEN, "require_token_for_reads": True})
    async with serve(closed) as api:
        for authorization in ({}, {"authorization": "Bearer wrong-token"}, {"authorization": f"Basic {TOKEN}"}):
            refused = await api.send("GET", "/metrics", headers=authorization)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert "deribit_collector" not in refused.text
        read = await api.send("GET", "/metrics", headers={"authorization": f"Bearer {TOKEN}"})
        assert (read.status_code, "deribit_collector_requests_total" in read.text) == (200, True)
        assert TOKEN not in read.text


async def test_it_answers_without_postgresql_and_redis(settings: Settings) -> None:
    nowhere = settings.model_copy(
        update={
            "database_url": f"postgresql://u:p@127.0.0.1:{free_port()}/db",
            "redis_url": f"redis://127.0.0.1:{free_port()}/0",
        }
    )
    async with serve(nowhere) as api:
        asked = await api.execute('{ latestPrice(ticker: "btc_usd") { price } }')
        assert asked["errors"][0]["extensions"] == {"code": "STORAGE_UNAVAILABLE"}
        began = time.monotonic()
        read = await api.send("GET", "/metrics")
        assert time.monotonic() - began < LIMIT_SECONDS
    found = told(read.text)
    up = {dependency: found[f"{PREFIX}dependency_up", dependency] for dependency in ("postgres", "redis")}
    assert up == {"postgres": 0, "redis": 0}
    assert found[f"{PREFIX}requests_total", "STORAGE_UNAVAILABLE", "latestPrice"] == 1
    assert [name for name, *_ in found if name.removeprefix(PREFIX).startswith(SHARED)] == []


@asynccontextmanager
async def run_worker(settings: Settings, folder: Path, port: int) -> AsyncIterator[subprocess.Popen[bytes]]:
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "DERIBIT_BASE_URL": f"http://127.0.0.1:{free_port()}/api/v2",
        "METRICS_PORT": str(port),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "worker"], env=env, cwd=folder, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def until_log_has(folder: Path, text: str) -> str:
    deadline = time.monotonic() + SECONDS
    while text not in (log := (folder / "log").read_text()):
        assert time.monotonic() < deadline, log
        await asyncio.sleep(0.05)
    return log


@pytest.mark.usefixtures("pool", "redis")
async def test_a_worker_works_while_its_port_is_taken(settings: Settings, tmp_path: Path) -> None:
    """And is had as soon as it is free; SIGTERM ends the worker and frees it."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        port = other.server_port
        async with run_worker(settings, tmp_path, port) as process, httpx.AsyncClient(trust_env=False) as client:
            log = await until_log_has(tmp_path, "no metrics on HOST=127.0.0.1")
            assert f"METRICS_PORT={port} yet, trying again: OSError: [Errno 98] Address already in use" in log
            await until_log_has(tmp_path, "UNREACHABLE")  # it goes on all the same: healing asks for the chart
            assert process.poll() is None
            other.server_close()
            await until_log_has(tmp_path, f"metrics on http://127.0.0.1:{port}/metrics")
            read = await client.get(f"http://127.0.0.1:{port}/metrics")
            assert (read.status_code, 'requests_total{code="UNREACHABLE"' in read.text) == (200, True)
            assert (await client.post(f"http://127.0.0.1:{port}/metrics")).status_code == 405
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, SECONDS) == 0
            socket.create_server(("127.0.0.1", port)).close()
    log = (tmp_path / "log").read_text()
    assert log.count("no metrics on") == 1
    assert "Traceback" not in log
