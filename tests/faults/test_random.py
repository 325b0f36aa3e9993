"""Processes are killed in random order, and the invariants of the history hold."""

import asyncio
import os
import random
import time

import httpx
import pytest

from tests.faults.conftest import IS_LONG, Report
from tests.faults.history import check_history
from tests.faults.stack import TICKERS, Stack

ROUNDS = 200 if IS_LONG else 15
SEED = int(os.environ.get("FAULTS_SEED", "1"))
FETCH = "mutation { fetchPrices { id } }"


@pytest.mark.timeout(900)
async def test_random_kills_leave_a_true_history(stack: Stack, report: Report) -> None:
    """Two workers, each fetching and healing, killed and started again at random."""
    chance = random.Random(SEED)
    workers = [stack.start_worker(), stack.start_worker()]
    await stack.start_api()
    await stack.wait_for_prices(1)
    for _ in range(ROUNDS):
        await asyncio.sleep(chance.uniform(0.05, 0.8))
        match chance.randrange(4):
            case 0 | 1:
                victim = chance.randrange(2)
                workers[victim].kill()
                workers[victim].wait()
                workers[victim] = stack.start_worker()
            case 2:
                await stack.heal()
            case _:
                assert "errors" not in await stack.graphql(FETCH)
    back = time.monotonic()
    await stack.wait_for_prices(2)
    recovered = time.monotonic() - back
    await stack.heal()
    await asyncio.sleep(2)
    history = await check_history(stack)
    report(f"{ROUNDS} rounds of random kills, seed {SEED}", history, recovered)
    assert history.observed > 0


@pytest.mark.timeout(120)
async def test_an_answered_mutation_runs_even_if_the_api_is_killed(stack: Stack) -> None:
    stack.start_worker()
    answered: list[str] = []

    async def ask() -> None:
        for index in range(1000):
            try:
                query = f'mutation {{ fetchPrices(tickers: ["{TICKERS[index % 2]}"]) {{ id }} }}'
                answered.append((await stack.graphql(query))["data"]["fetchPrices"]["id"])
            except httpx.TransportError:
                return

    chance = random.Random(SEED)
    for _ in range(8 if IS_LONG else 3):
        api = await stack.start_api()
        asking = [asyncio.create_task(ask()) for _ in range(4)]
        await asyncio.sleep(chance.uniform(0.2, 0.6))
        api.kill()
        api.wait()
        await asyncio.gather(*asking)
    assert answered

    await stack.start_api()
    known = set(answered)
    async with stack.redis() as redis:
        known |= {key.decode().partition(":")[2] async for key in redis.scan_iter("fetch:*")}

    async def all_done() -> bool:
        jobs = [await stack.graphql(f'{{ fetchJob(id: "{job}") {{ status }} }}') for job in known]
        return all(job["data"]["fetchJob"]["status"] == "SUCCEEDED" for job in jobs)

    await stack.wait_for(all_done, "every job that exists has run")
