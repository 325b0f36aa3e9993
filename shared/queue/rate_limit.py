"""How many fetches are begun in a minute, counted in Redis: one count for all processes, by Redis's own clock.

A limit lets as many through at once as it allows in a minute, and then one each time its part of the minute has passed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.errors import RateLimited


@dataclass(frozen=True)
class Limit:
    key: str
    most: int
    "In a minute."
    whose: str
    "As the message says it."


def limits_of(client: str, per_client: int, overall: int) -> list[Limit]:
    """`per_client`, `overall`: fetches a minute; 0 is no limit."""
    limits = [
        Limit(f"limit:client:{client}", per_client, "for a client"),
        Limit("limit:overall", overall, "for all clients together"),
    ]
    return [limit for limit in limits if limit.most]


def refusal(limit: Limit, wait: int) -> RateLimited:
    """`wait`: µs until there is room."""
    seconds = -(-wait // 1_000_000)
    return RateLimited(
        f"There are {limit.most} fetches a minute {limit.whose}, no more; try again in {seconds} s.", seconds
    )


def arguments(limits: Sequence[Limit]) -> tuple[list[str], list[int]]:
    """What of a script's KEYS and ARGV is the limits'."""
    return [limit.key for limit in limits], [limit.most for limit in limits]


# A Lua function for a script of Redis's. `keys`: one for each limit; `most`: what each allows in a minute.
# A key holds the instant, in µs, at which all that it counted is forgotten; one more puts that off by its part of the
# minute, but never beyond a minute from now. Nothing is counted unless every limit has room. Answers how many µs from
# now all of them have, and which of them is the last.
TAKE = """
local function take(keys, most)
    local time = redis.call('time')
    local now = time[1] * 1000000 + time[2]
    local minute = 60000000
    local wait, last, forgotten = 0, 0, {}
    for i, key in ipairs(keys) do
        local part = math.floor(minute / most[i])
        local at = tonumber(redis.call('get', key) or 0)
        -- Later than in a minute: that is a clock which has been set back since.
        at = math.min(math.max(at, now), now + minute) + part
        if at - minute - now > wait then
            wait, last = at - minute - now, i
        end
        forgotten[i] = at
    end
    if wait > 0 then
        return {wait, last}
    end
    for i, key in ipairs(keys) do
        redis.call('set', key, string.format('%.0f', forgotten[i]), 'px', math.ceil((forgotten[i] - now) / 1000))
    end
    return {0, 0}
end
"""
