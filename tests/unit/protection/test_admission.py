"""Who is let in, by the clock: how long others have waited, for how long that has gone on, how many are under way."""

import asyncio
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from server.protection import admission as module
from server.protection.admission import (
    BURST_SECONDS,
    CALM_SECONDS,
    LONGEST_SECONDS,
    MOST,
    MOST_IN_LINE,
    QUEUE_SECONDS,
    Admission,
)
from server.reads.context import Context
from server.schema.root import schema
from server.subscriptions.operations import Refused, Streams
from shared.errors import RateLimited
from shared.storage.pool import Pool
from tests.unit.replies import settings_for

STEP = 0.0625
LONG = QUEUE_SECONDS + 0.01
UNUSED: Any = None


class Process:
    """An `Admission`, its pool's line and its clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.pool = SimpleNamespace(waited=0.0)
        self.admission = Admission(cast(Pool, self.pool))
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def ask_for(self, seconds: float, waited: float) -> list[bool]:
        """Whether it is full, asked sixteen times a second while the first in line has waited so long."""
        self.pool.waited = waited
        answers = []
        for _ in range(round(seconds / STEP)):
            answers.append(self.admission.is_full())
            self.now += STEP
        return answers


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    return Process(monkeypatch)


def test_nobody_is_refused_while_nobody_waits_long(process: Process) -> None:
    process.admission.under_way = MOST - 1
    assert not any(process.ask_for(60, QUEUE_SECONDS))


def test_a_line_is_let_grow_for_a_moment_and_not_for_longer(process: Process) -> None:
    assert not any(process.ask_for(BURST_SECONDS - STEP, LONG))
    process.now += STEP
    assert all(process.ask_for(60, LONG))


def test_as_soon_as_the_line_is_short_all_are_let_in(process: Process) -> None:
    process.ask_for(10, LONG)
    assert not any(process.ask_for(STEP, QUEUE_SECONDS))
    assert all(process.ask_for(STEP, LONG)), "a line that has only just been long is no new burst"


def test_after_a_calm_while_it_may_grow_again(process: Process) -> None:
    process.ask_for(10, LONG)
    process.ask_for(CALM_SECONDS + STEP, 0)
    assert not any(process.ask_for(BURST_SECONDS - STEP, LONG))


def test_whose_time_would_be_over_in_the_line_is_refused_at_once(process: Process) -> None:
    assert all(process.ask_for(STEP, LONGEST_SECONDS + 0.01))


def test_more_than_the_most_are_refused_at_once(process: Process) -> None:
    process.admission.under_way = MOST
    assert all(process.ask_for(1, 0))
    process.admission.under_way -= 1
    assert not any(process.ask_for(1, 0))


async def test_work_that_holds_the_loop_for_long_is_refused_until_it_has_gone_round(process: Process) -> None:
    let_in = 0

    def work_on() -> None:
        nonlocal let_in
        while True:
            with process.admission.work():
                process.now += 0.1  # without ever giving way
                let_in += 1

    with pytest.raises(RateLimited, match=r"The server is busy; try again in 1 s\.") as refused:
        work_on()
    assert refused.value.extensions == {"code": "RATE_LIMITED", "retryAfter": 1}
    assert let_in == pytest.approx((QUEUE_SECONDS + BURST_SECONDS) / 0.1, abs=1)
    await asyncio.sleep(0)
    for _ in range(3):
        with process.admission.work():
            process.now += 0.1


async def test_work_that_gives_way_is_let_in_however_much_there_is(process: Process) -> None:
    for _ in range(100):
        with process.admission.work():
            process.now += 0.1
        await asyncio.sleep(0)
    assert process.admission.refused == 0


async def test_what_fails_is_under_way_no_longer(process: Process) -> None:
    def fail() -> None:
        with process.admission.work():
            assert process.admission.under_way == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert process.admission.under_way == 0


def test_the_log_says_so_every_ten_seconds(process: Process, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    process.ask_for(25, LONGEST_SECONDS + 0.01)
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"too much to do at once: {n} operations refused" for n in (1, 160, 160)]


async def test_an_operation_of_a_socket_is_refused_and_a_subscription_is_not(process: Process) -> None:
    async def ask(query: str) -> str:
        context = Context(UNUSED, UNUSED, settings_for(), live=cast(Any, live))
        return await anext(Streams(schema).answers(context, query, None, None, process.admission))

    async def updates(*given: Any) -> Any:
        if given:
            raise ZeroDivisionError  # that far it came
        yield

    live = SimpleNamespace(prices=SimpleNamespace(updates=updates))
    process.admission.under_way = MOST
    with pytest.raises(Refused) as refused:
        await ask("{ __typename }")
    assert [error.formatted for error in refused.value.errors] == [
        {
            "message": "The server is busy; try again in 1 s.",
            "extensions": {"code": "RATE_LIMITED", "retryAfter": 1},
        }
    ]
    assert "INTERNAL_SERVER_ERROR" in await ask("subscription { priceUpdates { price } }")
    process.admission.under_way = 0
    assert await ask("{ __typename }") == '{"data":{"__typename":"Query"}}'


async def test_the_line_of_long_documents_has_an_end(process: Process) -> None:
    took = [process.admission.take_turn(length) for length in [20_000] * (MOST_IN_LINE + 5) + [100]]
    refused = [isinstance(one, RateLimited) for one in await asyncio.gather(*took, return_exceptions=True)]
    assert refused == [False] * MOST_IN_LINE + [True] * 5 + [False]
    assert process.admission.refused == 5
    await process.admission.take_turn(20_000)
