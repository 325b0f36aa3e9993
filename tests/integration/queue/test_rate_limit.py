"""Rate limits of fetches: the count in Redis, what counts, and for which client."""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from arq.connections import ArqRedis

from server.reads.context import Context
from server.schema.root import schema
from shared.config.settings import Settings
from shared.errors import RateLimited
from shared.queue.client import QUEUE, open_redis
from shared.queue.fetches import enqueue_fetch_prices, finish_fetch_job
from shared.queue.rate_limit import limits_of
from tests.integration.api_process import run_api

FETCH = "mutation($tickers: [String!]) { fetchPrices(tickers: $tickers) { id status tickers } }"
MINUTE = 60_000_000
_names = itertools.count()


async def count(redis: ArqRedis, client: str = "a", per_client: int = 0, overall: int = 0) -> int | None:
    """Request a fetch of new tickers; returns the seconds to wait if it is refused."""
    try:
        await enqueue_fetch_prices(redis, [f"t{next(_names)}_usd"], limits_of(client, per_client, overall))
    except RateLimited as error:
        return error.retry_after
    return None


async def counts(redis: ArqRedis, times: int, **limits: Any) -> list[int | None]:
    return [await count(redis, **limits) for _ in range(times)]


@pytest.mark.parametrize(("limit", "seconds"), [(1, 60), (3, 20), (7, 9), (30, 2)])
async def test_a_limit_lets_as_many_through_as_it_allows_in_a_minute(redis: ArqRedis, limit: int, seconds: int) -> None:
    assert await counts(redis, limit + 2, per_client=limit) == [None] * limit + [seconds] * 2


async def test_one_more_is_allowed_after_a_minute_divided_by_the_limit(redis: ArqRedis) -> None:
    assert await counts(redis, 5, per_client=4) == [None] * 4 + [15]
    forgotten = int(await redis.get("limit:client:a") or 0)
    await redis.set("limit:client:a", forgotten - MINUTE // 4)
    assert await counts(redis, 2, per_client=4) == [None, 15]
    await redis.set("limit:client:a", forgotten - 3 * MINUTE // 4)
    assert await counts(redis, 4, per_client=4) == [None, None, None, 15]


async def test_each_client_has_a_limit_and_all_share_one(redis: ArqRedis) -> None:
    limits = {"per_client": 2, "overall": 3}
    assert await counts(redis, 3, client="a", **limits) == [None, None, 30]
    assert await counts(redis, 2, client="b", **limits) == [None, 20]
    with pytest.raises(RateLimited) as caught:
        await enqueue_fetch_prices(redis, ["x_usd"], limits_of("c", **limits))
    each = "one for each ticker; try again in"
    assert str(caught.value) == f"There are 3 requests to the exchange a minute for all clients together, {each} 20 s."
    with pytest.raises(RateLimited) as caught:
        await enqueue_fetch_prices(redis, ["x_usd"], limits_of("a", **limits))
    assert (
        str(caught.value)
        == "There are 2 requests to the exchange a minute for a client, one for each ticker; try again in 30 s."
    )
    assert caught.value.extensions == {"code": "RATE_LIMITED", "retryAfter": 30}


async def test_a_refused_fetch_does_not_count(redis: ArqRedis) -> None:
    assert await counts(redis, 5, client="a", per_client=1, overall=100) == [None, 60, 60, 60, 60]
    counted = int(await redis.get("limit:overall") or 0) - int(await redis.get("limit:client:a") or 0)
    assert counted == MINUTE // 100 - MINUTE
    await redis.delete("limit:overall")
    assert await counts(redis, 4, client="b", per_client=60, overall=1) == [None, 60, 60, 60]
    assert int(await redis.get("limit:overall") or 0) - int(await redis.get("limit:client:b") or 0) == 59 * MINUTE // 60


async def test_a_fetch_counts_once_for_each_of_its_tickers(redis: ArqRedis) -> None:
    async def ask_for(count: int) -> int | None:
        names = [f"t{next(_names)}_usd" for _ in range(count)]
        try:
            await enqueue_fetch_prices(redis, names, limits_of("a", 0, 10))
        except RateLimited as error:
            return error.retry_after
        return None

    assert [await ask_for(count) for count in (4, 4, 4, 2, 1)] == [None, None, 12, None, 6]


async def test_a_fetch_of_more_tickers_than_a_minute_allows_takes_the_whole_minute(redis: ArqRedis) -> None:
    limits = limits_of("a", 4, 0)
    await enqueue_fetch_prices(redis, [f"t{number}_usd" for number in range(9)], limits)
    with pytest.raises(RateLimited) as caught:
        await enqueue_fetch_prices(redis, ["x_usd"], limits)
    assert caught.value.retry_after == 15


async def test_zero_is_no_limit(redis: ArqRedis) -> None:
    assert await counts(redis, 200) == [None] * 200
    assert await redis.keys("limit:*") == []


async def test_a_clients_key_expires_with_its_count(redis: ArqRedis) -> None:
    await count(redis, per_client=60, overall=0)
    assert 0 < await redis.pttl("limit:client:a") <= 1001
    async with asyncio.timeout(20):
        while await redis.keys("limit:*"):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("hours", [1, 24 * 365])
async def test_a_clock_that_is_set_back_blocks_no_client(redis: ArqRedis, hours: int) -> None:
    """Its earlier counts are in the future now."""
    seconds, microseconds = await redis.time()
    ahead = seconds * 1_000_000 + microseconds + hours * 60 * MINUTE
    await redis.set("limit:client:a", str(ahead))
    assert await count(redis, per_client=60) == 1
    await redis.set("limit:client:a", "0")
    assert await count(redis, per_client=60) is None


async def test_concurrent_requests_get_no_more_than_sequential_ones(settings: Settings, redis: ArqRedis) -> None:
    """Over two connections, as from two processes."""
    async with open_redis(settings, retries=1) as other:
        answers = await asyncio.gather(*(count(each, overall=10) for each in [redis, other] * 30))
    assert sorted(answers, key=bool) == [None] * 10 + [6] * 50


async def ask(context: Context, tickers: Sequence[str] | None = None) -> tuple[str, Any]:
    result = await schema.execute(FETCH, {"tickers": tickers}, context)
    if result.errors:
        return result.errors[0].extensions["code"], result.errors[0].extensions["retryAfter"]  # type: ignore[index]
    return "id", result.data["fetchPrices"]["id"]  # type: ignore[index]


async def test_joining_a_running_fetch_does_not_count(context: Context) -> None:
    context.settings = context.settings.model_copy(update={"fetch_limit_per_client": 3})
    begun = await ask(context, ["btc_usd"])
    assert [await ask(context, ["BTC_USD"]) for _ in range(5)] == [begun] * 5
    other = await ask(context)
    assert (other[0], other == begun) == ("id", False)
    assert await ask(context, ["eth_usd"]) == ("RATE_LIMITED", 20)
    assert [await ask(context, names) for names in (["btc_usd"], ["eth_usd", "btc_usd"])] == [begun, other]
    await finish_fetch_job(context.redis, begun[1], ["btc_usd"], [], [])
    assert await ask(context, ["btc_usd"]) == ("RATE_LIMITED", 20)


async def test_a_fetch_refused_for_another_reason_does_not_count(context: Context) -> None:
    context.settings = context.settings.model_copy(update={"fetch_limit_per_client": 1, "api_token": "12345678"})
    for unguarded in (None, ["btc_usd"]):
        result = await schema.execute(FETCH, {"tickers": unguarded}, context)
        assert result.errors is not None
        assert result.errors[0].extensions == {"code": "UNAUTHENTICATED"}
    context.is_authenticated = True
    for tickers in (["x_usd"], []):
        assert (await schema.execute(FETCH, {"tickers": tickers}, context)).errors
    assert await context.redis.keys("*") == []
    assert (await ask(context))[0] == "id"


async def test_each_fetch_of_a_document_is_counted(context: Context) -> None:
    context.settings = context.settings.model_copy(update={"fetch_limit_per_client": 2})
    names = (["btc_usd"], ["eth_usd"], ["btc_usd", "eth_usd"])
    fields = [
        f"f{i}: fetchPrices(tickers: {str(n).replace(chr(39), chr(34))}) {{ status }}" for i, n in enumerate(names)
    ]
    result = await schema.execute(f"mutation {{ {' '.join(fields)} }}", context_value=context)
    assert [error.path for error in result.errors or []] == [["f2"]]


async def test_a_person_who_clicks_never_meets_a_limit(context: Context) -> None:
    """Twice a second for ten seconds is done here at once, each of a fetch that ends before the next."""
    for _ in range(20):
        kind, job_id = await ask(context)
        assert kind == "id"
        await finish_fetch_job(context.redis, job_id, ["btc_usd", "eth_usd"], [], [])


async def test_two_processes_share_one_limit_and_one_fetch(settings: Settings, redis: ArqRedis, pool: Any) -> None:
    limits = {"FETCH_LIMIT_PER_CLIENT": "6", "FETCH_LIMIT_OVERALL": "100", "TICKERS": "a_usd,b_usd,c_usd"}
    async with run_api(settings, **limits) as one, run_api(settings, **limits) as two:
        same = await asyncio.gather(*(api.execute("mutation { fetchPrices { id } }") for api in [one, two] * 10))
        assert len({answer["data"]["fetchPrices"]["id"] for answer in same}) == 1
        assert await redis.zcard(QUEUE) == 1
        sets = ["a", "b", "c", "a,b", "a,c", "b,c"]
        queries = []
        for names in sets:
            tickers = ", ".join(f'"{name}_usd"' for name in names.split(","))
            queries.append(f"mutation {{ fetchPrices(tickers: [{tickers}]) {{ status }} }}")
        answers = [await api.execute(query) for api, query in zip([one, two] * 3, queries, strict=True)]
    assert answers[:3] == [{"data": {"fetchPrices": {"status": "QUEUED"}}}] * 3
    for answer in answers[3:]:
        [error] = answer["errors"]
        seconds = error["extensions"]["retryAfter"]
        assert (answer["data"], error["extensions"]) == (None, {"code": "RATE_LIMITED", "retryAfter": seconds})
        assert error["message"].endswith(f"try again in {seconds} s.")
        assert 1 <= seconds <= 20  # a third of a minute for two tickers, less the time since the first fetch


async def test_a_fetch_that_was_enqueued_elsewhere_is_joined(redis: ArqRedis) -> None:
    job = await enqueue_fetch_prices(redis, ["b_usd", "a_usd"])
    assert await enqueue_fetch_prices(redis, ["a_usd", "b_usd"], limits_of("a", 1, 1)) == job
    assert await redis.keys("limit:*") == []
