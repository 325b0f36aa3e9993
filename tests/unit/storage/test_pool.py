"""The pool's bookkeeping, with fake connections; real ones are in tests/integration."""

import asyncio
import time
from typing import Any, cast

import asyncpg
import pytest

from shared.errors import StorageUnavailable
from shared.storage.database import fetch
from shared.storage.pool import Connection, Pool


class FakeConnection:
    is_open = True

    def is_closed(self) -> bool:
        return not self.is_open

    def terminate(self) -> None:
        self.is_open = False

    async def close(self, *, timeout: float) -> None:
        self.is_open = False


def in_seconds(seconds: float) -> float:
    return time.monotonic() + seconds


def pool_of(size: int, opened: list[Any] | None = None) -> Pool:
    async def connect() -> Connection:
        connection = FakeConnection()
        if opened is not None:
            opened.append(connection)
        return cast(Connection, connection)

    return Pool(connect, size)


async def test_the_connection_used_last_is_used_next() -> None:
    opened: list[Any] = []
    pool = pool_of(3, opened)
    first, second = await pool.take(in_seconds(5)), await pool.take(in_seconds(5))
    pool.give_back(second)
    pool.give_back(first)
    assert [pool.take_idle(in_seconds(5)) for _ in range(3)] == [first, second, None]
    assert opened == [first, second]


async def test_callers_beyond_the_size_wait_in_order() -> None:
    opened: list[Any] = []
    pool = pool_of(1, opened)
    connection = await pool.take(in_seconds(5))
    served: list[int] = []

    async def wait(number: int) -> None:
        assert await pool.take(in_seconds(5)) is connection
        served.append(number)
        pool.give_back(connection)

    waiting = [asyncio.create_task(wait(number)) for number in range(3)]
    await asyncio.sleep(0)
    pool.give_back(connection)
    await asyncio.gather(*waiting)
    assert (served, opened) == ([0, 1, 2], [connection])


async def test_a_lost_connection_makes_room_for_a_new_one() -> None:
    opened: list[Any] = []
    pool = pool_of(1, opened)
    lost = await pool.take(in_seconds(5))
    waiting = asyncio.create_task(pool.take(in_seconds(5)))
    await asyncio.sleep(0)
    lost.terminate()
    pool.give_back(lost)
    assert await waiting is opened[1]


async def test_a_connection_lost_while_idle_is_not_handed_out() -> None:
    pool = pool_of(1)
    lost = await pool.take(in_seconds(5))
    pool.give_back(lost)
    lost.terminate()
    assert await pool.take(in_seconds(5)) is not lost


async def test_a_wait_ends_at_its_own_deadline() -> None:
    pool = pool_of(1)
    connection = await pool.take(in_seconds(60))
    patient = asyncio.create_task(pool.take(in_seconds(60)))
    with pytest.raises(TimeoutError):
        await pool.take(in_seconds(0.01))
    pool.give_back(connection)
    assert await patient is connection


async def test_a_connection_is_closed_at_its_deadline() -> None:
    pool = pool_of(1)
    kept = await pool.take(in_seconds(0.01))
    successor = asyncio.create_task(pool.take(in_seconds(60)))
    while not kept.is_closed():
        await asyncio.sleep(0.01)
    pool.give_back(kept)
    assert await successor is not kept


async def test_waiting_for_a_server_that_cannot_be_reached_ends_at_the_deadline() -> None:
    async def connect() -> Connection:
        await asyncio.sleep(60)
        raise AssertionError

    pool = Pool(connect, 1)
    ended = await asyncio.gather(*(pool.take(in_seconds(0.05)) for _ in range(5)), return_exceptions=True)
    assert [type(error) for error in ended] == [TimeoutError] * 5


async def test_a_failure_to_connect_leaves_room_for_the_next_try() -> None:
    failures = [OSError("refused"), None]

    async def connect() -> Connection:
        if error := failures.pop(0):
            raise error
        return cast(Connection, FakeConnection())

    pool = Pool(connect, 1)
    first, second = await asyncio.gather(pool.take(in_seconds(5)), pool.take(in_seconds(5)), return_exceptions=True)
    assert isinstance(first, OSError)
    assert not isinstance(second, BaseException)


async def test_a_cancelled_wait_leaves_the_connection_to_the_next() -> None:
    pool = pool_of(1)
    connection = await pool.take(in_seconds(5))
    cancelled, next_one = (asyncio.create_task(pool.take(in_seconds(5))) for _ in range(2))
    await asyncio.sleep(0)
    pool.give_back(connection)  # assigned to the first one, which has not resumed yet
    cancelled.cancel()
    assert await next_one is connection
    assert cancelled.cancelled()


async def test_closing_the_pool_closes_idle_connections_and_later_the_lent_ones() -> None:
    pool = pool_of(2)
    async with pool:
        idle, lent = await pool.take(in_seconds(5)), await pool.take(in_seconds(5))
        pool.give_back(idle)
    assert (idle.is_closed(), lent.is_closed()) == (True, False)
    pool.give_back(lent)
    assert lent.is_closed()
    with pytest.raises(asyncpg.InterfaceError):
        await pool.take(in_seconds(5))


async def test_how_long_the_first_caller_has_waited() -> None:
    pool = pool_of(1)
    connection = await pool.take(in_seconds(60))
    waiting = asyncio.create_task(pool.take(in_seconds(60)))
    async with asyncio.timeout(20):
        while pool.waited < 0.1:
            await asyncio.sleep(0.01)
        pool.give_back(connection)
        pool.give_back(await waiting)
        while pool.waited:
            await asyncio.sleep(0.01)


async def test_no_connection_is_used_again_once_renewed() -> None:
    pool = pool_of(2)
    idle, lent = await pool.take(in_seconds(5)), await pool.take(in_seconds(5))
    pool.give_back(idle)
    pool.renew()
    assert (idle.is_closed(), lent.is_closed()) == (True, False)
    pool.give_back(lent)
    assert lent.is_closed()
    fresh = [await pool.take(in_seconds(5)) for _ in range(2)]
    pool.give_back(fresh[0])
    assert pool.take_idle(in_seconds(5)) is fresh[0]


async def test_a_silent_connection_closes_those_not_used_recently_too() -> None:
    """They lead to the same server, and each would cost another caller its deadline."""
    pool = pool_of(3)
    old, recent, silent = [await pool.take(in_seconds(60)) for _ in range(3)]
    pool.give_back(old)
    pool.give_back(recent)
    pool._idle[0] = (old, in_seconds(-1.5))
    pool._lend(silent, in_seconds(0.01))
    while not silent.is_closed():
        await asyncio.sleep(0.01)
    pool.give_back(silent)
    assert (old.is_closed(), recent.is_closed()) == (True, False)
    assert pool.take_idle(in_seconds(60)) is recent


class Answering(FakeConnection):
    def __init__(self, outcomes: list[Any]) -> None:
        self.outcomes = outcomes

    async def fetch(self, _: str) -> list[Any]:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, AttributeError):
            self.terminate()
        if isinstance(outcome, BaseException):
            raise outcome
        return [outcome]


def pool_answering(*outcomes: Any, only_reads: bool) -> Pool:
    left = list(outcomes)

    async def connect() -> Connection:
        return cast(Connection, Answering(left))

    return Pool(connect, 1, only_reads=only_reads)


ROW: Any = "row"
LOST = [
    asyncpg.InternalClientError("cannot switch to state 11"),  # PostgreSQL closed it before the statement
    AttributeError("'NoneType' object has no attribute 'bind_execute'"),  # closed between two messages
    asyncpg.ConnectionDoesNotExistError("closed in the middle of operation"),
    asyncpg.SerializationError("canceling statement due to conflict with recovery"),
]


@pytest.mark.parametrize("lost", LOST)
async def test_a_read_that_lost_its_connection_is_retried_once(lost: Exception) -> None:
    pool = pool_answering(lost, ROW, lost, lost, ROW, only_reads=True)
    assert await fetch(pool, "select") == [ROW]
    with pytest.raises(StorageUnavailable):
        await fetch(pool, "select")
    assert await fetch(pool, "select") == [ROW]


@pytest.mark.parametrize("lost", LOST)
async def test_a_statement_that_may_write_is_run_once(lost: Exception) -> None:
    pool = pool_answering(lost, ROW, only_reads=False)
    with pytest.raises(StorageUnavailable):
        await fetch(pool, "select")
    assert await fetch(pool, "select") == [ROW]


@pytest.mark.parametrize(("is_open", "raised"), [(False, StorageUnavailable), (True, AttributeError)])
async def test_a_connection_closed_between_two_messages_is_storage_unavailable(
    is_open: bool, raised: type[Exception]
) -> None:
    """asyncpg raises AttributeError there, because a closed connection has no protocol."""
    opened: list[Any] = []
    pool = pool_of(1, opened)
    pool.give_back(await pool.take(in_seconds(5)))

    async def fail(_: str) -> list[Any]:
        opened[0].is_open = is_open
        raise AttributeError("'NoneType' object has no attribute 'bind_execute'")

    opened[0].fetch = fail
    with pytest.raises(raised):
        await fetch(pool, "select 1")
    assert (await pool.take(in_seconds(5)) is opened[0]) is is_open


async def test_a_late_event_loop_reads_before_it_closes() -> None:
    pool = pool_of(1)
    kept = await pool.take(in_seconds(0.2))
    time.sleep(0.4)
    await asyncio.sleep(0)
    assert not kept.is_closed()
    while not kept.is_closed():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "error",
    [
        OSError(),
        asyncpg.InterfaceError("closed"),
        asyncpg.InternalClientError("got result for unknown protocol state 0"),
        AttributeError("'NoneType' object has no attribute 'decode'"),
    ],
)
async def test_a_cancelled_statement_whose_connection_is_lost_makes_room(error: Exception) -> None:
    """These are asyncpg's errors for it."""

    class Lost(FakeConnection):
        async def fetch(self, sql: str) -> None:
            raise error

    async def connect() -> Connection:
        return cast(Connection, Lost())

    pool = Pool(connect, 1)
    lost = await pool.take(in_seconds(5))
    pool.give_back_cancelled(lost)
    [task] = pool._settling
    await asyncio.wait([task])
    assert (task.exception(), lost.is_closed(), pool.open) == (None, True, 0)
