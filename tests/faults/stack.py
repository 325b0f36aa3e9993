"""The whole system as real processes that tests kill: PostgreSQL, Valkey, the simulator, workers, the API."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
from arq.connections import ArqRedis

from shared.config.settings import load_settings
from shared.migrate import migrate
from shared.queue.client import open_redis
from shared.queue.jobs import HEAL_GAPS
from shared.queue.worker_registry import select_live_workers
from tests.embedded import Server, start_postgres, start_valkey

TICKERS = ("btc_usd", "eth_usd")
ROOT = Path(__file__).parents[2]
CLOCK_HOOK = ROOT / "tests" / "faults" / "clock"

START_SECONDS = 60.0


@dataclass
class Stack:
    """One system in its own folder. `interval` in seconds. Each process starts when a test asks for it."""

    folder: Path
    interval: int
    tickers: tuple[str, ...]
    postgres: Server
    valkey: Server
    exchange_port: int = field(default_factory=lambda: quiet_port())
    api_port: int = field(default_factory=lambda: quiet_port())
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    "Overrides of the environment below."
    has_trades: bool = False
    "Without trades, a slot that was missed stays missing if the grid is finer than the chart."
    http: httpx.AsyncClient = field(default_factory=lambda: httpx.AsyncClient(timeout=10))

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONUNBUFFERED": "1",
            "DATABASE_URL": self.postgres.url,
            "REDIS_URL": self.valkey.url,
            "DERIBIT_BASE_URL": f"http://127.0.0.1:{self.exchange_port}/api/v2",
            "TICKERS": ",".join(self.tickers),
            "FETCH_INTERVAL_SECONDS": str(self.interval),
            "PORT": str(self.api_port),
            "DRAIN_SECONDS": "0",
            "HEAL_LOOKBACK_HOURS": "1",
            "LOG_LEVEL": "info",
            # One address sends more fetches here than a person would.
            "FETCH_LIMIT_PER_CLIENT": "0",
            "FETCH_LIMIT_OVERALL": "0",
            # The faults of HTTP are those of most tests; test_stream.py switches it on.
            "STREAM": "0",
            **self.variables,
        }

    def start(self, module: str, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        """Run `python -m module` in the folder, which has no `.env`, with its output in a file there."""
        with (self.folder / f"{module}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=self.folder,
                env={"PYTHONPATH": str(ROOT), **self.environment, **variables},
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    async def start_exchange(self) -> subprocess.Popen[bytes]:
        process = self.start("worker.simulator", "--port", str(self.exchange_port))
        await self._answers(f"http://127.0.0.1:{self.exchange_port}/api/v2/public/get_time")
        if not self.has_trades:
            await self.switch("PUT", "trades", {"recent_hours": 0})
        return process

    async def start_api(self, port: int | None = None, **variables: str) -> subprocess.Popen[bytes]:
        """On `api_port`, or on another port for another process."""
        port = port or self.api_port
        process = self.start("server", **{**variables, "PORT": str(port)})
        await self._answers(f"http://127.0.0.1:{port}/livez")
        return process

    def start_worker(self, clock_ahead: float = 0, **variables: str) -> subprocess.Popen[bytes]:
        """`clock_ahead`: how many seconds its own clock runs ahead; `step_clock` changes that."""
        return self.start(
            "worker",
            PYTHONPATH=os.pathsep.join(map(str, (CLOCK_HOOK, ROOT))),
            CLOCK_OFFSET_FILE=str(self.folder / f"clock-{len(self.processes)}"),
            CLOCK_OFFSET=str(clock_ahead),
            **variables,
        )

    def step_clock(self, worker: subprocess.Popen[bytes], clock_ahead: float) -> None:
        (self.folder / f"clock-{self.processes.index(worker)}").write_text(str(clock_ahead))

    async def start_working(self) -> subprocess.Popen[bytes]:
        """Start a worker and wait for its first heartbeat."""
        process = self.start_worker()

        async def has_reported() -> bool:
            async with self.redis() as redis:
                return any(name.endswith(f":{process.pid}") for name in await select_live_workers(redis))

        await self.wait_for(has_reported, "the worker has reported")
        return process

    async def first_fill(self) -> None:
        """Wait until the past has been filled: thousands of prices, which subscribers would get too."""
        unfilled = "select count(*) from schedules where not first_fill_done"

        async def is_filled() -> bool:
            return await self.count("select count(*) from schedules") > 0 and await self.count(unfilled) == 0

        await self.wait_for(is_filled, "the first fill")

    async def _answers(self, url: str) -> None:
        async with asyncio.timeout(START_SECONDS):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await self.http.get(url)).is_success:
                        return
                await asyncio.sleep(0.05)

    def kill_postgres(self) -> None:
        self.postgres.process.kill()
        self.postgres.process.wait()

    async def restart_postgres(self) -> None:
        self.postgres = start_postgres(self.folder / "postgres", port=self.postgres.port)

    def kill_valkey(self) -> None:
        self.valkey.process.kill()
        self.valkey.process.wait()

    async def restart_valkey(self) -> None:
        self.valkey = start_valkey(self.folder / "valkey", port=self.valkey.port)

    async def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        reply = await self.http.post(
            f"http://127.0.0.1:{self.api_port}/graphql", json={"query": query, "variables": variables}
        )
        answer: dict[str, Any] = reply.json()
        return answer

    async def switch(self, method: str, path: str, body: object = None) -> Any:
        """One of the exchange's switches."""
        url = f"http://127.0.0.1:{self.exchange_port}/simulator/{path}"
        reply = await self.http.request(method, url, json=body)
        assert reply.is_success, reply.text
        return reply.json() if reply.content else None

    async def given(self, ticker: str) -> list[dict[str, Any]]:
        """Every price that the exchange sent, oldest first."""
        given: list[dict[str, Any]] = await self.switch("GET", f"given?ticker={ticker}")
        return given

    async def rows(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.postgres.url)
        try:
            return await connection.fetch(sql, *arguments)
        finally:
            await connection.close()

    async def count(self, sql: str, *arguments: object) -> int:
        return int((await self.rows(sql, *arguments))[0][0])

    async def wait_for(self, happened: Callable[[], Any], what: str, seconds: float = 60) -> float:
        """Wait until a coroutine function returns true. Returns the seconds it took."""
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            with contextlib.suppress(OSError, asyncpg.PostgresError, httpx.TransportError):
                if await happened():
                    return time.monotonic() - started
            await asyncio.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {what}\n{self.logs()}")

    async def wait_for_prices(self, more: int = 1, seconds: float = 60) -> None:
        """Until each of the two common tickers has this many more scheduled prices."""
        sql = "select count(*) from prices where ticker = $1 and source = 'SCHEDULED'"
        wanted = {ticker: await self.count(sql, ticker) + more for ticker in TICKERS}

        async def stored() -> bool:
            return all([await self.count(sql, ticker) >= count for ticker, count in wanted.items()])

        await self.wait_for(stored, f"{more} more prices", seconds)

    async def heal(self) -> None:
        """Enqueue a healing run, as the schedule does once a minute."""
        async with self.redis() as redis:
            await redis.enqueue_job(HEAL_GAPS)

    @asynccontextmanager
    async def redis(self) -> AsyncIterator[ArqRedis]:
        settings = load_settings(database_url=self.postgres.url, redis_url=self.valkey.url)
        async with open_redis(settings, retries=3) as redis:
            yield redis

    async def wait_until_whole(self, end: datetime, seconds: float = 60) -> float:
        """Heal until nothing is missing before `end`. Returns the seconds it took."""

        async def is_whole() -> bool:
            await self.heal()
            await asyncio.sleep(0.5)
            return all([(await self.coverage(t, await self.since(), end))["complete"] for t in TICKERS])

        return await self.wait_for(is_whole, "coverage complete", seconds)

    async def since(self) -> datetime:
        """The first slot that is expected of every ticker."""
        return (await self.rows("select max(since) from schedules"))[0][0]  # type: ignore[no-any-return]

    async def coverage(self, ticker: str, start: datetime, end: datetime) -> dict[str, Any]:
        query = """query ($ticker: String!, $start: DateTime!, $end: DateTime!) {
            coverage(ticker: $ticker, fromDt: $start, toDt: $end) {
                expected present ratio complete gaps(limit: 1000) { fromDt toDt missing reason detail }
            }
        }"""
        answer = await self.graphql(query, ticker=ticker, start=start.isoformat(), end=end.isoformat())
        assert "errors" not in answer, answer
        coverage: dict[str, Any] = answer["data"]["coverage"]
        return coverage

    def current_slot(self) -> datetime:
        return datetime.fromtimestamp(int(time.time()) // self.interval * self.interval, UTC)

    def logs(self) -> str:
        """The end of every process's output, for a test that failed."""
        return "\n".join(f"--- {p.name}\n{p.read_text()[-3000:]}" for p in sorted(self.folder.glob("*.log")))


@asynccontextmanager
async def open_stack(
    folder: Path, *, interval: int, tickers: tuple[str, ...] = TICKERS, has_trades: bool = False
) -> AsyncIterator[Stack]:
    """A migrated PostgreSQL, Valkey and the simulator. At the end it kills every process, paused ones too."""
    postgres = start_postgres(folder / "postgres", port=quiet_port())
    valkey = start_valkey(folder / "valkey", port=quiet_port())
    stack = Stack(folder, interval, tickers, postgres, valkey, has_trades=has_trades)
    try:
        await migrate(stack.postgres.url)
        await stack.start_exchange()
        yield stack
    finally:
        for process in stack.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in stack.processes:
            try:
                process.wait(25)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        await stack.http.aclose()
        stack.valkey.stop(5)
        stack.postgres.stop(5)


def quiet_port() -> int:
    """A free port below the ephemeral range, so that no outgoing connection takes it while its server is dead."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as taken, contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", port))
            return port


def slots(start: datetime, end: datetime, interval: int) -> list[datetime]:
    return [start + timedelta(seconds=s) for s in range(0, int((end - start).total_seconds()), interval)]
