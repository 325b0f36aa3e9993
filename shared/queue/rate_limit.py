"""Rate limits of fetches: GCRA in Redis, so that all processes share one count, by Redis's own clock.

They count requests to the exchange, one for each ticker of a fetch. The burst is a whole minute's allowance; after it,
one request every 60 s / limit. A fetch of more tickers than a minute allows takes the whole allowance.
"""

from dataclasses import dataclass

from shared.errors import RateLimited


@dataclass(frozen=True)
class Limit:
    key: str
    per_minute: int
    scope: str
    '"for a client": part of the message.'


def limits_of(client: str, per_client: int, overall: int) -> list[Limit]:
    """`per_client`, `overall`: requests to the exchange a minute; 0 is no limit."""
    limits = [
        Limit(f"limit:client:{client}", per_client, "for a client"),
        Limit("limit:overall", overall, "for all clients together"),
    ]
    return [limit for limit in limits if limit.per_minute]


def refusal(limit: Limit, wait: int) -> RateLimited:
    """`wait`: µs until a fetch is allowed."""
    seconds = -(-wait // 1_000_000)
    return RateLimited(
        f"There are {limit.per_minute} requests to the exchange a minute {limit.scope}, one for each ticker; "
        f"try again in {seconds} s.",
        seconds,
    )


# A Lua function. `keys`: one for each limit; `per_minute`: what each allows; `requests`: how many are wanted.
# GCRA: each key stores the theoretical arrival time in µs; a request advances it by 60 s / limit. Requests are refused
# if that leads more than 60 s ahead of now, and count only if every limit allows them. Returns the µs to wait until all
# allow it, and the index of the limit that does so last.
TAKE = """
local function take(keys, per_minute, requests)
    local time = redis.call('time')
    local now = time[1] * 1000000 + time[2]
    local minute = 60000000
    local wait, last, arrivals = 0, 0, {}
    for i, key in ipairs(keys) do
        local step = math.floor(minute / per_minute[i]) * math.min(requests, per_minute[i])
        local at = tonumber(redis.call('get', key) or 0)
        -- More than a minute ahead means that the clock was set back.
        at = math.min(math.max(at, now), now + minute) + step
        if at - minute - now > wait then
            wait, last = at - minute - now, i
        end
        arrivals[i] = at
    end
    if wait > 0 then
        return {wait, last}
    end
    for i, key in ipairs(keys) do
        redis.call('set', key, string.format('%.0f', arrivals[i]), 'px', math.ceil((arrivals[i] - now) / 1000))
    end
    return {0, 0}
end
"""
