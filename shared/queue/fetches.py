"""Fetches requested by clients: the record that a client sees, in Redis beside the arq job that does the work.

A record is a hash `fetch:<id>`. One script writes it together with the arq job, so neither exists without the other.
"""

import json
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from arq.connections import ArqRedis
from arq.constants import job_key_prefix
from arq.jobs import serialize_job

from shared.grid import from_microseconds
from shared.queue.client import QUEUE, serialize
from shared.queue.jobs import FETCH_PRICES
from shared.queue.rate_limit import TAKE, Limit, refusal
from shared.queue.replication import Unconfirmed, execute_confirmed, execute_confirmed_if_possible
from shared.storage.prices import Price, dump_price, load_price
from shared.telemetry.traces import current_traceparent

KEEP_FINISHED_SECONDS = 3600
_KEEP_QUEUED_SECONDS = 86_400
_MAX_COUNTED = 10_000

CHANGES = "fetch-changes"
"The channel that announces the id of a fetch when it starts or ends."

# KEYS: pointer to the unfinished fetch of these tickers, new record, new arq job, queue, count of fetches; then the
# limits'. ARGV: new id, tickers, now (µs), number of tickers, arq job, seconds to keep, prefixes of records and of arq
# jobs, traceparent or null; then the limits'. Returns the id of the queued or running fetch, which no limit counts,
# else of the new one; or how long to wait and for which limit. A pointer whose arq job is gone (it expired, or gave up)
# is ignored. The score is a count, not a time: it comes after the schedule's jobs, and is due by every worker's clock.
_ENQUEUE = (
    TAKE
    + """
local running = redis.call('get', KEYS[1])
if running
    and redis.call('exists', ARGV[8] .. running) == 1
    and redis.call('exists', ARGV[7] .. running) == 1
    and redis.call('hexists', ARGV[7] .. running, 'finished_at') == 0
then
    return running
end
local refused = take({unpack(KEYS, 6)}, {unpack(ARGV, 10)}, tonumber(ARGV[4]))
if refused[2] > 0 then
    return refused
end
redis.call('hset', KEYS[2], 'tickers', ARGV[2], 'enqueued_at', ARGV[3])
if ARGV[9] ~= 'null' then
    redis.call('hset', KEYS[2], 'traceparent', ARGV[9])
end
redis.call('expire', KEYS[2], ARGV[6])
redis.call('set', KEYS[3], ARGV[5], 'ex', ARGV[6])
redis.call('zadd', KEYS[4], redis.call('incr', KEYS[5]) + 1, ARGV[1])
redis.call('set', KEYS[1], ARGV[1], 'ex', ARGV[6])
return ARGV[1]
"""
)


class FetchStatus(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    PARTIAL = "PARTIAL"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class FetchFailure:
    ticker: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class FetchJob:
    id: str
    status: FetchStatus
    tickers: list[str]
    enqueued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    prices: list[Price]
    failures: list[FetchFailure]


def is_job_id(text: str) -> bool:
    """Whether a text from a client has the form of an id."""
    return re.fullmatch("[0-9a-f]{32}", text) is not None


async def enqueue_fetch_prices(redis: ArqRedis, tickers: Sequence[str], limits: Sequence[Limit] = ()) -> FetchJob:
    """Enqueue a fetch of these tickers, or return the same fetch if it is queued or running.

    Raises `RateLimited`, which counts nothing; `Unconfirmed` if a failover may lose the fetch, though it may still run.
    """
    tickers = sorted(tickers)
    job_id = uuid.uuid4().hex
    now = time.time_ns()
    arq_job = serialize_job(FETCH_PRICES, (tickers,), {}, None, now // 1_000_000, serializer=serialize)
    enqueue = (
        "EVAL",
        _ENQUEUE,
        5 + len(limits),
        f"fetch-running:{','.join(tickers)}",
        _key(job_id),
        job_key_prefix + job_id,
        QUEUE,
        "fetches-enqueued",
        *(limit.key for limit in limits),
        job_id,
        json.dumps(tickers),
        now // 1000,
        len(tickers),
        arq_job,
        _KEEP_QUEUED_SECONDS,
        _key(""),
        job_key_prefix,
        json.dumps(current_traceparent()),
        *(limit.per_minute for limit in limits),
    )
    answered: bytes | list[int]
    [answered] = await execute_confirmed(redis, enqueue)
    if isinstance(answered, list):
        wait, last = answered
        raise refusal(limits[last - 1], wait)
    job = await select_fetch_job(redis, answered.decode())
    if job is None:  # a failover since the script ran: the new master does not have it
        raise Unconfirmed("the present master does not know the fetch")
    return job


async def select_fetch_job(redis: ArqRedis, job_id: str) -> FetchJob | None:
    """The fetch as it is now; `None` if it is unknown or ended more than an hour ago."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hgetall(_key(job_id))
        pipe.exists(job_key_prefix + job_id)
        raw, queued = await pipe.execute()
    if not raw:
        return None
    record = {name.decode(): json.loads(value) for name, value in raw.items()}
    if "enqueued_at" not in record:  # only a worker's part of the record survived a failover
        return None
    failures = [FetchFailure(**failure) for failure in record.get("failures", [])]
    if "finished_at" not in record and not queued:
        # arq gave up: every worker that took it died, or it waited for a day.
        failures = [FetchFailure(t, "ABANDONED", "No worker finished this fetch.") for t in record["tickers"]]
        await finish_fetch_job(redis, job_id, record["tickers"], [], failures)
        return await select_fetch_job(redis, job_id)
    prices = [load_price(price) for price in record.get("prices", [])]
    return FetchJob(
        id=job_id,
        status=_status(record, prices, failures),
        tickers=record["tickers"],
        enqueued_at=from_microseconds(record["enqueued_at"]),
        started_at=from_microseconds(record["started_at"]) if "started_at" in record else None,
        finished_at=from_microseconds(record["finished_at"]) if "finished_at" in record else None,
        prices=prices,
        failures=failures,
    )


async def count_unfinished_fetches(redis: ArqRedis) -> int:
    """Requested fetches that are queued or running, among the first 10,000 jobs of the queue."""
    queued = await redis.zrange(QUEUE, 0, _MAX_COUNTED - 1)
    return sum(is_job_id(name.decode()) for name in queued)


async def start_fetch_job(redis: ArqRedis, job_id: str) -> bool:
    """Note that a worker runs it. False if it has finished: its worker died before it told arq."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hsetnx(_key(job_id), "started_at", str(time.time_ns() // 1000))
        pipe.hexists(_key(job_id), "finished_at")
        pipe.publish(CHANGES, job_id)
        _, is_finished, _ = await pipe.execute()
    return not is_finished


async def finish_fetch_job(
    redis: ArqRedis, job_id: str, tickers: Sequence[str], prices: Sequence[Price], failures: Sequence[FetchFailure]
) -> None:
    """Store the outcome for an hour, and allow the next fetch of these tickers."""
    record = {
        "tickers": json.dumps(sorted(tickers)),
        "prices": json.dumps([dump_price(price) for price in prices]),
        "failures": json.dumps([asdict(failure) for failure in failures]),
        "finished_at": time.time_ns() // 1000,
    }
    # Confirmed, because arq deletes the job next: if a failover lost the outcome, the fetch would look abandoned.
    await execute_confirmed_if_possible(
        redis,
        ("HSET", _key(job_id), *(part for pair in record.items() for part in pair)),
        ("EXPIRE", _key(job_id), KEEP_FINISHED_SECONDS),
        ("PUBLISH", CHANGES, job_id),
    )


async def select_traceparent(redis: ArqRedis, job_id: str) -> str | None:
    """The span that requested the fetch. Not an argument of the job, because an older worker may run that."""
    value: bytes | None = await redis.execute_command("HGET", _key(job_id), "traceparent")
    traceparent: str | None = json.loads(value) if value else None
    return traceparent


def _status(record: dict[str, Any], prices: Sequence[Price], failures: Sequence[FetchFailure]) -> FetchStatus:
    if failures:
        return FetchStatus.PARTIAL if prices else FetchStatus.FAILED
    if "finished_at" in record:
        return FetchStatus.SUCCEEDED
    return FetchStatus.RUNNING if "started_at" in record else FetchStatus.QUEUED


def _key(job_id: str) -> str:
    return f"fetch:{job_id}"
