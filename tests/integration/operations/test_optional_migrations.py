"""What `shared.migrate` does not run. The extensions cannot be had here: what is tested is the rest of the files."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from shared.config.settings import Settings
from shared.migrate import DIRECTORY, migrate, read_migrations
from shared.storage.candles import CandleInterval
from shared.storage.database import Pool, create_pool, fetch
from shared.storage.prices import insert_prices
from tests.integration.examples import MINUTE, NOON, example_price
from tests.reads import select_candles

OPTIONAL = DIRECTORY / "optional"
CITUS, TIMESCALEDB = (OPTIONAL / f"{name}.sql" for name in ("citus", "timescaledb"))

# Its functions' names and parameters, as its reference has them; they only look whether the table is there and fits.
STAND_IN = """
    set allow_system_table_mods = on;
    insert into pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
    select 99999, 'timescaledb', 10, 'public'::regnamespace, false, '{version}';
    create function by_range(column_name name, partition_interval anyelement) returns text
    language sql as 'select column_name::text';
    create function create_hypertable(
        relation regclass, dimension text, create_default_indexes boolean = true,
        if_not_exists boolean = false, migrate_data boolean = false
    ) returns boolean language plpgsql as $$
    begin
        if exists (select from pg_trigger where tgrelid = relation and (tgnewtable || tgoldtable) <> '') then
            raise exception 'transition tables';
        end if;
        if not exists (
            select
            from pg_index
            join pg_attribute on attrelid = relation and attnum = any(indkey) and attname = dimension
            where indrelid = relation
              and indisprimary
        ) then
            raise exception 'no dimension in the primary key';
        end if;
        return migrate_data;
    end
    $$;
"""


@pytest.fixture
async def dsn(settings: Settings) -> AsyncIterator[str]:
    """A migrated database."""
    name = f"optional_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(settings.database_url)
    try:
        await connection.execute(f"create database {name}")
        url = urlunsplit(urlsplit(settings.database_url)._replace(path=f"/{name}"))
        await migrate(url)
        yield url
        await connection.execute(f"drop database {name} with (force)")
    finally:
        await connection.close()


@pytest.fixture
async def own(settings: Settings, dsn: str) -> AsyncIterator[Pool]:
    async with create_pool(settings.model_copy(update={"database_url": dsn}), name="tests", size=1) as pool:
        yield pool


async def run(dsn: str, *scripts: str) -> None:
    """As psql with --single-transaction."""
    connection = await asyncpg.connect(dsn)
    try:
        for script in scripts:
            async with connection.transaction():
                await connection.execute(script)
    finally:
        await connection.close()


async def select_triggers(pool: Pool) -> list[Any]:
    sql = "select pg_get_triggerdef(oid) from pg_trigger where tgrelid = 'prices'::regclass order by tgname"
    return [row[0] for row in await fetch(pool, sql)]


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_they_are_not_among_those_that_are_run() -> None:
    assert {path.name for path in OPTIONAL.iterdir()} == {"citus.sql", "timescaledb.sql"}
    assert {migration.name for migration in read_migrations()} & {"citus", "timescaledb"} == set()


@pytest.mark.parametrize(
    ("path", "stand_in", "said"),
    [
        (CITUS, "select 1", "prices cannot be distributed by Citus"),
        (TIMESCALEDB, "select 1", "the extension timescaledb is not there"),
        (TIMESCALEDB, STAND_IN.format(version="2.9.3"), "timescaledb 2.9.3 is too old"),
        (TIMESCALEDB, STAND_IN.format(version="1.99.0"), "timescaledb 1.99.0 is too old"),
    ],
)
async def test_what_cannot_be_is_refused_and_nothing_is_changed(
    dsn: str, own: Pool, path: Path, stand_in: str, said: str
) -> None:
    before = await select_triggers(own)
    with pytest.raises(asyncpg.RaiseError, match=said):
        await run(dsn, stand_in, text_of(path))
    assert await select_triggers(own) == before


@pytest.mark.parametrize("version", ["2.18.0", "2.23.1", "3.0.0-dev"])
async def test_prices_have_all_their_triggers_again(dsn: str, own: Pool, version: str) -> None:
    before = await select_triggers(own)
    await insert_prices(own, [example_price()])
    await run(dsn, STAND_IN.format(version=version), text_of(TIMESCALEDB))
    assert await select_triggers(own) == before
    await insert_prices(own, [example_price(NOON + MINUTE / 2, "5")])
    await fetch(own, "delete from prices where timestamp = $1", NOON)
    [candle] = await select_candles(own, "btc_usd", CandleInterval.ONE_MINUTE, NOON, NOON, 9, NOON)
    assert (candle.samples, str(candle.open)) == (1, "5")
