"""The fields `pricesAt` and `statistics`: whole answers, every boundary of an instant, and what is refused."""

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from server.compiled.execution import Compiled
from server.metrics import Metrics
from server.protection.admission import Admission
from server.reads.context import Context
from server.schema.documents import GraphQLRequest
from server.schema.root import schema
from shared.grid import slot_of
from shared.storage.database import Pool, fetch
from shared.storage.missed_slots import GapReason, MissedSlot, insert_missed_slots
from shared.storage.prices import insert_prices
from shared.storage.questions import statistics as storage
from tests.integration.examples import MINUTE, NOON, example_price, insert_schedule_rows

DAY = "2026-01-31T"
SECOND = timedelta(seconds=1)
GAP = {
    "fromDt": f"{DAY}12:03:00.000000Z",
    "toDt": f"{DAY}12:08:00.000000Z",
    "missing": 5,
    "reason": "EXCHANGE_ERROR",
    "detail": "HTTP_503",
}


async def ask(context: Context, field: str) -> Any:
    fresh = Context(context.pool, context.redis, context.settings)
    result = await schema.execute(f"{{ {field} }}", context_value=fresh)
    assert not result.errors, result.errors
    assert result.data is not None
    [answer] = result.data.values()
    return answer


async def refusal(context: Context, field: str) -> tuple[str, str]:
    fresh = Context(context.pool, context.redis, context.settings)
    result = await schema.execute(f"{{ {field} }}", context_value=fresh)
    [error] = result.errors or []
    return (error.extensions or {})["code"], error.message


async def held(context: Context, *times: str, tolerance: str = "", ticker: str = "btc_usd") -> list[Any]:
    """(price, age in seconds, the gap's missing slots) at each time of the day."""
    at = ", ".join(f'"{time if "T" in time else DAY + time + "Z"}"' for time in times)
    fields = "{ at price { price } ageSeconds gap { missing } }"
    rows = await ask(context, f'pricesAt(ticker: "{ticker}", at: [{at}]{tolerance}) {fields}')
    assert len(rows) == len(times)
    return [
        (row["price"] and row["price"]["price"], row["ageSeconds"], row["gap"] and row["gap"]["missing"])
        for row in rows
    ]


@pytest.fixture
async def stored(context: Context) -> None:
    """Slots of 12:00, 12:01, 12:02 and 12:08, 12:09; the exchange failed from 12:03 to 12:07."""
    await insert_schedule_rows(context.pool, [("btc_usd", NOON, 60)])
    await insert_prices(context.pool, [example_price(NOON + MINUTE * n, f"10{n}.50") for n in (0, 1, 2, 8, 9)])
    missed = [MissedSlot("btc_usd", NOON + MINUTE * n, GapReason.EXCHANGE_ERROR, "HTTP_503") for n in range(3, 8)]
    await insert_missed_slots(context.pool, missed)


@pytest.mark.usefixtures("stored")
async def test_the_price_at_an_instant_in_whole(context: Context) -> None:
    price = "price { ticker price timestamp observedAt source testnet }"
    at = f'["{DAY}12:06:00Z", "{DAY}12:01:30.5Z"]'
    assert await ask(
        context, f'pricesAt(ticker: "BTC_usd", at: {at}) {{ at {price} ageSeconds gap {{ {" ".join(GAP)} }} }}'
    ) == [
        {"at": f"{DAY}12:06:00.000000Z", "price": None, "ageSeconds": None, "gap": GAP},
        {
            "at": f"{DAY}12:01:30.500000Z",
            "price": {
                "ticker": "btc_usd",
                "price": "101.50",
                "timestamp": f"{DAY}12:01:00.000000Z",
                "observedAt": f"{DAY}12:01:00.123456Z",
                "source": "SCHEDULED",
                "testnet": True,
            },
            "ageSeconds": 30.5,
            "gap": None,
        },
    ]


@pytest.mark.usefixtures("stored")
async def test_the_boundaries_of_an_instant(context: Context) -> None:
    assert await held(context, "12:01:00") == [("101.50", 0.0, None)], "on a price"
    assert await held(context, "12:00:59.999999") == [("100.50", 59.999999, None)], "a microsecond before"
    assert await held(context, "12:04:00") == [("102.50", 120.0, None)], "two intervals later"
    assert await held(context, "12:04:00.000001") == [(None, None, 5)], "a microsecond more, in a gap"
    assert await held(context, "12:07:59.999999") == [(None, None, 5)], "at the end of a gap"
    assert await held(context, "12:08:00") == [("108.50", 0.0, None)], "behind it"
    assert await held(context, "11:59:59.999999", "0001-01-01T00:00:00Z") == [(None, None, None)] * 2, "before history"
    future = ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999999Z"]
    assert await held(context, *future) == [(None, None, None)] * 2, "in the future"
    assert await held(context, "2026-01-31T15:01:00+03:00") == [("101.50", 0.0, None)], "of another offset"
    order = ["12:09:00", "12:00:00", "12:09:00", "12:05:00", "12:09:00"]
    repeated = ("109.50", 0.0, None)
    assert await held(context, *order) == [repeated, ("100.50", 0.0, None), repeated, (None, None, 5), repeated]
    assert await held(context) == []
    assert await held(context, "12:01:00", ticker="eth_usd") == [(None, None, None)], "a ticker without prices"


@pytest.mark.usefixtures("stored")
async def test_a_tolerance_replaces_the_schedules(context: Context) -> None:
    assert await held(context, "12:01:00", "12:01:01", tolerance=", toleranceSeconds: 0") == [
        ("101.50", 0.0, None),
        (None, None, None),
    ], "between two slots nothing was expected"
    assert await held(context, "12:05:30", tolerance=", toleranceSeconds: 20") == [(None, None, None)]
    assert await held(context, "12:05:30", tolerance=", toleranceSeconds: 30") == [(None, None, 5)]
    assert await held(context, "12:05:30", tolerance=", toleranceSeconds: 210") == [("102.50", 210.0, None)]
    assert await held(context, "9999-12-31T23:59:59Z", tolerance=", toleranceSeconds: 2147483647") == [
        (None, None, None)
    ]


async def test_the_default_tolerance_is_of_the_schedule_in_force_then(context: Context) -> None:
    schedules = [("btc_usd", NOON, 10), ("btc_usd", NOON + 60 * MINUTE, 600)]
    await insert_schedule_rows(context.pool, schedules)
    await insert_prices(context.pool, [example_price(NOON - MINUTE, "1"), example_price(NOON, "2")])
    await insert_prices(context.pool, [example_price(NOON + 60 * MINUTE, "3")])
    assert await held(context, "11:59:20", "11:59:20.000001") == [("1", 20.0, None), (None, None, None)]
    assert await held(context, "12:00:20", "12:00:20.000001") == [("2", 20.0, None), (None, None, 359)]
    assert await held(context, "13:20:00") == [("3", 1200.0, None)]


async def test_a_running_slot_is_no_gap_yet(context: Context) -> None:
    hour = timedelta(hours=1)
    slot = slot_of(datetime.now(UTC), hour)
    await insert_schedule_rows(context.pool, [("btc_usd", slot - hour, 3600)])
    at = [(slot + SECOND).isoformat(), slot.isoformat(), (slot - SECOND).isoformat(), (slot + 9 * hour).isoformat()]
    tolerance = ", toleranceSeconds: 1800"
    assert await held(context, *at, tolerance=tolerance) == [(None, None, None)] * 4
    assert await held(context, *at[:2]) == [(None, None, 1)] * 2


async def test_prices_dropped_for_their_age_are_no_gap(context: Context, pool: Pool) -> None:
    await insert_schedule_rows(pool, [("btc_usd", NOON, 60)])
    await insert_prices(pool, [example_price(NOON + MINUTE * n) for n in range(10) if n not in (4, 5, 6)])
    midnight = NOON + timedelta(hours=12)
    await fetch(pool, "insert into dropped_prices (ticker, kept_from) values ('btc_usd', $1)", midnight)
    await fetch(pool, "delete from prices where timestamp < $1", midnight)
    assert await held(context, "12:02:00", "12:03:59", "12:05:00", "12:06:59", "12:07:00") == [
        (None, None, None),
        (None, None, None),
        (None, None, 3),
        (None, None, 3),
        (None, None, None),
    ]
    found = await ask(
        context, statistics("12:00:00", "13:00:00", "samples open { price } coverage { present dropped }")
    )
    assert found == {"samples": 0, "open": None, "coverage": {"present": 7, "dropped": 7}}


def statistics(from_dt: str, to_dt: str, fields: str) -> str:
    return f'statistics(ticker: "btc_usd", fromDt: "{DAY}{from_dt}Z", toDt: "{DAY}{to_dt}Z") {{ {fields} }}'


ALL = (
    "open { price timestamp } close { price timestamp } high { price timestamp } low { price timestamp } "
    "change changePercent twap realizedVolatility samples "
    "coverage { expected present complete gaps { fromDt missing } }"
)


@pytest.mark.usefixtures("stored")
async def test_statistics_in_whole(context: Context) -> None:
    def price(minute: int) -> dict[str, str]:
        return {"price": f"10{minute}.50", "timestamp": f"{DAY}12:0{minute}:00.000000Z"}

    found = await ask(context, statistics("12:00:00", "12:10:00", ALL))
    volatility = found.pop("realizedVolatility")
    assert found == {
        "open": price(0),
        "close": price(9),
        "high": price(9),
        "low": price(0),
        "change": "9.00",
        "changePercent": "8.9552238805970149",
        # (100.5 + 101.5 + 6 * 102.5 + 108.5 + 109.5) / 10
        "twap": "103.5",
        "samples": 5,
        "coverage": {
            "expected": 10,
            "present": 5,
            "complete": False,
            "gaps": [{"fromDt": f"{DAY}12:03:00.000000Z", "missing": 5}],
        },
    }
    # sqrt of (ln(101.5/100.5)² + ln(102.5/101.5)² + ln(108.5/102.5)² + ln(109.5/108.5)²) / (9 min / 365 days)
    assert volatility == pytest.approx(14.326421, rel=1e-6)
    assert (await ask(context, statistics("12:00:00", "12:09:00", "samples")))["samples"] == 4, "the end is exclusive"


@pytest.mark.usefixtures("stored")
async def test_statistics_of_one_price_and_of_none(context: Context) -> None:
    one = await ask(context, statistics("12:02:00", "12:03:00", ALL))
    assert one["open"] == one["close"] == one["high"] == one["low"]
    nulls = ("change", "changePercent", "realizedVolatility")
    assert ([one[name] for name in nulls], one["twap"], one["samples"]) == ([None] * 3, "102.5", 1)
    for bounds in (("12:03:00", "12:08:00"), ("12:02:00", "12:02:00")):
        none = await ask(context, statistics(*bounds, ALL))
        assert none.pop("samples") == 0
        assert none.pop("coverage")["present"] == 0
        assert set(none.values()) == {None}


async def test_the_last_price_holds_until_now_if_the_period_goes_on(context: Context) -> None:
    start = datetime.now(UTC) - timedelta(hours=1)
    await insert_prices(context.pool, [example_price(start, "1"), example_price(start + 30 * MINUTE, "2")])
    period = f'fromDt: "{start.isoformat()}", toDt: "9999-12-31T23:59:59Z"'
    found = await ask(context, f'statistics(ticker: "btc_usd", {period}) {{ twap }}')
    assert float(found["twap"]) == pytest.approx(1.5, abs=0.01)


@pytest.mark.usefixtures("stored")
async def test_a_period_with_too_many_prices_is_refused_with_what_fits(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = storage._STATISTICS.replace(f"offset {storage.MAX_PRICES}", "offset 3")
    monkeypatch.setattr(storage, "_STATISTICS", few)
    code, message = await refusal(context, statistics("12:00:00", "13:00:00", "change"))
    assert code == "QUERY_TOO_COMPLEX"
    assert message.endswith(f"those reach to {DAY}12:08:00.000000Z: accepted is a toDt that is not later.")
    assert (await ask(context, statistics("12:00:00", "12:08:00", "samples")))["samples"] == 3


@pytest.mark.parametrize(
    ("field", "code", "said"),
    [
        ('pricesAt(ticker: "btc_usd", at: ["2026-01-31T12:00:00"])', "BAD_USER_INPUT", "at is '2026-01-31T12:00:00'"),
        ('pricesAt(ticker: "btc_usd", at: [], toleranceSeconds: -1)', "BAD_USER_INPUT", "toleranceSeconds is -1"),
        ('pricesAt(ticker: "doge_usd", at: [])', "UNKNOWN_TICKER", "'doge_usd' is not collected here"),
        (statistics("12:00:01", "12:00:00", "")[:-4], "BAD_USER_INPUT", "fromDt is after toDt"),
        (
            'statistics(ticker: "x", fromDt: "2026-01-31T12:00:00Z", toDt: "2026-01-31T12:00:00Z")',
            "UNKNOWN_TICKER",
            "x",
        ),
    ],
)
async def test_refused_arguments(context: Context, field: str, code: str, said: str) -> None:
    found = await refusal(context, f"{field} {{ __typename }}")
    assert (found[0], said in found[1]) == (code, True), found


async def ask_instants(context: Context, count: int, fields: int = 1) -> Any:
    asked = " ".join(f'a{n}: pricesAt(ticker: "btc_usd", at: $at) {{ at }}' for n in range(fields))
    variables = {"at": [f"{DAY}12:00:00Z"] * count}
    return await schema.execute(f"query ($at: [DateTime!]!) {{ {asked} }}", variables, context_value=context)


async def test_a_thousand_instants_and_no_more(context: Context) -> None:
    assert len((await ask_instants(context, 1000)).data["a0"]) == 1000
    [error] = (await ask_instants(context, 1001)).errors
    assert error.extensions["code"] == "BAD_USER_INPUT"
    assert error.message == "at has 1001 instants; accepted are up to 1000."


async def test_instants_count_among_the_rows_of_a_request(context: Context) -> None:
    result = await ask_instants(context, 1000, 21)
    assert {error.extensions["code"] for error in result.errors} == {"QUERY_TOO_COMPLEX"}


async def test_a_question_about_a_thousand_instants_is_remembered(context: Context) -> None:
    query = 'query ($at: [DateTime!]!) { pricesAt(ticker: "btc_usd", at: $at) { at } }'
    at = [(NOON + MINUTE * n).isoformat(timespec="microseconds") for n in range(1000)]
    asked = GraphQLRequest(query, None, {"at": at})
    compiled = Compiled(schema, Metrics())
    answer = await compiled.text(context, asked, Admission(context.pool))
    request = compiled.find(orjson.dumps(tuple(asked)))
    assert request is not None
    assert request.kept is not None
    assert request.kept.body.decode() == answer
