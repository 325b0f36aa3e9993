"""Statements that read many rows run a few at a time, so that connections and CPU are left for all others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.errors import RateLimited

HEAVY_ROWS = 2000
AT_ONCE = 2
MAX_QUEUED = 10
"Each takes about 0.2 s."

RETRY_SECONDS = 2


class HeavyReads:
    """One for each process."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(AT_ONCE)
        self._queued = 0

    @asynccontextmanager
    async def place(self, weight: int) -> AsyncIterator[None]:
        """`weight`: rows that it may answer; see `Context.weight`. Raises `RateLimited` if too many wait already."""
        if weight <= HEAVY_ROWS:
            yield
            return
        if self._queued >= MAX_QUEUED:
            raise RateLimited(
                f"Too many requests read many rows at once; try again in {RETRY_SECONDS} s.", RETRY_SECONDS
            )
        self._queued += 1
        try:
            await self._places.acquire()
        finally:
            self._queued -= 1
        try:
            yield
        finally:
            self._places.release()
