"""Requests to the exchange for past prices: evenly spaced over all workers, by Redis's clock; and who makes them.

GCRA without a burst: the key stores the theoretical arrival time of the next request in µs.
"""

from arq.connections import ArqRedis

SPACING_MICROSECONDS = 215_000
"At most five requests in any second, with room for the jitter of the network."

LOCK_SECONDS = 30
"A worker that was killed holds up the others for so long."

_ARRIVAL = "past_requests"
_MAX_AHEAD_MICROSECONDS = 120_000_000

# KEYS: arrival. ARGV: µs from this request to the next, µs that this request waits at least. Returns its wait in µs. An
# arrival that is more than two minutes ahead means that the clock was set back.
_RESERVE = f"""
local time = redis.call('time')
local now = time[1] * 1000000 + time[2]
local at = math.max(tonumber(redis.call('get', KEYS[1]) or 0), now)
if at > now + {_MAX_AHEAD_MICROSECONDS} then
    at = now
end
at = math.max(at, now + ARGV[2])
redis.call('set', KEYS[1], string.format('%.0f', at + ARGV[1]), 'px', {_MAX_AHEAD_MICROSECONDS // 1000 * 2})
return at - now
"""

_LOCK = """
local holder = redis.call('get', KEYS[1])
if holder and holder ~= ARGV[1] then
    return 0
end
redis.call('set', KEYS[1], ARGV[1], 'ex', ARGV[2])
return 1
"""

_UNLOCK = """
if redis.call('get', KEYS[1]) == ARGV[1] then
    redis.call('del', KEYS[1])
end
"""


async def reserve_request(redis: ArqRedis) -> float:
    """Reserve the next request. Returns the seconds until it may be sent."""
    return int(await redis.execute_command("EVAL", _RESERVE, 1, _ARRIVAL, SPACING_MICROSECONDS, 0)) / 1_000_000


async def hold_requests(redis: ArqRedis, seconds: float) -> None:
    """No worker sends a request that is not yet reserved for so long, because the exchange refused one."""
    await redis.execute_command("EVAL", _RESERVE, 1, _ARRIVAL, 0, round(seconds * 1_000_000))


async def lock(redis: ArqRedis, name: str, holder: str) -> bool:
    """Take or renew a lock that expires. It saves work; what it guards is idempotent, so it need not be exact."""
    return bool(await redis.execute_command("EVAL", _LOCK, 1, f"lock:{name}", holder, LOCK_SECONDS))


async def unlock(redis: ArqRedis, name: str, holder: str) -> None:
    await redis.execute_command("EVAL", _UNLOCK, 1, f"lock:{name}", holder)


async def is_locked(redis: ArqRedis, name: str) -> bool:
    return bool(await redis.exists(f"lock:{name}"))
