"""What the pool promises of PostgreSQL's own side."""

import asyncio

import pytest

from shared.db import create_pool, fetch
from shared.settings import Settings

ACTIVE = """
    select count(*)::int
    from pg_stat_activity
    where application_name = 'cancelling'
      and state = 'active'
      and pid <> pg_backend_pid()
"""


async def test_a_cancelled_statement_is_over_before_its_place_is_free(settings: Settings) -> None:
    """Or whoever asks and leaves, again and again, would have more of them at work than there are places."""
    async with create_pool(settings, name="cancelling", size=2) as pool:
        for _ in range(5):
            asking = [asyncio.create_task(fetch(pool, "select pg_sleep(30)")) for _ in range(2)]
            await asyncio.sleep(0.05)
            for task in asking:
                task.cancel()
            for task in asking:
                with pytest.raises(asyncio.CancelledError):
                    await task
            [[active]] = await fetch(pool, ACTIVE)
            assert active <= 1  # in the other place
        async with asyncio.timeout(5):
            while (await fetch(pool, ACTIVE))[0][0]:
                await asyncio.sleep(0.01)
