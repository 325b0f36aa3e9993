"""Single flight: one run of a statement for all callers that wait, and none of them is worse off than alone."""

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar

import pytest

from server.compiled import single_flight as module
from server.compiled.single_flight import SingleFlight
from shared.errors import StorageUnavailable
from shared.storage.database import Pool, fetch
from shared.storage.prices import insert_prices
from tests.integration.examples import MINUTE, NOON, example_price

COUNTED = "select nextval('runs') from pg_sleep(0.1)"
NEWEST = "select max(price)::text from prices, (select pg_sleep(0.2)) as waited where ticker = $1"


async def value_of(flight: SingleFlight, pool: Pool, seconds: float = 1.4) -> object:
    return (await flight.row(pool, seconds))[0]


@pytest.fixture
async def counted(pool: Pool) -> AsyncIterator[SingleFlight]:
    """Its value says how often it has run."""
    await fetch(pool, "create sequence runs")
    yield SingleFlight(COUNTED, [])
    await fetch(pool, "drop sequence runs")


async def test_callers_that_come_during_a_run_share_the_next_run(counted: SingleFlight, pool: Pool) -> None:
    values = await asyncio.gather(*(value_of(counted, pool) for _ in range(40)))
    assert values == [1] + [2] * 39
    assert await value_of(counted, pool) == 3


async def test_a_caller_sees_what_was_committed_before_it_came(pool: Pool) -> None:
    await insert_prices(pool, [example_price(NOON, "1.5")])
    newest = SingleFlight(NEWEST, ["btc_usd"])
    first = asyncio.create_task(value_of(newest, pool))
    await asyncio.sleep(0.01)  # its snapshot is taken
    await insert_prices(pool, [example_price(NOON + MINUTE, "2.5")])
    assert await value_of(newest, pool) == "2.5"
    assert await first in {"1.5", "2.5"}


async def test_a_caller_that_is_cancelled_cancels_no_other(counted: SingleFlight, pool: Pool) -> None:
    asked = [asyncio.create_task(value_of(counted, pool)) for _ in range(6)]
    await asyncio.sleep(0)
    for gone in (asked[0], asked[1], asked[4]):
        gone.cancel()
    values = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(value, asyncio.CancelledError) for value in values] == [True, True, False, False, True, False]
    assert len({value for value in values if isinstance(value, int)}) == 1
    everyone = [asyncio.create_task(value_of(counted, pool)) for _ in range(3)]
    await asyncio.sleep(0)
    for task in everyone:
        task.cancel()
    await asyncio.gather(*everyone, return_exceptions=True)
    assert isinstance(await value_of(counted, pool), int)


async def test_all_callers_of_a_run_get_its_error_and_the_next_caller_starts_anew(pool: Pool) -> None:
    flight = SingleFlight("select 'late' from pg_sleep(2)", [])
    asked = await asyncio.gather(*(value_of(flight, pool, 0.3) for _ in range(5)), return_exceptions=True)
    assert [type(error) for error in asked] == [StorageUnavailable] * 5
    with pytest.raises(StorageUnavailable):
        await value_of(flight, pool, 0.3)


async def test_no_caller_joins_a_run_that_may_hang(
    counted: SingleFlight, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "JOIN_SECONDS", 0)
    values = await asyncio.gather(*(value_of(counted, pool) for _ in range(5)))
    assert sorted(values) == [1, 2, 3, 4, 5]  # type: ignore[type-var]


async def test_no_caller_waits_for_two_slow_runs(pool: Pool) -> None:
    """One run takes more than half of the time that a caller has."""
    slow = SingleFlight("select 'slow' from pg_sleep(0.9)", [])
    assert await asyncio.gather(*(value_of(slow, pool) for _ in range(4))) == ["slow"] * 4


async def test_a_shared_run_does_not_log_as_the_first_request(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    request: ContextVar[str] = ContextVar("request")

    async def noted(*_: object, **__: object) -> list[tuple[bytes]]:
        seen.append(request.get(None))
        await asyncio.sleep(0)
        return [(b"",)]

    monkeypatch.setattr(module, "fetch", noted)
    flight = SingleFlight("", [])

    async def ask(name: str) -> None:
        request.set(name)
        await value_of(flight, pool)

    await asyncio.gather(*(ask(name) for name in "abc"))
    assert seen == ["a", None]
