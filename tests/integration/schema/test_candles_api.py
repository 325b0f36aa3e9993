"""The field `candles`: whole answers, the edges of a period, and every argument that is refused."""

from datetime import UTC, datetime
from typing import Any

import pytest

from server.reads.context import Context
from server.schema.root import schema
from shared.grid import slot_of
from shared.storage.prices import PriceSource, insert_prices
from tests.integration.examples import MINUTE, NOON, example_price, insert_schedule_rows

ALL = "{ ticker start open high low close samples complete }"


async def execute(context: Context, arguments: str, fields: str = "{ start samples complete }") -> Any:
    result = await schema.execute(f"{{ candles({arguments}) {fields} }}", context_value=context)
    assert not result.errors, result.errors
    assert result.data is not None
    return result.data["candles"]


def arguments(from_dt: str, to_dt: str, interval: str = "ONE_MINUTE", ticker: str = "btc_usd") -> str:
    day = "2026-01-31T"
    return f'ticker: "{ticker}", interval: {interval}, fromDt: "{day}{from_dt}Z", toDt: "{day}{to_dt}Z"'


async def starts(context: Context, *period: str, more: str = "") -> list[str]:
    return [candle["start"][11:16] for candle in await execute(context, arguments(*period) + more)]


@pytest.fixture
async def stored(context: Context) -> None:
    """Slots of each minute from 12:00 to 12:09, less 12:04, and two prices that somebody asked for."""
    await insert_schedule_rows(context.pool, [("btc_usd", NOON + MINUTE, 60)])
    slots = [example_price(NOON + MINUTE * n, f"1{n}.50", source=PriceSource.BACKFILLED) for n in range(10) if n != 4]
    asked_for = [example_price(NOON + MINUTE * n / 4, "3", source=PriceSource.REQUESTED) for n in (1, 17)]
    await insert_prices(context.pool, [*slots, *asked_for])


def five_minutes(start: str, prices: tuple[str, str, str, str], samples: int, complete: bool) -> dict[str, Any]:
    names = ("open", "high", "low", "close")
    return {
        "ticker": "btc_usd",
        "start": f"2026-01-31T{start}:00.000000Z",
        **dict(zip(names, prices, strict=True)),
        "samples": samples,
        "complete": complete,
    }


@pytest.mark.usefixtures("stored")
async def test_candles_in_whole(context: Context) -> None:
    asked = arguments("12:00:00", "12:30:00", "FIVE_MINUTES", "BTC_usd")
    assert await execute(context, asked, ALL) == [
        five_minutes("12:00", ("10.50", "13.50", "3", "3"), 6, complete=False),
        five_minutes("12:05", ("15.50", "19.50", "15.50", "19.50"), 5, complete=True),
    ]
    asked = arguments("00:00:00", "23:00:00", "ONE_DAY")
    assert await execute(context, asked, ALL) == [
        five_minutes("00:00", ("10.50", "19.50", "3", "19.50"), 11, complete=False)
    ]


@pytest.mark.usefixtures("stored")
async def test_a_candle_is_complete_when_no_slot_since_the_first_schedule_is_missing(context: Context) -> None:
    candles = await execute(context, arguments("11:00:00", "13:00:00"))
    complete = {candle["start"][11:16]: candle["complete"] for candle in candles}
    before, missed = "12:00", "12:04"
    assert complete == {f"12:0{n}": f"12:0{n}" not in {before, missed} for n in range(10)}


@pytest.mark.usefixtures("stored")
async def test_a_period_is_the_buckets_its_ends_are_in(context: Context) -> None:
    assert await starts(context, "12:01:59.999999", "12:03:00") == ["12:01", "12:02", "12:03"]
    assert await starts(context, "12:01:00", "12:02:59.999999") == ["12:01", "12:02"]
    assert await starts(context, "12:05:30", "12:05:30") == ["12:05"]
    assert await starts(context, "12:09:00", "12:59:00", "FIVE_MINUTES") == ["12:05"]
    assert await starts(context, "12:10:00", "12:59:00") == []


@pytest.mark.usefixtures("stored")
async def test_the_limit_counts_candles_not_minutes(context: Context) -> None:
    assert await starts(context, "11:00:00", "13:00:00", more=", limit: 3") == ["12:00", "12:01", "12:02"]
    assert await starts(context, "11:00:00", "13:00:00", "FIVE_MINUTES", more=", limit: 1") == ["12:00"]
    [candle] = await execute(context, arguments("11:00:00", "13:00:00", "FIVE_MINUTES") + ", limit: 1")
    assert candle["samples"] == 6
    assert await starts(context, "12:03:00", "13:00:00", more=", limit: 1") == ["12:03"]


async def test_the_running_candle_is_not_complete(context: Context) -> None:
    now = datetime.now(UTC)
    start = slot_of(now, MINUTE)
    await insert_schedule_rows(context.pool, [("btc_usd", start - MINUTE * 9, 60)])
    await insert_prices(context.pool, [example_price(start - MINUTE * 2), example_price(start + MINUTE)])
    asked = f'ticker: "btc_usd", interval: ONE_MINUTE, fromDt: "{now.isoformat()}", toDt: "9999-12-31T23:59:59Z"'
    assert [candle["complete"] for candle in await execute(context, asked)] == [False]
    asked = f'ticker: "btc_usd", interval: ONE_MINUTE, fromDt: "0001-01-01T00:00:00Z", toDt: "{now.isoformat()}"'
    assert [candle["complete"] for candle in await execute(context, asked)] == [True]


async def test_without_prices_there_are_no_candles(context: Context) -> None:
    assert await execute(context, arguments("00:00:00", "23:00:00")) == []
    await insert_prices(context.pool, [example_price()])
    assert await execute(context, arguments("00:00:00", "23:00:00", ticker="eth_usd")) == []
    [candle] = await execute(context, arguments("00:00:00", "23:00:00"))
    assert candle["complete"] is False, "no schedule says what was to be expected"


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        (arguments("12:00:00", "11:59:59"), "BAD_USER_INPUT", "fromDt is after toDt"),
        (arguments("12:00:00", "13:00:00").replace("Z", ""), "BAD_USER_INPUT", "fromDt is '2026-01-31T12:00:00'"),
        (arguments("12:00:00", "13:00:00") + ", limit: 0", "BAD_USER_INPUT", "limit is 0; accepted are 1 to 10000."),
        (arguments("12:00:00", "13:00:00") + ", limit: 10001", "BAD_USER_INPUT", "limit is 10001"),
        (arguments("12:00:00", "13:00:00", ticker="doge_usd"), "UNKNOWN_TICKER", "'doge_usd' is not collected here"),
        (arguments("12:00:00", "13:00:00", "ONE_MONTH"), "GRAPHQL_VALIDATION_FAILED", "ONE_MONTH"),
    ],
)
async def test_refused_arguments(context: Context, asked: str, code: str, said: str) -> None:
    result = await schema.execute(f"{{ candles({asked}) {{ start }} }}", context_value=context)
    [error] = result.errors or []
    assert (error.extensions or {})["code"] == code
    assert said in error.message


async def test_candles_count_among_the_rows_of_a_request(context: Context) -> None:
    asked = arguments("12:00:00", "13:00:00") + ", limit: 10000"
    query = f"{{ a: candles({asked}) {{ start }} b: candles({asked}) {{ start }} c: candles({asked}) {{ start }} }}"
    result = await schema.execute(query, context_value=context)
    assert [(error.extensions or {})["code"] for error in result.errors or []] == ["QUERY_TOO_COMPLEX"]


async def test_what_strawberry_reads_counts_once(context: Context) -> None:
    year = 'fromDt: "2025-01-01T00:00:00Z", toDt: "2026-01-01T00:00:00Z"'
    asked = f'ticker: "btc_usd", interval: THIRTY_MINUTES, {year}, limit: 10000'
    # 300,000 rows at most, of the 400,000 that a request may read.
    assert await execute(context, asked) == []
