"""The exchange's chart: exact averages in order, without the newest point, which still changes."""

from decimal import Decimal

import httpx
import pytest

from shared.grid import from_microseconds
from shared.storage.missed_slots import GapReason
from tests.unit.replies import CLOCKS, WWW, ask_chart, fault, reply
from worker.exchange.errors import DeribitError, Retry
from worker.exchange.http import ChartPoint

POINTS = "[[1573228800000,8751.7138636],[1573232400000,8751.71],[1573236000000,8760]]"
PARSED = [
    ChartPoint(from_microseconds(1573228800000000), Decimal("8751.7138636"), testnet=False),
    ChartPoint(from_microseconds(1573232400000000), Decimal("8751.71"), testnet=False),
]


@pytest.mark.parametrize(
    "points",
    [
        POINTS,
        "[[1573236000000,8760],[1573228800000,8751.7138636],[1573232400000,8751.71]]",
        "[[1573232400000,8751.71],[1573236000000,8760],[1573228800000,8751.7138636]]",
    ],
)
async def test_points_are_oldest_first_without_the_newest(points: str) -> None:
    assert await ask_chart(reply(points)) == PARSED


async def test_the_request_names_index_and_range() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, content=reply("[]"))

    assert await ask_chart(answer, "1m") == []
    assert asked == [f"{WWW}/public/get_index_chart_data?index_name=btc_usd&range=1m"]


@pytest.mark.parametrize("points", ["[]", "[[1573228800000,8751.7138636]]"])
async def test_a_chart_without_a_finished_point_is_empty(points: str) -> None:
    assert await ask_chart(reply(points)) == []


async def test_testnet_points_are_marked() -> None:
    points = await ask_chart(reply(POINTS, f'{CLOCKS},"testnet":true'))
    assert [point.testnet for point in points] == [True, True]


@pytest.mark.parametrize(
    "point",
    [
        "[]",
        "[1573228800000]",
        "[1573228800000,1.5,2.5]",
        '["1573228800000",1.5]',
        "[1573228800000.0,1.5]",
        "[true,1.5]",
        "[null,1.5]",
        '{"0":1573228800000,"1":1.5}',
        "1573228800000",
        "null",
    ],
)
async def test_a_point_of_another_shape_is_left_out(point: str) -> None:
    assert await ask_chart(reply(f"{POINTS[:-1]},{point}]")) == PARSED


@pytest.mark.parametrize("price", ["NaN", "0", "-1", '"1.5"', "null", "true", "1e30"])
async def test_a_point_without_a_price_is_left_out(price: str) -> None:
    assert await ask_chart(reply(f"[[1573228740000,{price}],{POINTS[1:]}")) == PARSED


@pytest.mark.parametrize("points", [f"[[{10**18},1.5]]", "[[1573228800000,0],5]"])
async def test_a_chart_without_a_valid_point_is_refused(points: str) -> None:
    with pytest.raises(DeribitError) as caught:
        await ask_chart(reply(points))
    assert fault(caught.value) == (
        ("BAD_REPLY", "chart without a valid point", Retry.BACKOFF, GapReason.EXCHANGE_ERROR)
    )


@pytest.mark.parametrize("result", ["null", "{}", '"no"', "5", '{"1573228800000":1.5}'])
async def test_a_chart_that_is_not_a_list_is_refused(result: str) -> None:
    with pytest.raises(DeribitError) as caught:
        await ask_chart(reply(result))
    assert fault(caught.value) == ("BAD_REPLY", "chart is not a list", Retry.BACKOFF, GapReason.EXCHANGE_ERROR)


async def test_an_unknown_range_is_not_retried() -> None:
    body = '{"jsonrpc":"2.0","error":{"code":-32602,"message":"Invalid params","data":{"param":"range"}}}'
    with pytest.raises(DeribitError) as caught:
        await ask_chart(lambda _: httpx.Response(400, content=body), "3h")
    assert fault(caught.value) == ("RPC_-32602", "Invalid params", Retry.NEVER, GapReason.EXCHANGE_ERROR)
