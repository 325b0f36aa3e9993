"""Fills missing slots: each source in turn answers what the ones before it did not."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from shared.storage.missed_slots import MissingRun, insert_unanswered
from shared.storage.prices import Price, insert_prices
from worker.context import Worker
from worker.exchange.errors import DeribitError
from worker.exchange.index_check import is_unknown_index
from worker.exchange.runs import common, count, split, without
from worker.exchange.source import Past

logger = logging.getLogger(__name__)

_BATCH = 2000
"Rows stored in one statement, which holds the lock that every insert of prices needs, for some 50 ms."

_PAUSE_SECONDS = 0.05
"After each batch, so that a live slot never waits behind a fill."

SETTLE = timedelta(minutes=2)
"Younger slots may be open because neither trades nor chart have them yet."


def piece_length(interval: timedelta) -> timedelta:
    """The period that is filled at a time: up to 40 requests, whatever the grid."""
    return max(timedelta(hours=6), 40 * interval)


@dataclass(frozen=True, slots=True)
class Holes:
    """Slots that no source can answer, and the sources' reasons."""

    unanswered: list[MissingRun]
    detail: str
    is_final: bool
    "Whether all other slots have a price, but for those of the last minutes, or every source answered."


async def recover(worker: Worker, ticker: str, runs: Sequence[MissingRun], sources: Sequence[Past]) -> Holes:
    """Ask the sources for these slots, which ascend. Idempotent, and what is stored survives a kill.

    Raises `StorageUnavailable`, and Redis's errors.
    """
    left, unanswered = list(runs), list(runs)
    reasons: list[str] = []
    failed = False
    for source in sources:
        found: list[datetime] = []
        empty: list[MissingRun] = []
        reason = ""
        try:
            async for known in source.recall(ticker, left):
                await _store(worker, known.prices)
                found += [price.timestamp for price in known.prices]
                empty += known.empty
                reason = known.why if known.empty else reason
        except DeribitError as error:
            failed = True
            if not await is_unknown_index(worker, ticker, error):
                logger.warning("%s: past prices cannot be read, healing waits: %s", ticker, error)
        reasons.append(reason)
        left = without(left, sorted(found))
        unanswered = common(unanswered, sorted(empty, key=lambda run: run.first))
        if found:
            slots = f"{len(found)} slot{'' if len(found) == 1 else 's'}"
            logger.info("%s: %s filled from the %s, %d to go", ticker, slots, source.name, count(left))
        if not left:
            break
    is_final = not failed or not split(left, worker.clock.now() - SETTLE)[0]
    return Holes(common(left, unanswered), "; ".join(filter(None, reasons)), is_final)


async def note_missing(worker: Worker, ticker: str, holes: Holes) -> None:
    """Record expected slots that stay missing, so that healing does not ask for them again."""
    await insert_unanswered(worker.pool, ticker, holes.unanswered, holes.detail)
    worker.metrics.unanswered.labels(ticker).inc(count(holes.unanswered))


async def _store(worker: Worker, prices: Sequence[Price]) -> None:
    for start in range(0, len(prices), _BATCH):
        worker.metrics.note(await insert_prices(worker.pool, prices[start : start + _BATCH]), [])
        if start + _BATCH < len(prices):
            await asyncio.sleep(_PAUSE_SECONDS)
