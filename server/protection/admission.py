"""What is let in: when more is asked than can be answered in time, some is refused at once rather than all be late.

What counts is how long requests wait, not how many there are: for a connection to PostgreSQL, and for their turn on the
event loop. Waiting is allowed after a pause, as when many pages open at once; where it goes on, whoever comes while
others wait is refused until they wait no longer than that.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from server.protection.document_queue import LONG, Turns
from shared.errors import RateLimited
from shared.storage.database import DEADLINE_SECONDS, Pool

logger = logging.getLogger(__name__)

QUEUE_SECONDS = 0.25
"Longer than that nobody is to wait for long."

BURST_SECONDS = 2.0
"For how long they may wait longer, if it was calm before."

CALM_SECONDS = 1.0
LONGEST_SECONDS = DEADLINE_SECONDS - 0.4
"With more behind them, those who wait for a connection would still be waiting when their time is over."

MOST = 1000
"Under way at a time, whatever they wait for."

MOST_IN_LINE = 100
"Long documents that wait for their turn: a second's work."

RETRY_SECONDS = 1
_TELL_SECONDS = 10.0


class Admission:
    """One for a process. `under_way`: operations let in and not yet answered; those of subscriptions do not count."""

    def __init__(self, pool: Pool) -> None:
        self.under_way = 0
        self.refused = 0
        self._pool = pool
        self._turns = Turns()
        self._pressed_since = self._pressed_at = -CALM_SECONDS
        self._turn_began: float | None = None
        self._told_at = -_TELL_SECONDS
        self._told = 0

    def is_full(self) -> bool:
        """To be asked before an operation that takes next to no time on the event loop, as known ones do."""
        if self._pool.waited <= QUEUE_SECONDS and self.under_way < MOST:
            return False
        return self._refuses(time.monotonic())

    async def take_turn(self, length: int) -> None:
        """Before a document of that length is looked at: a long one waits until it is its turn, or is `RateLimited`."""
        if length > LONG:
            if self._turns.waiting >= MOST_IN_LINE:
                self._note_refusal(time.monotonic())
                raise busy()
            await self._turns.take()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Around any other operation. Raises `RateLimited` instead of letting it in."""
        if self.is_full_for_work():
            raise busy()
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    def is_full_for_work(self) -> bool:
        now = time.monotonic()
        if self._turn_began is None:
            self._turn_began = now
            asyncio.get_running_loop().call_soon(self._end_turn)
        if now - self._turn_began <= QUEUE_SECONDS and self._pool.waited <= QUEUE_SECONDS and self.under_way < MOST:
            return False
        return self._refuses(now)

    def _end_turn(self) -> None:
        """All that was ready when it began has run: what comes now has waited that long, and waits anew."""
        self._turn_began = None

    def _refuses(self, now: float) -> bool:
        if now - self._pressed_at > CALM_SECONDS:
            self._pressed_since = now
        self._pressed_at = now
        is_burst = now - self._pressed_since < BURST_SECONDS
        if is_burst and self._pool.waited <= LONGEST_SECONDS and self.under_way < MOST:
            return False
        self._note_refusal(now)
        return True

    def _note_refusal(self, now: float) -> None:
        self.refused += 1
        if now - self._told_at >= _TELL_SECONDS:
            logger.warning("too much to do at once: %d operations refused", self.refused - self._told)
            self._told_at, self._told = now, self.refused


def busy() -> RateLimited:
    return RateLimited(f"The server is busy; try again in {RETRY_SECONDS} s.", RETRY_SECONDS)
