"""Statements that read many rows run two at a time; a few more wait, and any other is refused."""

import asyncio

import pytest

from server.protection.heavy_reads import AT_ONCE, HEAVY_ROWS, MAX_QUEUED, HeavyReads
from shared.errors import RateLimited


async def test_heavy_reads_run_a_few_at_a_time_and_light_ones_do_not_wait() -> None:
    reads, finish, running = HeavyReads(), asyncio.Event(), []

    async def read(number: int, rows: int) -> None:
        async with reads.place(rows):
            running.append(number)
            await finish.wait()

    tasks = [asyncio.create_task(read(number, HEAVY_ROWS + 1)) for number in range(AT_ONCE + MAX_QUEUED)]
    tasks.append(asyncio.create_task(read(99, HEAVY_ROWS)))
    await asyncio.sleep(0)
    assert running == [*range(AT_ONCE), 99]
    with pytest.raises(RateLimited):
        await read(100, 10_000)
    finish.set()
    await asyncio.gather(*tasks)
    assert sorted(running) == [*range(AT_ONCE + MAX_QUEUED), 99]
