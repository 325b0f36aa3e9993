"""Coverage, gaps, healing's reading and storing, on a grid of one second.

`python -m tests.bench.coverage` prints the table of COVERAGE.md in some minutes.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from statistics import median

import asyncpg

from shared.config.settings import Settings, load_settings
from shared.errors import StorageUnavailable
from shared.migrate import migrate
from shared.storage.database import Pool, create_pool, fetch
from shared.storage.gaps import select_missing_runs
from shared.storage.pool import Connection
from shared.storage.prices import Price, PriceSource, insert_prices
from tests.bench.figures import create_database
from tests.bench.machine import cpu_seconds, describe_cpu
from tests.bench.report import as_markdown
from tests.embedded import Server, start_postgres
from tests.reads import select_coverage, select_gaps

DAY = timedelta(days=1)
END = datetime(2026, 1, 31, tzinfo=UTC)
BEGIN = END - 30 * DAY
TICKERS = tuple(f"t{n}_usd" for n in range(10))
SLOTS, ROUNDS = 1500, 5
WHOLE, HALF, MISSED = "whole_usd", "half_usd", "missed_usd"

_PRICES = """
    insert into prices (ticker, price, timestamp, observed_at, source, testnet)
    select $1, 91234.56, at, at, 'SCHEDULED', false
    from generate_series($2::timestamptz, $3::timestamptz - interval '1 second', $4::interval) as at
"""
_CANDLES = """
    select refresh_candles(array_agg($1::text), array_agg(minute))
    from generate_series($2::timestamptz, $3::timestamptz - interval '1 minute', interval '1 minute') as minute
"""
_REASONS = """
    insert into missed_slots (ticker, slot, reason, detail)
    select $1, slot, 'EXCHANGE_ERROR', 'HTTP_502: bad gateway'
    from generate_series($2::timestamptz, $3::timestamptz - interval '1 second', interval '1 second') as slot
"""


async def _load(connection: Connection) -> None:
    """A month of seconds: all of one ticker, half of the second, and a day of the third with reasons only."""
    await connection.execute("alter table prices disable trigger user")
    for ticker, step in ((WHOLE, 1), (HALF, 2)):
        await connection.execute(_PRICES, ticker, BEGIN, END, timedelta(seconds=step))
        for day in range(30):
            await connection.execute(_CANDLES, ticker, BEGIN + day * DAY, BEGIN + (day + 1) * DAY)
    await connection.execute("alter table prices enable trigger user")
    await connection.execute(_REASONS, MISSED, END - DAY, END)
    await connection.execute(
        "insert into schedules (ticker, since, interval_seconds, first_fill_done) "
        "select unnest($1::text[]), $2, 1, true",
        [WHOLE, HALF, MISSED],
        BEGIN,
    )
    await connection.execute("vacuum (analyze)")


async def _time(ask: Callable[[], Awaitable[object]]) -> str:
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        try:
            await ask()
        except StorageUnavailable:
            return "given up"
        times.append(time.perf_counter() - began)
    return f"{median(times) * 1000:,.0f} ms"


async def _measure_reading(pool: Pool) -> dict[str, str]:
    found = {
        "coverage of a day": await _time(lambda: select_coverage(pool, WHOLE, END - DAY, END, END)),
        "coverage of a month": await _time(lambda: select_coverage(pool, WHOLE, BEGIN, END, END)),
        "the first of 1.3 million gaps": await _time(lambda: select_gaps(pool, HALF, BEGIN, END, END, 1)),
        "100 of 1.3 million gaps": await _time(lambda: select_gaps(pool, HALF, BEGIN, END, END, 100)),
        "what healing reads: nothing missing in a day": await _time(
            lambda: select_missing_runs(pool, WHOLE, END - DAY, END, END)
        ),
    }
    cpu, began = time.process_time(), time.perf_counter()
    runs = await select_missing_runs(pool, MISSED, END - DAY, END, END)
    cpu, took = time.process_time() - cpu, time.perf_counter() - began
    found["a day of missed seconds, each with a reason: runs"] = f"{len(runs):,}"
    found["reading them: CPU of the worker, of all"] = f"{cpu * 1000:,.1f} of {took * 1000:,.0f} ms"
    return found


async def _measure_storing(connection: Connection, pool: Pool, postgres: Server) -> dict[str, str]:
    """Slot by slot, as the schedule does it, through the triggers."""

    async def store(first: int) -> None:
        for slot in range(first, first + SLOTS):
            at = END + timedelta(seconds=slot)
            await insert_prices(
                pool, [Price(t, Decimal("91234.56"), at, at, PriceSource.SCHEDULED, False) for t in TICKERS]
            )

    await store(-SLOTS)
    used, logged = [], []
    for turn in range(ROUNDS):
        await connection.execute("checkpoint")
        before = await connection.fetchval("select pg_current_wal_insert_lsn()")
        cpu = cpu_seconds(postgres.process.pid)
        await store(turn * SLOTS)
        used.append((cpu_seconds(postgres.process.pid) - cpu) / SLOTS / len(TICKERS) * 1e6)
        size = await connection.fetchval("select pg_current_wal_insert_lsn() - $1", before)
        logged.append(float(size) / SLOTS / len(TICKERS))
    return {
        "storing a price: CPU of PostgreSQL": f"{median(used):,.0f} µs",
        "rows a second on one core": f"{1e6 / median(used):,.0f}",
        "storing a price: write-ahead log": f"{median(logged):,.0f} bytes",
    }


async def measure(postgres: Server) -> dict[str, str]:
    url = await create_database(postgres.url, "coverage")
    await migrate(url)
    connection = await asyncpg.connect(url)
    try:
        async with create_pool(
            load_settings(database_url=url, redis_url="redis://127.0.0.1"), name="bench", size=1
        ) as pool:
            found = await _measure_storing(connection, pool, postgres)
            await fetch(pool, "truncate prices")
            await _load(connection)
            return await _measure_reading(pool) | found
    finally:
        await connection.close()


def main() -> None:
    for name in Settings.model_fields:
        os.environ.pop(name.upper(), None)
    Settings.model_config["env_file"] = None
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        postgres = start_postgres(Path(name, "postgres"), options={"fsync": "off", "max_wal_size": "4GB"})
        try:
            found = asyncio.run(measure(postgres))
        finally:
            postgres.stop()
    print(describe_cpu(), f"load average {os.getloadavg()[1]:.0f}", sep=", ")
    print(as_markdown([["", "now"], *([name, value] for name, value in found.items())]))


if __name__ == "__main__":
    main()
