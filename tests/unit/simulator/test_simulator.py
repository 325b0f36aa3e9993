"""The simulated exchange: the protocol's shapes, prices that a test can compute, and every fault as clients see it."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.simulator.app import Simulator, create_app
from worker.simulator.faults import KINDS
from worker.simulator.prices import CHART_RANGES, EPOCH, KNOWN_TICKERS, chart_points, chart_price, spot_price
from worker.simulator.protocol import to_json

SEED = 7
PRICE = "/api/v2/public/get_index_price?index_name=btc_usd"
CHART = "/api/v2/public/get_index_chart_data?index_name=btc_usd&range="
SECONDS = st.integers(min_value=0, max_value=4_000_000_000)
TICKERS = st.sampled_from(("btc_usd", "eth_usd", "xrp_usd", "sim12_usd"))


@pytest.fixture
async def exchange() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(SEED)), base_url="http://exchange") as http:
        yield http


@contextmanager
def serving(http_parser: str | None = None) -> Iterator[str]:
    """The simulator as a process, started by its command, or with one of uvicorn's HTTP parsers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "worker.simulator", "--port", port, "--seed", str(SEED)]
    if http_parser:
        command = [sys.executable, "-m", "uvicorn", "--factory", "worker.simulator.app:create_app", "--port", port]
        command += ["--http", http_parser, "--log-level", "warning", "--timeout-graceful-shutdown", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 5
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/api/v2/public/get_time", trust_env=False)
                break
            except httpx.ConnectError:
                assert time.monotonic() < deadline, "the simulator did not start"
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        log = process.communicate(timeout=5)[1].splitlines()
        assert all("graceful shutdown exceeded" in line for line in log), log


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as url:
        yield url


@pytest.fixture(scope="module")
def h11_server() -> Iterator[str]:
    with serving("h11") as url:
        yield url


async def switch_fault(http: httpx.AsyncClient, kind: str, **members: Any) -> None:
    ticker = members.pop("ticker", "btc_usd")
    reply = await http.put(f"/simulator/faults/{ticker}", json={"kind": kind} | members)
    assert reply.status_code == 200, reply.text


def read_exactly(reply: httpx.Response) -> Any:
    return json.loads(reply.text, parse_float=Decimal, parse_int=Decimal)


def without_clock(reply: httpx.Response) -> dict[str, Any]:
    return {name: value for name, value in reply.json().items() if not name.startswith("us")}


def at(second: int) -> datetime:
    return EPOCH + timedelta(seconds=second)


async def test_price_is_that_of_the_second_of_the_request(exchange: httpx.AsyncClient) -> None:
    reply = await exchange.get(PRICE)
    body = reply.json()
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert list(body) == ["jsonrpc", "result", "usIn", "usOut", "usDiff", "testnet"]
    assert (body["jsonrpc"], body["testnet"], body["usDiff"]) == ("2.0", True, body["usOut"] - body["usIn"])
    assert abs(body["usIn"] / 1e6 - time.time()) < 5
    assert set(body["result"]) == {"estimated_delivery_price", "index_price"}
    price = spot_price("btc_usd", EPOCH + timedelta(microseconds=body["usIn"]), SEED)
    assert f'"index_price":{price}' in reply.text
    assert (await exchange.get("/simulator/given?ticker=btc_usd")).json() == [
        {"ticker": "btc_usd", "price": str(price), "fault": None, "usIn": body["usIn"], "usOut": body["usOut"]}
    ]
    assert (await exchange.get(f"/simulator/given?since_us={body['usOut'] + 1}")).json() == []


@pytest.mark.parametrize("sent_id", [1, 2.5, "one", None])
@pytest.mark.parametrize("path", ["/api/v2", "/api/v2/public/get_time"])
async def test_post_echoes_the_id_with_its_type(exchange: httpx.AsyncClient, path: str, sent_id: object) -> None:
    call = {"jsonrpc": "2.0", "id": sent_id, "method": "public/get_time", "params": {}}
    body = (await exchange.post(path, json=call)).json()
    assert body["id"] == sent_id
    assert type(body["id"]) is type(sent_id)
    assert body["result"] == body["usIn"] // 1000


async def test_index_names_are_strings_or_extended_objects(exchange: httpx.AsyncClient) -> None:
    async def result(query: str) -> Any:
        return (await exchange.get(f"/api/v2/public/{query}")).json()["result"]

    names = await result("get_index_price_names")
    assert names == list(KNOWN_TICKERS)
    assert len(names) >= 200
    assert {"btc_usd", "eth_usd", "sol_usd", "btc_usdc", "eth_usdc"} <= set(names)
    flags = {"future_combo_creation_enabled": False, "option_combo_creation_enabled": False}
    assert await result("get_index_price_names?extended=true") == [{"name": name} | flags for name in names]


INVALID = {"code": -32602, "message": "Invalid params"}


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("get_index_price", INVALID | {"data": {"reason": "value is required", "param": "index_name"}}),
        ("get_index_price?index_name=BTC_USD", INVALID | {"data": {"reason": "invalid index", "param": "index_name"}}),
        (
            "get_index_chart_data?index_name=btc_usd",
            INVALID | {"data": {"reason": "value is required", "param": "range"}},
        ),
        (
            "get_index_chart_data?index_name=btc_usd&range=1w",
            INVALID | {"data": {"reason": "wrong format", "param": "range"}},
        ),
        ("get_index?currency=BTC", {"code": -32601, "message": "Method not found"}),
        ("GET_TIME", {"code": -32601, "message": "Method not found"}),
        ("../private/get_time", {"code": -32601, "message": "Method not found"}),
    ],
)
async def test_refused_call(exchange: httpx.AsyncClient, query: str, error: dict[str, Any]) -> None:
    reply = await exchange.get(f"/api/v2/public/{query}")
    assert reply.status_code == 400
    assert without_clock(reply) == {"jsonrpc": "2.0", "error": error, "testnet": True}
    assert reply.json()["usOut"] >= reply.json()["usIn"] > 1_500_000_000_000_000


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("{", -32700),
        ("[" * 30_000, -32700),
        ('{"id":NaN}', -32700),
        ('[{"jsonrpc":"2.0","id":1,"method":"public/get_time"}]', 11050),
        ('{"id":1}', 11050),
        ('{"id":1,"method":"public/get_time","params":[1]}', -32602),
        ('{"id":1,"method":"get_time"}', -32601),
        (" " * 32_769, -32600),
    ],
)
async def test_refused_body(exchange: httpx.AsyncClient, body: str, code: int) -> None:
    reply = await exchange.post("/api/v2", content=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, code)


@pytest.mark.parametrize("chart_range", list(CHART_RANGES))
async def test_chart(exchange: httpx.AsyncClient, chart_range: str) -> None:
    length, spacing = CHART_RANGES[chart_range]
    reply = await exchange.get(CHART + chart_range)
    body = read_exactly(reply)
    now = int(body["usIn"] // 1_000_000)
    starts = [int(start // 1000) for start, _ in body["result"]]
    first = 1_472_320_800 if length is None else (now - length) // spacing * spacing + spacing
    assert starts == list(range(first, now + 1, spacing))
    for start, value in body["result"][:-1][:: max(1, len(starts) // 20)]:
        assert value == chart_price("btc_usd", at(int(start // 1000)), spacing, SEED)
    newest = chart_price("btc_usd", at(starts[-1]), spacing, SEED, until=at(now))
    assert body["result"][-1][1] == newest
    assert f"[{starts[-1] * 1000},{newest}]" in reply.text


def test_chart_of_a_day_has_its_minutes() -> None:
    assert len(chart_points("sim99_usd", "1d", datetime(2026, 3, 1, 12, tzinfo=UTC), SEED)) == 1440


@given(ticker=TICKERS, second=SECONDS, spacing=st.sampled_from((1, 6, 60)))
def test_chart_is_the_exact_mean_of_the_spot_prices(ticker: str, second: int, spacing: int) -> None:
    start = second // spacing * spacing
    spot = [spot_price(ticker, at(start + past), SEED) for past in range(spacing)]
    mean = (sum(spot, Decimal()) / spacing).quantize(Decimal("0.0001"))
    assert chart_price(ticker, at(start), spacing, SEED) == mean
    assert chart_price(ticker, at(start), spacing, SEED, until=at(start)) == spot[0]


@given(ticker=TICKERS, second=SECONDS)
def test_prices_are_plausible(ticker: str, second: int) -> None:
    price, later = spot_price(ticker, at(second)), spot_price(ticker, at(second + 60))
    low, high = {"btc_usd": (80_000, 100_000), "eth_usd": (2_500, 4_000)}.get(ticker, (0, 1_000))
    assert low < price < high
    assert abs(later - price) < price / 500
    assert price.as_tuple().exponent == (-2 if low else -4)
    assert spot_price(ticker, at(second) + timedelta(microseconds=999_999)) == price
    assert spot_price(ticker.replace("usd", "usdc"), at(second)) == price


def test_prices_are_the_same_on_every_platform() -> None:
    moment = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
    prices = [spot_price(ticker, moment, seed) for ticker in ("btc_usd", "eth_usd", "sim1_usd") for seed in (1, 2)]
    assert list(map(str, prices)) == ["90074.04", "94241.76", "3309.48", "3293.50", "37.7127", "20.3030"]
    with pytest.raises(TypeError):
        spot_price("btc_usd", datetime(2026, 3, 1, 12))  # noqa: DTZ001
    with pytest.raises(ValueError, match="no chart point of 6 s starts at"):
        chart_price("btc_usd", moment + timedelta(seconds=1), 6)


async def test_clock_offset_moves_clock_and_prices(exchange: httpx.AsyncClient) -> None:
    today = datetime.now(UTC).replace(hour=7, minute=45, second=0, microsecond=0)
    offset = (today - datetime.now(UTC)).total_seconds()
    assert (await exchange.put("/simulator/clock", json={"offset_seconds": offset})).json()["offset_seconds"] == offset
    body = read_exactly(await exchange.get(PRICE))
    asked = EPOCH + timedelta(microseconds=int(body["usIn"]))
    assert today - timedelta(seconds=1) <= asked < today + timedelta(seconds=5)
    opening = today.replace(minute=30)
    seconds = range(int((asked - opening).total_seconds()) + 1)
    spot = [spot_price("btc_usd", opening + timedelta(seconds=past), SEED) for past in seconds]
    mean = (sum(spot, Decimal()) / len(spot)).quantize(Decimal("0.01"))
    assert body["result"] == {"estimated_delivery_price": mean, "index_price": spot[-1]}
    assert mean != spot[-1]


async def test_delivery_price_is_the_index_except_in_the_last_half_hour(exchange: httpx.AsyncClient) -> None:
    noon = datetime.now(UTC).replace(hour=12, minute=0)
    offset = (noon - datetime.now(UTC)).total_seconds()
    await exchange.put("/simulator/clock", json={"offset_seconds": offset})
    result = read_exactly(await exchange.get(PRICE))["result"]
    assert result["estimated_delivery_price"] == result["index_price"]


async def test_requests_are_counted(exchange: httpx.AsyncClient) -> None:
    for query in ("get_index_price?index_name=eth_usd", "get_index_price?index_name=nope", "get_time", "nothing"):
        await exchange.get(f"/api/v2/public/{query}")
    await exchange.get("/api/v2/public/get_index_price?index_name=eth_usd")
    assert (await exchange.get("/simulator/requests")).json() == {
        "get_index_price": {"eth_usd": 2, "nope": 1},
        "get_time": {"": 1},
        "unknown": {"": 1},
    }
    assert (await exchange.delete("/simulator/requests")).json() == {}


@pytest.mark.parametrize(
    ("path", "switch", "message"),
    [
        ("faults/btc_usd", {"kind": "typo"}, "kind 'typo' is unknown; accepted are rate_limit_429,"),
        ("faults/btc_usd", {"kind": "nan", "count": 0}, "count 0 is not accepted; give a whole number from 1"),
        ("faults/btc_usd", {"kind": "nan", "count": True}, "count True is not accepted"),
        ("faults/btc_usd", {"kind": "slow", "seconds": "1"}, "seconds '1' is not accepted; give a number from 0 to"),
        ("faults/btc_usd", {"kind": "nan", "methods": ["get_time"]}, "give a list of get_index_price and"),
        ("faults/btc_usd", {"kind": "nan", "cuont": 1}, "unknown members ['cuont']; accepted are kind, count"),
        ("faults/btc_usdx", {"kind": "nan"}, "'btc_usdx' is not an index of this exchange"),
        ("faults/btc_usd", [], "the body is not a JSON object"),
        ("clock", {"offset": 1}, "offset_seconds None is not accepted; give a number from"),
        ("clock", {"offset_seconds": True}, "offset_seconds True is not accepted"),
    ],
)
async def test_bad_switch_says_what_is_accepted(
    exchange: httpx.AsyncClient, path: str, switch: object, message: str
) -> None:
    reply = await exchange.put(f"/simulator/{path}", json=switch)
    assert reply.status_code == 400
    assert message in reply.json()["error"]


async def test_fault_of_one_index_takes_precedence_and_runs_out(exchange: httpx.AsyncClient) -> None:
    await switch_fault(exchange, "zero", count=2, methods=["get_index_price"])
    await switch_fault(exchange, "maintenance", ticker="*")
    assert (await exchange.get("/simulator/faults")).json()["kinds"] == KINDS
    assert [(await exchange.get(PRICE)).status_code for _ in range(3)] == [200, 200, 503]
    assert (await exchange.get(CHART + "1h")).status_code == 503
    assert (await exchange.get("/api/v2/public/get_time")).status_code == 200
    left = (await exchange.delete("/simulator/faults/*")).json()["faults"]
    assert left == {}
    assert (await exchange.get(PRICE)).status_code == 200


ERROR_REPLY = {"jsonrpc": "2.0", "testnet": True}


@pytest.mark.parametrize(
    ("kind", "status", "body"),
    [
        ("too_many_requests", 400, ERROR_REPLY | {"error": {"code": 10028, "message": "too_many_requests"}}),
        ("internal_error", 400, ERROR_REPLY | {"error": {"code": 11094, "message": "internal_server_error"}}),
        ("maintenance", 503, {"error": {"code": 11051, "message": "system_maintenance"}}),
        ("no_price_error", 200, {"success": False, "error": 11094, "testnet": True}),
    ],
)
async def test_error_faults(exchange: httpx.AsyncClient, kind: str, status: int, body: dict[str, Any]) -> None:
    await switch_fault(exchange, kind)
    for query in (PRICE, CHART + "1h"):
        reply = await exchange.get(query)
        assert (reply.status_code, without_clock(reply)) == (status, body)
    assert ("usIn" in reply.json()) == ("jsonrpc" in body)
    assert (await exchange.get("/simulator/given")).json() == []


@pytest.mark.parametrize(("kind", "status"), [("rate_limit_429", 429), ("bad_gateway", 502)])
async def test_faults_of_the_edge_are_not_json(exchange: httpx.AsyncClient, kind: str, status: int) -> None:
    await switch_fault(exchange, kind)
    reply = await exchange.get(PRICE)
    assert (reply.status_code, reply.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert reply.text.startswith("<!DOCTYPE html>")


async def test_redirect_fault_points_to_another_host(exchange: httpx.AsyncClient) -> None:
    await switch_fault(exchange, "redirect")
    reply = await exchange.get(PRICE)
    assert (reply.status_code, reply.headers["location"]) == (302, f"http://elsewhere.invalid{PRICE}")


@pytest.mark.parametrize(
    ("kind", "literal"), [("nan", "NaN"), ("infinity", "Infinity"), ("negative", "-"), ("zero", "0}")]
)
async def test_value_faults(exchange: httpx.AsyncClient, kind: str, literal: str) -> None:
    await switch_fault(exchange, kind)
    assert f'"index_price":{literal}' in (await exchange.get(PRICE)).text
    chart = (await exchange.get(CHART + "1h")).text
    assert chart.count(f",{literal.replace('}', ']')}") == 600
    assert (await exchange.get("/simulator/given")).json() == []


async def test_shape_faults(exchange: httpx.AsyncClient) -> None:
    await switch_fault(exchange, "wrong_shape")
    assert isinstance((await exchange.get(PRICE)).json()["result"], list)
    assert isinstance((await exchange.get(CHART + "1h")).json()["result"], dict)
    await switch_fault(exchange, "missing_price")
    assert list((await exchange.get(PRICE)).json()["result"]) == ["estimated_delivery_price"]
    assert {len(point) for point in (await exchange.get(CHART + "1h")).json()["result"]} == {1}
    await switch_fault(exchange, "half_json")
    with pytest.raises(json.JSONDecodeError):
        (await exchange.get(PRICE)).json()


async def test_envelope_faults(exchange: httpx.AsyncClient) -> None:
    await switch_fault(exchange, "no_clock")
    assert list((await exchange.get(PRICE)).json()) == ["jsonrpc", "result", "testnet"]
    await switch_fault(exchange, "wrong_id")
    call = {"jsonrpc": "2.0", "method": "public/get_index_price", "params": {"index_name": "btc_usd"}}
    ids = [(await exchange.post("/api/v2", json=call | sent)).json()["id"] for sent in ({"id": 4}, {"id": "a"}, {})]
    assert ids == [5, "a-other", 1]
    faults = [one["fault"] for one in (await exchange.get("/simulator/given")).json()]
    assert faults == ["no_clock", "wrong_id", "wrong_id", "wrong_id"]


async def test_slow_answer_has_the_price_of_its_arrival(exchange: httpx.AsyncClient) -> None:
    await switch_fault(exchange, "slow", seconds=0.2)
    body = read_exactly(await exchange.get(PRICE))
    assert 200_000 <= body["usDiff"] < 2_000_000
    asked = EPOCH + timedelta(microseconds=int(body["usIn"]))
    assert body["result"]["index_price"] == spot_price("btc_usd", asked, SEED)


@pytest.mark.parametrize("fixture", ["server", "h11_server"])
async def test_broken_connections(fixture: str, request: pytest.FixtureRequest) -> None:
    async with httpx.AsyncClient(base_url=request.getfixturevalue(fixture), trust_env=False, timeout=5) as http:
        await switch_fault(http, "drop", count=1)
        with pytest.raises(httpx.RemoteProtocolError, match="disconnected without sending a response"):
            await http.get(PRICE)
        for query in (PRICE, CHART + "1h"):
            await switch_fault(http, "truncated", count=1)
            with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
                await http.get(query)
        await switch_fault(http, "hang", count=1, seconds=0.2)
        with pytest.raises(httpx.RemoteProtocolError, match="disconnected without sending a response"):
            await http.get(PRICE)
        await switch_fault(http, "hang", count=1)
        with pytest.raises(httpx.ReadTimeout):
            await http.get(PRICE, timeout=0.2)
        assert (await http.get(PRICE)).status_code == 200
        assert (await http.get("/simulator/faults")).json()["faults"] == {}


async def test_command_ends_soon_after_sigterm_while_a_request_hangs() -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        with serving() as url:
            reply = await http.put(f"{url}/simulator/faults/*", json={"kind": "hang"})
            assert reply.status_code == 200
            waiting = asyncio.create_task(http.get(url + PRICE))
            await asyncio.sleep(0.1)
            began = time.monotonic()
        assert time.monotonic() - began < 10  # a request that hangs does so for 30 s
        with pytest.raises(httpx.RemoteProtocolError):
            await waiting


def test_given_is_bounded() -> None:
    assert Simulator(SEED).given.maxlen == 100_000


def test_json_keeps_the_digits() -> None:
    value = {"a": Decimal("90000.10"), "b": [Decimal("0.0000"), "é", None, True], "c": (Decimal("1E+3"),)}
    assert to_json(value) == '{"a":90000.10,"b":[0.0000,"\\u00e9",null,true],"c":[1000]}'
