"""The attempts at one slot: what is retried, for how long, and that tickers do not affect each other."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.storage.missed_slots import GapReason
from tests.unit.fast_loop import run_fast
from tests.unit.replies import in_turn, price_reply, settings_for
from worker.context import REQUESTED_SHARE, Worker
from worker.exchange.errors import DeribitError, Retry
from worker.exchange.http import CONCURRENCY, Observation, create_http, get_index_price
from worker.exchange.retries import BUDGET_SECONDS, observe_each, with_retries
from worker.jobs.slots import _check_clock, fetch_slot

UNUSED: Any = None


async def attempt_all(
    worker: Worker, tickers: list[str], observe: Callable[[str], Awaitable[Any]], budget_seconds: float
) -> tuple[list[Any], dict[str, DeribitError]]:
    """All results, in the order of their arrival."""
    prices: list[Any] = []
    errors: dict[str, DeribitError] = {}

    async def receive(some: list[Any], others: dict[str, DeribitError]) -> None:
        prices.extend(sorted(some, key=str))
        errors.update(others)

    await observe_each(worker, tickers, observe, budget_seconds, receive)
    return prices, errors


PASSING = DeribitError("RPC_10028", "too_many_requests", retry=Retry.BACKOFF)
LASTING = DeribitError("RPC_-32602", "Invalid params")


def a_worker(http: httpx.AsyncClient = UNUSED, **others: Any) -> Worker:
    return Worker(settings_for(**others), UNUSED, UNUSED, http, name="unit:1")


def run_attempts(
    outcome: Callable[[int], Awaitable[str]], budget: float = BUDGET_SECONDS
) -> tuple[str | DeribitError, list[float], float]:
    """The outcome, the start of each attempt, and the end, on a simulated clock."""
    began: list[float] = []

    async def attempt() -> str:
        began.append(asyncio.get_running_loop().time())
        return await outcome(len(began))

    async def run() -> tuple[str | DeribitError, float]:
        try:
            result: str | DeribitError = await with_retries(a_worker(), attempt, budget)
        except DeribitError as error:
            result = error
        return result, asyncio.get_running_loop().time()

    result, end = run_fast(run())
    return result, began, end


async def failing(number: int) -> str:
    raise PASSING


def test_a_success_is_not_retried() -> None:
    async def succeed(number: int) -> str:
        return f"attempt {number}"

    assert run_attempts(succeed) == ("attempt 1", [0.0], 0.0)


def test_an_error_that_cannot_pass_is_not_retried() -> None:
    async def refuse(number: int) -> str:
        raise LASTING

    assert run_attempts(refuse) == (LASTING, [0.0], 0.0)


def test_a_passing_error_is_retried_until_success() -> None:
    async def succeed_at_last(number: int) -> str:
        return f"attempt {number}" if number == 3 else await failing(number)

    outcome, began, _ = run_attempts(succeed_at_last)
    assert (outcome, len(began)) == ("attempt 3", 3)


def test_a_lasting_error_ends_the_retries() -> None:
    async def worsen(number: int) -> str:
        raise PASSING if number == 1 else LASTING

    outcome, began, _ = run_attempts(worsen)
    assert (outcome, len(began)) == (LASTING, 2)


@given(st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_the_pauses_double_with_jitter_within_the_budget(seed: int) -> None:
    random.seed(seed)
    outcome, began, end = run_attempts(failing)
    pauses = [later - earlier for earlier, later in pairwise(began)]
    assert outcome is PASSING
    assert 4 <= len(began) <= 5
    assert all(0.75 <= pause / base <= 1.25 for pause, base in zip(pauses, (1, 2, 4, 8), strict=False))
    assert end < BUDGET_SECONDS


@given(st.floats(0.05, BUDGET_SECONDS), st.floats(0, 20), st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_no_attempt_outlasts_the_budget(budget: float, seconds: float, seed: int) -> None:
    async def fail_slowly(number: int) -> str:
        await asyncio.sleep(seconds)
        return await failing(number)

    random.seed(seed)
    outcome, began, end = run_attempts(fail_slowly, budget)
    assert isinstance(outcome, DeribitError)
    assert outcome.code in {"RPC_10028", "TIMEOUT"}
    assert 1 <= len(began) <= 5
    assert end <= budget + 0.001


def test_a_hanging_attempt_ends_with_the_budget() -> None:
    async def hang(number: int) -> str:
        await asyncio.sleep(3600)
        return "too late"

    outcome, began, end = run_attempts(hang)
    assert isinstance(outcome, DeribitError)
    assert (outcome.code, outcome.reason, began) == ("TIMEOUT", GapReason.EXCHANGE_ERROR, [0.0])
    assert end == pytest.approx(BUDGET_SECONDS)


def test_one_tickers_failure_does_not_affect_another() -> None:
    async def observe(ticker: str) -> str:
        match ticker:
            case "lasting":
                raise LASTING
            case "passing":
                raise PASSING
            case "hanging":
                await asyncio.sleep(3600)
            case "slow":
                await asyncio.sleep(3)
        return f"price of {ticker}"

    tickers = ["btc_usd", "lasting", "slow", "passing", "hanging", "eth_usd"]
    prices, errors = run_fast(attempt_all(a_worker(), tickers, observe, BUDGET_SECONDS))
    assert prices == ["price of btc_usd", "price of eth_usd", "price of slow"]  # in the order of arrival
    assert {ticker: error.code for ticker, error in errors.items()} == (
        {"lasting": "RPC_-32602", "passing": "RPC_10028", "hanging": "TIMEOUT"}
    )


def test_there_are_never_more_requests_at_once_than_the_exchange_allows() -> None:
    running = most = 0

    async def observe(ticker: str) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.15)
        running -= 1
        return ticker

    tickers = [f"sim{number}_usd" for number in range(100)]
    prices, errors = run_fast(attempt_all(a_worker(), tickers, observe, BUDGET_SECONDS))
    assert (sorted(prices), errors, most) == (sorted(tickers), {}, CONCURRENCY)


def test_a_ticker_that_had_no_turn_did_not_get_an_error_of_the_exchange() -> None:
    async def hang(ticker: str) -> str:
        await asyncio.sleep(3600)
        return ticker

    tickers = [f"sim{number}_usd" for number in range(CONCURRENCY + 3)]
    prices, errors = run_fast(attempt_all(a_worker(), tickers, hang, BUDGET_SECONDS))
    assert prices == []
    assert Counter((error.code, error.reason) for error in errors.values()) == {
        ("TIMEOUT", GapReason.EXCHANGE_ERROR): CONCURRENCY,
        ("NOT_ASKED", GapReason.NOT_COLLECTED): 3,
    }


def test_each_ticker_of_a_long_list_is_among_the_first_now_and_then() -> None:
    tickers = [f"sim{number}_usd" for number in range(3 * CONCURRENCY)]
    asked: set[str] = set()

    async def observe(ticker: str) -> str:
        asked.add(ticker)
        await asyncio.sleep(3600)
        return ticker

    random.seed(1)
    for _ in range(20):
        run_fast(attempt_all(a_worker(), tickers, observe, 1.0))
    assert asked == set(tickers)


def test_a_share_bounds_the_requests_that_have_it() -> None:
    running = most = 0

    async def observe(ticker: str) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.15)
        running -= 1
        return ticker

    async def run() -> None:
        worker = a_worker()

        async def receive(*_: Any) -> None:
            pass

        tickers = [f"sim{number}_usd" for number in range(20)]
        await observe_each(worker, tickers, observe, BUDGET_SECONDS, receive, worker.requested_share)

    run_fast(run())
    assert most == REQUESTED_SHARE


def test_results_after_a_failure_to_store_are_received_too() -> None:
    received: list[str] = []

    async def observe(ticker: str) -> str:
        await asyncio.sleep(float(ticker))
        return ticker

    async def receive(results: list[str], _: Any) -> None:
        received.extend(results)
        if results == ["1"]:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        run_fast(observe_each(a_worker(), ["1", "2", "3"], observe, BUDGET_SECONDS, receive))
    assert received == ["1", "2", "3"]


def test_a_pause_does_not_occupy_a_connection() -> None:
    async def observe(ticker: str) -> str:
        if ticker.startswith("bad"):
            raise PASSING
        return ticker

    async def run() -> float:
        worker = a_worker()
        bad = asyncio.create_task(attempt_all(worker, [f"bad{n}" for n in range(CONCURRENCY)], observe, 12))
        await asyncio.sleep(0.1)
        await attempt_all(worker, ["btc_usd"], observe, 12)
        finished = asyncio.get_running_loop().time()
        await bad
        return finished

    assert run_fast(run()) == pytest.approx(0.1)


def test_several_passing_errors_are_followed_by_a_price() -> None:
    asked: list[httpx.Request] = []
    outcomes: list[httpx.Response | Exception] = [
        httpx.Response(429, content="<html>"),
        httpx.Response(400, json={"error": {"code": 10028, "message": "too_many_requests"}}),
        httpx.ConnectError("reset"),
        httpx.Response(200, content=price_reply("2722.4")),
    ]

    async def run() -> Observation:
        async with create_http(settings_for(), httpx.MockTransport(in_turn(outcomes, asked))) as http:
            return await with_retries(a_worker(http), lambda: get_index_price(http, "eth_usd"), BUDGET_SECONDS)

    assert (run_fast(run()).price, len(asked)) == (Decimal("2722.4"), 4)


async def test_a_slot_that_is_over_sends_no_request(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[httpx.Request] = []
    over = datetime.now(UTC) - timedelta(seconds=61)
    async with create_http(settings_for(), httpx.MockTransport(in_turn([], asked))) as http:
        await fetch_slot({"worker": a_worker(http), "job_try": 1}, round(over.timestamp()), 60, ["btc_usd"])
    assert (asked, [record.levelname for record in caplog.records]) == ([], ["WARNING"])


SLOT = datetime(2026, 10, 8, 4, 41, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("interval_seconds", "tolerated_seconds"),
    [(1, 0.5), (5, 2.5), (10, 5), (60, 5), (3600, 5)],
)
def test_a_scheduled_price_is_observed_in_its_slot(interval_seconds: int, tolerated_seconds: float) -> None:
    interval, tolerance = timedelta(seconds=interval_seconds), timedelta(seconds=tolerated_seconds)

    def verdict(observed_at: datetime) -> tuple[str, Retry, GapReason] | None:
        try:
            _check_clock(Observation("btc_usd", Decimal(1), observed_at, testnet=False), SLOT, interval, SLOT)
        except DeribitError as error:
            return error.code, error.retry, error.reason
        return None

    inside = [SLOT - tolerance, SLOT - MICROSECOND, SLOT, SLOT + interval / 2, SLOT + interval - MICROSECOND]
    outside = [SLOT - interval, SLOT - tolerance - MICROSECOND, SLOT + interval, SLOT + 2 * interval]
    refused = ("CLOCK_OUTSIDE_SLOT", Retry.NEVER, GapReason.REJECTED_VALUE)
    assert [verdict(at) for at in inside] == [None] * len(inside)
    assert [verdict(at) for at in outside] == [refused] * len(outside)


@pytest.mark.parametrize(("skew", "lines"), [(0.0, 0), (0.9, 0), (1.1, 1), (-1.1, 1), (-0.9, 0)])
def test_a_skew_over_a_second_is_logged(skew: float, lines: int, caplog: pytest.LogCaptureFixture) -> None:
    observed_at = SLOT
    with caplog.at_level(logging.WARNING):
        _check_clock(
            Observation("btc_usd", Decimal(1), observed_at, testnet=False),
            observed_at - timedelta(minutes=1),
            timedelta(minutes=2),
            observed_at + timedelta(seconds=skew),
        )
    assert len(caplog.records) == lines
