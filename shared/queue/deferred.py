"""Deferred prices and missed slots: kept in Redis, in the order of their slots, until PostgreSQL is back.

A sorted set, scored by the slot. An entry is removed after it has been stored. If it is stored twice (two workers, or a
crash in between), it still is one row. An entry that cannot be read, or that PostgreSQL refuses, is set aside under
another key, so that it does not stop the others.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import asyncpg
from arq.connections import ArqRedis

from shared.errors import describe
from shared.queue.jobs import enqueue_store_deferred
from shared.queue.replication import execute_confirmed_if_possible
from shared.storage.database import Pool
from shared.storage.missed_slots import GapReason, MissedSlot, insert_missed_slots
from shared.storage.prices import Price, PriceSource, dump_price, insert_prices, load_price

logger = logging.getLogger(__name__)

_REFUSALS = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)

_KEY = "deferred"
_SET_ASIDE = "deferred:unreadable"
_BATCH = 500
_FIRST_ATTEMPT_SECONDS = 1.0


async def defer(redis: ArqRedis, prices: Sequence[Price], missed: Sequence[MissedSlot]) -> None:
    """Keep these until PostgreSQL is back, and enqueue the job that stores them.

    The next healing run, within a minute, enqueues it for an entry that arrives just as that job ends.
    """
    entries = {json.dumps({"price": dump_price(p)}, sort_keys=True): p.timestamp.timestamp() for p in prices}
    entries |= {json.dumps({"missed": _dump_missed(m)}, sort_keys=True): m.slot.timestamp() for m in missed}
    if entries:
        scored = [part for entry, score in entries.items() for part in (score, entry)]
        await execute_confirmed_if_possible(redis, ("ZADD", _KEY, *scored))
        await enqueue_store_deferred(redis, after_seconds=_FIRST_ATTEMPT_SECONDS)


async def count_deferred(redis: ArqRedis) -> int:
    """Deferred prices and missed slots."""
    return int(await redis.zcard(_KEY))


async def store_oldest_deferred(
    redis: ArqRedis, pool: Pool, note: Callable[[Sequence[Price], Sequence[MissedSlot]], None] = lambda *_: None
) -> int:
    """Store one batch, oldest slots first; returns its number of entries. Raises `StorageUnavailable`.

    `note` is called with what was new.
    """
    entries = await redis.zrange(_KEY, 0, _BATCH - 1)
    prices: list[Price] = []
    missed: list[MissedSlot] = []
    for entry in entries:
        try:
            record = json.loads(entry)
            if "price" in record:
                prices.append(load_price(record["price"]))
            else:
                missed.append(_load_missed(record["missed"]))
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
            await _set_aside(redis, entry, error)
            await redis.zrem(_KEY, entry)
    try:
        note(await insert_prices(pool, prices), [])
    except _REFUSALS:  # one refused price must not block the others
        for price in prices:
            stored = await _store_one(pool, price)
            if stored is None and price.source is PriceSource.SCHEDULED:
                missed.append(_refused(price))
            note(stored or [], [])
    try:
        note([], await insert_missed_slots(pool, missed))
    except _REFUSALS:
        for one in missed:
            try:
                note([], await insert_missed_slots(pool, [one]))
            except _REFUSALS as error:
                await _set_aside(redis, json.dumps({"missed": _dump_missed(one)}).encode(), error)
    if entries:
        await redis.zrem(_KEY, *entries)
    return len(entries)


async def _set_aside(redis: ArqRedis, entry: bytes, error: Exception) -> None:
    """Keep an entry of another release, or a malformed one, where an operator finds it."""
    logger.error("a deferred entry is set aside under %s: %s: %.500r", _SET_ASIDE, describe(error), entry)
    await redis.execute_command("RPUSH", _SET_ASIDE, entry)  # typed, unlike redis.rpush


async def _store_one(pool: Pool, price: Price) -> list[Price] | None:
    """`None` if PostgreSQL refuses it."""
    try:
        return await insert_prices(pool, [price])
    except _REFUSALS:
        logger.exception("PostgreSQL refuses %s", price)
        return None


def _refused(price: Price) -> MissedSlot:
    return MissedSlot(price.ticker, price.timestamp, GapReason.STORAGE_ERROR, "fetched, refused by the storage")


def _dump_missed(missed: MissedSlot) -> dict[str, object]:
    return {**asdict(missed), "slot": missed.slot.isoformat(), "reason": missed.reason.value}


def _load_missed(record: dict[str, Any]) -> MissedSlot:
    slot, reason = datetime.fromisoformat(record["slot"]), GapReason(record["reason"])
    return MissedSlot(**{**record, "slot": slot, "reason": reason})
