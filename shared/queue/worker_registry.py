"""Heartbeats: each worker reports to Redis every few seconds, and what is wrong with it or its tickers.

Redis's clock dates the reports and tells which are recent, so the workers' and the API's own clocks do not matter.
"""

from collections.abc import Mapping, Sequence

from arq.connections import ArqRedis

_WORKERS = "workers"
_UNKNOWN_INDEX = "unknown_index:"
_CLOCK = "clock_offset:"

LIVE_WORKER_SECONDS = 15
_FORGET_WORKER_SECONDS = 3600

_REPORT = """
local now = redis.call('time')[1]
redis.call('zadd', KEYS[1], now, ARGV[1])
redis.call('zremrangebyscore', KEYS[1], '-inf', now - ARGV[2])
"""

_LIVE = "return redis.call('zrangebyscore', KEYS[1], redis.call('time')[1] - ARGV[1], '+inf')"


async def report_worker(
    redis: ArqRedis, name: str, unknown_indices: Mapping[str, Sequence[str]], clock_offset: float | None = None
) -> None:
    """A heartbeat. `unknown_indices`: tickers that the exchange does not have, with the names nearest to each.

    `clock_offset`: how many seconds the worker's own clock runs ahead, if that is too much.
    """
    async with redis.pipeline(transaction=True) as pipe:
        pipe.execute_command("EVAL", _REPORT, 1, _WORKERS, name, _FORGET_WORKER_SECONDS)
        for ticker, near in unknown_indices.items():
            pipe.set(_UNKNOWN_INDEX + ticker, ",".join(near), ex=LIVE_WORKER_SECONDS)
        if clock_offset is not None:
            pipe.set(_CLOCK + name, clock_offset, ex=LIVE_WORKER_SECONDS)
        await pipe.execute()


async def forget_worker(redis: ArqRedis, name: str) -> None:
    await redis.zrem(_WORKERS, name)


async def select_live_workers(redis: ArqRedis) -> list[str]:
    """The workers that have reported within the last `LIVE_WORKER_SECONDS`."""
    names: list[bytes] = await redis.execute_command("EVAL", _LIVE, 1, _WORKERS, LIVE_WORKER_SECONDS)
    return [name.decode() for name in names]


async def select_unknown_indices(redis: ArqRedis, tickers: Sequence[str]) -> dict[str, list[str]]:
    """Those of `tickers` that the exchange does not have, with the names nearest to each, as the workers report."""
    reports = await redis.mget([_UNKNOWN_INDEX + ticker for ticker in tickers])
    return {
        ticker: list(filter(None, near.decode().split(",")))
        for ticker, near in zip(tickers, reports, strict=True)
        if near is not None
    }


async def select_clock_offsets(redis: ArqRedis, workers: Sequence[str]) -> dict[str, float]:
    """Those of `workers` whose own clocks are off, and by how many seconds they run ahead."""
    reports = await redis.mget([_CLOCK + name for name in workers]) if workers else []
    return {name: float(report) for name, report in zip(workers, reports, strict=True) if report is not None}


def describe_unknown_index(ticker: str, near: Sequence[str]) -> str:
    """For the worker's log and `/readyz`."""
    hint = f"; near ones: {', '.join(near)}" if near else ""
    return f"index {ticker} does not exist at the exchange{hint}"


def describe_clock_offset(worker: str, seconds: float) -> str:
    """For `/readyz`."""
    return f"the clock of worker {worker} differs from Redis's by {seconds:+.1f} s; slots follow Redis's"
