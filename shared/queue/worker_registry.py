"""Heartbeats: each worker reports to Redis every few seconds, and which of its tickers the exchange does not have."""

import time
from collections.abc import Mapping, Sequence

from arq.connections import ArqRedis

_WORKERS = "workers"
_UNKNOWN_INDEX = "unknown_index:"

LIVE_WORKER_SECONDS = 15
_FORGET_WORKER_SECONDS = 3600


async def report_worker(redis: ArqRedis, name: str, unknown_indices: Mapping[str, Sequence[str]]) -> None:
    """A heartbeat. `unknown_indices`: tickers that the exchange does not have, with the names nearest to each."""
    now = time.time()
    async with redis.pipeline(transaction=True) as pipe:
        pipe.zadd(_WORKERS, {name: now})
        pipe.zremrangebyscore(_WORKERS, "-inf", now - _FORGET_WORKER_SECONDS)
        for ticker, near in unknown_indices.items():
            pipe.set(_UNKNOWN_INDEX + ticker, ",".join(near), ex=LIVE_WORKER_SECONDS)
        await pipe.execute()


async def forget_worker(redis: ArqRedis, name: str) -> None:
    await redis.zrem(_WORKERS, name)


async def select_live_workers(redis: ArqRedis) -> list[str]:
    """The workers that have reported within the last `LIVE_WORKER_SECONDS`."""
    names = await redis.zrangebyscore(_WORKERS, time.time() - LIVE_WORKER_SECONDS, "+inf")
    return [name.decode() for name in names]


async def select_unknown_indices(redis: ArqRedis, tickers: Sequence[str]) -> dict[str, list[str]]:
    """Those of `tickers` that the exchange does not have, with the names nearest to each, as the workers report."""
    reports = await redis.mget([_UNKNOWN_INDEX + ticker for ticker in tickers])
    return {
        ticker: list(filter(None, near.decode().split(",")))
        for ticker, near in zip(tickers, reports, strict=True)
        if near is not None
    }


def describe_unknown_index(ticker: str, near: Sequence[str]) -> str:
    """For the worker's log and `/readyz`."""
    hint = f"; near ones: {', '.join(near)}" if near else ""
    return f"index {ticker} does not exist at the exchange{hint}"
