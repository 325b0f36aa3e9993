"""Finds tickers that the exchange does not have: a configuration fault, logged once and shown by /readyz."""

import asyncio
import difflib
import logging

import httpx

from shared.queue.worker_registry import describe_unknown_index
from worker.context import Worker
from worker.exchange.errors import DeribitError
from worker.exchange.http import get_result

logger = logging.getLogger(__name__)

_MAX_NEAR_NAMES = 3
_LEAST_SIMILARITY = 0.7
"`difflib` ratio, from 0 to 1. Its default of 0.6 would find names that have only `_usd` in common."
_NAMES_SECONDS = 3.0
"Short, because a job may wait for it: its attempts and this fit in the job's timeout."


async def check_tickers(worker: Worker) -> None:
    """Compare TICKERS with the exchange's list of names. A list that cannot be read is ignored."""
    names = await _get_names(worker)
    for ticker in worker.settings.tickers:
        if names and ticker not in names:
            _note_unknown(worker, ticker, names)


async def is_unknown_index(worker: Worker, ticker: str, error: DeribitError) -> bool:
    """Whether this error says that the exchange does not have the ticker. Logs the ticker the first time."""
    if not error.is_invalid_index:
        return False
    if ticker not in worker.unknown_indices:
        names = await _get_names(worker)
        if ticker in names:
            return False
        _note_unknown(worker, ticker, names)
    return True


def _note_unknown(worker: Worker, ticker: str, names: list[str]) -> None:
    if ticker in worker.unknown_indices:
        return
    near = difflib.get_close_matches(ticker, names, _MAX_NEAR_NAMES, _LEAST_SIMILARITY)
    worker.unknown_indices[ticker] = near
    logger.error("%s", describe_unknown_index(ticker, near))


async def get_index_names(http: httpx.AsyncClient) -> list[str]:
    """Every index of the exchange. The documentation has objects, recorded replies strings. Raises `DeribitError`."""
    result, _ = await get_result(http, "get_index_price_names", {})
    entries = result if isinstance(result, list) else []
    names = [entry.get("name") if isinstance(entry, dict) else entry for entry in entries]
    return [name for name in names if isinstance(name, str)]


async def _get_names(worker: Worker) -> list[str]:
    try:
        async with asyncio.timeout(_NAMES_SECONDS), worker.requests, worker.metrics.calling("get_index_price_names"):
            return await get_index_names(worker.http)
    except (DeribitError, TimeoutError):
        return []
