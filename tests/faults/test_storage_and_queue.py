"""PostgreSQL and Valkey killed while prices are collected every second."""

import asyncio
import time

from tests.faults.conftest import IS_LONG, Report
from tests.faults.history import check_history
from tests.faults.stack import TICKERS, Stack

OUTAGE_SECONDS = 10 if IS_LONG else 5
LATEST = '{ latestPrice(ticker: "btc_usd") { price timestamp } }'
FETCH = "mutation { fetchPrices { id status } }"


async def code_in_time(stack: Stack, query: str) -> str:
    started = time.monotonic()
    answer = await stack.graphql(query)
    assert time.monotonic() - started < 4  # 2 s are promised; the rest is for a busy machine
    return str(answer["errors"][0]["extensions"]["code"])


async def test_postgres_killed_loses_no_price(stack: Stack, report: Report) -> None:
    worker = stack.start_worker()
    await stack.start_api()
    await stack.wait_for_prices(3)

    stack.kill_postgres()
    down = time.monotonic()
    while time.monotonic() - down < OUTAGE_SECONDS:
        assert await code_in_time(stack, LATEST) == "STORAGE_UNAVAILABLE"
        await asyncio.sleep(0.5)
    await stack.restart_postgres()

    async def all_stored() -> bool:
        async with stack.redis() as redis:
            return bool(await redis.zcard("deferred") == 0)

    recovered = await stack.wait_for(all_stored, "deferred prices stored")
    await stack.wait_for_prices(2)
    assert "errors" not in await stack.graphql(LATEST)
    history = await check_history(stack)
    report(f"PostgreSQL kill -9 for {OUTAGE_SECONDS} s", history, recovered)
    assert (history.missing, history.healed) == (0, 0)
    assert worker.poll() is None


async def test_valkey_killed_keeps_queued_jobs_and_the_worker(stack: Stack, report: Report) -> None:
    await stack.start_api()
    queued = (await stack.graphql(FETCH))["data"]["fetchPrices"]["id"]
    worker = stack.start_worker()
    job = f'{{ fetchJob(id: "{queued}") {{ status }} }}'
    await stack.wait_for_prices(2)
    assert (await stack.graphql(job))["data"]["fetchJob"]["status"] == "SUCCEEDED"

    worker_ids = [process.pid for process in stack.processes if process is worker]
    # A fetch that no worker has taken when the server dies.
    worker.send_signal(19)
    waiting = (await stack.graphql('mutation { fetchPrices(tickers: ["eth_usd"]) { id } }'))["data"]["fetchPrices"][
        "id"
    ]
    stack.kill_valkey()
    worker.send_signal(18)
    down = time.monotonic()
    while time.monotonic() - down < OUTAGE_SECONDS:
        assert await code_in_time(stack, FETCH) == "QUEUE_UNAVAILABLE"
        await asyncio.sleep(0.5)
    await stack.restart_valkey()

    async def done() -> bool:
        answer = await stack.graphql(f'{{ fetchJob(id: "{waiting}") {{ status }} }}')
        return bool(answer["data"]["fetchJob"] and answer["data"]["fetchJob"]["status"] == "SUCCEEDED")

    recovered = await stack.wait_for(done, "the queued fetch has run")
    await stack.wait_for_prices(2)
    assert worker.poll() is None
    assert worker_ids == [worker.pid]
    history = await check_history(stack)
    report(f"Valkey kill -9 for {OUTAGE_SECONDS} s", history, recovered)
    # The chart cannot heal a grid of one second. Only slots of the outage are missing, each with a reason.
    assert history.missing <= len(TICKERS) * (OUTAGE_SECONDS + 5)


async def test_both_killed_recovers_without_help(slow_stack: Stack, report: Report) -> None:
    stack = slow_stack
    worker = stack.start_worker()
    await stack.start_api()
    await stack.wait_for_prices(1)

    stack.kill_postgres()
    stack.kill_valkey()
    await asyncio.sleep(OUTAGE_SECONDS + stack.interval)
    await stack.restart_valkey()
    await stack.restart_postgres()
    back = time.monotonic()
    await stack.wait_for_prices(1)
    recovered = time.monotonic() - back
    end = stack.current_slot()

    await stack.wait_until_whole(end)
    assert worker.poll() is None
    history = await check_history(stack, end)
    report(f"both kill -9 for {OUTAGE_SECONDS + stack.interval} s", history, recovered)
    assert history.missing == 0


async def test_a_worker_can_be_stopped_while_valkey_is_unavailable(stack: Stack) -> None:
    worker = stack.start_worker()
    await stack.wait_for_prices(1)
    stack.kill_valkey()
    await asyncio.sleep(1.5)
    worker.terminate()
    async with asyncio.timeout(40):
        while worker.poll() is None:
            await asyncio.sleep(0.1)
    assert worker.returncode == 0
