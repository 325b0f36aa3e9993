"""The time that all workers share: Redis's clock, carried on by this machine's monotonic clock.

A worker whose own clock is wrong, or is stepped, fetches its slots at the right moment all the same.
"""

import asyncio
import logging
import math
import time
from datetime import UTC, datetime

from arq.connections import ArqRedis

logger = logging.getLogger(__name__)

TOLERATED_SECONDS = 1.0
"A worker whose own clock differs by more says so."

_SAMPLES = 3
"The first one may include connecting."
_SLOW_ANSWER_SECONDS = 0.1
"Redis read its clock at some moment between question and answer, so a slow answer says little."


class Clock:
    """Until Redis has answered, it is this machine's own clock."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._begin = time.time() - self._started
        self._took = math.inf
        self.synchronized = asyncio.Event()
        self._is_off = False

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._begin + time.monotonic(), UTC)

    @property
    def started_at(self) -> datetime:
        return datetime.fromtimestamp(self._begin + self._started, UTC)

    def own_offset_seconds(self) -> float:
        """How far this machine's own clock runs ahead of the shared one."""
        return time.time() - time.monotonic() - self._begin

    async def synchronize(self, redis: ArqRedis) -> None:
        """Ask Redis for the time. Raises `RedisError` or `OSError`."""
        took, begin = min([await self._sample(redis) for _ in range(_SAMPLES)])
        if took > _SLOW_ANSWER_SECONDS and took > self._took:
            return
        self._took, self._begin = took, begin
        self.synchronized.set()
        is_off = abs(self.own_offset_seconds()) > TOLERATED_SECONDS
        if is_off is not self._is_off:
            self._is_off = is_off
            if is_off:
                logger.warning(
                    "this machine's clock differs from Redis's by %+.1f s; slots follow Redis's clock",
                    self.own_offset_seconds(),
                )
            else:
                logger.info("this machine's clock agrees with Redis's again")

    async def _sample(self, redis: ArqRedis) -> tuple[float, float]:
        """How long Redis took to answer, and its time at the zero of our monotonic clock."""
        asked = time.monotonic()
        seconds, microseconds = await redis.time()
        answered = time.monotonic()
        return answered - asked, seconds + microseconds / 1_000_000 - (asked + answered) / 2
