"""Runs the feeds in the background as long as the process runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from arq.connections import ArqRedis

from server.feeds.job_feed import JobFeed
from server.feeds.price_feed import PriceFeed
from server.protection.turns import Turns
from shared.config.settings import Settings
from shared.storage.database import Pool

_CANCEL_SECONDS = 0.1


class Feeds:
    def __init__(self, settings: Settings, redis: ArqRedis, pool: Pool, max_behind: int) -> None:
        self.pool = pool
        "Of the primary, because a standby may be behind the log of the price feed."
        turns = Turns()
        self.prices = PriceFeed(settings, max_behind, turns)
        self.jobs = JobFeed(redis, turns)


@asynccontextmanager
async def open_feeds(settings: Settings, redis: ArqRedis, pool: Pool, max_behind: int) -> AsyncIterator[Feeds]:
    """`pool`: of the primary. `max_behind`: how many prices a subscriber may be behind."""
    feeds = Feeds(settings, redis, pool, max_behind)
    tasks = [asyncio.create_task(feeds.prices.run()), asyncio.create_task(feeds.jobs.run())]
    try:
        yield feeds
    finally:
        pending = set(tasks)
        while pending:  # repeatedly, because redis-py can lose a cancellation while it connects
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=_CANCEL_SECONDS)
