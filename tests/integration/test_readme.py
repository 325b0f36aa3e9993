"""README.md: every query and command of its first pages works when pasted, against a server with prices."""

import asyncio
import csv
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pandas
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
EXPORTS = [command for command in COMMANDS if "/export/" in command]
[READ_BY_PANDAS, READ_BY_DUCKDB] = re.findall(r"^(?:pandas|duckdb)\..+$", README, re.MULTILINE)


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
    assert (len(QUERIES), len(COMMANDS), len(EXPORTS)) == (2, 3, 1)


async def test_queries_are_answered_as_pasted(host: str) -> None:
    async with httpx.AsyncClient(base_url=f"http://{host}", trust_env=False) as http:
        answers = [answered((await http.post("/graphql", json={"query": query})).text) for query in QUERIES]
    now, fetch = answers
    assert now["latestPrice"] == {"price": now["latestPrices"][0]["price"]}
    assert len(now["priceHistory"]) == 3
    assert fetch["fetchPrices"]["status"] == "QUEUED"


async def run(command: str, host: str, folder: Path) -> str:
    assert ADDRESS in command
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        command.replace(ADDRESS, host),
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "no_proxy": "*"},
        cwd=folder,
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0
    return output


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_commands_are_answered_as_pasted(host: str, tmp_path: Path) -> None:
    latest, today = [answered(await run(command, host, tmp_path)) for command in COMMANDS if command not in EXPORTS]
    assert latest["latestPrice"].keys() == {"price", "timestamp", "observedAt", "source"}
    assert today.keys() == {"pricesInPeriod", "coverage", "candles"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_an_export_is_read_by_pandas_duckdb_and_a_spreadsheet(
    host: str, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prices of today, of which there may be none in the first minute after midnight."""
    monkeypatch.chdir(tmp_path)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    await insert_prices(worker.pool, [example_price(today, "123456789.123456789012345678")])
    [command] = EXPORTS
    await run(command, host, tmp_path)
    with Path("prices.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    frame = eval(READ_BY_PANDAS, {"pandas": pandas})
    assert frame["price"].to_list() == [row["price"] for row in rows]
    assert frame["timestamp"][0] == today == datetime.fromisoformat(rows[0]["timestamp"])
    relation = eval(READ_BY_DUCKDB, {"duckdb": duckdb})
    assert relation.fetchall() == [("SCHEDULED", Decimal("123456789.123456789012345678"))]
