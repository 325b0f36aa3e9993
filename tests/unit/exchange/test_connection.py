"""Connections to the exchange: redirects, lost connections, time-outs."""

import asyncio

import httpx
import pytest

from shared.storage.missed_slots import GapReason
from tests.unit.fast_loop import run_fast
from tests.unit.replies import WWW, Handler, ask, in_turn, refusal, reply, settings_for
from worker.exchange.errors import DeribitError, Retry
from worker.exchange.http import create_http, get_index_price

BARE = "https://deribit.com/api/v2"
QUERY = "/public/get_index_price?index_name=btc_usd"


def moved(location: str | None, status: int = 301) -> httpx.Response:
    return httpx.Response(status, headers={} if location is None else {"Location": location})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", [f"{WWW}{QUERY}", f"https://www.deribit.com:443/api/v2{QUERY}"])
async def test_the_redirect_to_www_is_followed_once_and_kept(status: int, location: str) -> None:
    asked: list[httpx.Request] = []
    replies = [moved(location, status), *(httpx.Response(200, content=reply()) for _ in range(2))]
    async with create_http(settings_for(BARE), httpx.MockTransport(in_turn(replies, asked))) as http:
        await get_index_price(http, "btc_usd")
        await get_index_price(http, "btc_usd")
        assert str(http.base_url) == f"{WWW}/"
    assert [f"{r.method} {r.url}" for r in asked] == [f"GET {BARE}{QUERY}", f"GET {WWW}{QUERY}", f"GET {WWW}{QUERY}"]


async def test_several_requests_may_be_redirected_at_once() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "deribit.com":
            return moved(str(request.url.copy_with(host="www.deribit.com")))
        return httpx.Response(200, content=reply())

    async with create_http(settings_for(BARE), httpx.MockTransport(answer)) as http:
        prices = await asyncio.gather(*(get_index_price(http, name) for name in ("btc_usd", "eth_usd")))
        assert ([price.ticker for price in prices], str(http.base_url)) == (["btc_usd", "eth_usd"], f"{WWW}/")


@pytest.mark.parametrize(
    ("base_url", "location"),
    [
        (BARE, f"https://evil.example/api/v2{QUERY}"),
        (BARE, f"//evil.example/api/v2{QUERY}"),
        (BARE, f"https://www.deribit.com.evil.example/api/v2{QUERY}"),
        (BARE, f"https://test.deribit.com/api/v2{QUERY}"),
        (BARE, f"http://www.deribit.com/api/v2{QUERY}"),
        (BARE, f"https://www.deribit.com:8443/api/v2{QUERY}"),
        (BARE, f"https://www.deribit.com/api/v1{QUERY}"),
        (BARE, f"{WWW}/public/get_index_price?index_name=eth_usd"),
        (BARE, f"{WWW}/public/get_index_price"),
        (BARE, "https://www.deribit.com/"),
        (BARE, f"{BARE}{QUERY}"),
        (BARE, f"ftp://www.deribit.com/api/v2{QUERY}"),
        (BARE, None),
        (WWW, f"{BARE}{QUERY}"),
        (WWW, f"{WWW}{QUERY}"),
        ("https://test.deribit.com/api/v2", f"{WWW}{QUERY}"),
    ],
)
async def test_any_other_redirect_is_refused(base_url: str, location: str | None) -> None:
    asked: list[httpx.Request] = []
    assert await refusal(in_turn([moved(location)], asked), base_url=base_url) == (
        "REDIRECT",
        "redirect to another place refused (HTTP 301)",
        Retry.NEVER,
        GapReason.EXCHANGE_ERROR,
    )
    assert len(asked) == 1


@pytest.mark.parametrize("location", ["https://[", "https://www.deribit.com:port/", "http://\x00"])
async def test_a_redirect_without_a_valid_address_is_a_coded_error(location: str) -> None:
    _, _, _, reason = await refusal(lambda _: moved(location), base_url=BARE)
    assert reason is GapReason.EXCHANGE_ERROR


async def test_a_second_redirect_is_not_followed() -> None:
    asked: list[httpx.Request] = []
    replies = [moved(f"{WWW}{QUERY}"), moved(f"https://evil.example/api/v2{QUERY}")]
    _, _, retry, _ = await refusal(in_turn(replies, asked), base_url=BARE)
    assert (retry, [r.url.host for r in asked]) == (Retry.NEVER, ["deribit.com", "www.deribit.com"])


async def test_a_connection_closed_while_idle_is_replaced_at_once() -> None:
    asked: list[httpx.Request] = []
    outcomes: list[httpx.Response | Exception] = [
        httpx.RemoteProtocolError("Server disconnected"),
        httpx.Response(200, content=reply()),
    ]
    assert (await ask(in_turn(outcomes, asked))).ticker == "btc_usd"
    assert len(asked) == 2


async def test_a_connection_closed_twice_is_left_to_the_backoff() -> None:
    asked: list[httpx.Request] = []
    outcomes = [httpx.RemoteProtocolError("Server disconnected") for _ in range(2)]
    assert await refusal(in_turn(outcomes, asked)) == (
        "DISCONNECTED",
        "connection closed without an answer",
        Retry.BACKOFF,
        GapReason.EXCHANGE_ERROR,
    )
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("failure", "code", "detail"),
    [
        (httpx.ConnectError("no route"), "UNREACHABLE", "ConnectError"),
        (httpx.ReadError("reset"), "UNREACHABLE", "ReadError"),
        (httpx.WriteError("reset"), "UNREACHABLE", "WriteError"),
        (httpx.ConnectTimeout("slow"), "TIMEOUT", "no answer in time"),
        (httpx.ReadTimeout("slow"), "TIMEOUT", "no answer in time"),
        (httpx.PoolTimeout("slow"), "TIMEOUT", "no answer in time"),
    ],
)
async def test_a_failed_connection_is_retried_after_a_pause(failure: Exception, code: str, detail: str) -> None:
    asked: list[httpx.Request] = []
    assert await refusal(in_turn([failure], asked)) == (code, detail, Retry.BACKOFF, GapReason.EXCHANGE_ERROR)
    assert len(asked) == 1


def test_a_missing_answer_times_out_after_5_seconds() -> None:
    async def hang(_: httpx.Request) -> httpx.Response:
        await asyncio.sleep(3600)
        raise AssertionError

    async def attempt() -> tuple[DeribitError, float]:
        async with create_http(settings_for(), httpx.MockTransport(hang)) as http:
            with pytest.raises(DeribitError) as caught:
                await get_index_price(http, "btc_usd")
        return caught.value, asyncio.get_running_loop().time()

    error, seconds = run_fast(attempt())
    assert (error.code, error.retry) == ("TIMEOUT", Retry.BACKOFF)
    assert seconds == pytest.approx(5)


def test_an_answer_that_trickles_in_times_out_after_5_seconds() -> None:
    class Drops(httpx.AsyncByteStream):
        async def __aiter__(self):  # type: ignore[no-untyped-def]
            while True:
                await asyncio.sleep(1)
                yield b" "

    answer: Handler = lambda _: httpx.Response(200, stream=Drops())  # noqa: E731

    async def attempt() -> tuple[str, float]:
        code, *_ = await refusal(answer)
        return code, asyncio.get_running_loop().time()

    code, seconds = run_fast(attempt())
    assert code == "TIMEOUT"
    assert seconds == pytest.approx(5)
