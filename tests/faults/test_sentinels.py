"""The queue's master replaced by its sentinels while fetches are asked for and prices are collected every second."""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from shared.grid import EPOCH
from shared.queue.deferred import defer
from shared.storage.missed_slots import GapReason, MissedSlot
from tests.faults.conftest import IS_LONG, Report
from tests.faults.history import check_history
from tests.faults.sentinels import Node, Replicated, open_replicated
from tests.faults.stack import TICKERS, Stack, open_stack

OTHERS = tuple(f"sim{number}_usd" for number in range(4))
ROUNDS, MORE = (3, 150) if IS_LONG else (1, 15)
ASKING = 3
ASIDE = [MissedSlot("aside_usd", EPOCH + timedelta(seconds=n), GapReason.STORAGE_ERROR, "deferred") for n in range(50)]
FETCH = "mutation ($tickers: [String!]) { fetchPrices(tickers: $tickers) { id } }"
OUTCOME = (
    "query ($id: ID!) { fetchJob(id: $id) { status prices { ticker price timestamp } failures { code message } } }"
)


@dataclass
class Load:
    """Concurrent sequences of fetches, each of other tickers, and their outcomes."""

    stack: Stack
    accepted: dict[str, float] = field(default_factory=dict)
    refused: list[tuple[float, str, float]] = field(default_factory=list)
    "Time, code, and seconds it took."
    readiness: set[int] = field(default_factory=set)

    async def ask(self) -> None:
        while True:
            tickers = random.sample(OTHERS, random.randint(1, 3))
            started = time.monotonic()
            answer = await self.stack.graphql(FETCH, tickers=tickers)
            now = time.monotonic()
            if "errors" in answer:
                self.refused.append((now, answer["errors"][0]["extensions"]["code"], now - started))
            else:
                self.accepted.setdefault(answer["data"]["fetchPrices"]["id"], now)
            await asyncio.sleep(0.02)

    async def look(self) -> None:
        while True:
            reply = await self.stack.http.get(f"http://127.0.0.1:{self.stack.api_port}/readyz")
            self.readiness.add(reply.status_code)
            await asyncio.sleep(0.1)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.ask()) for _ in range(ASKING)] + [asyncio.create_task(self.look())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [error for error in ended if isinstance(error, Exception)]

    async def until_accepted(self, more: int) -> None:
        wanted = len(self.accepted) + more

        async def enough() -> bool:
            return len(self.accepted) >= wanted

        await self.stack.wait_for(enough, f"{more} more fetches are accepted")

    def outage(self, since: float) -> tuple[int, float]:
        """How many were refused, and the seconds until the first was accepted after the last of them."""
        refused = [at for at, _, _ in self.refused if at > since]
        last = max(refused, default=since)
        return len(refused), min(at for at in self.accepted.values() if at > last) - since


async def until_replaced(stack: Stack, replicated: Replicated, old: Node) -> None:
    async def is_replaced() -> bool:
        return await replicated.master() is not old

    try:
        await stack.wait_for(is_replaced, "the sentinels have named another master")
    except AssertionError as error:
        raise AssertionError(replicated.logs()) from error


async def until_it_follows(stack: Stack, replicated: Replicated, node: Node) -> None:
    async def follows() -> bool:
        return await node.role() == "slave"

    try:
        await stack.wait_for(follows, "the old master is a replica", 40)
    except AssertionError as error:
        raise AssertionError(replicated.logs()) from error


async def outcomes(stack: Stack, accepted: dict[str, float]) -> list[dict[str, Any]]:
    """The outcomes of all accepted fetches, when each has ended."""
    ended: dict[str, dict[str, Any]] = {}

    async def all_ended() -> bool:
        for job in accepted.keys() - ended.keys():
            outcome = (await stack.graphql(OUTCOME, id=job))["data"]["fetchJob"]
            if outcome is None or outcome["status"] in {"QUEUED", "RUNNING"}:
                return False
            ended[job] = outcome
        return True

    await stack.wait_for(all_ended, "every accepted fetch has ended", 50)
    return list(ended.values())


async def check(stack: Stack, load: Load) -> None:
    """Every fetch that was accepted has succeeded, and each of its prices is stored; the others were told why."""
    assert {code for _, code, _ in load.refused} <= {"QUEUE_UNAVAILABLE"}, stack.logs()
    assert max(seconds for _, _, seconds in load.refused) < 2
    ended = await outcomes(stack, load.accepted)
    assert [outcome for outcome in ended if outcome["status"] != "SUCCEEDED"] == []
    rows = await stack.rows(
        "select ticker, price::text, to_char(timestamp at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        " from prices where source = 'REQUESTED'"
    )
    told = {(price["ticker"], price["price"], price["timestamp"]) for outcome in ended for price in outcome["prices"]}
    assert told
    assert told <= {tuple(row) for row in rows}


@pytest.mark.timeout(300 if IS_LONG else 120)
async def test_sentinels_replace_the_master_and_no_accepted_fetch_is_lost(tmp_path: Path, report: Report) -> None:
    async with (
        open_replicated(tmp_path) as replicated,
        open_stack(tmp_path, interval=1, tickers=TICKERS + OTHERS) as stack,
    ):
        stack.valkey = replace(stack.valkey, url=replicated.url)  # the stack's own server is idle
        worker = stack.start_worker()
        await stack.start_api()
        await stack.wait_for_prices(1)
        load = Load(stack)
        async with load.running():
            rows = [await fault(load, replicated) for fault in [killed, paused] * ROUNDS]
        await check(stack, load)
        assert await stack.count("select count(*) from missed_slots where ticker = 'aside_usd'") == len(ASIDE)
        await stack.wait_for_prices(1)
        history = await check_history(stack)
        for row in rows:
            report(row[0], history, row[1])
        assert worker.poll() is None
        health = stack.start("worker", "--health")
        await asyncio.to_thread(health.wait, 20)
        assert health.returncode == 0, stack.logs()
        log = "".join((stack.folder / f"{name}.log").read_text() for name in ("worker", "server"))
        assert "Traceback" not in log, log
        assert "servers" not in log  # a part of the servers' password


async def killed(load: Load, replicated: Replicated) -> tuple[str, float]:
    """kill -9, with a sentinel that is silent; the server comes back as a replica of the new master."""
    master = await replicated.master()
    replicated.sentinels[0].signal(signal.SIGSTOP)
    await load.until_accepted(MORE)
    async with load.stack.redis() as redis:
        await defer(redis, [], ASIDE)
    master.kill()
    down = time.monotonic()
    await until_replaced(load.stack, replicated, master)
    await load.until_accepted(MORE)
    replicated.sentinels[0].signal(signal.SIGCONT)
    refused, seconds = load.outage(down)
    assert refused > 0
    assert 503 in load.readiness
    master.follow(await replicated.master())
    master.start()
    await until_it_follows(load.stack, replicated, master)
    return f"Valkey master kill -9: {refused} fetches refused", seconds


async def paused(load: Load, replicated: Replicated) -> tuple[str, float]:
    """Paused until it is replaced. When it resumes, it acts as the master for about eight seconds."""
    master = await replicated.master()
    await load.until_accepted(MORE)
    master.signal(signal.SIGSTOP)
    down = time.monotonic()
    await until_replaced(load.stack, replicated, master)
    await load.until_accepted(MORE // 3)
    master.signal(signal.SIGCONT)
    assert await master.role() in {"master", "away"}
    await load.until_accepted(MORE)
    if IS_LONG:
        await until_it_follows(load.stack, replicated, master)
        await load.until_accepted(MORE)
    refused, seconds = load.outage(down)
    assert refused > 0
    return f"Valkey master paused: {refused} fetches refused", seconds
