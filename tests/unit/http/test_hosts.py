"""Which `Host` a request may have: another site's name that leads to this server is refused (DNS rebinding)."""

import json
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from server.http.hosts import Hosts
from tests.unit.replies import settings_for

ANSWERED = 200
WRONG = "This server does not answer to that Host. The operator may name it in ALLOWED_HOSTS."


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": ANSWERED})


async def ask(
    *hosts: str, path: str = "/graphql", version: str = "1.1", kind: str = "http", **settings: Any
) -> list[Message]:
    headers = [(b"host", host.encode("latin-1")) for host in hosts]
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": kind, "path": path, "http_version": version, "headers": [(b"accept", b"*/*"), *headers]}
    await Hosts(app, settings_for(**settings))(scope, None, send)  # type: ignore[arg-type]  # nothing is read
    return sent


async def status(*hosts: str, **asked: Any) -> int:
    found: int = (await ask(*hosts, **asked))[0]["status"]
    return found


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LocalHost:8000", "localhost.", "shop.localhost", "127.0.0.1:8000", "192.168.1.7", "[::1]:8000",
        "[2001:db8::1]", "api", "api:8000", "prices.example", "Prices.Example.:443", "charts.example",
    ],
)  # fmt: skip
async def test_local_names_and_those_that_the_operator_names_are_answered(host: str) -> None:
    named = {"allowed_hosts": "Prices.example, other.example", "cors_origins": "https://charts.example:8443"}
    assert await status(host, **named) == ANSWERED


@pytest.mark.parametrize("path", ["/graphql", "/", "/export/prices.csv", "/export/candles.csv"])
@pytest.mark.parametrize(
    "host",
    [
        "attacker.example", "attacker.example:8000", "sub.prices.example", "prices.example.attacker.example",
        "127.0.0.1.attacker.example", "localhost.attacker.example", "1.2.3", "[::1", "[attacker.example]", "",
        "user@localhost", "localhost, attacker.example", "localhost attacker",
        "x" * 10_000 + ".example", "\xe9.example",
    ],
)  # fmt: skip
async def test_any_other_name_is_refused(host: str, path: str) -> None:
    assert await status(host, path=path, allowed_hosts="prices.example") == 421


async def test_the_refusal_names_the_setting() -> None:
    start, body = await ask("attacker.example")
    headers = dict(start["headers"])
    assert json.loads(body["body"]) == {"errors": [{"message": WRONG, "extensions": {"code": "BAD_USER_INPUT"}}]}
    assert (headers[b"content-type"], headers[b"cache-control"]) == (b"application/json; charset=utf-8", b"no-store")
    assert (await ask("attacker.example", path="/"))[1]["body"] == WRONG.encode()


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
async def test_health_checks_answer_to_any_name(path: str) -> None:
    assert await status("attacker.example", path=path) == ANSWERED


@pytest.mark.parametrize(
    "settings", [{"api_token": "secret-token"}, {"allowed_hosts": "*"}, {"cors_origins": "*"}], ids=str
)
async def test_any_name_is_answered_where_mutations_need_a_token_or_every_page_may_run_them(
    settings: dict[str, str],
) -> None:
    assert await status("attacker.example", **settings) == ANSWERED


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("path", ["/graphql", "/livez"])
async def test_http_1_1_needs_exactly_one_host(path: str, kind: str) -> None:
    asked = {"path": path, "kind": kind, "api_token": "secret-token"}
    assert [await status(**asked), await status("localhost", "localhost", **asked)] == [400, 400]
    assert await status(version="1.0", **asked) == ANSWERED
    assert await status("localhost", "localhost", version="1.0", **asked) == 400


async def test_a_socket_is_refused_before_its_handshake() -> None:
    start, body = await ask("attacker.example", kind="websocket")
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 421)
    assert body["type"] == "websocket.http.response.body"
