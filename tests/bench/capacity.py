"""What a ticker takes in a year: rows, bytes, CPU; and what a process takes: connections, memory, sockets a core.

`python -m tests.bench.capacity` measures it, in about five minutes, and prints the tables of
shared/operations/capacity.md. Prices are stored by `insert_prices`, ten tickers a slot, slot by slot, as the worker
does; then more of them in larger statements, for the sizes of grown tables. A year is computed from these: rows are
known, bytes and CPU grow with the rows.
"""

import argparse
import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import asyncpg
import httpx
import redis.asyncio

from shared.config.settings import Settings, load_settings
from shared.migrate import migrate
from shared.storage.database import Pool, create_pool
from shared.storage.prices import Price, PriceSource, insert_prices
from tests.bench import collecting, sockets
from tests.bench.figures import create_database
from tests.bench.machine import MIB, Cores, cpu_seconds, describe_cpu, share_out
from tests.bench.servers import started_servers
from tests.embedded import Server

TICKERS = tuple(f"sim{n}_usd" for n in range(10))
GRIDS = (60, 1)
YEAR_SECONDS = 365 * 86_400
SLOTS = 10_000
"Stored one by one, for the CPU."
GROWN_SLOTS = {60: 100_000, 1: 200_000}
SLOTS_A_STATEMENT = 500
CHECKPOINT_SECONDS = 300
"PostgreSQL's own default; after each, a page's first change is written whole to the log."
LOGGED_SLOTS = {60: 150, 1: 1_500}
# As a production server, but for waiting on a disk that others use too. Slots pass a thousand times faster here, so
# the vacuum is called more often.
POSTGRES_OPTIONS = {"fsync": "off", "shared_buffers": "384MB", "autovacuum_naptime": "1s", "max_wal_size": "8GB"}
TABLES = ("prices", "prices_pkey", "prices_by_batch", "candle_minutes", "candle_hours")
PARALLEL_REQUESTS = 200
SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Growth:
    """Of one grid. CPU and log are for a ticker's slot; `bytes` by table, with its key's index unless that is named."""

    rows: int
    bytes: dict[str, int]
    postgres_us: float
    client_us: float
    log_bytes: float

    def bytes_a_year(self, interval: int, table: str) -> float:
        minutes, hours = self.rows * interval / 60, self.rows * interval / 3600
        rows = {"candle_minutes": min(self.rows, minutes), "candle_hours": hours}.get(table, self.rows)
        year = YEAR_SECONDS / {"candle_minutes": max(interval, 60), "candle_hours": 3600}.get(table, interval)
        return self.bytes[table] / rows * year


async def measure_growth(postgres: Server, interval: int) -> Growth:
    url = await create_database(postgres.url, f"grid_{interval}")
    await migrate(url)
    settings = load_settings(database_url=url, redis_url="redis://127.0.0.1")
    watcher = await asyncpg.connect(url)
    try:
        async with create_pool(settings, name="bench", size=1) as pool:
            await _store(pool, 0, 100, interval)  # statements are prepared, pages are in memory
            server, client = cpu_seconds(postgres.process.pid), time.process_time()
            await _store(pool, 100, SLOTS, interval)
            server, client = cpu_seconds(postgres.process.pid) - server, time.process_time() - client
            at = SLOTS + 100
            logged = await _measure_log(watcher, pool, at, interval)
            at += LOGGED_SLOTS[interval]
            while at < GROWN_SLOTS[interval]:
                await _store(pool, at, SLOTS_A_STATEMENT, interval, slots_a_statement=SLOTS_A_STATEMENT)
                at += SLOTS_A_STATEMENT
        await watcher.execute("vacuum (analyze)")
        sizes = await watcher.fetch(
            "select relname::text, pg_table_size(oid), pg_indexes_size(oid) from pg_class where relname = any($1)",
            list(TABLES),
        )
        table = {name: (own, indexes) for name, own, indexes in sizes}
        rows = await watcher.fetchval("select count(*) from prices")
    finally:
        await watcher.close()
    with_key = {name: sum(table[name]) for name in ("candle_minutes", "candle_hours")}
    return Growth(
        rows=rows,
        bytes={name: table[name][0] for name in TABLES} | with_key,
        postgres_us=server / SLOTS / len(TICKERS) * 1e6,
        client_us=client / SLOTS / len(TICKERS) * 1e6,
        log_bytes=logged / LOGGED_SLOTS[interval] / len(TICKERS),
    )


async def _measure_log(watcher: "asyncpg.Connection[asyncpg.Record]", pool: Pool, first: int, interval: int) -> int:
    """Bytes of log for `LOGGED_SLOTS`, with a checkpoint wherever five minutes of them would have passed."""
    every = CHECKPOINT_SECONDS // interval
    began = await watcher.fetchval("select pg_current_wal_insert_lsn()")
    for at in range(first, first + LOGGED_SLOTS[interval], every):
        await watcher.execute("checkpoint")
        await _store(pool, at, every, interval)
    log_bytes: int = await watcher.fetchval("select pg_current_wal_insert_lsn() - $1", began)
    return log_bytes


async def _store(pool: Pool, first: int, count: int, interval: int, *, slots_a_statement: int = 1) -> None:
    for start in range(first, first + count, slots_a_statement):
        prices = []
        for slot in range(start, start + slots_a_statement):
            at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=slot * interval)
            prices += [
                # Four to seven digits and two to four behind the point, as the exchange has them.
                Price(
                    ticker,
                    Decimal((slot * 7919 + n * 104_729) % 10**7 + 10**6) / 10 ** (2 + (slot + n) % 3),
                    at,
                    at + timedelta(microseconds=slot * 7919 % 900_000),
                    PriceSource.SCHEDULED,
                    False,
                )
                for n, ticker in enumerate(TICKERS)
            ]
        assert len(await insert_prices(pool, prices)) == len(prices)


async def measure_api_connections(url: str, redis_url: str, port: int) -> tuple[int, int]:
    """The most that one API process opened, (PostgreSQL, Redis), while asked everything at once."""
    questions = ["{ latestPrices { price } tickers { name } }", '{ fetchJob(id: "1") { id } }']
    counting = asyncio.create_task(_count_connections(url, redis_url, "server%"))
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=PARALLEL_REQUESTS)) as http:
        asked = [
            http.post(f"http://127.0.0.1:{port}/graphql", json={"query": questions[n % 2]})
            for n in range(PARALLEL_REQUESTS * 5)
        ]
        answers = await asyncio.gather(*asked)
    assert {answer.status_code for answer in answers} == {200}
    counting.cancel()
    return await counting


async def _count_connections(url: str, redis_url: str, name: str) -> tuple[int, int]:
    """The most there were at a time until cancelled; of Redis all but this one."""
    postgres_most = redis_most = 0
    connection = await asyncpg.connect(url)
    client = redis.asyncio.Redis.from_url(redis_url)
    try:
        while True:
            sql = "select count(*) from pg_stat_activity where application_name like $1"
            postgres_most = max(postgres_most, await connection.fetchval(sql, name))
            redis_most = max(redis_most, (await client.info("clients"))["connected_clients"] - 1)
            await asyncio.sleep(SAMPLE_SECONDS)
    except asyncio.CancelledError:
        return postgres_most, redis_most
    finally:
        await connection.close()
        await client.aclose()


async def measure_worker(folder: Path, cores: Cores, url: str, redis_url: str, seconds: int) -> tuple[float, int, int]:
    """CPU of the worker in µs for a ticker's slot, and its connections, with fifty tickers a second."""
    counting = asyncio.create_task(_count_connections(url, redis_url, "worker"))
    collected = await collecting.measure_collecting(folder, cores, url, redis_url, seconds)
    assert collected.missed == 0, f"{collected.missed} of {collected.slots} slots missed: the machine is too busy"
    counting.cancel()
    return collected.cores / len(collecting.TICKERS) * 1e6, *(await counting)


def growth_rows(found: dict[int, Growth], worker_us: float) -> list[list[str]]:
    def row(name: str, figure: Callable[[int, Growth], str]) -> list[str]:
        return [name, *(figure(interval, growth) for interval, growth in found.items())]

    def minutes(microseconds: float, interval: int) -> str:
        return f"{microseconds * 1e-6 * YEAR_SECONDS / interval / 60:,.1f} min"

    return [
        row("rows", lambda i, _: f"{YEAR_SECONDS // i:,}"),
        *(row(name, lambda i, g, name=name: f"{g.bytes_a_year(i, name) / MIB:,.0f} MiB") for name in TABLES),  # type: ignore[misc]
        row("all tables", lambda i, g: f"{sum(g.bytes_a_year(i, name) for name in TABLES) / MIB:,.0f} MiB"),
        row("write-ahead log a day", lambda i, g: f"{g.log_bytes * 86_400 / i / MIB:,.0f} MiB"),
        row("CPU of PostgreSQL", lambda i, g: minutes(g.postgres_us, i)),
        row("CPU of the worker", lambda i, _: minutes(worker_us, i)),
        row("CPU of PostgreSQL a row", lambda _, g: f"{g.postgres_us:.0f} µs"),
        row("measured with", lambda _, g: f"{g.rows:,} rows"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.capacity")
    parser.add_argument("--sockets", type=int, default=500)
    parser.add_argument("--seconds", type=int, default=20)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: parser.exit(1))
    for name in Settings.model_fields:
        os.environ.pop(name.upper(), None)
    Settings.model_config["env_file"] = None
    cores = share_out(sorted(os.sched_getaffinity(0)))
    print(describe_cpu())
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        postgres, valkey = stack.enter_context(started_servers(folder, cores))
        redis_url = valkey.url.rpartition("/")[0]

        url = asyncio.run(create_database(postgres.url, "worker"))
        worker_us, of_postgres, of_redis = asyncio.run(
            measure_worker(folder, cores, url, f"{redis_url}/1", asked.seconds)
        )
        print(f"worker: {worker_us:,.0f} µs a ticker's slot; connections: {of_postgres} PostgreSQL, {of_redis} Redis")
        url = asyncio.run(create_database(postgres.url, "sockets"))
        seen = sockets.measure_sockets(folder, cores, url, f"{redis_url}/2", asked.sockets, asked.seconds)
        frames = seen.frames / asked.seconds / seen.cores
        print(f"API: {seen.kib_a_socket:.0f} KiB a socket; {frames:,.0f} prices/s a core; p99 {seen.p99:.0f} ms")
        with sockets.api(folder, url, f"{redis_url}/2", cores.server) as api:
            of_postgres, of_redis = asyncio.run(measure_api_connections(url, f"{redis_url}/2", api.ports[0]))
        print(f"API connections: {of_postgres} PostgreSQL, {of_redis} Redis")
        found = {interval: asyncio.run(measure_growth(postgres, interval)) for interval in GRIDS}
    for line in [["a ticker's year", *(f"every {i} s" for i in found)], *growth_rows(found, worker_us)]:
        print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main()
