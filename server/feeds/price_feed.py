"""New prices for all subscribers: one reader per process and one log of the newest prices.

The reader listens for PostgreSQL's notifications and reads new prices in the order of storing. Subscribers share the
log instead of having queues: each is an index into it, so a slow one costs no memory. `TooSlow` ends a subscriber when
the log no longer holds its next price.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime

import asyncpg

from shared.config.settings import Settings
from shared.errors import StorageUnavailable
from shared.storage.database import DEADLINE_SECONDS, Pool
from shared.storage.price_log import (
    BEGINNING,
    Position,
    Stored,
    after_batch,
    after_instant,
    listen,
    select_batch_of,
    select_last_position,
    select_stored,
    select_stored_by_time,
    select_stored_late,
)
from shared.storage.prices import Price

logger = logging.getLogger(__name__)

_PAGE = 500
_POLL_SECONDS = 1.0
"The delay of a price without a notification, as behind a pooler; and of noticing an outage."

_PAUSE_SECONDS = 0.1
"Between pages, so that subscribers on a slow line can follow while a whole day is healed."

_READERS = 3
"Subscribers that read stored prices at the same time: queries need the same connections."

_BATCH = 20
"Prices for one subscriber before it yields to the others."


class TooSlow(Exception):
    """The log no longer holds the subscriber's next price."""


class PriceFeed:
    def __init__(self, settings: Settings, max_behind: int) -> None:
        self._settings = settings
        self._max_behind = max_behind
        self._log: list[Stored] = []
        self._dropped = 0
        "Prices removed from the log. Subscribers' positions count from the first price ever logged."
        self._position: Position | None = None
        self._connected = asyncio.Event()
        self._notified = asyncio.Event()
        self._changed = asyncio.Event()
        self._reading = asyncio.Semaphore(_READERS)

    async def run(self) -> None:
        """Read new prices until cancelled. Continues at the same position after an outage of PostgreSQL."""
        async with listen(self._settings, self._connected.set, self._notified.set) as pool:
            while True:
                self._notified.clear()
                try:
                    is_more = await self._read(pool)
                except (StorageUnavailable, asyncpg.UndefinedColumnError):  # or not yet migrated
                    is_more = False
                except Exception:
                    logger.exception("following the prices failed")
                    is_more = False
                if is_more:
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS):
                        await self._notified.wait()

    async def _read(self, pool: Pool) -> bool:
        """Returns whether there is more to read."""
        # A pooler may connect to another server unnoticed.
        if self._position is None or self._connected.is_set() or self._settings.database_pooler:
            last = await select_last_position(pool)
            if self._position is None or last.batch < self._position.batch:  # another database, or an older copy
                self._position = last
                self._wake()
            self._connected.clear()
        stored = await select_stored(pool, self._position, _PAGE)
        if stored:
            self._position = stored[-1].position
            self._log += stored
            if len(self._log) > self._max_behind + _PAGE:
                surplus = len(self._log) - self._max_behind
                del self._log[:surplus]
                self._dropped += surplus
            self._wake()
        return len(stored) == _PAGE

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def updates(self, pool: Pool, tickers: Sequence[str], since: datetime | None) -> AsyncGenerator[Price]:
        """Prices as they are stored, from now on; with `since`, first those that are already stored.

        Raises `StorageUnavailable`, `TooSlow`.
        """
        await self._wait_for_position()
        place, begin = self._dropped + len(self._log), BEGINNING
        if since is not None:
            # After `place` is set: prices up to `begin` come from the table, later ones from the log at `place`. If the
            # log is behind, it still gets some prices up to `begin`; the loop below skips them.
            begin = await select_last_position(pool)
            async for price in self._stored_since(pool, tickers, since, begin):
                yield price
        wanted = frozenset(tickers)
        while True:
            start = place - self._dropped
            if start < 0:
                raise TooSlow
            if start == len(self._log):
                await self._changed.wait()
                continue
            batch = self._batch(start)
            place += len(batch)
            for position, price in batch:
                if price.ticker in wanted and position > begin:
                    yield price
            if place < self._dropped + len(self._log):
                await asyncio.sleep(0)

    async def _stored_since(
        self, pool: Pool, tickers: Sequence[str], since: datetime, until: Position
    ) -> AsyncGenerator[Price]:
        """First the prices with a timestamp up to `since` that were stored after it, then those with a later one."""
        async with self._reading:
            batch = await select_batch_of(pool, tickers, since)
        late = after_batch(batch) if batch is not None else until
        while late < until:
            async with self._reading:
                stored = await select_stored_late(pool, tickers, since, late, until, _PAGE)
            async for price in _in_batches(stored):
                yield price
            late = stored[-1].position if stored else until
        after = after_instant(since)
        while True:
            async with self._reading:
                stored = await select_stored_by_time(pool, tickers, after, until, _PAGE)
            async for price in _in_batches(stored):
                yield price
            if not stored:
                return
            after = stored[-1].price.timestamp, stored[-1].price.ticker

    def _batch(self, start: int) -> list[Stored]:
        """The next prices. It never splits a timestamp: a client that reconnects with it would miss the rest."""
        end = min(start + _BATCH, len(self._log))
        while end < len(self._log) and self._log[end].price.timestamp == self._log[end - 1].price.timestamp:
            end += 1
        return self._log[start:end]

    async def _wait_for_position(self) -> None:
        """Without it, new prices cannot be told from old ones."""
        self._notified.set()
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                while self._position is None:
                    await self._changed.wait()
        except TimeoutError as error:
            raise StorageUnavailable from error


async def _in_batches(stored: Sequence[Stored]) -> AsyncGenerator[Price]:
    for number, (_, price) in enumerate(stored, 1):
        yield price
        if number % _BATCH == 0:
            await asyncio.sleep(0)
