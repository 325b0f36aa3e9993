"""The history from trades: filling it, healing a day, and storing a million recovered prices.

`python -m tests.bench.history` prints HISTORY.md's figures in five minutes; `fill`, `heal` or `store` some of them.
"""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import arq
import asyncpg
import httpx

from shared.config.settings import Settings, load_settings
from shared.grid import slot_of
from shared.local.child import spawn
from shared.local.servers import free_port
from shared.migrate import migrate
from shared.queue.client import open_redis
from shared.storage.database import create_pool, fetch
from shared.storage.prices import Price, PriceSource, insert_prices
from tests.bench.figures import create_database
from tests.bench.machine import describe_cpu
from tests.bench.peers import environment
from tests.bench.report import as_markdown
from tests.embedded import Server, start_postgres, start_valkey
from worker.context import Worker
from worker.exchange.http import create_http
from worker.jobs.filling import fill_histories
from worker.jobs.healing import heal_gaps

TICKERS = ("btc_usd", "eth_usd")
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
REPLY_SECONDS = 0.05
FILL_SECONDS = 100.0
ROWS, BATCH = 1_000_000, 2_000


@contextmanager
def exchange() -> Iterator[str]:
    """The simulator in a process of its own, which answers for trades in 50 ms. Yields its address."""
    port = free_port()
    command = [sys.executable, "-m", "worker.simulator", "--port", str(port)]
    process = spawn(command, death_signal=signal.SIGKILL, env=environment("postgresql://none", "redis://none"))
    url = f"http://127.0.0.1:{port}"
    try:
        fault = {"kind": "slow", "seconds": REPLY_SECONDS, "methods": ["get_last_trades_by_instrument_and_time"]}
        transport = httpx.HTTPTransport(retries=50)
        with httpx.Client(transport=transport, trust_env=False) as http:
            deadline = time.monotonic() + 20
            while True:
                try:
                    http.put(f"{url}/simulator/faults/*", json=fault).raise_for_status()
                    break
                except httpx.TransportError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def worker(postgres: Server, redis_url: str, name: str, **options: object) -> AsyncIterator[Worker]:
    url = await create_database(postgres.url, name)
    await migrate(url)
    settings = load_settings(database_url=url, redis_url=redis_url, tickers=",".join(TICKERS), **options)
    async with (
        create_pool(settings, name="bench", size=4) as pool,
        open_redis(settings, retries=0) as redis,
        create_http(settings) as http,
    ):
        await redis.flushdb()
        yield Worker(settings, pool, redis, http, name="bench:1")


async def _fill(postgres: Server, redis_url: str, exchange_url: str) -> dict[str, str]:
    since = datetime.now(UTC) - 7 * DAY
    options = {
        "deribit_base_url": f"{exchange_url}/api/v2",
        "history_from": since.isoformat(),
        "heal_lookback_hours": 1,
    }
    async with worker(postgres, redis_url, "filling", **options) as one:
        await one.clock.synchronize(one.redis)
        filling = asyncio.create_task(fill_histories(one))
        began = time.perf_counter()
        await asyncio.sleep(FILL_SECONDS)
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)
        took = time.perf_counter() - began
        sql = """
            select sum(extract(epoch from now() - since) / 60)
            from (select min(since) as since from schedules group by ticker) as beginning
        """
        [[filled]] = await fetch(one.pool, sql)
    week = float(took) * len(TICKERS) * 7 * 1440 / float(filled)
    return {
        f"filling two tickers: slots in {took:.0f} s": f"{filled:,.0f}",
        "a week of minutes of both": f"{week:,.0f} s",
    }


async def _heal(postgres: Server, redis_url: str, exchange_url: str) -> dict[str, str]:
    async with worker(postgres, redis_url, "healing", deribit_base_url=f"{exchange_url}/api/v2") as one:
        now = slot_of(datetime.now(UTC), MINUTE)
        sql = """
            insert into schedules (ticker, since, interval_seconds, first_fill_done)
            select unnest($1::text[]), $2, 60, true
        """
        await fetch(one.pool, sql, list(TICKERS), now - DAY)
        began = time.perf_counter()
        while True:
            try:
                await heal_gaps({"worker": one, "job_try": 1})
                break
            except arq.Retry:
                continue
        took = time.perf_counter() - began
        rows = await fetch(one.pool, "select source::text, count(*) from prices group by source order by source")
    found = ", ".join(f"{row[1]:,} {row[0]}" for row in rows)
    return {f"healing a day of two tickers ({found})": f"{took:.0f} s"}


async def _store(postgres: Server, redis_url: str) -> dict[str, str]:
    found = {}
    async with worker(postgres, redis_url, "storing") as one:
        connection = await asyncpg.connect(one.settings.database_url)
        for interval in (1, 60):
            await fetch(one.pool, "truncate prices")
            await connection.execute("checkpoint")
            before = await connection.fetchval("select pg_current_wal_insert_lsn()")
            begin = datetime(2024, 1, 1, tzinfo=UTC)
            spent = 0.0
            for first in range(0, ROWS, BATCH):
                slots = (begin + timedelta(seconds=interval * n) for n in range(first, first + BATCH))
                prices = [Price("btc_usd", Decimal("91234.56"), at, at, PriceSource.RECOVERED, False) for at in slots]
                began = time.perf_counter()
                await insert_prices(one.pool, prices)
                spent += time.perf_counter() - began
            size = await connection.fetchval("select pg_current_wal_insert_lsn() - $1", before)
            found[f"storing {ROWS:,} recovered prices, {interval} s apart, with candles"] = (
                f"{ROWS / spent:,.0f} rows/s, {float(size) / ROWS:,.0f} bytes of WAL a row"
            )
        await connection.close()
    return found


async def measure(postgres: Server, redis_url: str, exchange_url: str, parts: list[str]) -> dict[str, str]:
    measures: dict[str, Callable[[], Awaitable[dict[str, str]]]] = {
        "store": lambda: _store(postgres, redis_url),
        "heal": lambda: _heal(postgres, redis_url, exchange_url),
        "fill": lambda: _fill(postgres, redis_url, exchange_url),
    }
    found: dict[str, str] = {}
    for name in parts or measures:
        found |= await measures[name]()
    return found


def main() -> None:
    for name in Settings.model_fields:
        os.environ.pop(name.upper(), None)
    Settings.model_config["env_file"] = None
    with tempfile.TemporaryDirectory() as name, exchange() as exchange_url:
        Path(name).chmod(0o755)
        postgres = start_postgres(Path(name, "postgres"), options={"fsync": "off", "max_wal_size": "4GB"})
        valkey = start_valkey(Path(name, "valkey"))
        try:
            found = asyncio.run(measure(postgres, valkey.url, exchange_url, sys.argv[1:]))
        finally:
            valkey.stop()
            postgres.stop()
    print(describe_cpu(), f"load average {os.getloadavg()[1]:.0f}", sep=", ")
    print(as_markdown([["", "now"], *([name, value] for name, value in found.items())]))


if __name__ == "__main__":
    main()
