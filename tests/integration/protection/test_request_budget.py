"""The budget of one request: its time, and its connections. The statements here are really slow."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import strawberry
from strawberry.schema.config import StrawberryConfig

from server.protection.request_budget import FIELDS_AT_ONCE, RequestBudget
from server.reads.context import Context, Info
from server.schema.root import Schema, schema
from server.schema.scalars import SCALARS
from shared.config.settings import Settings
from shared.errors import StorageUnavailable
from shared.storage.database import Pool, create_pool, fetch

DEADLINE = 30.0
PATIENCE = 30


@strawberry.type
class Inner:
    @strawberry.field
    async def sleep(self, info: Info, seconds: float) -> int:
        await fetch(info.context.pool, "select pg_sleep($1)", seconds, timeout=DEADLINE)
        return 1


@strawberry.type
class Query:
    @strawberry.field
    async def sleep(self, info: Info, seconds: float) -> int | None:
        await fetch(info.context.pool, "select pg_sleep($1)", seconds, timeout=DEADLINE)
        return 1

    @strawberry.field
    async def inner(self) -> Inner | None:
        return Inner()


@strawberry.type
class Mutation:
    @strawberry.mutation
    async def sleep(self, info: Info, seconds: float) -> int | None:
        await fetch(info.context.pool, "select pg_sleep($1)", seconds, timeout=DEADLINE)
        return 1

    @strawberry.mutation
    async def fail(self, seconds: float) -> int | None:
        raise StorageUnavailable(is_answered=seconds < 0)


slow_schema = Schema(query=Query, mutation=Mutation, config=StrawberryConfig(scalar_map=SCALARS))
SLEEPING = "select count(*) from pg_stat_activity where application_name = 'slow' and query like 'select pg_sleep%'"
TOO_LONG = "The request took longer than 0.5 s; ask for less at once, or try again shortly."


@pytest.fixture
async def own_pool(settings: Settings) -> AsyncIterator[Pool]:
    async with create_pool(settings, name="slow", size=10, statement_seconds=60) as pool:
        yield pool


@pytest.fixture
def slow(own_pool: Pool, context: Context) -> Context:
    slow = Context(own_pool, context.redis, context.settings)
    slow.budget = RequestBudget(0.5)
    return slow


async def asleep(pool: Pool) -> int:
    return int((await fetch(pool, SLEEPING + " and state = 'active'"))[0][0])


async def ask(query: str, context: Context) -> tuple[Any, list[tuple[Any, str, Any]]]:
    """The data, and (path, message, code) of each error."""
    result = await slow_schema.execute(query, None, context)
    errors = [(e.path, e.message, (e.extensions or {})["code"]) for e in result.errors or []]
    return result.data, sorted(errors, key=str)


@pytest.mark.parametrize(
    "query", ["{ a: sleep(seconds: 60) b: sleep(seconds: 0) }", "{ inner { sleep(seconds: 60) } }"]
)
async def test_a_field_that_takes_too_long_is_cancelled_in_postgres_and_the_others_are_answered(
    slow: Context, own_pool: Pool, pool: Pool, query: str
) -> None:
    began = time.monotonic()
    data, errors = await ask(query, slow)
    assert time.monotonic() - began < PATIENCE
    path = ["a"] if "a:" in query else ["inner", "sleep"]
    assert data == ({"a": None, "b": 1} if "a:" in query else {"inner": None})
    assert errors == [(path, TOO_LONG, "STORAGE_UNAVAILABLE")]
    async with asyncio.timeout(PATIENCE):
        while await asleep(pool):
            await asyncio.sleep(0.02)
        # All ten connections are back in the pool, before any statement's deadline.
        await asyncio.gather(*(fetch(own_pool, "select pg_sleep(0.05)", timeout=DEADLINE) for _ in range(10)))


async def test_the_fields_of_a_mutation_share_one_budget(slow: Context) -> None:
    fields = " ".join(f"a{n}: sleep(seconds: 0.2)" for n in range(50))
    began = time.monotonic()
    data, errors = await ask(f"mutation {{ {fields} }}", slow)
    assert time.monotonic() - began < 50 * 0.2 / 2
    done = [name for name, value in data.items() if value]
    assert len(done) in {1, 2}
    assert errors == sorted(([([f"a{n}"], TOO_LONG, "STORAGE_UNAVAILABLE") for n in range(len(done), 50)]), key=str)


async def test_a_request_leaves_connections_to_others(slow: Context, own_pool: Pool, pool: Pool) -> None:
    slow.budget = RequestBudget(DEADLINE)
    asking = asyncio.create_task(ask("{ " + " ".join(f"a{n}: sleep(seconds: 0.1)" for n in range(30)) + "}", slow))
    most = 0
    while not asking.done():
        most = max(most, await asleep(pool))
        other, _ = await ask("{ sleep(seconds: 0) }", Context(own_pool, slow.redis, slow.settings))
        assert other == {"sleep": 1}
    assert await asking == ({f"a{n}": 1 for n in range(30)}, [])
    assert most <= FIELDS_AT_ONCE + 1  # the other's last, which has answered and may still be counted


async def test_no_field_takes_more_than_one_connection(settings: Settings, context: Context) -> None:
    fields = " ".join(f"a{n}: tickers {{ name }}" for n in range(30))
    async with create_pool(settings, name="counted", size=10) as counted:
        result = await schema.execute(f"{{ {fields} }}", None, Context(counted, context.redis, settings))
        assert result.errors is None
        assert counted.open <= FIELDS_AT_ONCE


async def test_a_server_that_is_unavailable_is_not_asked_again_in_the_same_request(slow: Context) -> None:
    """Else fifty mutations would wait fifty times. An error that PostgreSQL answered says nothing of the next field."""
    for seconds, later in ((1, None), (-1, 1)):
        slow.budget = RequestBudget(DEADLINE)
        data, errors = await ask(f"mutation {{ fail(seconds: {seconds}) sleep(seconds: 0) }}", slow)
        assert data == {"fail": None, "sleep": later}
        assert {code for _, _, code in errors} == {"STORAGE_UNAVAILABLE"}
        assert len(errors) == (1 if later else 2)
