"""The queue, the names of the jobs, and how they are enqueued."""

import hashlib
from collections.abc import Sequence
from typing import Any

from arq.connections import ArqRedis
from arq.constants import job_key_prefix
from arq.jobs import serialize_job

from shared.queue.client import serialize

FETCH_SLOT = "fetch_slot"
RETRY_SLOT = "retry_slot"
HEAL_GAPS = "heal_gaps"
DROP_OLD_PRICES = "drop_old_prices"
FETCH_PRICES = "fetch_prices"
STORE_DEFERRED = "store_deferred"

_SCHEDULED_SCORE = 1
"""arq runs the lowest score first, and no score that is later than its worker's own clock. So the schedule's jobs come
before all others, and no clock delays them. Requested fetches follow with 2, 3, …"""

# KEYS: the mark of a job enqueued before, the arq job, the queue. ARGV: id, arq job, seconds to keep the mark, seconds
# to keep the job, score.
_ENQUEUE_ONCE = """
if not redis.call('set', KEYS[1], '', 'nx', 'ex', ARGV[3]) then
    return 0
end
redis.call('set', KEYS[2], ARGV[2], 'ex', ARGV[4])
redis.call('zadd', KEYS[3], ARGV[5], ARGV[1])
return 1
"""
_KEEP_JOB_SECONDS = 3600


def slot_job_id(name: str, slot: int, interval: int, tickers: Sequence[str]) -> str:
    """The same on every worker that wants the same. A digest stands for the tickers, because a list may be long."""
    digest = hashlib.sha256(",".join(sorted(tickers)).encode()).hexdigest()[:16]
    return f"{name}:{slot}:{interval}:{digest}"


async def enqueue_once(redis: ArqRedis, name: str, arguments: Sequence[Any], job_id: str, seconds: int) -> bool:
    """Enqueue a job of the schedule, unless any worker has enqueued it within the last `seconds`."""
    arq_job = serialize_job(name, tuple(arguments), {}, None, 0, serializer=serialize)
    keys = f"enqueued:{job_id}", job_key_prefix + job_id, redis.default_queue_name
    values = job_id, arq_job, seconds, _KEEP_JOB_SECONDS, _SCHEDULED_SCORE
    return bool(await redis.execute_command("EVAL", _ENQUEUE_ONCE, 3, *keys, *values))


async def enqueue_store_deferred(redis: ArqRedis, *, after_seconds: float) -> None:
    """One job in the queue is enough, because it stores everything that is deferred."""
    await redis.enqueue_job(STORE_DEFERRED, _job_id=STORE_DEFERRED, _defer_by=after_seconds)
