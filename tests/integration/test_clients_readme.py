"""server/README.md, "Use it from your frontend": runs every block as it is, except for the server's address."""

import asyncio
import json
import re
import shlex
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from shared.config.settings import Settings
from shared.local.servers import free_port
from shared.storage.prices import insert_prices
from tests.clients import node
from tests.clients.api import serve_process
from tests.integration.examples import MINUTE, NOON, example_price
from tests.integration.queue.test_fetches import run_queued
from worker.context import Worker

README = (Path(__file__).parents[2] / "server/README.md").read_text(encoding="utf-8")
SECTION = README.partition("\n## Use it from your frontend\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
FILES = {match[1]: text for _, text in BLOCKS if (match := re.match(r"// ([\w.]+)\n", text))}
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
ADDRESS = "127.0.0.1:8000"
PRICES = [example_price(NOON + MINUTE * number, f"9123{number}.5") for number in range(7)]
LINES = [f"2026-01-31T12:0{number}:00.000000Z btc_usd 9123{number}.5" for number in range(7)]


@pytest.fixture(scope="module")
async def host(settings: Settings, _migrated: None) -> AsyncIterator[str]:
    async with serve_process(settings) as host:
        yield host


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """A frontend's folder, in which the README's blocks are written."""
    await asyncio.to_thread(node.install)
    (tmp_path / "node_modules").symlink_to(node.PACKAGES)
    return tmp_path


def write(folder: Path, name: str, host: str) -> Path:
    text = FILES[name]
    assert ADDRESS in text
    if name.endswith(".json"):
        text = text.partition("\n")[2]
    (folder / name).write_text(text.replace(ADDRESS, host), encoding="utf-8")
    return folder / name


def test_every_block_is_run_here() -> None:
    assert set(FILES) == {"latest.mjs", "history.mjs", "live.mjs", "fetch.mjs", "typed.mts", "tsconfig.json"}
    assert len(BLOCKS) == len(FILES) + 1


def test_the_packages_it_names_are_the_ones_that_are_tested() -> None:
    installed = json.loads((node.CLIENTS / "package.json").read_text(encoding="utf-8"))["dependencies"]
    named = re.findall(r"npm install ([^`\n]+)", SECTION)
    packages = {word for text in named for word in shlex.split(text) if not word.startswith("--")}
    assert packages == {"@urql/core", "graphql-ws", "gql.tada", "typescript"}
    assert packages <= set(installed)


async def test_fetch(folder: Path, host: str, worker: Worker) -> None:
    script = write(folder, "latest.mjs", host)
    assert await node.run(*node.node(), script) == "nothing collected yet\n"
    await insert_prices(worker.pool, PRICES)
    assert await node.run(*node.node(), script) == "91236.5\n"
    script.write_text(script.read_text().replace('"btc_usd"', '"doge_usd"'))
    with pytest.raises(AssertionError, match="UNKNOWN_TICKER: 'doge_usd' is not collected here"):
        await node.run(*node.node(), script)


async def test_urql(folder: Path, host: str, worker: Worker) -> None:
    await insert_prices(worker.pool, PRICES)
    script = write(folder, "history.mjs", host)
    expected = [line.replace(" btc_usd", "") for line in reversed(LINES[2:])]
    assert (await node.run(*node.node(), script)).splitlines() == expected
    script.write_text(script.read_text().replace("limit: 5", "limit: 0"))
    assert "BAD_USER_INPUT" in await node.run(*node.node(), script)


async def test_live_prices_miss_none_while_the_server_is_away(folder: Path, settings: Settings, worker: Worker) -> None:
    port = free_port()
    script = write(folder, "live.mjs", f"127.0.0.1:{port}")
    async with asyncio.timeout(50), node.running(*node.node(), script) as said:
        async with serve_process(settings, port):
            # It is not told when the subscription stands: a price an instant, until one arrives.
            number = 0
            line = asyncio.ensure_future(said.readline())
            while not line.done():
                await insert_prices(worker.pool, [example_price(NOON - MINUTE * 60 + MINUTE * number)])
                number += 1
                assert number < 60
                await asyncio.wait([line], timeout=0.5)
            assert (await line).decode().startswith("2026-01-31T11:")
            while True:  # those that were on their way
                with suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await said.readline()
                        continue
                break
            await insert_prices(worker.pool, PRICES[:2])
            assert [(await said.readline()).decode().strip() for _ in range(2)] == LINES[:2]
        await insert_prices(worker.pool, PRICES[2:5])
        async with serve_process(settings, port):
            assert [(await said.readline()).decode().strip() for _ in range(3)] == LINES[2:5]
            await insert_prices(worker.pool, PRICES[5:])
            assert [(await said.readline()).decode().strip() for _ in range(2)] == LINES[5:]


async def test_a_fetch_and_its_progress(folder: Path, host: str, worker: Worker) -> None:
    async with asyncio.timeout(50), node.running(*node.node(), write(folder, "fetch.mjs", host)) as said:
        first = (await said.readline()).decode()
        assert first == "QUEUED [] []\n"
        await run_queued(worker)
        rest = (await said.read()).decode()
    assert rest.startswith("RUNNING [] []\nSUCCEEDED [")
    assert "ticker: 'btc_usd'" in rest
    assert "ticker: 'eth_usd'" in rest
    assert rest.endswith("] []\n")


async def test_types(folder: Path, host: str, worker: Worker) -> None:
    await insert_prices(worker.pool, PRICES)
    write(folder, "tsconfig.json", host)
    script = write(folder, "typed.mts", host)
    installs = [command for command in COMMANDS if command.startswith("npm install ")]
    builds = [shlex.split(command, comments=True) for command in COMMANDS if command.startswith("npx ")]
    assert len(installs) + len(builds) == len(COMMANDS)
    for _, *command in builds:
        await node.run(node.PACKAGES / ".bin" / command[0], *command[1:], cwd=folder)
    assert await node.run(*node.node(), folder / "typed.mjs") == "91236.5 SCHEDULED\n"
    script.write_text(script.read_text().replace("price source }", "prize source }"))
    with pytest.raises(AssertionError, match="Property 'price' does not exist"):
        # The packages' own types have been checked above.
        await node.run(node.PACKAGES / ".bin" / "tsc", "--skipLibCheck", "--noEmit", cwd=folder)
