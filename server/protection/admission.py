"""Admission control (load shedding): under overload it refuses some requests at once, so that the others are in time.

It measures how long requests wait, not how many there are: for a connection to PostgreSQL, and for the event loop, by
its lag and by its longest queue. A burst after a calm period may wait longer, as when many pages reconnect at once. If
the overload lasts, new requests are refused until the waiting time is short again.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from server.protection.document_queue import LONG, DocumentQueue
from server.protection.heavy_reads import HeavyReads
from server.protection.turns import Turns
from shared.errors import RateLimited
from shared.storage.database import DEADLINE_SECONDS, Pool

logger = logging.getLogger(__name__)

T = TypeVar("T")

QUEUE_SECONDS = 0.25
"The waiting time above which the service is overloaded."

BURST_SECONDS = 2.0
"How long an overload may last before requests are refused."

CALM_SECONDS = 1.0
"How long there must be no overload before a new burst is allowed."

LONGEST_SECONDS = DEADLINE_SECONDS - 0.4
"A request that joined a longer queue for a connection would miss its deadline."

MAX_UNDER_WAY = 1000
MAX_QUEUED_DOCUMENTS = 20
"Long documents: about a second's work."

LAG_SECONDS = 0.1
"How often the event loop's lag is measured."

RETRY_SECONDS = 1
_LOG_SECONDS = 10.0


class Admission:
    """One for each process. `under_way`: operations that are being answered, without subscriptions."""

    def __init__(self, pool: Pool) -> None:
        self.under_way = 0
        self.refused = 0
        self.turns = Turns()
        "For all that requests and messages make the event loop do in Python."
        self.heavy_reads = HeavyReads()
        self._pool = pool
        self._lag = 0.0
        self._queue = DocumentQueue()
        self._overloaded_since = self._overloaded_at = -CALM_SECONDS
        self._iteration_began: float | None = None
        self._last_logged_at = -_LOG_SECONDS
        self._logged = 0

    def is_full(self) -> bool:
        """For an operation that takes almost no time on the event loop, such as a cached compiled query."""
        if self._pool.waited <= QUEUE_SECONDS and self.under_way < MAX_UNDER_WAY:
            return False
        return self._refuses(time.monotonic())

    async def queue_document(self, length: int) -> None:
        """Before a document of that length is parsed. Raises `RateLimited` if the queue for long ones is full."""
        if length > LONG:
            if self._queue.waiting >= MAX_QUEUED_DOCUMENTS:
                self._note_refusal(time.monotonic())
                raise busy()
            await self._queue.wait()
        else:
            await self.turns.take()

    async def run_document(self, work: Callable[[], T]) -> T:
        """Parse or validate a long document. Raises `RateLimited`, and what `work` raises."""
        if self._queue.waiting >= MAX_QUEUED_DOCUMENTS:
            self._note_refusal(time.monotonic())
            raise busy()
        return await self._queue.run(work)

    async def measure_lag(self) -> None:
        """Until cancelled: how late the event loop calls what is due."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self._lag = loop.time() - due

    @contextmanager
    def work(self) -> Iterator[None]:
        """Around any other operation. Raises `RateLimited` if it is refused."""
        if self.is_full_for_work():
            raise busy()
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    def is_full_for_work(self) -> bool:
        now = time.monotonic()
        if self._iteration_began is None:
            self._iteration_began = now
            asyncio.get_running_loop().call_soon(self._end_iteration)
        waited = max(now - self._iteration_began, self._pool.waited, self._lag, self.turns.waited)
        is_late = waited > QUEUE_SECONDS
        return (is_late or self.under_way >= MAX_UNDER_WAY) and self._refuses(now)

    def _end_iteration(self) -> None:
        """All callbacks that were ready have run; the next request starts a new measurement."""
        self._iteration_began = None

    def _refuses(self, now: float) -> bool:
        if now - self._overloaded_at > CALM_SECONDS:
            self._overloaded_since = now
        self._overloaded_at = now
        is_burst = now - self._overloaded_since < BURST_SECONDS
        if is_burst and self._pool.waited <= LONGEST_SECONDS and self.under_way < MAX_UNDER_WAY:
            return False
        self._note_refusal(now)
        return True

    def _note_refusal(self, now: float) -> None:
        self.refused += 1
        if now - self._last_logged_at >= _LOG_SECONDS:
            logger.warning("overloaded: %d operations refused", self.refused - self._logged)
            self._last_logged_at, self._logged = now, self.refused


@asynccontextmanager
async def measured(admission: Admission) -> AsyncIterator[Admission]:
    """Measures the event loop's lag for as long as the process runs."""
    task = asyncio.create_task(admission.measure_lag())
    try:
        yield admission
    finally:
        task.cancel()


def busy() -> RateLimited:
    return RateLimited(f"The server is busy; try again in {RETRY_SECONDS} s.", RETRY_SECONDS)
