"""`make demo` without make: each digit that it answers is the simulator's, and it outlives its servers."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.local.servers import free_port
from tests.integration.local.test_stack import Demo
from tests.integration.local_processes import needs_linux, wait_until_gone
from worker.simulator.prices import chart_price, spot_price

FIELDS = "ticker price timestamp observedAt source testnet"
LATEST = '{ latestPrice(ticker: "btc_usd") { ticker testnet } }'
EXPECTED = {"data": {"latestPrice": {"ticker": "btc_usd", "testnet": True}}}
FOREIGN = {
    **dict.fromkeys(("PGSSLMODE", "PGSSLNEGOTIATION", "PGGSSLIB", "PGTARGETSESSIONATTRS", "PGPORT"), "nonsense"),
    **dict.fromkeys(("PGSSLROOTCERT", "PGSSLCERT", "PGPASSFILE", "SSL_CERT_FILE", "SSL_CERT_DIR"), "/no/such"),
    **dict.fromkeys(("PGHOST", "PGUSER", "PGDATABASE", "PGPASSWORD", "PGSERVICE", "PGOPTIONS"), "elsewhere"),
    **dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"), "socks4://127.0.0.1:9"),
    "NO_PROXY": "fd00::/8,[::1]",
}
"Variables of a user's shell that are not about what the demo starts."


@pytest.fixture
async def demos() -> AsyncIterator[list[Demo]]:
    started: list[Demo] = []
    yield started
    for demo in started:
        demo.process.kill()
        demo.process.wait()


def could_be(price: dict[str, Any]) -> set[Decimal]:
    """The prices that the simulator can have sent for this row; they are a function of time."""
    ticker, observed_at = price["ticker"], datetime.fromisoformat(price["observedAt"])
    if price["source"] == "BACKFILLED":
        return {chart_price(ticker, observed_at, s) for s in (6, 60) if observed_at.timestamp() % s == 0}
    # It reads its clock shortly before the reply's timestamp.
    return {spot_price(ticker, observed_at), spot_price(ticker, observed_at - timedelta(milliseconds=50))}


async def check_every_answer(demo: Demo) -> None:
    """Every query and the mutation, after four scheduled prices."""
    started = None
    while started is None or len(started) < 4:
        await asyncio.sleep(0.2)
        history = (await demo.query(f'{{ priceHistory(ticker: "btc_usd", limit: 50) {{ {FIELDS} }} }}'))["data"]
        started = [price for price in history["priceHistory"] if price["source"] == "SCHEDULED"]
    first, last = started[-1]["timestamp"], started[0]["timestamp"]

    fetched = (await demo.query("mutation { fetchPrices { id status tickers } }"))["data"]["fetchPrices"]
    assert fetched["tickers"] == ["btc_usd", "eth_usd"]
    status = fetched["status"]
    while status in {"QUEUED", "RUNNING"}:
        await asyncio.sleep(0.05)
        job = f'{{ fetchJob(id: "{fetched["id"]}") {{ status failures {{ code }} prices {{ {FIELDS} }} }} }}'
        followed = (await demo.query(job))["data"]["fetchJob"]
        status = followed["status"]
    assert (status, followed["failures"], len(followed["prices"])) == ("SUCCEEDED", [], 2)

    period = f'fromDt: "{first}", toDt: "{last}"'
    answer = await demo.query(f"""{{
        latestPrice(ticker: "BTC_USD", maxAgeSeconds: 5) {{ {FIELDS} }}
        latestPrices {{ {FIELDS} }}
        priceHistory(ticker: "eth_usd", limit: 2000) {{ {FIELDS} }}
        pricesInPeriod(ticker: "btc_usd", {period}) {{ {FIELDS} }}
        coverage(ticker: "btc_usd", {period}) {{ expected present ratio complete gaps {{ reason }} }}
        candles(ticker: "btc_usd", interval: ONE_MINUTE, {period}) {{ start open high low close samples }}
        tickers {{ name intervalSeconds stale lagSeconds latest {{ price }} firstTimestamp }}
    }}""")
    assert "errors" not in answer, answer
    data = answer["data"]
    lists = [data[name] for name in ("latestPrices", "priceHistory", "pricesInPeriod")]
    every = [data["latestPrice"], *followed["prices"], *(price for prices in lists for price in prices)]
    assert len(every) > 500
    for price in every:
        assert Decimal(price["price"]) in could_be(price), price
        assert price["testnet"] is True

    slots = [price["timestamp"] for price in data["pricesInPeriod"] if price["source"] == "SCHEDULED"]
    assert (slots[0], slots[-1], len(slots)) == (first, last, len(started))
    counted = data["coverage"]
    assert (counted["expected"], counted["complete"], counted["gaps"]) == (len(started) - 1, True, [])
    assert sum(candle["samples"] for candle in data["candles"]) >= len(started)
    assert [(t["name"], t["intervalSeconds"], t["stale"]) for t in data["tickers"]] == [
        ("btc_usd", 6, False),
        ("eth_usd", 6, False),
    ]


@needs_linux
async def test_the_demo_from_its_start_to_its_restart(tmp_path: Path, demos: list[Demo]) -> None:
    port = free_port()
    elsewhere = "postgresql://elsewhere/deribit"
    others = {"DATABASE_URL": elsewhere, "DATABASE_READ_URL": elsewhere, "DATABASE_POOLER": "1"}
    demo = Demo(tmp_path, port, FETCH_INTERVAL_SECONDS="6", **others, **FOREIGN)
    demos.append(demo)
    await demo.said("Ready after")
    await demo.said("filled from the trades")
    assert "ignores DATABASE_URL\n" in demo.text()
    assert "elsewhere" not in demo.text()
    await check_every_answer(demo)

    for folder, said in ((tmp_path, f"(pid {demo.process.pid})"), (tmp_path / "other", f"PORT={port + 1} make demo")):
        folder.mkdir(exist_ok=True)
        second = Demo(folder, port)
        demos.append(second)
        assert second.process.wait(10) == 1
        assert said in second.text()
        assert second.text().count("\n") == 1

    before = demo.children()
    assert set(before) == {"server", "worker", "worker.simulator", "postgres", "valkey-server"}
    for name in ("postgres", "valkey-server", "server"):
        os.kill(before[name], signal.SIGKILL)
    for name in ("PostgreSQL", "Valkey", "api"):
        await demo.said(f"{name} ended (killed by SIGKILL); starting it again in 0.5 s")
    await _until_answering(demo)
    pids = [*before.values(), *demo.children().values()]

    demo.process.terminate()
    assert await asyncio.to_thread(demo.process.wait, 30) == 0
    wait_until_gone(pids, 0)

    began = time.monotonic()
    again = Demo(tmp_path, port, FETCH_INTERVAL_SECONDS="6")
    demos.append(again)
    await _until_answering(again)
    assert time.monotonic() - began < 20  # 1.1 s here when nothing else runs
    pids = list(again.children().values())
    again.process.kill()
    again.process.wait()
    wait_until_gone(pids)
    assert len(pids) == 5


async def _until_answering(demo: Demo) -> None:
    while True:
        try:
            if await demo.query(LATEST) == EXPECTED:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.05)
