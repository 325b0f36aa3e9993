"""A rolling deploy migrates first, so the previous release's queries must work on the new schema."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from shared.config.settings import Settings
from shared.migrate import migrate, read_migrations
from shared.storage.database import Pool, create_pool, fetch
from tests.integration.released_queries import FILE, load

DATABASE = "released_queries"
RELEASED = load(FILE.read_text(encoding="utf-8"))


@pytest.fixture
async def dsn(settings: Settings) -> AsyncIterator[str]:
    """A database as the release has it."""
    connection = await asyncpg.connect(settings.database_url)
    try:
        await connection.execute(f"create database {DATABASE}")
        url = urlunsplit(urlsplit(settings.database_url)._replace(path=f"/{DATABASE}"))
        await migrate(url, read_migrations()[: RELEASED["migrations"]])
        yield url
        await connection.execute(f"drop database {DATABASE} with (force)")
    finally:
        await connection.close()


@pytest.fixture
async def connected(settings: Settings, dsn: str) -> AsyncIterator[Pool]:
    """One connection, which keeps its prepared statements."""
    async with create_pool(settings.model_copy(update={"database_url": dsn}), name="tests", size=1) as pool:
        yield pool


async def ask(pool: Pool) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = []
    for asked in RELEASED["asked"]:
        entry = {"sql": asked["sql"], "arguments": asked["arguments"]}
        try:
            entry["rows"] = [list(row) for row in await fetch(pool, asked["sql"], *asked["arguments"])]
        except asyncpg.PostgresError as error:
            entry["error"] = error.sqlstate
        answers.append(entry)
    await fetch(pool, "truncate prices, schedules, missed_slots")
    return answers


def test_they_store_and_read() -> None:
    words = [asked["sql"].split()[0] for asked in RELEASED["asked"]]
    assert {"insert", "update", "select", "with"} <= set(words)
    assert any('{"data":{' in asked["sql"] for asked in RELEASED["asked"])
    assert [asked["error"] for asked in RELEASED["asked"] if "error" in asked] == ["23514"] * 2


async def test_they_are_answered_alike_before_and_after_the_migrations(connected: Pool, dsn: str) -> None:
    assert await ask(connected) == RELEASED["asked"]
    await migrate(dsn)
    assert await ask(connected) == RELEASED["asked"]


async def test_prices_stored_by_the_old_release_reach_followers_of_the_new_one(connected: Pool, dsn: str) -> None:
    await migrate(dsn)
    stored: list[int] = []
    for asked in RELEASED["asked"]:
        if "insert into prices" in asked["sql"] and "rows" in asked:
            await fetch(connected, asked["sql"], *asked["arguments"])
            batches = await fetch(connected, "select batch from prices where batch > $1", max(stored, default=0))
            stored += {row["batch"] for row in batches}
            assert len(batches) == len(asked["rows"])
    assert stored == sorted(set(stored))
