"""The primary is killed while prices are collected every second and clients query, and its standby is promoted."""

import asyncio
import time
from dataclasses import dataclass, field

import httpx
import pytest

from tests.faults.conftest import IS_LONG, Report
from tests.faults.history import check_history
from tests.faults.stack import Stack, quiet_port
from tests.integration.standby import ask, both, promote, start_standby

AWAY_SECONDS = 5.0 if IS_LONG else 1.0
"From the kill to the promotion; how fast a failure is detected is the operator's choice."

ROUNDS = 4 if IS_LONG else 1
LOAD_SECONDS = 10.0 if IS_LONG else 0.5

QUESTIONS = [
    '{ latestPrice(ticker: "btc_usd") { price timestamp } }',
    "{ tickers { name latest { price } } }",
    '{ candles(ticker: "btc_usd", interval: ONE_MINUTE, fromDt: "2026-01-01T00:00:00Z", toDt: "2036-01-01T00:00:00Z")'
    " { close } }",
]
PROMISED_SECONDS = 2.0


@dataclass
class Client:
    """Sends a query to one API every 20 ms and records the outcomes."""

    port: int
    answered: int = 0
    failed: list[tuple[float, str]] = field(default_factory=list)
    longest: float = 0.0

    async def ask_on(self) -> None:
        async with httpx.AsyncClient(timeout=20, trust_env=False) as http:
            while True:
                for question in QUESTIONS:
                    began = time.monotonic()
                    reply = await http.post(f"http://127.0.0.1:{self.port}/graphql", json={"query": question})
                    answer = reply.json()
                    self.longest = max(self.longest, time.monotonic() - began)
                    self.answered += 1
                    for error in answer.get("errors", []):
                        self.failed.append((time.monotonic(), error["extensions"]["code"]))
                    await asyncio.sleep(0.02)


@pytest.mark.timeout(300)
async def test_a_standby_is_promoted_under_load(stack: Stack, report: Report) -> None:
    """One API reads from the primary, another from standbys. Replication is synchronous, so nothing is lost.

    In its long form the old primary comes back as a standby, and is promoted in its turn.
    """
    ports = [stack.postgres.port, quiet_port()]
    servers = [stack.postgres]
    asking: list[asyncio.Task[None]] = []
    one, two = Client(stack.api_port), Client(quiet_port())
    try:
        for number in range(ROUNDS):
            primary = stack.postgres
            folder = stack.folder / f"standby-{number}"
            standby = await start_standby(folder, primary, port=ports[number % 2 - 1])
            servers.append(standby)
            await ask(primary, "alter system set synchronous_standby_names = '*'")
            await ask(primary, "select pg_reload_conf()")
            if number == 0:
                stack.variables["DATABASE_URL"] = both(primary, standby)
                worker = stack.start_worker()
                stack.start("server")
                stack.variables |= {"DATABASE_READ_URL": both(primary, standby), "PORT": str(two.port)}
                stack.start("server")
                await stack._answers(f"http://127.0.0.1:{one.port}/livez")
                await stack._answers(f"http://127.0.0.1:{two.port}/livez")
                await stack.wait_for_prices(1)
                asking = [asyncio.create_task(client.ask_on()) for client in (one, two)]
            await asyncio.sleep(LOAD_SECONDS)

            killed = time.monotonic()
            stack.kill_postgres()
            await asyncio.sleep(AWAY_SECONDS)
            await promote(standby)
            promoted = time.monotonic()
            stack.postgres = standby

            async def all_stored() -> bool:
                async with stack.redis() as redis:
                    return bool(await redis.zcard("deferred") == 0)

            await stack.wait_for_prices(1)
            await stack.wait_for(all_stored, "deferred prices stored")
            recovered = time.monotonic() - promoted
            last = max((at for at, _ in one.failed), default=killed)
            print(
                f"\nwithout DATABASE_READ_URL {len(one.failed)} of {one.answered} failed so far, the last "
                f"{last - killed:.2f} s after the kill (promoted: {promoted - killed:.2f} s), longest "
                f"{one.longest:.2f} s; with it {len(two.failed)} of {two.answered}, longest {two.longest:.2f} s"
            )
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        assert all(task.cancelled() for task in asking), stack.logs()

        history = await check_history(stack)
        report(f"{ROUNDS} x primary kill -9, standby promoted {AWAY_SECONDS:.0f} s later", history, recovered)
        assert {code for _, code in one.failed} <= {"STORAGE_UNAVAILABLE"}, stack.logs()
        assert two.failed == [], stack.logs()
        assert (history.missing, history.healed) == (0, 0)
        assert worker.poll() is None
    finally:
        for task in asking:
            task.cancel()
        for server in servers:
            server.stop(5)
