"""A hundred million rows in one table, and in monthly range partitions of it.

`python -m tests.bench.rows` measures it, in half an hour and 40 GB of disk, and writes ROWS.md; `--rows` for fewer.
Both shapes hold the same prices, a second apart, in the order in which a collector stores them; they are read and
stored by the project's own functions. Partitions are what `prices` could be made by a migration: the key, the index,
the triggers and their functions are the same.
"""

import argparse
import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from statistics import median

import asyncpg

from shared.config.settings import Settings, load_settings
from shared.errors import StorageUnavailable
from shared.migrate import migrate
from shared.storage import prices as statements
from shared.storage.candles import CandleInterval
from shared.storage.database import Pool, create_pool
from shared.storage.pool import Connection
from shared.storage.prices import Price, PriceSource, insert_prices
from shared.storage.retention import drop_oldest_prices
from tests import reads
from tests.bench.figures import create_database
from tests.bench.machine import MIB, describe_cpu
from tests.bench.report import as_markdown, as_text
from tests.embedded import start_postgres
from tests.reads import select_candles, select_coverage

FULL_ROWS = 100_000_000
FILE = Path(__file__).parent / "ROWS.md"
TICKERS = ("btc_usd", "eth_usd", "sol_usd", "xrp_usd")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
MONTHS = 14
"Partitions: of what is loaded, and some more that are made ahead."

SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
CANDLE_DAYS = 35
PIECE, LOADERS = 250_000, 2
BATCHES, REPEATS = 11, 20
SLOTS, HEALED = 300, 1000
DROPPED_AT_A_TIME = 2000
POSTGRES_OPTIONS = {
    "fsync": "off",
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "6GB",
    "shared_buffers": "2GB",
    "maintenance_work_mem": "1GB",
    "effective_cache_size": "8GB",
    "shared_preload_libraries": "pg_stat_statements",
}
SHAPES = ("one table", "monthly partitions")

_LOAD = """
    insert into prices (ticker, price, timestamp, observed_at, source, testnet, batch)
    select
        ticker,
        round((base * (1 + sin(n / 5000.0) / 10))::numeric, 2 + n % 3),
        at,
        at + n % 900000 * interval '1 microsecond',
        (case when n % 50 = 0 then 'BACKFILLED' when n % 77 = 0 then 'REQUESTED' else 'SCHEDULED' end)::price_source,
        false,
        n + 1
    from generate_series($1::int, $2::int) as n
    cross join lateral (select $3::timestamptz + n * interval '1 second' as at) as slot
    cross join (values ('btc_usd', 91234.5), ('eth_usd', 3123.45), ('sol_usd', 131.2), ('xrp_usd', 2.1234))
        as tickers (ticker, base)
    order by n, ticker
"""
_INDEXES = """
    alter table prices add primary key (ticker, timestamp) include (price, observed_at, source, testnet);
    create index prices_by_batch on prices (batch, timestamp, ticker) where batch > 0;
"""
METHOD = """
## How it is measured

`python -m tests.bench.rows` builds each shape on a PostgreSQL of its own, one after the other, with 2 GB of shared
buffers and fsync off; the page cache has the rest of the memory. The rows are a price a second of four tickers, loaded
without indexes and triggers, in the order in which a collector stores them, then indexed and vacuumed. Reads and
writes use the project's own functions and their prepared statements. The figures are medians of PostgreSQL's execution
time (pg_stat_statements), with the needed pages in memory. Writes go through all triggers. The planning time is
PostgreSQL's too, and is spent once per statement and connection. The oldest month is dropped by the project's own
retention, 2,000 rows at a time without its pauses, or with its partition. "Given up" is what a client gets too, after
5 s. If the load average above is higher than the number of cores, other programs ran at the same time: then only a
factor of two or more between the shapes is significant.
"""

Ask = Callable[[Pool], Awaitable[object]]


@dataclass(frozen=True)
class History:
    seconds: int

    @property
    def end(self) -> datetime:
        return BEGIN + self.seconds * SECOND

    def questions(self) -> dict[str, Ask]:
        ticker, middle, now = TICKERS[0], BEGIN + self.seconds // 2 * SECOND, self.end

        def candles(interval: CandleInterval, length: timedelta) -> Ask:
            return lambda pool: select_candles(pool, ticker, interval, now - length, now, 10_000, now)

        def coverage(length: timedelta) -> Ask:
            return lambda pool: select_coverage(pool, ticker, now - length, now, now)

        return {
            "latestPrice": lambda pool: reads.select_latest_price(pool, ticker),
            "latestPrices of 4": lambda pool: statements.select_latest_prices(pool, TICKERS),
            "priceHistory 100": lambda pool: reads.select_price_history(pool, ticker, None, 100),
            "priceHistory 100, half way back": lambda pool: reads.select_price_history(pool, ticker, middle, 100),
            "pricesInPeriod 1000": lambda pool: reads.select_prices_in_period(
                pool, ticker, middle, middle + DAY, None, 1000
            ),
            "firstTimestamp of 4": lambda pool: reads.select_first_timestamps(pool, TICKERS),
            "a day of minute candles": candles(CandleInterval.ONE_MINUTE, DAY),
            "a month of hourly candles": candles(CandleInterval.ONE_HOUR, 30 * DAY),
            "coverage of a day": coverage(DAY),
            "coverage of a month": coverage(30 * DAY),
            "coverage of all the time": coverage(self.end - BEGIN),
        }


async def measure(dsn: str, shape: str, rows: int) -> dict[str, str]:
    """What is told of one shape, by name."""
    history = History(rows // len(TICKERS))
    await migrate(dsn)
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("create extension pg_stat_statements")
        if shape != SHAPES[0]:
            await _partition(connection)
        found = await load(connection, dsn, history)
        found |= await _sizes(connection)
        settings = load_settings(database_url=dsn, redis_url="redis://127.0.0.1")
        async with create_pool(settings, name="bench", size=1, statement_seconds=60) as pool:
            for name, ask in history.questions().items():
                try:
                    found[name] = f"{await database_time(connection, pool, ask):,.0f} µs"
                except StorageUnavailable:
                    found[name] = "given up"
                print(shape, name, found[name], flush=True)
            found |= await _measure_storing(connection, pool, history)
        found |= await _planning(connection)
        found |= await _drop_a_month(connection, settings, shape)
        return found
    finally:
        await connection.close()


async def _partition(connection: Connection) -> None:
    """The same table, by the month. Functions know it by its name, triggers are made again."""
    triggers = await connection.fetch("""
        select pg_get_triggerdef(oid) as sql
        from pg_trigger
        where tgrelid = 'prices'::regclass
          and not tgisinternal
    """)
    await connection.execute("""
        alter table prices rename to one_table;
        create table prices (like one_table including defaults including constraints) partition by range (timestamp);
        drop table one_table;
    """)
    first = BEGIN
    for _ in range(MONTHS):
        after = (first + 31 * DAY).replace(day=1)
        await connection.execute(
            f"create table prices_{first:%Y_%m} partition of prices for values from ('{first}') to ('{after}')"
        )
        first = after
    await connection.execute(_INDEXES)
    for row in triggers:
        await connection.execute(row["sql"])


async def load(connection: Connection, dsn: str, history: History) -> dict[str, str]:
    """All rows without indexes and triggers, then the indexes, then a vacuum as autovacuum would have done by then."""
    await connection.execute("alter table prices drop constraint prices_pkey; drop index prices_by_batch")
    await connection.execute("alter table prices disable trigger user")
    seconds = {}
    began, pieces = time.monotonic(), iter(range(0, history.seconds, PIECE))

    async def load() -> None:
        loader = await asyncpg.connect(dsn)
        try:
            for first in pieces:
                await loader.execute(_LOAD, first, min(first + PIECE, history.seconds) - 1, BEGIN)
        finally:
            await loader.close()

    await asyncio.gather(*(load() for _ in range(LOADERS)))
    seconds["rows"], began = time.monotonic() - began, time.monotonic()
    await connection.execute(_INDEXES)
    seconds["indexes"], began = time.monotonic() - began, time.monotonic()
    await connection.execute("alter table prices enable trigger user")
    await connection.execute("vacuum (freeze, analyze) prices")
    seconds["vacuum"] = time.monotonic() - began
    await connection.execute("select setval('price_batches', $1)", history.seconds + 1)
    await connection.execute(
        """
        insert into schedules (ticker, since, interval_seconds, first_fill_done)
        select unnest($1::text[]), $2, 1, true
        """,
        TICKERS,
        BEGIN,
    )
    # Candles of what is asked for.
    for day in range(CANDLE_DAYS):
        minutes = [history.end - day * DAY - n * 60 * SECOND for n in range(1, 1441)]
        minutes = [minute.replace(second=0) for minute in minutes if minute >= BEGIN]
        await connection.execute(
            "select refresh_candles(array_fill($1::text, array[cardinality($2::timestamptz[])]), $2)",
            TICKERS[0],
            minutes,
        )
    await connection.execute("vacuum (freeze, analyze) candle_minutes, candle_hours")
    await connection.execute("checkpoint")
    print(seconds, flush=True)
    return {"loading: " + name: f"{value:,.0f} s" for name, value in seconds.items()}


async def _sizes(connection: Connection) -> dict[str, str]:
    row = await connection.fetchrow("""
        select sum(pg_table_size(relid)) as rows, sum(pg_indexes_size(relid)) as indexes
        from (select relid from pg_partition_tree('prices') union select 'prices'::regclass) as parts (relid)
    """)
    assert row is not None
    return {"rows on disk": f"{row['rows'] / MIB:,.0f} MiB", "indexes on disk": f"{row['indexes'] / MIB:,.0f} MiB"}


async def database_time(watcher: Connection, pool: Pool, ask: Ask) -> float:
    """Median µs of execution by PostgreSQL's own clock, statements prepared, pages in memory as far as they fit."""
    began = time.monotonic()
    await ask(pool)
    repeats = REPEATS if time.monotonic() - began < 0.1 else 1
    batches = []
    for _ in range(BATCHES if repeats > 1 else 5):
        await watcher.execute("select pg_stat_statements_reset()")
        for _ in range(repeats):
            await ask(pool)
        batches.append(await _spent(watcher) / repeats)
    return median(batches[1:])


async def _spent(watcher: Connection) -> float:
    milliseconds: float = await watcher.fetchval("""
        select coalesce(sum(total_exec_time), 0)
        from pg_stat_statements
        join pg_database on pg_database.oid = dbid
        where datname = current_database()
          and query not like '%pg_stat_statements%'
    """)
    return milliseconds * 1000


async def _measure_storing(watcher: Connection, pool: Pool, history: History) -> dict[str, str]:
    """Through the triggers: slots as the worker stores them, and what healing finds."""

    def prices(first: int, count: int, tickers: tuple[str, ...]) -> list[Price]:
        stamps = [history.end + (first + n) * SECOND for n in range(count)]
        return [Price(t, Decimal("91234.56"), at, at, PriceSource.SCHEDULED, False) for at in stamps for t in tickers]

    slots = []
    for slot in range(SLOTS):
        await watcher.execute("select pg_stat_statements_reset()")
        await insert_prices(pool, prices(slot, 1, TICKERS))
        slots.append(await _spent(watcher))
    healed = []
    for batch in range(BATCHES):
        await watcher.execute("select pg_stat_statements_reset()")
        await insert_prices(pool, prices(SLOTS + batch * HEALED, HEALED, TICKERS[:1]), timeout=30)
        healed.append(await _spent(watcher) / 1000)
    return {
        "storing a slot, 4 rows": f"{median(slots[20:]):,.0f} µs",
        "healing 1,000 rows at once": f"{median(healed[1:]):,.1f} ms",
    }


async def _planning(connection: Connection) -> dict[str, str]:
    """Once for each statement and connection, or whenever a plan has become void."""
    await connection.execute("set plan_cache_mode = force_generic_plan")
    period = f"'{TICKERS[0]}', '{BEGIN}', '{BEGIN + DAY}', null, 1000"
    asked = [
        ("latestPrice", statements.latest_price(TICKERS[0]).sql, f"'{TICKERS[0]}'"),
        ("pricesInPeriod", statements.prices_in_period(TICKERS[0], BEGIN, BEGIN + DAY, None, 1000).sql, period),
    ]
    found = {}
    for name, sql, arguments in asked:
        times = []
        for _ in range(BATCHES):
            await connection.execute(f"prepare planned as {sql}")
            lines = await connection.fetch(f"explain (summary) execute planned({arguments})")
            await connection.execute("deallocate planned")
            [line] = [row[0] for row in lines if row[0].startswith("Planning Time: ")]
            times.append(float(line.split()[2]))
        found[f"planning {name}"] = f"{median(times[1:]) * 1000:,.0f} µs"
    return found


async def _drop_a_month(connection: Connection, settings: Settings, shape: str) -> dict[str, str]:
    """The oldest one: by the project's own retention and a vacuum, or with its partition."""
    after = (BEGIN + 31 * DAY).replace(day=1)
    await connection.execute("checkpoint")
    logged = await connection.fetchval("select pg_current_wal_insert_lsn()")
    rows, longest, began = 0, 0.0, time.monotonic()
    if shape == SHAPES[0]:
        await connection.execute(
            "insert into dropped_prices (ticker, kept_from) select unnest($1::text[]), $2", TICKERS, after
        )
        async with create_pool(settings, name="bench", size=1) as pool:
            for ticker in TICKERS:
                while True:
                    at = time.monotonic()
                    count = await drop_oldest_prices(pool, ticker, DROPPED_AT_A_TIME)
                    longest, rows = max(longest, time.monotonic() - at), rows + count
                    if count < DROPPED_AT_A_TIME:
                        break
    else:
        rows = await connection.fetchval(f"select count(*) from prices_{BEGIN:%Y_%m}")
        began = time.monotonic()
        await connection.execute(f"drop table prices_{BEGIN:%Y_%m}")
        longest = time.monotonic() - began
    dropped, began = time.monotonic() - began, time.monotonic()
    await connection.execute("vacuum prices")
    vacuumed = time.monotonic() - began
    logged = await connection.fetchval("select pg_current_wal_insert_lsn() - $1", logged)
    found = {
        "dropping the oldest month, rows": f"{rows:,}",
        "dropping it": f"{dropped:,.2f} s",
        "the longest that writers wait meanwhile": f"{longest * 1000:,.0f} ms",
        "vacuum after it": f"{vacuumed:,.1f} s",
        "write-ahead log of both": f"{logged / MIB:,.0f} MiB",
    }
    return found | {f"{name} after it": size for name, size in (await _sizes(connection)).items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.rows")
    parser.add_argument("--rows", type=int, default=FULL_ROWS)
    rows = parser.parse_args().rows
    signal.signal(signal.SIGTERM, lambda *_: parser.exit(1))
    for name in Settings.model_fields:
        os.environ.pop(name.upper(), None)
    Settings.model_config["env_file"] = None
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for number, shape in enumerate(SHAPES):
            postgres = start_postgres(folder / str(number), options=POSTGRES_OPTIONS)
            try:
                url = asyncio.run(create_database(postgres.url, "rows"))
                found[shape] = asyncio.run(measure(url, shape, rows))
            finally:
                postgres.stop()
            print(shape, *(f"{name}: {value}" for name, value in found[shape].items()), sep="\n", flush=True)
            shutil.rmtree(folder / str(number))
    table = [["", *SHAPES], *([name, *(found[shape][name] for shape in SHAPES)] for name in found[SHAPES[0]])]
    print(as_text(table))
    if rows >= FULL_ROWS:
        load = f"load average {os.getloadavg()[2]:.0f}"
        head = f"# A hundred million rows\n\n{describe_cpu()}, {datetime.now(UTC):%Y-%m-%d}, {load}."
        FILE.write_text(f"{head}\n\n{as_markdown(table)}\n{METHOD}", encoding="utf-8")


if __name__ == "__main__":
    main()
