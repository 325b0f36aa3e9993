"""Requests for past prices: few, evenly spaced over all workers, never ahead of a live slot's, and backing off."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from arq.connections import ArqRedis

from shared.queue.spacing import hold_requests, reserve_request
from worker.exchange.errors import DeribitError
from worker.metrics import Metrics

CONCURRENCY = 2
"Connections to the exchange that these requests use at once; the others stay free for the schedule."

HEALING, FILLING = "healing", "filling"
"The locks of those who ask."

MAX_YIELD_SECONDS = 2.0
"How long a request waits for live ones. A ticker that always hangs must not end all healing."

_FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 1.0, 60.0


class Background:
    def __init__(self, redis: ArqRedis, metrics: Metrics) -> None:
        self._redis = redis
        self._metrics = metrics
        self._connections = asyncio.Semaphore(CONCURRENCY)
        self._live = 0
        self._is_quiet = asyncio.Event()
        self._is_quiet.set()
        self._backoff = _FIRST_BACKOFF_SECONDS
        self._refused_at = 0.0

    @contextmanager
    def live(self) -> Iterator[None]:
        """Around requests for a live slot, while which no other request begins."""
        self._live += 1
        self._is_quiet.clear()
        try:
            yield
        finally:
            self._live -= 1
            if not self._live:
                self._is_quiet.set()

    @asynccontextmanager
    async def request(self, method: str) -> AsyncIterator[None]:
        """Around one request. Any refusal delays the next requests of all workers. Raises `RedisError` or `OSError`."""
        async with self._connections:
            await self._wait_for_turn()
            try:
                async with self._metrics.calling(method):
                    yield
            except DeribitError:
                # Two requests that were refused together count once.
                if time.monotonic() - self._refused_at > self._backoff / 2:
                    await hold_requests(self._redis, self._backoff)
                    self._backoff = min(self._backoff * 2, _LONGEST_BACKOFF_SECONDS)
                    self._refused_at = time.monotonic()
                raise
            self._backoff = _FIRST_BACKOFF_SECONDS

    async def _wait_for_turn(self) -> None:
        """A request whose turn comes during a live one takes another turn, so that none bunch up behind it."""
        seconds_left = MAX_YIELD_SECONDS
        while True:
            await asyncio.sleep(await reserve_request(self._redis))
            if self._is_quiet.is_set() or seconds_left <= 0:
                return
            began = time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds_left):
                    await self._is_quiet.wait()
            seconds_left -= time.monotonic() - began
