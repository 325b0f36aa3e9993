"""Fills the history before a ticker's first slot, the newest first: the look-back, and then back to HISTORY_FROM.

One worker at a time does it, in the background, a piece of some hours after the other. The first schedule of the ticker
moves back with each piece, so after a kill or a restart the filling goes on from there.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial

from redis.exceptions import RedisError
from structlog.contextvars import bound_contextvars

from shared.errors import StorageUnavailable, describe
from shared.grid import EPOCH, slot_of
from shared.queue.spacing import is_locked, lock, unlock
from shared.storage.missed_slots import MissingRun
from shared.storage.retention import select_kept_from
from shared.storage.schedules import Beginning, move_beginning, select_beginnings, update_filling_to
from worker.context import Worker
from worker.exchange.background import CONCURRENCY, FILLING, HEALING
from worker.exchange.errors import DeribitError
from worker.jobs.recovering import SETTLE, note_missing, piece_length, recover

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 30.0
"Between looks for a ticker whose history does not reach back far enough."

_BUSY_SECONDS = 1.0
"While healing runs, because it comes first; and after a fault, which also delays the requests."


async def fill_histories(worker: Worker) -> None:
    """Fill until cancelled, through outages of Redis and PostgreSQL."""
    holder = uuid.uuid4().hex
    await worker.clock.synchronized.wait()
    try:
        while True:
            seconds = await _fill_in_turn(worker, holder)
            await asyncio.sleep(seconds)
    finally:
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(1):  # without Redis, the lock expires
                await unlock(worker.redis, FILLING, holder)


async def _fill_in_turn(worker: Worker, holder: str) -> float:
    """A piece of each ticker, unless another worker fills. Returns the seconds to wait."""
    filling = asyncio.Semaphore(CONCURRENCY)  # two at once, so that a slow reply does not waste the bound

    async def fill(ticker: str) -> float:
        async with filling:
            with bound_contextvars(ticker=ticker):
                if await is_locked(worker.redis, HEALING):
                    return _BUSY_SECONDS
                await lock(worker.redis, FILLING, holder)
                return 0.0 if await fill_piece(worker, ticker) else _IDLE_SECONDS

    async def fill_all() -> float:
        if not await lock(worker.redis, FILLING, holder):
            return _IDLE_SECONDS
        await worker.note_schedule()
        return min(await asyncio.gather(*(_or_later(partial(fill, ticker)) for ticker in worker.settings.tickers)))

    return await _or_later(fill_all)


async def _or_later(filling: Callable[[], Awaitable[float]]) -> float:
    """Its seconds to wait, or soon again if it cannot be done now."""
    try:
        return await filling()
    except StorageUnavailable:
        logger.warning("storage is unavailable, filling the history waits")
    except (RedisError, OSError) as error:
        logger.warning("queue is unavailable, filling the history waits: %s", describe(error))
    except DeribitError as error:
        logger.warning("the exchange refuses, filling the history waits: %s", error)
    except Exception:  # a bug; the other tickers are filled all the same
        logger.exception("fault in filling the history")
    return _BUSY_SECONDS


async def fill_piece(worker: Worker, ticker: str) -> bool:
    """Fill the newest piece of history that a ticker lacks. Returns whether there may be more.

    Raises `DeribitError` if a source did not answer: then the piece is tried again.
    """
    beginning = (await select_beginnings(worker.pool, [ticker])).get(ticker)
    if beginning is None:
        return False
    goal, is_expected = await _goal(worker, ticker, beginning)
    is_filling = goal < beginning.since
    await update_filling_to(worker.pool, ticker, goal if is_filling and is_expected else None)
    worker.metrics.note_history(ticker, beginning.since, goal if is_filling and is_expected else None)
    if not is_filling:
        return False
    first = max(goal, beginning.since - piece_length(beginning.interval))
    # The first slot of a fresh schedule lies ahead; healing gets what has not ended yet.
    end = min(beginning.since, slot_of(worker.clock.now(), beginning.interval))
    holes = await recover(worker, ticker, [MissingRun(first, end, beginning.interval)], worker.past)
    if not holes.is_final:
        raise DeribitError("INCOMPLETE", f"the history of {ticker} from {first.isoformat()} is tried again")
    since = first
    if is_expected:
        await note_missing(worker, ticker, holes)
    elif holes.unanswered:
        # Only a past without holes counts as part of the schedule. A sparse past is shown, but not expected. Holes in
        # the last minutes mean that no source is as fine as the grid.
        last = holes.unanswered[-1].end
        since = goal = last if last < worker.clock.now() - SETTLE else beginning.since
    await move_beginning(worker.pool, ticker, beginning, since, is_done=since <= goal)
    logger.info("%s: the history begins at %s, filling to %s", ticker, since.isoformat(), goal.isoformat())
    if since <= goal:
        await update_filling_to(worker.pool, ticker, None)
        worker.metrics.note_history(ticker, since, None)
    return since > goal


async def _goal(worker: Worker, ticker: str, beginning: Beginning) -> tuple[datetime, bool]:
    """How far back to fill, and whether every slot back there is expected, so that holes count as missing."""
    settings, interval = worker.settings, beginning.interval
    goals = [beginning.since]
    known_from: list[datetime] = []
    if settings.history_from is not None:
        known_from = [at for source in worker.past if (at := await source.known_from(ticker)) is not None]
        if known_from or not beginning.has_first_fill:
            goals.append(max(settings.history_from, min(known_from, default=EPOCH)))
    if not beginning.has_first_fill:
        goals.append(worker.clock.now() - timedelta(hours=settings.heal_lookback_hours))
    kept_from = (await select_kept_from(worker.pool, [ticker])).get(ticker, EPOCH)
    goal = max(min(goals), kept_from)
    return slot_of(goal - timedelta(microseconds=1), interval) + interval, bool(known_from)
