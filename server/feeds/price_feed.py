"""New prices for all subscribers: one reader per process and one log of the newest prices.

The reader listens for PostgreSQL's notifications and reads new prices in the order of storing. Subscribers share the
log instead of having queues: each is an index into it, so a slow one costs no memory. `TooSlow` ends a subscriber when
the log no longer holds its next price.

A subscriber that resumes reads what the log does not hold from the table: in pages, each a short statement, a few at a
time for all subscribers, and in turns.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime

import asyncpg

from server.feeds.recent_prices import BATCH, RecentPrices
from shared.config.settings import Settings
from shared.cursor import BEGINNING, Position
from shared.errors import StorageUnavailable
from shared.storage.database import DEADLINE_SECONDS, Pool
from shared.storage.price_log import (
    Stored,
    after_batch,
    after_instant,
    find_position,
    listen,
    select_batch_of,
    select_last_position,
    select_newest_of,
    select_newest_stored,
    select_page,
    select_page_end,
    select_stored,
    select_stored_by_time,
)
from shared.storage.prices import Price

logger = logging.getLogger(__name__)

_PAGE = 500
"Prices that one statement looks at."

_RECENT = 2000
"Prices in the log from the start, so that those who resume when this process has restarted need not read the table."

_POLL_SECONDS = 1.0
"The delay of a price without a notification, as behind a pooler; and of noticing an outage."

_PAUSE_SECONDS = 0.1
"Between pages, so that subscribers on a slow line can follow while a whole day is healed."

_READERS = 3
"Subscribers that read stored prices at the same time: queries need the same connections."


class PriceFeed:
    def __init__(self, settings: Settings, max_behind: int) -> None:
        self._settings = settings
        self._log = RecentPrices(max_behind, _PAGE)
        self._connections = 0
        "How many the reader has opened: another one may lead to another server."
        self._checked = 0
        "The connection that was checked last."
        self._notified = asyncio.Event()
        self._changed = asyncio.Event()
        self._reading = asyncio.Semaphore(_READERS)

    async def run(self) -> None:
        """Read new prices until cancelled. Continues at the same position after an outage of PostgreSQL."""
        async with listen(self._settings, self._count_connection, self._notified.set) as pool:
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
        log = self._log
        while True:
            connection = self._connections
            # A pooler may connect to another server unnoticed.
            if connection != self._checked or self._settings.database_pooler or not log.generation:
                await (self._check(pool) if log.generation else self._begin(pool))
                self._checked = connection
            stored = await select_stored(pool, log.end, _PAGE)
            if connection == self._connections:
                break
        if stored:
            log.add(stored)
            self._wake()
        return len(stored) == _PAGE

    async def _begin(self, pool: Pool) -> None:
        stored = await select_newest_stored(pool, _RECENT)
        self._log.restart(stored[0].position if len(stored) == _RECENT else BEGINNING)
        if stored:
            self._log.add(stored)
        self._wake()

    async def _check(self, pool: Pool) -> None:
        """Restart the log if this is another database, or an older copy that lost prices.

        Then the log goes on behind its last price that the database still has, so it gets all that was stored instead.
        """
        log = self._log
        if log.end == BEGINNING or await select_newest_of(pool, [log.end]) == log.end:
            return
        known = await select_newest_of(pool, log.positions())
        if known is None:
            known = min(log.end, await select_last_position(pool))
        log.restart(known)
        self._wake()

    def _count_connection(self) -> None:
        self._connections += 1

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def find(self, pool: Pool, position: Position) -> Position | None:
        """Where to go on behind a cursor's position; `None` if this database never gave it.

        Raises `StorageUnavailable`.
        """
        await self._wait_for_position()
        if self._log.has(position):
            return position
        async with self._reading:
            return await find_position(pool, position)

    async def updates(
        self, pool: Pool, tickers: Sequence[str], since: datetime | None = None, after: Position | None = None
    ) -> AsyncGenerator[Price]:
        """Prices as they are stored, from now on; with `since` or `after`, first those that are already stored.

        `after`: as `find` returns it. Raises `StorageUnavailable`, `TooSlow`.
        """
        await self._wait_for_position()
        log, wanted = self._log, frozenset(tickers)
        generation, position = log.generation, log.end
        if since is not None:
            async with self._reading:
                position = max(position, await select_last_position(pool))  # the log may be behind the table
            async for price in self._stored_since(pool, tickers, since, position):
                yield price
        elif after is not None and after.batch == 0:
            async for price in self._by_time(pool, tickers, (after.timestamp, after.ticker), after_batch(0)):
                yield price
            position = after_batch(0)
        elif after is not None:
            position = after
        while True:
            if generation != log.generation:
                generation, position = log.generation, min(position, log.restarted_at)
            place = log.place_after(position)
            if place is not None:
                break
            if position > log.end:  # the log is behind what was read from the table
                await self._changed.wait()
            else:
                end = log.end
                async for price in self._pages(pool, tickers, position, end):
                    yield price
                position = end
        while True:
            batch = log.batch(place)
            if not batch:
                await self._changed.wait()
            place += len(batch)
            for _, price in batch:
                if price.ticker in wanted:
                    yield price
            if place < log.next_place:
                await asyncio.sleep(0)

    async def _stored_since(
        self, pool: Pool, tickers: Sequence[str], since: datetime, until: Position
    ) -> AsyncGenerator[Price]:
        """First the prices with a timestamp up to `since` that were stored after it, then those with a later one."""
        async with self._reading:
            batch = await select_batch_of(pool, tickers, since)
        if batch is not None:
            async for price in self._pages(pool, tickers, after_batch(batch), until, since):
                yield price
        async for price in self._by_time(pool, tickers, after_instant(since), until):
            yield price

    async def _pages(
        self, pool: Pool, tickers: Sequence[str], after: Position, until: Position, latest: datetime | None = None
    ) -> AsyncGenerator[Price]:
        """Prices between two positions, in the order of storing; only those with a timestamp up to `latest`."""
        while after < until:
            async with self._reading:
                end = await select_page_end(pool, after, until, _PAGE)
                stored = await select_page(pool, tickers, after, end, _PAGE, latest)
            async for price in _in_batches(stored):
                yield price
            after = end

    async def _by_time(
        self, pool: Pool, tickers: Sequence[str], after: tuple[datetime, str], until: Position
    ) -> AsyncGenerator[Price]:
        """Prices after (timestamp, ticker), oldest first, of those that were stored up to `until`."""
        while True:
            async with self._reading:
                stored = await select_stored_by_time(pool, tickers, after, _PAGE)
            if not stored:
                return
            async for price in _in_batches([one for one in stored if one.position <= until]):
                yield price
            after = stored[-1].price.timestamp, stored[-1].price.ticker

    async def _wait_for_position(self) -> None:
        """Without it, new prices cannot be told from old ones."""
        self._notified.set()
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                while not self._log.generation:
                    await self._changed.wait()
        except TimeoutError as error:
            raise StorageUnavailable from error


async def _in_batches(stored: Sequence[Stored]) -> AsyncGenerator[Price]:
    for number, (_, price) in enumerate(stored, 1):
        yield price
        if number % BATCH == 0:
            await asyncio.sleep(0)
