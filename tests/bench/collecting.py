"""The worker against the exchange's stand-in over HTTP: fifty tickers a second, and a fetch on demand."""

import asyncio
import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg

from shared.local.child import spawn
from shared.local.servers import free_port
from shared.migrate import migrate
from tests.bench.machine import Cores, cpu_seconds, pin
from tests.bench.peers import environment

TICKERS = tuple(f"sim{n}_usd" for n in range(1, 51))
EXCHANGE_SECONDS = 0.05
START_SECONDS = 20.0
FIRST_FILL_SECONDS = 120.0


@dataclass(frozen=True)
class Collected:
    slots: int
    missed: int
    cores: float


@contextmanager
def worker(
    folder: Path,
    cores: Cores,
    database_url: str,
    redis_url: str,
    *,
    tickers: tuple[str, ...],
    interval: int,
    stream: str = "0",
) -> Iterator[int]:
    """A worker and its exchange; yields the worker's process id. `stream`: the setting STREAM."""
    port = free_port()
    settings = environment(
        database_url,
        redis_url,
        DERIBIT_BASE_URL=f"http://127.0.0.1:{port}/api/v2",
        TICKERS=",".join(tickers),
        FETCH_INTERVAL_SECONDS=str(interval),
        STREAM=stream,
        HEAL_LOOKBACK_HOURS="1",  # a short first fill, for what is measured is collecting
    )
    processes: list[subprocess.Popen[bytes]] = []

    def start(core: int, *command: str) -> int:
        with (folder / "collecting.log").open("ab") as log:
            python = [sys.executable, "-m", *command]
            processes.append(spawn(python, death_signal=signal.SIGKILL, env=settings, cwd=folder, stdout=log))
        pin(processes[-1].pid, core)
        return processes[-1].pid

    try:
        start(cores.load, "worker.simulator", "--port", str(port))
        _slow_down(port)
        yield start(cores.server, "worker")
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def measure_collecting(folder: Path, cores: Cores, database_url: str, redis_url: str, seconds: int) -> Collected:
    """Slots of the grid without a price of their own in so many seconds, and the CPU the worker took for them."""
    await migrate(database_url)
    with worker(folder, cores, database_url, redis_url, tickers=TICKERS, interval=1) as pid:
        await wait_for_first_fill(database_url, len(TICKERS))
        start = datetime.fromtimestamp(int(time.time()) + 2, UTC)
        end = start + timedelta(seconds=seconds)
        await asyncio.sleep(start.timestamp() - time.time())
        used, since = cpu_seconds(pid), time.perf_counter()
        await asyncio.sleep(end.timestamp() - time.time())
        used, lasted = cpu_seconds(pid) - used, time.perf_counter() - since
        await asyncio.sleep(2)  # the last slot is stored by now, or it is missed
        connection = await asyncpg.connect(database_url)
        try:
            sql = "select count(*) from prices where source = 'SCHEDULED' and timestamp >= $1 and timestamp < $2"
            stored: int = await connection.fetchval(sql, start, end)
        finally:
            await connection.close()
    slots = seconds * len(TICKERS)
    return Collected(slots, slots - stored, used / lasted)


async def wait_for_first_fill(database_url: str, tickers: int) -> None:
    """The history before the first slot is stored; only collecting, and healing once a minute, are left to do."""
    connection = await asyncpg.connect(database_url)
    try:
        async with asyncio.timeout(FIRST_FILL_SECONDS):
            while await connection.fetchval("select count(*) from schedules where first_fill_done") < tickers:
                await asyncio.sleep(0.2)
    finally:
        await connection.close()


def _slow_down(port: int) -> None:
    """Tell the exchange to take its time over every answer, as soon as it can be told."""
    deadline = time.monotonic() + START_SECONDS
    switch = json.dumps({"kind": "slow", "seconds": EXCHANGE_SECONDS})
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("PUT", "/simulator/faults/*", switch, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"the exchange's stand-in refuses the switch: {answer.read()!r}")
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        finally:
            connection.close()
