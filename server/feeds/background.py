"""Runs the feeds in the background for as long as the process runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from arq.connections import ArqRedis

from server.feeds.job_feed import JobFeed
from server.feeds.price_feed import PriceFeed
from shared.config.settings import Settings
from shared.storage.database import Pool

_CANCEL_SECONDS = 0.1


class Feeds:
    def __init__(self, settings: Settings, redis: ArqRedis, pool: Pool, kept: int) -> None:
        self.pool = pool
        "What comes before the log is read from where the log is, too: a standby may be behind it."
        self.prices = PriceFeed(settings, kept)
        self.jobs = JobFeed(redis)


@asynccontextmanager
async def open_feeds(settings: Settings, redis: ArqRedis, pool: Pool, kept: int) -> AsyncIterator[Feeds]:
    """Follow prices and fetches for as long as the process runs. `kept`: prices that a follower may be behind.

    `pool`: of the primary.
    """
    feeds = Feeds(settings, redis, pool, kept)
    tasks = [asyncio.create_task(feeds.prices.run()), asyncio.create_task(feeds.jobs.run())]
    try:
        yield feeds
    finally:
        pending = set(tasks)
        while pending:  # more than once: while redis-py connects it can lose a cancellation
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=_CANCEL_SECONDS)
