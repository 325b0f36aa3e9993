"""`make demo` without make: every query and the mutation, with each digit compared with the simulator's."""

import asyncio
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from shared.local.servers import free_port
from tests.integration.local.test_stack import Demo
from tests.integration.local_processes import needs_linux, wait_until_gone
from worker.simulator.prices import chart_price, spot_price

FIELDS = "ticker price timestamp observedAt source testnet"


def could_be(price: dict[str, Any]) -> set[Decimal]:
    """The prices that the simulator can have sent for this row; they are a function of time."""
    ticker, observed_at = price["ticker"], datetime.fromisoformat(price["observedAt"])
    if price["source"] == "BACKFILLED":
        return {chart_price(ticker, observed_at, s) for s in (6, 60) if observed_at.timestamp() % s == 0}
    # It reads its clock shortly before the reply's timestamp.
    return {spot_price(ticker, observed_at), spot_price(ticker, observed_at - timedelta(milliseconds=50))}


@needs_linux
async def test_the_demo_end_to_end(tmp_path: Path) -> None:
    demo = Demo(tmp_path, free_port(), FETCH_INTERVAL_SECONDS="6")
    try:
        await demo.said("Ready after")
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
        pids = list(demo.children().values())
        demo.process.terminate()
        assert await asyncio.to_thread(demo.process.wait, 30) == 0
        wait_until_gone(pids, 0)
    finally:
        demo.process.kill()
        demo.process.wait()
