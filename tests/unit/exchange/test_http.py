"""One index price from the exchange's reply: exact digits, its own clock, and only valid prices."""

import json
import re
from datetime import UTC, datetime
from decimal import Context, Decimal

import httpx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shared.grid import from_microseconds
from shared.storage.missed_slots import GapReason
from shared.version import VERSION
from tests.unit.fast_loop import run_fast
from tests.unit.replies import (
    CLOCKS,
    OBSERVED_AT,
    RESULT,
    US_IN,
    US_OUT,
    WWW,
    answering,
    ask,
    price_reply,
    refusal,
    reply,
    settings_for,
)
from worker.exchange.errors import DeribitError, Retry
from worker.exchange.http import Observation, create_http
from worker.exchange.index_check import get_index_names

LONG = Context(prec=60)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(("index_price", "code")), inner),
    max_leaves=4,
)


async def test_a_recorded_reply_is_read_whole() -> None:
    recorded = (
        '{"jsonrpc":"2.0","result":{"estimated_delivery_price":82477.96,"index_price":82477.96},'
        '"usIn":1791434504596178,"usOut":1791434504601145,"usDiff":4967,"testnet":false}'
    )
    observed_at = datetime(2026, 10, 8, 4, 41, 44, 601145, tzinfo=UTC)
    observation = await ask(recorded)
    assert observation == Observation("btc_usd", Decimal("82477.96"), observed_at, testnet=False)
    assert observation.observed_at.tzinfo is UTC


@pytest.mark.parametrize("base_url", [WWW, f"{WWW}/", f"{WWW}/public", f"{WWW}/public/"])
async def test_the_request_is_one_plain_get(base_url: str) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, content=reply())

    await ask(answer, base_url=base_url)
    assert [(r.method, str(r.url), r.headers["User-Agent"], r.headers["Accept"], r.content) for r in asked] == [
        (
            "GET",
            f"{WWW}/public/get_index_price?index_name=btc_usd",
            f"deribit-price-collector/{VERSION}",
            "application/json",
            b"",
        )
    ]


@pytest.mark.parametrize(
    "text",
    [
        "82477.96",
        "2722.4",
        "2.0792e-4",
        "1.583e-05",
        "2.2e3",
        "90000",
        "0.1",
        "82477.9600",
        "0.123456789012345678901234567890123",
        "12345678901234567.123456789012345678",
    ],
)
async def test_every_digit_of_a_price_is_kept(text: str) -> None:
    price = (await ask(price_reply(text))).price
    assert (price.as_tuple(), price) == (Decimal(text).as_tuple(), Decimal(text))


@given(st.integers(1, 10**40), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_any_price_survives_as_text(digits: int, places: int) -> None:
    price = Decimal(digits).scaleb(-places, LONG)
    assume(-18 <= price.adjusted() <= 18)
    assert run_fast(ask(price_reply(str(price)))).price.as_tuple() == price.as_tuple()


async def test_the_estimated_delivery_price_is_never_used() -> None:
    assert (await ask(reply('{"estimated_delivery_price":1.5,"index_price":2.5}'))).price == Decimal("2.5")
    assert await refusal(reply('{"estimated_delivery_price":1.5}')) == (
        ("BAD_REPLY", "result without index_price", Retry.BACKOFF, GapReason.EXCHANGE_ERROR)
    )


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("NaN", "price is not finite"),
        ("Infinity", "price is not finite"),
        ("-Infinity", "price is not finite"),
        ("0", "price is not positive"),
        ("0.00", "price is not positive"),
        ("-0.0", "price is not positive"),
        ("-82477.96", "price is not positive"),
        ('"82477.96"', "price is not a number"),
        ("true", "price is not a number"),
        ("null", "price is not a number"),
        ("[82477.96]", "price is not a number"),
        ('{"value":82477.96}', "price is not a number"),
        ("1e19", "price is out of any plausible range"),
        ("1e-19", "price is out of any plausible range"),
        ("1e999999", "price is out of any plausible range"),
        ("1." + "1" * 60, "price is out of any plausible range"),
        ("1" * 4000, "price is out of any plausible range"),
    ],
)
async def test_an_invalid_price_is_a_rejected_value_and_retried_at_half_slot(text: str, detail: str) -> None:
    assert await refusal(price_reply(text)) == ("BAD_PRICE", detail, Retry.NEVER, GapReason.REJECTED_VALUE)


@pytest.mark.parametrize("result", ["null", "[]", "82477.96", '"82477.96"', "{}", "true"])
async def test_a_result_without_a_price_is_refused(result: str) -> None:
    assert await refusal(reply(result)) == (
        ("BAD_REPLY", "result without index_price", Retry.BACKOFF, GapReason.EXCHANGE_ERROR)
    )


@pytest.mark.parametrize(
    ("members", "microseconds"),
    [
        (f'"usIn":{US_IN},"usOut":{US_OUT}', US_OUT),
        (f'"usOut":{US_OUT},"usIn":{US_IN}', US_OUT),
        (f'"usOut":{US_OUT}', US_OUT),
        (f'"usIn":{US_IN}', US_IN),
        ('"usIn":1,"usOut":1791434504000001', 1791434504000001),
        ('"usOut":1791434504999999', 1791434504999999),
    ],
)
async def test_the_exchanges_clock_is_kept_to_the_microsecond(members: str, microseconds: int) -> None:
    assert (await ask(reply(members=members))).observed_at == from_microseconds(microseconds)


async def test_without_the_exchanges_clock_ours_is_used() -> None:
    before = datetime.now(UTC)
    observation = await ask(reply(members='"testnet":false'))
    assert before <= observation.observed_at <= datetime.now(UTC)


@pytest.mark.parametrize("clock", ['"1791434504601145"', "1791434504601145.0", "1.79e15", "true", "null", "[]"])
@pytest.mark.parametrize("name", ["usOut", "usIn"])
async def test_a_clock_of_another_type_is_refused(name: str, clock: str) -> None:
    assert await refusal(reply(members=f'"{name}":{clock}')) == (
        ("BAD_REPLY", f"{name} is not an integer", Retry.BACKOFF, GapReason.EXCHANGE_ERROR)
    )


@pytest.mark.parametrize("clock", [10**18, -(10**18), 10**4000])
async def test_a_clock_beyond_all_years_is_a_rejected_value(clock: int) -> None:
    assert await refusal(reply(members=f'"usOut":{clock}')) == (
        ("BAD_REPLY", "clock out of range", Retry.NEVER, GapReason.REJECTED_VALUE)
    )


@pytest.mark.parametrize(
    ("base_url", "members", "testnet"),
    [
        (WWW, f'{CLOCKS},"testnet":true', True),
        (WWW, f'{CLOCKS},"testnet":false', False),
        (WWW, CLOCKS, False),
        ("https://test.deribit.com/api/v2", CLOCKS, True),
        ("https://test.deribit.com/api/v2", f'{CLOCKS},"testnet":false', False),
        ("https://deribit.test.example/api/v2", CLOCKS, False),
    ],
)
async def test_testnet_is_what_the_exchange_says_or_else_its_address(
    base_url: str, members: str, testnet: bool
) -> None:
    assert (await ask(reply(members=members), base_url=base_url)).testnet is testnet


@pytest.mark.parametrize("testnet", ["null", "0", '"true"'])
async def test_a_testnet_flag_of_another_type_is_refused(testnet: str) -> None:
    assert await refusal(reply(members=f'{CLOCKS},"testnet":{testnet}')) == (
        ("BAD_REPLY", "testnet is not a boolean", Retry.BACKOFF, GapReason.EXCHANGE_ERROR)
    )


@pytest.mark.parametrize(
    "body",
    [
        f'{{"usOut":{US_OUT},"testnet":false,"result":{RESULT},"jsonrpc":"2.0"}}',
        f'{{"result":{RESULT},"usOut":{US_OUT}}}',
        f'{{"jsonrpc":"2.0","id":null,"error":null,"result":{RESULT},"usOut":{US_OUT}}}',
        f'\ufeff {{"jsonrpc":"2.0","result":{RESULT},"usOut":{US_OUT},"something":"new"}}\r\n',
    ],
)
async def test_members_may_come_in_any_order_or_be_left_out(body: str) -> None:
    assert await ask(body) == Observation("btc_usd", Decimal("82477.96"), OBSERVED_AT, testnet=False)


@pytest.mark.parametrize("unsolicited", ["0", "1", '"1"', "false", "{}"])
async def test_an_answer_with_an_id_that_was_not_sent_is_refused(unsolicited: str) -> None:
    assert await refusal(reply(members=f'{CLOCKS},"id":{unsolicited}')) == (
        ("WRONG_ID", "reply carries an id that was not sent", Retry.BACKOFF, GapReason.EXCHANGE_ERROR)
    )


@given(
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("result", "error", "usOut", "usIn", "testnet", "id"), JSON_VALUES)
    ),
    st.sampled_from((200, 201, 302, 400, 429, 503)),
)
@settings(max_examples=150, deadline=None)
def test_any_envelope_is_an_observation_or_a_coded_error(members: dict[str, object], status: int) -> None:
    body = json.dumps({"jsonrpc": "2.0", **members})
    try:
        observation = run_fast(ask(body, status))
    except DeribitError as error:
        outcome = str(error)
    else:
        outcome = f"OBSERVED: {observation.price}"
    assert re.fullmatch(r"[A-Z]\w+: .{0,300}|RPC_-?\d{1,20}: .{0,300}", outcome)
    assert outcome.isprintable()


@pytest.mark.parametrize(
    ("result", "names"),
    [
        ('["btc_usd","eth_usd"]', ["btc_usd", "eth_usd"]),
        ('[{"name":"btc_usd","future_combo_creation_enabled":true},{"name":"eth_usd"}]', ["btc_usd", "eth_usd"]),
        ('["btc_usd",5,null,{"id":1},{"name":2}]', ["btc_usd"]),
        ("{}", []),
        ("null", []),
    ],
)
async def test_index_names_are_read_in_both_shapes(result: str, names: list[str]) -> None:
    async with create_http(settings_for(), httpx.MockTransport(answering(reply(result)))) as http:
        assert await get_index_names(http) == names
