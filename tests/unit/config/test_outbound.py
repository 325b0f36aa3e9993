"""Proxies and certificates that the environment names: used, or refused at the start by the variable's name."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import certifi
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidHandshake

from shared.config.outbound import client_options, proxy_for, socket_options
from shared.config.settings import SettingsError
from tests.unit.replies import reply, settings_for
from worker.exchange.http import create_http, get_index_price

EXCHANGE = "https://www.deribit.com/api/v2"
PLAIN = "http://exchange.test/api/v2"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().endswith("_PROXY") or name.startswith("SSL_CERT_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, EXCHANGE, None),
        ({"HTTPS_PROXY": "http://p:3128"}, EXCHANGE, "http://p:3128"),
        ({"HTTPS_PROXY": "p:3128"}, EXCHANGE, "http://p:3128"),
        ({"HTTPS_PROXY": "http://upper:1", "https_proxy": "http://lower:1"}, EXCHANGE, "http://lower:1"),
        ({"HTTP_PROXY": "http://p:3128"}, EXCHANGE, None),
        ({"HTTP_PROXY": "http://p:3128"}, PLAIN, "http://p:3128"),
        ({"ALL_PROXY": "socks5://u:p%40ss@p:1080"}, EXCHANGE, "socks5://u:p%40ss@p:1080"),
        ({"ALL_PROXY": "socks5h://p:1080", "HTTPS_PROXY": "http://p:3128"}, EXCHANGE, "http://p:3128"),
        ({"ALL_PROXY": "http://[fd00::1]:3128"}, EXCHANGE, "http://[fd00::1]:3128"),
    ],
)
def test_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, proxy: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(url) == proxy


@pytest.mark.parametrize(
    "host", ["127.0.0.1:9", "127.8.8.8", "localhost", "LOCALHOST:1", "a.localhost", "[::1]:9", "[::ffff:127.0.0.1]"]
)
def test_this_machine_is_never_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "no proxy at all")
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such")
    assert client_options(f"http://{host}/api/v2") == {"trust_env": False, "verify": False}
    assert proxy_for(f"https://{host}/api/v2") is None


@pytest.mark.parametrize(
    ("exceptions", "host", "is_direct"),
    [
        ("*", "a.test", True),
        ("a.test", "a.test", True),
        ("A.Test", "a.test", True),
        (".test", "a.test", True),
        ("*.test", "a.test", True),
        ("test", "a.test", True),
        ("est", "a.test", False),
        ("b.test, a.test", "a.test", True),
        ("a.test:443", "a.test", True),
        ("a.test:444", "a.test", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("fd00::/8", "[fd00::1]", True),
        ("fd00::/8", "[fe80::1]", False),
        ("fd00::/8,[::1],::1", "a.test", False),
        ("[fd00::1]", "[fd00::1]", True),
        ("[fd00::1]:443", "[fd00::1]", True),
        ("[fd00::1]:80", "[fd00::1]", False),
        ("[::1,]:,:::,/8,fd00::/999,a b:c", "a.test", False),
    ],
)
def test_exceptions_from_the_proxy(
    monkeypatch: pytest.MonkeyPatch, exceptions: str, host: str, is_direct: bool
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://p:3128")
    monkeypatch.setenv("NO_PROXY", exceptions)
    assert (proxy_for(f"https://{host}/api/v2") is None) == is_direct


@pytest.mark.parametrize("name", ["ALL_PROXY", "https_proxy"])
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("socks4://u:hunter2@p:1080", "socks4://u:***@p:1080"),
        ("socks://p:1080", "socks://p:1080"),
        ("http://", "http://"),
        ("http://u:hunter2@p:port", "http://u:***@p:port"),
        ("http://p:99999", "http://p:99999"),
        ("http://[::1", "http://[:***"),
        ("http://u:hunter2", "http://u:***"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, shown: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        client_options(EXCHANGE)
    assert str(caught.value) == (
        f"{name}={shown} is refused; accepted: http://, https://, socks5:// or socks5h:// and [user:password@]host:port"
    )


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("SSL_CERT_FILE", "/no/such", "No such file or directory"),
        ("SSL_CERT_FILE", "/", "Is a directory"),
        ("SSL_CERT_FILE", __file__, "NO_CERTIFICATE_OR_CRL_FOUND"),
        ("SSL_CERT_DIR", "/no/such", "No such file or directory"),
    ],
)
def test_certificates_that_cannot_be_used_are_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        client_options(EXCHANGE)
    message = str(caught.value)
    assert message.startswith(f"{name}={value} is refused: ")
    assert reason in message
    assert message.endswith("; accepted: PEM certificates to trust")


def test_certificates_of_the_environment_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    context = client_options(EXCHANGE)["verify"]
    assert isinstance(context, ssl.SSLContext)
    assert context.cert_store_stats()["x509_ca"] > 50


@pytest.mark.parametrize("url", ["http://300.1.1.1/api/v2", "https://a..b:1/api/v2\x7f"])
def test_an_exchange_that_httpx_refuses_is_named(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^DERIBIT_BASE_URL=.* is refused: "):
        client_options(url)


Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def listening(peer: Peer) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer(reader, writer)
        body = reply().encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_a_price_comes_through_an_http_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def proxy(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).splitlines()[0])

    async with listening(proxy) as port:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        async with create_http(settings_for(PLAIN)) as http:
            assert (await get_index_price(http, "btc_usd")).ticker == "btc_usd"
    assert asked == [b"GET http://exchange.test/api/v2/public/get_index_price?index_name=btc_usd HTTP/1.1"]


async def test_a_price_comes_through_a_socks_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """SOCKS 5 (RFC 1928): the name is resolved by the proxy."""
    asked = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, methods = await reader.readexactly(2)
        await reader.readexactly(methods)
        writer.write(b"\x05\x00")
        asked.append(await reader.readexactly(5 + len("exchange.test") + 2))
        writer.write(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50")
        await reader.readuntil(b"\r\n\r\n")

    async with listening(proxy) as port:
        monkeypatch.setenv("ALL_PROXY", f"socks5://127.0.0.1:{port}")
        async with create_http(settings_for(PLAIN)) as http:
            assert (await get_index_price(http, "btc_usd")).ticker == "btc_usd"
    assert asked == [b"\x05\x01\x00\x03\x0dexchange.test\x00\x50"]


@pytest.mark.parametrize(
    ("name", "scheme", "reply", "asked"),
    [
        ("HTTP_PROXY", "http", b"HTTP/1.1 403 no\r\n\r\n", b"CONNECT exchange.test:80 HTTP/1.1"),
        ("ALL_PROXY", "socks5", b"\x05\x00", b"\x05\x01\x00"),
    ],
)
async def test_a_socket_goes_through_the_proxy(
    monkeypatch: pytest.MonkeyPatch, name: str, scheme: str, reply: bytes, asked: bytes
) -> None:
    received = b""

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        received += await reader.read(1000)
        writer.write(reply)
        received += await reader.read(1000)  # SOCKS: the name, which the proxy resolves
        writer.close()

    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as server:
        monkeypatch.setenv(name, f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(InvalidHandshake):
            await connect("ws://exchange.test/ws/api/v2", open_timeout=5, **socket_options("ws://exchange.test/ws"))
    assert received.startswith(asked)
    assert b"exchange.test" in received


def test_a_socket_to_this_machine_has_no_proxy_and_wss_has_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "https://proxy:1")
    monkeypatch.setenv("HTTP_PROXY", "https://proxy:1")
    assert socket_options("ws://127.0.0.1:9000/ws/api/v2") == {"proxy": None}
    options = socket_options("wss://www.deribit.com/ws/api/v2")
    assert (options["proxy"], options["ssl"].verify_mode, options["proxy_ssl"].verify_mode) == (
        "https://proxy:1",
        ssl.CERT_REQUIRED,
        ssl.CERT_REQUIRED,
    )
