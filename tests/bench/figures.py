"""The other figures: how soon a fetch starts, how fast prices go in, what memory it takes."""

import asyncio
import random
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import asyncpg

from shared.config.settings import load_settings
from shared.local.child import spawn
from shared.local.servers import free_port
from shared.migrate import migrate
from shared.queue.client import open_redis
from shared.queue.fetches import enqueue_fetch_prices, select_fetch_job
from shared.storage.database import create_pool
from shared.storage.prices import Price, PriceSource, insert_prices
from tests.bench.data import LAST_MINUTE, TICKERS
from tests.bench.load import Generator, Order, quantile
from tests.bench.machine import pin, rss_mib
from tests.bench.peers import PROJECT, Running, environment
from tests.bench.questions import PRICES, Question

INGEST_DAYS, INGEST_BATCH = 30, 2_000
JOB_SECONDS = 10.0
HOLDING_SECONDS = 2.0


async def create_database(dsn: str, name: str) -> str:
    """A database of its own beside that of `dsn`."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"create database {name}")
    finally:
        await connection.close()
    return f"{dsn.rpartition('/')[0]}/{name}"


async def measure_job_starts(database_url: str, redis_url: str, count: int) -> tuple[float, float]:
    """(p50, p99) milliseconds from a fetch's being asked for to its start, one after the other, at random moments."""
    settings = load_settings(database_url=database_url, redis_url=redis_url)
    waits: list[float] = []
    async with open_redis(settings, retries=3) as redis:
        for _ in range(count + 1):
            await asyncio.sleep(random.uniform(0, 0.05))
            job = await enqueue_fetch_prices(redis, ["btc_usd"])
            async with asyncio.timeout(JOB_SECONDS):
                while True:
                    now = await select_fetch_job(redis, job.id)
                    if now and now.finished_at and now.started_at:
                        waits.append((now.started_at - now.enqueued_at).total_seconds() * 1000)
                        break
                    await asyncio.sleep(0.005)
    ordered = sorted(waits[1:])  # the first one opens the worker's connections
    return quantile(ordered, 0.5), quantile(ordered, 0.99)


async def measure_ingest(database_url: str) -> float:
    """Rows per second into an empty schema: 30 days of minutes for two tickers, as the first fill stores them."""
    await migrate(database_url)
    start = datetime.fromisoformat(LAST_MINUTE)
    minutes = [start + timedelta(minutes=n) for n in range(INGEST_DAYS * 1440)]
    prices = [
        Price(ticker, Decimal(900_000 + n % 5000) / 10, minute, minute, PriceSource.BACKFILLED, False)
        for ticker in TICKERS
        for n, minute in enumerate(minutes)
    ]
    settings = load_settings(database_url=database_url, redis_url="redis://127.0.0.1")
    async with create_pool(settings, name="bench", size=1) as pool:
        started = time.perf_counter()
        stored = 0
        for at in range(0, len(prices), INGEST_BATCH):
            stored += len(await insert_prices(pool, prices[at : at + INGEST_BATCH]))
        seconds = time.perf_counter() - started
    assert stored == len(prices)
    return stored / seconds


def measure_memory(
    generator: Generator, api: Running, least_bytes: int, requests: int, at_most_seconds: float
) -> list[tuple[int, float]]:
    """(requests answered, MiB) of the API: fresh, after ten thousand, and after `requests` or the time allowed."""
    latest, history, _, four = ([*api.contestant.requests(question)] for question in PRICES)
    mixed = [*latest * 4, *history[:1], *four[:1]]
    found = [(0, rss_mib(api.processes[0].pid))]
    done = 0
    for target, seconds in ((10_000, at_most_seconds / 2), (requests, at_most_seconds)):
        order = Order(api.ports, mixed, least_bytes, seconds, at_most=target - done)
        done += generator.run(order).answers
        found.append((done, rss_mib(api.processes[0].pid)))
    return found


def measure_holding(generator: Generator, folder: Path, core: int, database_url: str, redis_url: str) -> list[float]:
    """How long answers of 10,000 rows, four at a time, hold the event loop at most: ms of CPU, ms by the clock."""
    port = free_port()
    process = spawn(
        [sys.executable, "-m", "tests.bench.holding", str(port)],
        death_signal=signal.SIGKILL,
        env=environment(database_url, redis_url),
        cwd=folder,
        stdout=subprocess.PIPE,
    )
    try:
        pin(process.pid, core)
        api = Running(PROJECT, folder, [port], [process])
        api.wait_until_ready()
        most = Question("history", "priceHistory 10,000", [{"ticker": ticker, "limit": 10_000} for ticker in TICKERS])
        order = Order([port], PROJECT.requests(most), 500_000, HOLDING_SECONDS, connections=4)
        generator.run(order)  # what is done once is done: statements prepared, connections opened
        process.send_signal(signal.SIGUSR1)
        assert process.stdout is not None
        process.stdout.readline()
        generator.run(order)
        process.send_signal(signal.SIGUSR1)
        return [float(number) for number in process.stdout.readline().split()]
    finally:
        process.kill()
        process.wait()
