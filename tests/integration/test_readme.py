"""README.md: every query and command of its first pages works when pasted, against a server with prices."""

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.config.settings import Settings
from shared.grid import slot_of
from shared.storage.prices import insert_prices
from tests.clients.api import serve_process
from tests.integration.examples import MINUTE, example_price
from worker.context import Worker

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
ADDRESS = "127.0.0.1:8000"
QUERIES = [
    text
    for text in re.findall(r"^```graphql\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    if not text.startswith("subscription")
]
COMMANDS = [
    text for text in re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL) if text.startswith("curl ")
]


@pytest.fixture
async def host(settings: Settings, worker: Worker) -> AsyncIterator[str]:
    """An API with prices of the last minutes."""
    now = slot_of(datetime.now(UTC), timedelta(minutes=1))
    tickers = ("btc_usd", "eth_usd")
    await insert_prices(worker.pool, [example_price(now - MINUTE * i, ticker=t) for i in range(3) for t in tickers])
    async with serve_process(settings) as host:
        yield host


def answered(text: str) -> Any:
    answer = json.loads(text)
    assert "errors" not in answer, text
    return answer["data"]


def test_queries_and_commands_are_found() -> None:
    assert (len(QUERIES), len(COMMANDS)) == (2, 2)


async def test_queries_are_answered_as_pasted(host: str) -> None:
    async with httpx.AsyncClient(base_url=f"http://{host}", trust_env=False) as http:
        answers = [answered((await http.post("/graphql", json={"query": query})).text) for query in QUERIES]
    now, fetch = answers
    assert now["latestPrice"] == {"price": now["latestPrices"][0]["price"]}
    assert len(now["priceHistory"]) == 3
    assert fetch["fetchPrices"]["status"] == "QUEUED"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_commands_are_answered_as_pasted(host: str) -> None:
    outputs = []
    for command in COMMANDS:
        assert ADDRESS in command
        process = await asyncio.create_subprocess_exec(
            "sh",
            "-c",
            command.replace(ADDRESS, host),
            stdout=asyncio.subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "no_proxy": "*"},
        )
        outputs.append(answered((await process.communicate())[0].decode()))
    latest, today = outputs
    assert latest["latestPrice"].keys() == {"price", "timestamp", "observedAt", "source"}
    assert today.keys() == {"pricesInPeriod", "coverage", "candles"}
