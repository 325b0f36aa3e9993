"""The same question of many at once: one statement for all who wait, none of them worse off than alone."""

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar

import pytest

from server.compiled import single_flight as sharing
from server.compiled.single_flight import SharedStatement
from shared.errors import StorageUnavailable
from shared.storage.database import Pool, fetch
from shared.storage.prices import insert_prices
from tests.integration.examples import MINUTE, NOON, example_price

COUNTED = "select convert_to(nextval('runs')::text, 'UTF8') from pg_sleep(0.1)"
NEWEST = """
    select convert_to(max(price)::text, 'UTF8')
    from prices, (select pg_sleep(0.2)) as waited
    where ticker = $1
"""


@pytest.fixture
async def counted(pool: Pool) -> AsyncIterator[SharedStatement]:
    """Answers how often it has run."""
    await fetch(pool, "create sequence runs")
    yield SharedStatement(COUNTED, [])
    await fetch(pool, "drop sequence runs")


async def test_all_who_ask_while_it_runs_share_the_next_run(counted: SharedStatement, pool: Pool) -> None:
    answers = await asyncio.gather(*(counted.answer(pool) for _ in range(40)))
    assert answers == [b"1"] + [b"2"] * 39
    assert await counted.answer(pool) == b"3"


async def test_an_answer_holds_what_was_committed_before_it_was_asked_for(pool: Pool) -> None:
    await insert_prices(pool, [example_price(NOON, "1.5")])
    newest = SharedStatement(NEWEST, ["btc_usd"])
    first = asyncio.create_task(newest.answer(pool))
    await asyncio.sleep(0.01)  # it has seen what it will answer
    await insert_prices(pool, [example_price(NOON + MINUTE, "2.5")])
    assert await newest.answer(pool) == b"2.5"
    assert await first in {b"1.5", b"2.5"}


async def test_whoever_goes_takes_nobody_along(counted: SharedStatement, pool: Pool) -> None:
    asked = [asyncio.create_task(counted.answer(pool)) for _ in range(6)]
    await asyncio.sleep(0)
    for gone in (asked[0], asked[1], asked[4]):
        gone.cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [True, True, False, False, True, False]
    assert len({answer for answer in answers if isinstance(answer, bytes)}) == 1
    everyone = [asyncio.create_task(counted.answer(pool)) for _ in range(3)]
    await asyncio.sleep(0)
    for task in everyone:
        task.cancel()
    await asyncio.gather(*everyone, return_exceptions=True)
    assert isinstance(await counted.answer(pool), bytes)


async def test_an_error_is_everyones_and_the_next_is_asked_anew(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "DEADLINE_SECONDS", 0.3)
    statement = SharedStatement("select 'late'::bytea from pg_sleep(2)", [])
    asked = await asyncio.gather(*(statement.answer(pool) for _ in range(5)), return_exceptions=True)
    assert [type(error) for error in asked] == [StorageUnavailable] * 5
    with pytest.raises(StorageUnavailable):
        await statement.answer(pool)


async def test_nobody_joins_what_may_be_stuck(
    counted: SharedStatement, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "JOIN_SECONDS", 0)
    answers = await asyncio.gather(*(counted.answer(pool) for _ in range(5)))
    assert sorted(answers) == [b"1", b"2", b"3", b"4", b"5"]


async def test_nobody_waits_long_for_what_others_asked(pool: Pool) -> None:
    """It takes more than half of what anybody has: one after the other would be too late."""
    slow = SharedStatement("select 'slow'::bytea from pg_sleep(0.9)", [])
    assert await asyncio.gather(*(slow.answer(pool) for _ in range(4))) == [b"slow"] * 4


async def test_what_is_told_of_a_shared_run_is_not_of_the_first_request(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    request: ContextVar[str] = ContextVar("request")

    async def noted(*_: object, **__: object) -> list[tuple[bytes]]:
        seen.append(request.get(None))
        await asyncio.sleep(0)
        return [(b"",)]

    monkeypatch.setattr(sharing, "fetch", noted)
    statement = SharedStatement("", [])

    async def ask(name: str) -> None:
        request.set(name)
        await statement.answer(pool)

    await asyncio.gather(*(ask(name) for name in "abc"))
    assert seen == ["a", None]
