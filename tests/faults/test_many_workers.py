"""Workers that differ in their clocks and their settings, a crowd of fetches, and an upgrade: no slot is lost."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.queue.client import serialize
from tests.faults.conftest import IS_LONG, Report
from tests.faults.history import check_history
from tests.faults.stack import TICKERS, Stack, open_stack

INTERVAL = 2
"A busy machine has time for a slot, and each clock is off by far more."
SLOTS = 20 if IS_LONG else 4
CROWD = 255
UNANSWERED = ("EXCHANGE_ERROR", "TIMEOUT: no answer in time")
"The simulator itself, on a machine that is too busy. Any other reason is a slot that we lost."
EIGHT = (*TICKERS, *(f"sim{number}_usd" for number in range(6)))


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with open_stack(tmp_path, interval=INTERVAL) as stack:
        stack.variables["HEAL_LOOKBACK_HOURS"] = "1"  # no need for more
        yield stack


async def pass_slots(stack: Stack, slots: int = SLOTS) -> float:
    """Wait for that many slots and their prices. Returns the seconds from the last slot's beginning to its prices."""
    await asyncio.sleep(slots * stack.interval)
    began = time.monotonic()
    await stack.wait_for_prices(1)
    return time.monotonic() - began


async def readiness(stack: Stack) -> str:
    reply = await stack.http.get(f"http://127.0.0.1:{stack.api_port}/readyz")
    return str(reply.json()["dependencies"]["worker"]["reason"])


@pytest.mark.parametrize(("ahead", "others"), [(9, 1), (-9, 0)])
async def test_a_worker_whose_clock_is_off_loses_no_slot(stack: Stack, report: Report, ahead: int, others: int) -> None:
    for _ in range(others):
        await stack.start_working()
    await stack.start_api()
    worker = stack.start_worker(clock_ahead=ahead)
    await stack.wait_for_prices(1)

    async def is_told() -> bool:
        return f":{worker.pid} differs from Redis's by {ahead:+.1f} s" in await readiness(stack)

    await stack.wait_for(is_told, "/readyz names the worker")
    recovered = await pass_slots(stack)
    history = await check_history(stack)
    name = f"a worker's clock {ahead:+d} s, {'another worker beside it' if others else 'alone'}"
    report(name, history, recovered, "/readyz names the worker")
    assert f"this machine's clock differs from Redis's by {ahead:+.1f} s" in stack.logs()
    assert history.reasons <= {UNANSWERED}, stack.logs()
    assert history.missing <= 1, stack.logs()


async def test_a_clock_that_is_stepped_forward_and_back_loses_no_slot(stack: Stack, report: Report) -> None:
    worker = stack.start_worker()
    await stack.start_api()
    await stack.wait_for_prices(1)
    for ahead in (3600, 0, -3600, 0):
        stack.step_clock(worker, ahead)
        await asyncio.sleep(3)
    recovered = await pass_slots(stack, 2)
    history = await check_history(stack)
    report("the worker's clock +1 h, back, -1 h, back", history, recovered)
    assert history.reasons <= {UNANSWERED}, stack.logs()
    assert history.missing <= 1, stack.logs()


async def test_workers_with_other_tickers_or_another_interval_lose_no_slot(tmp_path: Path) -> None:
    """A rolling change of TICKERS and of FETCH_INTERVAL_SECONDS: each worker runs the jobs of all."""
    async with open_stack(tmp_path, interval=INTERVAL) as stack:
        stack.start_worker()
        stack.start_worker(TICKERS="btc_usd")
        stack.start_worker(FETCH_INTERVAL_SECONDS="3")
        await stack.wait_for_prices(3)
        begin = stack.current_slot()
        await asyncio.sleep(2 * SLOTS)
        await stack.wait_for_prices(2)
        sql = """
            select name, step, slot
            from unnest($1::text[]) as name
            cross join unnest(array[2, 3]) as step
            cross join lateral generate_series(
                date_bin(make_interval(secs => step), $2, 'epoch') + make_interval(secs => step),
                $2 + make_interval(secs => $3),
                make_interval(secs => step)
            ) as slot
            where not exists (
                select from prices where ticker = name and timestamp = slot and source = 'SCHEDULED'
            )
        """
        assert await stack.rows(sql, list(TICKERS), begin, 2 * SLOTS - 3) == [], stack.logs()


async def test_a_crowd_of_fetches_and_a_slow_ticker_take_no_slot_from_the_others(
    tmp_path: Path, report: Report
) -> None:
    async with open_stack(tmp_path, interval=INTERVAL, tickers=EIGHT) as stack:
        stack.variables["HEAL_LOOKBACK_HOURS"] = "1"
        await asyncio.gather(stack.start_api(), stack.start_working())
        await stack.wait_for_prices(1)
        await stack.switch("PUT", "faults/sim5_usd", {"kind": "slow", "seconds": 5, "methods": ["get_index_price"]})
        begun = stack.current_slot()
        sets = [[ticker for bit, ticker in enumerate(EIGHT) if number >> bit & 1] for number in range(1, CROWD + 1)]
        query = "mutation ($tickers: [String!]) { fetchPrices(tickers: $tickers) { id } }"
        answers = await asyncio.gather(*(stack.graphql(query, tickers=names) for names in sets))
        assert len({answer["data"]["fetchPrices"]["id"] for answer in answers}) == CROWD
        recovered = await pass_slots(stack, 10)
        await stack.switch("DELETE", "faults/sim5_usd")
        end = stack.current_slot()
        history = await check_history(stack, end)
        report(f"{CROWD} fetches of 8 tickers at once, one ticker slow", history, recovered)
        for ticker in EIGHT[:-1]:
            gaps = (await stack.coverage(ticker, begun, end))["gaps"]
            assert {(gap["reason"], gap["detail"]) for gap in gaps} <= {UNANSWERED}, stack.logs()
            assert sum(gap["missing"] for gap in gaps) <= 1, stack.logs()


async def test_jobs_of_the_release_before_are_taken_and_foreign_ones_are_left_alone(
    stack: Stack, report: Report
) -> None:
    await stack.start_api()
    now = round(time.time() * 1000)
    fetch, foreign, pickled = "a" * 32, "foreign", "pickled"
    jobs = {
        fetch: serialize({"t": None, "f": "fetch_prices", "a": [list(TICKERS)], "k": {}, "et": now}),
        foreign: serialize({"t": None, "f": "send_mail", "a": [], "k": {}, "et": now}),
        pickled: b"\x80\x04]\x94.",
    }
    async with stack.redis() as redis:
        for job_id, job in jobs.items():
            await redis.set(f"arq:job:{job_id}", job)
            await redis.zadd("arq:queue", {job_id: now})
        record = {"tickers": json.dumps(TICKERS), "enqueued_at": now * 1000}
        await redis.execute_command("HSET", f"fetch:{fetch}", *(part for pair in record.items() for part in pair))
        stack.start_worker()

        async def is_done() -> bool:
            answer = await stack.graphql(f'{{ fetchJob(id: "{fetch}") {{ status }} }}')
            return bool(answer["data"]["fetchJob"]["status"] == "SUCCEEDED")

        await stack.wait_for(is_done, "the fetch of the release before")
        recovered = await pass_slots(stack, 2)
        assert sorted(await redis.zrange("arq:queue", 0, -1)) == [b"foreign", b"pickled"]
        assert await redis.exists("arq:job:foreign", "arq:job:pickled") == 2
    history = await check_history(stack)
    report("an upgrade: jobs of 0.2.0 and of another application", history, recovered)
    assert history.reasons <= {UNANSWERED}, stack.logs()
    assert history.missing <= 1, stack.logs()


async def test_a_second_deployment_on_the_same_redis_refuses_to_start(tmp_path: Path) -> None:
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    async with open_stack(folders[0], interval=INTERVAL) as one, open_stack(folders[1], interval=INTERVAL) as two:
        await one.start_working()
        two.variables["REDIS_URL"] = one.valkey.url
        worker, api = two.start_worker(), two.start("server")
        assert await asyncio.to_thread(worker.wait, 30) == 2
        assert await asyncio.to_thread(api.wait, 30) == 2
        for name in ("worker", "server"):
            said = (two.folder / f"{name}.log").read_text()
            assert "REDIS_URL leads to a Redis that another deployment uses" in said
            assert "Traceback" not in said
        two.variables["REDIS_URL"] = f"{one.valkey.url.rpartition('/')[0]}/1"
        two.start_worker()
        await two.wait_for_prices(2)
        await one.wait_for_prices(1)
