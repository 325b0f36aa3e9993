"""What a process knows of prices as they are stored and of fetches as they go on: read once, for all who follow.

Prices: one connection to PostgreSQL hears that something was stored and reads it, by position, into a log of the
newest prices. A follower is a place in that log. Nothing is queued for it, so one that does not keep up costs nothing;
when the log has gone past its place it is told so, and ends.
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
"How long a price waits where no word of it comes, as behind a pooler; and how soon an outage shows."

_PAUSE_SECONDS = 0.1
"Between pages: when a day is healed at once, it must not run past those who follow over a slow line."

_READERS = 3
"Of what was stored before a follower came, at a time: queries want the same connections."

_TURN = 20
"Prices that one follower is given before it is another's turn."


class TooSlow(Exception):
    """The follower has fallen behind what is kept."""


class PriceFeed:
    def __init__(self, settings: Settings, kept: int) -> None:
        self._settings = settings
        self._kept = kept
        self._log: list[Stored] = []
        self._dropped = 0
        "Prices that were in the log and are not any more: places in it count from the first one ever."
        self._position: Position | None = None
        self._is_new_connection = False
        self._heard = asyncio.Event()
        self._changed = asyncio.Event()
        self._reading = asyncio.Semaphore(_READERS)

    async def run(self) -> None:
        """Read what is stored, until cancelled. After an outage of PostgreSQL, go on from the same position."""
        async with listen(self._settings, self._connected, self._heard.set) as pool:
            while True:
                self._heard.clear()
                try:
                    is_more = await self._read(pool)
                except (StorageUnavailable, asyncpg.UndefinedColumnError):  # away; or not yet migrated, as /readyz says
                    is_more = False
                except Exception:
                    logger.exception("fault in following the prices")
                    is_more = False
                if is_more:
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS):
                        await self._heard.wait()

    def _connected(self) -> None:
        self._is_new_connection = True

    async def _read(self, pool: Pool) -> bool:
        """Answers whether there is more to read."""
        # A pooler's connection may lead to another server without a word.
        if self._position is None or self._is_new_connection or self._settings.database_pooler:
            last = await select_last_position(pool)
            if self._position is None or last.batch < self._position.batch:  # another database, or an older copy
                self._position = last
                self._wake()
            self._is_new_connection = False
        stored = await select_stored(pool, self._position, _PAGE)
        if stored:
            self._position = stored[-1].position
            self._log += stored
            if len(self._log) > self._kept + _PAGE:
                surplus = len(self._log) - self._kept
                del self._log[:surplus]
                self._dropped += surplus
            self._wake()
        return len(stored) == _PAGE

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def updates(self, pool: Pool, tickers: Sequence[str], since: datetime | None) -> AsyncGenerator[Price]:
        """Prices as they are stored, from now on; with `since`, first those stored before.

        Raises `StorageUnavailable` while what was stored cannot be read, `TooSlow`.
        """
        await self._wait_for_position()
        place, begin = self._dropped + len(self._log), BEGINNING
        if since is not None:
            # In this order: what is stored up to `begin` is read from there, and what comes after it is in the log from
            # `place` on, perhaps behind some of the former where the log has not caught up yet.
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
            turn = self._turn(start)
            place += len(turn)
            for position, price in turn:
                if price.ticker in wanted and position > begin:
                    yield price
            if place < self._dropped + len(self._log):
                await asyncio.sleep(0)

    async def _stored_since(
        self, pool: Pool, tickers: Sequence[str], since: datetime, until: Position
    ) -> AsyncGenerator[Price]:
        """Prices later than `since`; before them those of `since` or earlier that came after it did."""
        async with self._reading:
            batch = await select_batch_of(pool, tickers, since)
        late = after_batch(batch) if batch is not None else until
        while late < until:
            async with self._reading:
                stored = await select_stored_late(pool, tickers, since, late, until, _PAGE)
            async for price in _in_turns(stored):
                yield price
            late = stored[-1].position if stored else until
        after = after_instant(since)
        while True:
            async with self._reading:
                stored = await select_stored_by_time(pool, tickers, after, until, _PAGE)
            async for price in _in_turns(stored):
                yield price
            if not stored:
                return
            after = stored[-1].price.timestamp, stored[-1].price.ticker

    def _turn(self, start: int) -> list[Stored]:
        """The next few, never part of an instant: who is cut off and comes back with it would miss the rest."""
        end = min(start + _TURN, len(self._log))
        while end < len(self._log) and self._log[end].price.timestamp == self._log[end - 1].price.timestamp:
            end += 1
        return self._log[start:end]

    async def _wait_for_position(self) -> None:
        """Nobody can be promised anything while it is not known where the order of storing stands."""
        self._heard.set()
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                while self._position is None:
                    await self._changed.wait()
        except TimeoutError as error:
            raise StorageUnavailable from error


async def _in_turns(stored: Sequence[Stored]) -> AsyncGenerator[Price]:
    for number, (_, price) in enumerate(stored, 1):
        yield price
        if number % _TURN == 0:
            await asyncio.sleep(0)
