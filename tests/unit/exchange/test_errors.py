"""Errors of the exchange: the body decides before the status, and which errors are retried."""

import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from shared.storage.missed_slots import GapReason
from tests.unit.replies import CLOCKS, Fault, answering, ask, ask_chart, refusal, reply
from worker.exchange.errors import DeribitError, Retry

HTML = "<html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>"
NO_ENVELOPE = "reply is not a JSON-RPC envelope"


def error_reply(code: object, message: object, **data: object) -> str:
    return json.dumps({"jsonrpc": "2.0", "error": {"code": code, "message": message} | data, "testnet": False})


def exchange_error(code: str, detail: str, retry: Retry) -> Fault:
    return code, detail, retry, GapReason.EXCHANGE_ERROR


async def test_the_recorded_reply_to_an_unknown_index() -> None:
    recorded = (
        '{"jsonrpc":"2.0","error":{"code":-32602,"data":{"reason":"invalid index","param":"index_name"},'
        '"message":"Invalid params"},"testnet":true,"usIn":1785318741826156,"usOut":1785318741826287,"usDiff":131}'
    )
    assert await refusal(recorded, 400) == exchange_error("RPC_-32602", "Invalid params invalid index", Retry.NEVER)


@pytest.mark.parametrize(
    ("code", "message", "status"),
    [
        (10028, "too_many_requests", 400),
        (10028, "too_many_requests", 429),
        (10040, "retry", 400),
        (10041, "settlement_in_progress", 400),
        (10047, "matching_engine_queue_full", 400),
        (10066, "too_many_concurrent_requests", 400),
        (11094, "internal_server_error", 500),
        (11094, "internal_server_error", 200),
        (13028, "temporarily_unavailable", 400),
        (13503, "unavailable", 503),
        (13888, "timed_out", 400),
    ],
)
async def test_passing_errors_are_retried(code: int, message: str, status: int) -> None:
    assert await refusal(error_reply(code, message), status) == exchange_error(f"RPC_{code}", message, Retry.BACKOFF)


@pytest.mark.parametrize(
    ("code", "message", "status"),
    [
        (-32602, "Invalid params", 400),
        (-32601, "Method not found", 400),
        (-32700, "Parse error", 400),
        (-32600, "Request entity too large", 413),
        (-32000, "Missing params", 400),
        (11050, "bad_request", 400),
        (10029, "not_owner_of_order", 400),
        (10030, "must_be_websocket_request", 400),
        (12005, "country_is_banned", 400),
        (13004, "invalid_credentials", 400),
        (13009, "unauthorized", 400),
        (99999, "something_new", 500),
    ],
)
async def test_lasting_errors_are_not_retried(code: int, message: str, status: int) -> None:
    assert await refusal(error_reply(code, message), status) == exchange_error(f"RPC_{code}", message, Retry.NEVER)


async def test_an_outage_of_minutes_is_retried_at_half_slot() -> None:
    message = "unauthenticated_public_requests_temporarily_disabled"
    assert await refusal(error_reply(11056, message), 503) == exchange_error("RPC_11056", message, Retry.NEVER)


async def test_maintenance_comes_without_jsonrpc_and_clock() -> None:
    body = '{"error":{"code":11051,"message":"system_maintenance"}}'
    assert await refusal(body, 503) == exchange_error("RPC_11051", "system_maintenance", Retry.NEVER)


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        ({"data": {"reason": "invalid index", "param": "index_name"}}, "Invalid params invalid index"),
        ({"data": {"param": "index_name"}}, "Invalid params"),
        ({"data": {"reason": 5}}, "Invalid params"),
        ({"data": "invalid json"}, "Invalid params"),
        ({"data": None}, "Invalid params"),
        ({"data": ["invalid index"]}, "Invalid params"),
        ({}, "Invalid params"),
    ],
)
async def test_the_errors_data_may_be_anything(data: dict[str, Any], detail: str) -> None:
    assert await refusal(error_reply(-32602, "Invalid params", **data), 400) == exchange_error(
        "RPC_-32602", detail, Retry.NEVER
    )


@pytest.mark.parametrize("error", ["10009", "0", "false", '""', '"too_many_requests"', "[]", "1.5"])
@pytest.mark.parametrize("status", [200, 400])
async def test_an_error_that_is_not_an_object_is_an_error(error: str, status: int) -> None:
    body = reply(members=f'{CLOCKS},"error":{error}')
    assert await refusal(body, status) == exchange_error("BAD_REPLY", "error is not an object", Retry.BACKOFF)


@pytest.mark.parametrize("error", [{}, {"message": "no"}, {"code": "10028"}, {"code": True}, {"code": None}])
async def test_an_error_without_a_code_is_an_error(error: dict[str, Any]) -> None:
    body = json.dumps({"error": error})
    assert await refusal(body) == exchange_error("BAD_REPLY", "error without a code", Retry.BACKOFF)


async def test_an_error_beside_a_result_and_an_id_is_an_error() -> None:
    body = reply(members=f'{CLOCKS},"id":7,"error":{{"code":10028,"message":"too_many_requests"}}')
    assert await refusal(body) == exchange_error("RPC_10028", "too_many_requests", Retry.BACKOFF)


@pytest.mark.parametrize(
    ("message", "detail"),
    [
        ("two\r\nlines\tand a bell\a", "twolinesand a bell"),
        ("NUL \x00 in \x1b[31mred", "NUL  in [31mred"),
        ("half a pair \ud800", "half a pair"),
        ("from right \u202e to left", "from right  to left"),
        ("x" * 500, "x" * 100),
        ("ungültig €", "ungültig €"),
        (5, ""),
        (None, ""),
        ({"text": "no"}, ""),
    ],
)
async def test_the_errors_text_is_printable_and_short(message: object, detail: str) -> None:
    assert await refusal(error_reply(-32602, message), 400) == exchange_error("RPC_-32602", detail, Retry.NEVER)


async def test_an_errors_code_is_kept_short() -> None:
    code, *_ = await refusal(error_reply(int("9" * 4000), "no"), 400)
    assert len(code) < 50


@pytest.mark.parametrize(
    ("status", "retry"),
    [
        (429, Retry.BACKOFF),
        (500, Retry.BACKOFF),
        (502, Retry.BACKOFF),
        (503, Retry.BACKOFF),
        (520, Retry.BACKOFF),
        (204, Retry.NEVER),
        (400, Retry.NEVER),
        (403, Retry.NEVER),
        (404, Retry.NEVER),
    ],
)
@pytest.mark.parametrize("body", [HTML, "", "[]", "null", '{"jsonrpc":"2.0"}', reply()])
async def test_the_status_decides_if_the_body_is_not_an_envelope(body: str, status: int, retry: Retry) -> None:
    assert await refusal(body, status) == exchange_error(f"HTTP_{status}", NO_ENVELOPE, retry)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(HTML, id="html"),
        pytest.param("", id="empty"),
        pytest.param(reply()[:60], id="cut off"),
        pytest.param(reply() + reply(), id="two"),
        pytest.param("[" * 10_000, id="open brackets"),
        pytest.param("[" * 10_000 + "]" * 10_000, id="nested brackets"),
        pytest.param('{"a":' * 10_000 + "1" + "}" * 10_000, id="nested objects"),
        pytest.param(reply(f'{{"index_price":{"9" * 10_000}}}'), id="integer of 10,000 digits"),
        pytest.param(reply('{"index_price":1e99999999999999999999}'), id="exponent of 20 digits"),
        pytest.param(reply().encode().replace(b"2.0", b"\xff\xfe"), id="no UTF-8"),
        pytest.param(f"[{reply()}]", id="list"),
        pytest.param("null", id="null"),
        pytest.param('"text"', id="string"),
        pytest.param("{}", id="empty object"),
        pytest.param(f'{{"jsonrpc":"2.0",{CLOCKS}}}', id="neither result nor error"),
    ],
)
async def test_a_garbled_reply_is_retried(body: str | bytes) -> None:
    assert await refusal(body) == exchange_error("BAD_REPLY", NO_ENVELOPE, Retry.BACKOFF)


class Body(httpx.AsyncByteStream):
    """A chunk, repeated until its reader stops."""

    def __init__(self, chunk: bytes, times: int = 10**6) -> None:
        self.chunk, self.times = chunk, times
        self.sent = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self.times):
            self.sent += len(self.chunk)
            yield self.chunk


@pytest.mark.parametrize(("is_chart", "most"), [(False, 64 * 1024), (True, 8 * 1024 * 1024)])
async def test_a_reply_that_is_too_long_is_not_read_to_its_end(is_chart: bool, most: int) -> None:
    body = Body(b"x" * 10_000)

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=body)

    if is_chart:
        with pytest.raises(DeribitError, match=f"BAD_REPLY: {NO_ENVELOPE}"):
            await ask_chart(answer)
    else:
        assert await refusal(answer) == exchange_error("BAD_REPLY", NO_ENVELOPE, Retry.BACKOFF)
    assert most < body.sent <= most + 10_000


BOMB = gzip.compress(b" " * 50_000_000)


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (BOMB, "gzip"),
        (gzip.compress(BOMB), "gzip, gzip"),
        (zlib.compress(reply().encode()), "deflate"),
        (b"no gzip", "gzip"),
        (gzip.compress(reply().encode())[:-20], "gzip"),
    ],
)
async def test_an_encoding_that_is_a_bomb_or_was_not_asked_for_is_refused(body: bytes, encoding: str) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Encoding": encoding}, stream=Body(body, 1))

    tracemalloc.start()
    try:
        refused = await refusal(answer)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused == exchange_error("BAD_REPLY", NO_ENVELOPE, Retry.BACKOFF)
    assert peak < 5_000_000


async def test_a_compressed_reply_is_decompressed() -> None:
    assert (
        await ask(answering(gzip.compress(reply().encode()), headers={"Content-Encoding": "gzip"}))
    ).ticker == "btc_usd"
