"""Migrations on real databases, one of its own for each test."""

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from shared.config.settings import Settings
from shared.migrate import (
    Migration,
    MigrationError,
    migrate,
    migrate_when_reachable,
    read_migrations,
    select_version,
)
from shared.storage.database import Pool, create_pool, fetch
from shared.storage.prices import PriceSource, insert_prices
from tests.integration.examples import MINUTE, NOON, example_price

NAMES = [migration.name for migration in read_migrations()]
ROOT = Path(__file__).parents[3]


@pytest.fixture
async def dsn(settings: Settings) -> AsyncIterator[str]:
    """An empty database."""
    name = f"migrate_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(settings.database_url)
    try:
        await connection.execute(f"create database {name}")
        yield urlunsplit(urlsplit(settings.database_url)._replace(path=f"/{name}"))
        await connection.execute(f"drop database {name} with (force)")
    finally:
        await connection.close()


@pytest.fixture
async def empty_pool(settings: Settings, dsn: str) -> AsyncIterator[Pool]:
    async with create_pool(settings.model_copy(update={"database_url": dsn}), name="tests", size=2) as pool:
        yield pool


async def select_tables(pool: Pool) -> list[str]:
    sql = "select tablename::text from pg_tables where schemaname = 'public' order by tablename"
    return [row["tablename"] for row in await fetch(pool, sql)]


async def select_recorded(pool: Pool) -> list[tuple[int, str, str]]:
    return [tuple(row) for row in await fetch(pool, "select version, name, checksum from schema_migrations order by 1")]


async def run_migrate(dsn: str) -> tuple[int | None, str, str]:
    """`python -m shared.migrate` as an operator runs it: exit code, standard output, standard error."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "shared.migrate",
        cwd=Path(__file__).parent,  # where no developer's `.env` is
        env={**kept, "PYTHONPATH": str(ROOT), "DATABASE_URL": dsn},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_an_empty_database_gets_every_migration_and_then_none(dsn: str, empty_pool: Pool) -> None:
    assert await select_version(empty_pool) == 0
    assert await migrate(dsn) == NAMES
    recorded = [(m.version, m.name, m.checksum) for m in read_migrations()]
    assert await select_recorded(empty_pool) == recorded
    assert await select_version(empty_pool) == len(NAMES)
    assert {"missed_slots", "prices", "schedules", "schema_migrations"} <= set(await select_tables(empty_pool))

    assert await migrate(dsn) == []
    assert await select_recorded(empty_pool) == recorded


async def test_only_what_is_missing_is_applied_and_rows_stay(dsn: str, empty_pool: Pool) -> None:
    migrations = read_migrations()
    price = example_price()
    assert await migrate(dsn, migrations[:1]) == NAMES[:1]
    sql = "insert into prices values ($1, $2, $3, $4, 'SCHEDULED', true)"
    await fetch(empty_pool, sql, price.ticker, price.timestamp, price.price, price.observed_at)
    assert await migrate(dsn) == NAMES[1:]
    assert [row["price"] for row in await fetch(empty_pool, "select price from prices")] == [price.price]


async def test_migrating_from_several_places_at_once_applies_each_once(dsn: str, empty_pool: Pool) -> None:
    results = await asyncio.gather(*(migrate(dsn) for _ in range(6)))
    assert sorted(name for names in results for name in names) == NAMES
    assert [name for _, name, _ in await select_recorded(empty_pool)] == NAMES


async def test_two_processes_at_once_both_succeed(dsn: str, empty_pool: Pool) -> None:
    results = await asyncio.gather(run_migrate(dsn), run_migrate(dsn))
    assert [(code, err) for code, _, err in results] == [(0, ""), (0, "")]
    assert [name for _, name, _ in await select_recorded(empty_pool)] == NAMES


async def test_a_changed_old_migration_is_an_error_that_names_the_file(dsn: str, empty_pool: Pool) -> None:
    await migrate(dsn)
    recorded = await select_recorded(empty_pool)
    first, *others = read_migrations()
    changed = Migration(first.version, first.name, first.sql + "\n-- a comment\n")
    later = Migration(len(NAMES) + 1, "later", "create table later (id integer)")
    with pytest.raises(MigrationError, match=r"^0001_prices\.sql was changed after it was applied; restore it"):
        await migrate(dsn, [changed, *others, later])
    assert await select_recorded(empty_pool) == recorded
    assert "later" not in await select_tables(empty_pool)


async def test_a_migration_may_exceed_the_statement_timeout(dsn: str, empty_pool: Pool) -> None:
    await fetch(empty_pool, f"alter database {urlsplit(dsn).path[1:]} set statement_timeout = '50ms'")
    slow = Migration(1, "0001_slow", "select pg_sleep(0.2)")
    assert await migrate(dsn, [slow]) == ["0001_slow"]


async def test_a_failing_migration_changes_nothing_and_can_be_fixed(dsn: str, empty_pool: Pool) -> None:
    first = Migration(1, "0001_first", "create table first (id integer)")
    failing = Migration(2, "0002_second", "create table second (id integer); insert into second values ('no number');")
    with pytest.raises(asyncpg.InvalidTextRepresentationError):
        await migrate(dsn, [first, failing])
    assert await select_tables(empty_pool) == ["first", "schema_migrations"]
    assert [name for _, name, _ in await select_recorded(empty_pool)] == ["0001_first"]

    mended = Migration(2, "0002_second", "create table second (id integer)")
    assert await migrate(dsn, [first, mended]) == ["0002_second"]
    assert await select_tables(empty_pool) == ["first", "schema_migrations", "second"]


async def test_a_lock_that_is_not_free_in_time_is_an_error(dsn: str, empty_pool: Pool) -> None:
    await migrate(dsn)
    altering = Migration(len(NAMES) + 1, "0003_altering", "alter table prices add column note text")
    reader = await asyncpg.connect(dsn)
    try:
        async with reader.transaction():
            await reader.fetch("select ticker from prices")
            with pytest.raises(MigrationError, match=r"another session holds a lock .*lock timeout.*; try again"):
                await migrate(dsn, [*read_migrations(), altering])
    finally:
        await reader.close()
    assert await select_version(empty_pool) == len(NAMES)
    assert await migrate(dsn, [*read_migrations(), altering]) == ["0003_altering"]


async def test_the_command_says_what_it_applied(dsn: str, empty_pool: Pool) -> None:
    applied = f"migrate: applied {', '.join(NAMES)}\n"
    assert await run_migrate(dsn.replace("postgresql://", "postgresql+asyncpg://")) == (0, applied, "")
    assert await run_migrate(dsn) == (0, "migrate: up to date\n", "")
    assert await select_version(empty_pool) == len(NAMES)


@pytest.mark.parametrize("url", ["mysql://user:{}@host/database", "postgresql://user:{}@host:port/database"])
async def test_the_command_names_a_setting_it_cannot_use(url: str) -> None:
    code, out, err = await run_migrate(url.format("hidden"))
    assert (code, out) == (2, "")
    assert f"DATABASE_URL={url.format('***')} is refused" in err
    assert "hidden" not in err


async def test_a_host_name_that_cannot_be_resolved_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with the brief's `.env` outside compose. The wait begins with the reason and ends with it."""
    monkeypatch.setattr("shared.migrate._WAIT_FOR_DATABASE_SECONDS", 0)
    with pytest.raises(MigrationError) as refused:
        await migrate_when_reachable("postgresql://postgres:hidden@postgres.invalid:5432/deribit")
    reason = str(refused.value).removeprefix("PostgreSQL cannot be reached: ")
    assert reason.startswith("the host name postgres.invalid cannot be resolved (")
    assert "`postgres` and `redis` are names inside docker compose" in reason
    assert "hidden" not in reason
    assert capsys.readouterr().out == f"migrate: waiting up to 0 s for PostgreSQL: {reason}\n"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"netloc": "postgres:hidden@{host}"}, "password authentication failed"),
        ({"path": "/nowhere"}, 'database "nowhere" does not exist'),
    ],
)
async def test_the_command_fails_in_one_line(dsn: str, change: dict[str, str], said: str) -> None:
    parts = urlsplit(dsn)
    change = {name: value.format(host=parts.netloc.rpartition("@")[2]) for name, value in change.items()}
    code, out, err = await run_migrate(urlunsplit(parts._replace(**change)))
    assert (code, out) == (1, "")
    assert err.startswith("migrate: ")
    assert said in err
    assert err.count("\n") == 1
    assert "hidden" not in err


async def test_the_command_names_a_changed_migration(dsn: str, empty_pool: Pool) -> None:
    await migrate(dsn)
    await fetch(empty_pool, "update schema_migrations set checksum = 'another' where version = 2")
    said = "migrate: 0002_slots.sql was changed after it was applied; restore it and write a new migration\n"
    assert await run_migrate(dsn) == (1, "", said)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["0002_first.sql"], "0002_first.sql is not the next migration after 0000"),
        (["0001_a.sql", "0003_c.sql"], "0003_c.sql is not the next migration after 0001"),
        (["0001_a.sql", "0001_b.sql"], "0001_b.sql is not the next migration after 0001"),
        (["0001_a.sql", "2_b.sql"], "2_b.sql is not the next migration after 0001"),
        (["0001-a.sql"], "0001-a.sql is not the next migration after 0000"),
    ],
)
def test_a_gap_in_the_numbers_is_refused(tmp_path: Path, names: list[str], said: str) -> None:
    for name in names:
        (tmp_path / name).write_text("select 1")
    with pytest.raises(MigrationError) as refused:
        read_migrations(tmp_path)
    assert str(refused.value) == said


def test_other_files_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "0001_first.sql").write_text("select 1")
    (tmp_path / "README.md").write_text("notes")
    assert read_migrations(tmp_path) == [Migration(1, "0001_first", "select 1")]


async def test_averages_that_are_there_already_are_told_from_observations(dsn: str, empty_pool: Pool) -> None:
    await migrate(dsn, read_migrations()[:7])
    averaged = [example_price(NOON + MINUTE * n, source=PriceSource.BACKFILLED) for n in range(0, 200, 3)]
    await insert_prices(empty_pool, averaged)
    await insert_prices(empty_pool, [example_price(NOON + MINUTE * n) for n in range(0, 200, 2)])
    await migrate(dsn)
    migrated = await fetch(empty_pool, "select * from candle_minutes order by start")
    hours = await fetch(empty_pool, "select * from candle_hours order by start")
    assert sum(row["averaged"] is not None for row in migrated) == sum(1 for n in range(0, 200, 3) if n % 2)
    await fetch(empty_pool, "select refresh_candles(array_agg(ticker), array_agg(start)) from candle_minutes")
    assert await fetch(empty_pool, "select * from candle_minutes order by start") == migrated
    assert await fetch(empty_pool, "select * from candle_hours order by start") == hours


async def test_prices_at_impossible_instants_are_deleted_and_refused_from_then_on(dsn: str, empty_pool: Pool) -> None:
    await migrate(dsn, read_migrations()[:7])
    await insert_prices(empty_pool, [example_price()])
    insert = """
        insert into prices (ticker, price, timestamp, observed_at, source, testnet)
        values ('btc_usd', 1, $1::text::timestamptz, $2::text::timestamptz, 'REQUESTED', false)
    """
    instants = ["infinity", "-infinity", "0044-03-15 12:00:00+00 BC", "20000-01-01 00:00:00+00"]
    pairs = [(at, at) for at in instants[2:]] + [("2026-02-01 00:00:00+00", at) for at in instants]
    await fetch(empty_pool, "alter table prices disable trigger user")  # some of them fail with triggers
    for number, (timestamp, observed_at) in enumerate([*pairs[2:], *pairs[:2], ("infinity", "infinity")]):
        await fetch(empty_pool, insert.replace("btc_usd", f"t{number}_usd"), timestamp, observed_at)
    await fetch(empty_pool, "alter table prices enable trigger user")

    await migrate(dsn)
    assert [tuple(row) for row in await fetch(empty_pool, "select ticker, timestamp from prices")] == [
        ("btc_usd", NOON)
    ]
    for timestamp, observed_at in pairs:
        with pytest.raises(asyncpg.CheckViolationError):
            await fetch(empty_pool, insert, timestamp, observed_at)
