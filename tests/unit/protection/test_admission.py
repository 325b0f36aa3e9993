"""Admission control with a simulated clock: how long requests wait, for how long already, and how many there are."""

import asyncio
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from server.compiled.execution import Compiled
from server.metrics import Metrics
from server.protection import admission as module
from server.protection.admission import (
    BURST_SECONDS,
    CALM_SECONDS,
    LONGEST_SECONDS,
    MAX_QUEUED_DOCUMENTS,
    MAX_UNDER_WAY,
    QUEUE_SECONDS,
    Admission,
)
from server.reads.context import Context
from server.schema.documents import GraphQLRequest
from server.schema.root import schema
from server.subscriptions.operations import Refused, Streams
from shared.errors import RateLimited
from shared.storage.pool import Pool
from tests.unit.replies import settings_for

STEP = 0.0625
LONG = QUEUE_SECONDS + 0.01
UNUSED: Any = None


class Process:
    """An `Admission` with a simulated pool and clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.pool = SimpleNamespace(waited=0.0)
        self.admission = Admission(cast(Pool, self.pool))
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def ask_for(self, seconds: float, waited: float) -> list[bool]:
        """`is_full()` sixteen times a second, while the longest wait for a connection is `waited`."""
        self.pool.waited = waited
        answers = []
        for _ in range(round(seconds / STEP)):
            answers.append(self.admission.is_full())
            self.now += STEP
        return answers


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    return Process(monkeypatch)


def test_nothing_is_refused_while_no_request_waits_long(process: Process) -> None:
    process.admission.under_way = MAX_UNDER_WAY - 1
    assert not any(process.ask_for(60, QUEUE_SECONDS))


def test_a_burst_is_allowed_and_a_lasting_overload_is_not(process: Process) -> None:
    assert not any(process.ask_for(BURST_SECONDS - STEP, LONG))
    process.now += STEP
    assert all(process.ask_for(60, LONG))


def test_everything_is_admitted_as_soon_as_the_queue_is_short(process: Process) -> None:
    process.ask_for(10, LONG)
    assert not any(process.ask_for(STEP, QUEUE_SECONDS))
    assert all(process.ask_for(STEP, LONG)), "an overload that follows another at once is not a new burst"


def test_a_burst_is_allowed_again_after_a_calm_period(process: Process) -> None:
    process.ask_for(10, LONG)
    process.ask_for(CALM_SECONDS + STEP, 0)
    assert not any(process.ask_for(BURST_SECONDS - STEP, LONG))


def test_a_request_that_would_miss_its_deadline_in_the_queue_is_refused_at_once(process: Process) -> None:
    assert all(process.ask_for(STEP, LONGEST_SECONDS + 0.01))


def test_operations_over_the_maximum_are_refused_at_once(process: Process) -> None:
    process.admission.under_way = MAX_UNDER_WAY
    assert all(process.ask_for(1, 0))
    process.admission.under_way -= 1
    assert not any(process.ask_for(1, 0))


async def test_work_that_blocks_the_event_loop_is_refused_until_its_iteration_ends(process: Process) -> None:
    admitted = 0

    def work_on() -> None:
        nonlocal admitted
        while True:
            with process.admission.work():
                process.now += 0.1  # without yielding to the loop
                admitted += 1

    with pytest.raises(RateLimited, match=r"The server is busy; try again in 1 s\.") as refused:
        work_on()
    assert refused.value.extensions == {"code": "RATE_LIMITED", "retryAfter": 1}
    assert admitted == pytest.approx((QUEUE_SECONDS + BURST_SECONDS) / 0.1, abs=1)
    await asyncio.sleep(0)
    for _ in range(3):
        with process.admission.work():
            process.now += 0.1


async def test_any_amount_of_work_that_yields_to_the_loop_is_admitted(process: Process) -> None:
    for _ in range(100):
        with process.admission.work():
            process.now += 0.1
        await asyncio.sleep(0)
    assert process.admission.refused == 0


async def test_a_failed_operation_is_no_longer_under_way(process: Process) -> None:
    def fail() -> None:
        with process.admission.work():
            assert process.admission.under_way == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert process.admission.under_way == 0


def test_refusals_are_logged_every_ten_seconds(process: Process, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    process.ask_for(25, LONGEST_SECONDS + 0.01)
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"overloaded: {n} operations refused" for n in (1, 160, 160)]


async def test_a_query_over_a_socket_is_refused_and_a_subscription_is_not(process: Process) -> None:
    async def ask(query: str) -> str:
        context = Context(UNUSED, UNUSED, settings_for(), feeds=cast(Any, feeds))
        return await anext(
            Streams(schema, Compiled(schema, metrics := Metrics()), metrics).answers(
                context, GraphQLRequest(query), process.admission
            )
        )

    async def updates(*given: Any) -> Any:
        if given:
            raise ZeroDivisionError  # the subscription was admitted
        yield

    feeds = SimpleNamespace(prices=SimpleNamespace(updates=updates))
    process.admission.under_way = MAX_UNDER_WAY
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


async def test_the_queue_of_long_documents_is_bounded(process: Process) -> None:
    took = [process.admission.queue_document(length) for length in [20_000] * (MAX_QUEUED_DOCUMENTS + 5) + [100]]
    refused = [isinstance(one, RateLimited) for one in await asyncio.gather(*took, return_exceptions=True)]
    assert refused == [False] * MAX_QUEUED_DOCUMENTS + [True] * 5 + [False]
    assert process.admission.refused == 5
    await process.admission.queue_document(20_000)
