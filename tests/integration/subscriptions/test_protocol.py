"""graphql-transport-ws: the handshake, the close codes, and the limits of a socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from arq.connections import ArqRedis
from uvicorn.protocols.utils import ClientDisconnected
from websockets.exceptions import InvalidStatus

from server.subscriptions.websocket import Limits
from server.transport.websocket import SocketProtocol
from shared.config.settings import Settings
from shared.storage.database import Pool
from tests.integration.live import FOLLOW, LiveApi, serve_live

TOKEN = "correct-horse-battery"
QUERY = "{ latestPrices { price } }"
FETCH = "mutation { fetchPrices { status } }"
ORIGIN = "https://charts.example"


@pytest.fixture(scope="module")
async def _live(settings: Settings, _migrated: None) -> AsyncIterator[LiveApi]:
    own = settings.model_copy(update={"api_token": TOKEN, "cors_origins": (ORIGIN,)})
    async with serve_live(own, Limits(init_seconds=1.5, operations=3)) as api:
        yield api


@pytest.fixture
def live(_live: LiveApi, pool: Pool, redis: ArqRedis) -> LiveApi:
    return _live


async def test_queries_are_answered_and_completed(live: LiveApi) -> None:
    async with live.socket() as socket:
        await socket.subscribe(QUERY, "a")
        assert await socket.receive() == {"id": "a", "type": "next", "payload": {"data": {"latestPrices": []}}}
        assert await socket.receive() == {"id": "a", "type": "complete"}
        await socket.subscribe(QUERY, "a")
        assert await socket.answer() == {"data": {"latestPrices": []}}


async def test_a_field_error_comes_with_the_answer_and_a_request_error_instead_of_it(live: LiveApi) -> None:
    async with live.socket() as socket:
        await socket.subscribe('{ latestPrice(ticker: "x_y") { price } }')
        answer = await socket.answer()
        assert (answer["data"], answer["errors"][0]["extensions"]) == (
            {"latestPrice": None},
            {"code": "UNKNOWN_TICKER"},
        )
        assert await socket.receive() == {"id": "1", "type": "complete"}
        refused = {
            "{": "GRAPHQL_PARSE_FAILED",
            "{ nothing }": "GRAPHQL_VALIDATION_FAILED",
            "subscription { nothing }": "GRAPHQL_VALIDATION_FAILED",
            "query A { tickers { name } } query B { tickers { name } }": "GRAPHQL_VALIDATION_FAILED",
            "fragment A on Query { tickers { name } }": "GRAPHQL_VALIDATION_FAILED",
            'query($n: Int!) { priceHistory(ticker: "btc_usd", limit: $n) { price } }': "BAD_USER_INPUT",
            "subscription($t: [String!]!) { priceUpdates(tickers: $t) { price } }": "BAD_USER_INPUT",
            "{" + " ".join(f"a{n}: tickers {{ name }}" for n in range(60)) + "}": "QUERY_TOO_COMPLEX",
            "subscription { priceUpdates { " + " ".join(f"a{n}: price" for n in range(60)) + "} }": "QUERY_TOO_COMPLEX",
        }
        for query, code in refused.items():
            await socket.subscribe(query, "b")
            message = await socket.receive()
            assert (message["type"], message["id"]) == ("error", "b"), query
            assert [error["extensions"]["code"] for error in message["payload"]] == [code], query
        assert await socket.is_silent()


@pytest.mark.parametrize(
    "query",
    [
        'subscription { priceUpdates(tickers: ["x_y"]) { price } }',
        "subscription { priceUpdates(tickers: []) { price } }",
        'subscription { priceUpdates(since: "yesterday") { price } }',
        'subscription { fetchProgress(id: "nothing") { status } }',
        'subscription { fetchProgress(id: "%s") { status } }' % ("0" * 32),
    ],
)
async def test_a_subscription_with_a_bad_argument_gets_the_error_and_completes(live: LiveApi, query: str) -> None:
    code = "UNKNOWN_TICKER" if "x_y" in query else "BAD_USER_INPUT"
    async with live.socket() as socket:
        await socket.subscribe(query)
        [error] = (await socket.answer())["errors"]
        assert error["extensions"] == {"code": code}
        assert error["path"] == ["priceUpdates" if "priceUpdates" in query else "fetchProgress"]
        assert await socket.receive() == {"id": "1", "type": "complete"}


async def test_after_the_client_completes_an_operation_nothing_is_sent_and_its_id_is_free(live: LiveApi) -> None:
    async with live.socket() as socket:
        await socket.subscribe(FOLLOW)
        await socket.send(type="complete", id="1")
        await socket.send(type="complete", id="never used")
        await socket.subscribe(QUERY)
        assert await socket.answer() == {"data": {"latestPrices": []}}


async def test_pings_are_answered_before_and_after_connection_init(live: LiveApi) -> None:
    async with live.open() as socket:
        await socket.send(type="ping")
        assert await socket.receive() == {"type": "pong"}
        await socket.send(type="connection_init")
        assert await socket.receive() == {"type": "connection_ack"}
        await socket.send(type="pong", payload={"a": 1})
        await socket.send(type="ping", payload={"a": 1})
        assert await socket.receive() == {"type": "pong"}


SUBSCRIBE: dict[str, Any] = {"type": "subscribe", "id": "1", "payload": {"query": FOLLOW}}
CHANGES: list[dict[str, Any]] = [
    {"id": ""},
    {"id": 1},
    {"id": None},
    {"id": "x" * 129},
    {"payload": None},
    {"payload": {}},
    {"payload": {"query": None}},
    {"payload": {"query": QUERY, "variables": []}},
    {"payload": {"query": QUERY, "operationName": 1}},
    {"payload": {"query": QUERY, "extensions": "x"}},
]
BAD = [
    "",
    "{",
    "null",
    "[]",
    "[" * 100_000,
    "{}",
    '{"type": 1}',
    '{"type": "start"}',
    '{"type": "connection_init", "payload": 5}',
    *(json.dumps(SUBSCRIBE | change) for change in CHANGES),
    '{"type": "complete"}',
]


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
async def test_4400_an_invalid_message(live: LiveApi, text: str) -> None:
    async with live.open() as socket:
        if "connection_init" not in text:
            await socket.send(type="connection_init")
            await socket.receive()
        await socket.connection.send(text)
        assert await socket.closed() == (4400, "Invalid message")


async def test_4400_a_binary_message(live: LiveApi) -> None:
    async with live.socket() as socket:
        await socket.connection.send(b'{"type": "ping"}')
        assert await socket.closed() == (4400, "Invalid message")


async def test_4401_an_operation_before_connection_init(live: LiveApi) -> None:
    async with live.open() as socket:
        await socket.subscribe(QUERY)
        assert await socket.closed() == (4401, "Unauthorized")


@pytest.mark.parametrize("authorization", [f"Bearer {TOKEN}x", TOKEN, "", 5])
async def test_4403_a_wrong_token(live: LiveApi, authorization: Any) -> None:
    for name in ("Authorization", "authorization"):
        async with live.open() as socket:
            await socket.send(type="connection_init", payload={name: authorization})
            assert await socket.closed() == (4403, "Forbidden")


async def test_4406_another_subprotocol(live: LiveApi) -> None:
    for protocols in (("graphql-ws",), ()):
        async with live.open(protocols) as socket:
            assert await socket.closed() == (4406, "Subprotocol not acceptable")
    async with live.open(("graphql-ws", "graphql-transport-ws")) as socket:
        assert socket.connection.subprotocol == "graphql-transport-ws"


async def test_4408_no_connection_init(live: LiveApi) -> None:
    async with live.open() as socket:
        await socket.send(type="ping")
        assert await socket.receive() == {"type": "pong"}
        assert await socket.closed() == (4408, "Connection initialisation timeout")
    async with live.socket() as socket:
        await asyncio.sleep(1.8)
        await socket.subscribe(QUERY)
        assert await socket.answer() == {"data": {"latestPrices": []}}


async def test_4409_an_id_that_is_in_use(live: LiveApi) -> None:
    async with live.socket() as socket:
        await socket.subscribe(FOLLOW)
        await socket.subscribe(QUERY)
        assert await socket.closed() == (4409, "Subscriber for 1 already exists")
    for key in ("\N{GRINNING FACE}" * 128, "\ud800"):
        async with live.socket() as socket:
            await socket.subscribe(FOLLOW, key)
            await socket.subscribe(QUERY, key)
            assert (await socket.closed())[0] == 4409


async def test_4429_a_second_connection_init(live: LiveApi) -> None:
    async with live.socket() as socket:
        await socket.send(type="connection_init")
        assert await socket.closed() == (4429, "Too many initialisation requests")


async def test_a_message_that_is_too_long(live: LiveApi) -> None:
    async with live.socket() as socket:
        await socket.subscribe(QUERY + " " * 300_000)
        assert (await socket.closed())[0] == 1009


async def test_a_mutation_needs_the_token_in_the_handshake_or_in_connection_init(live: LiveApi) -> None:
    async def code(**options: Any) -> str | None:
        async with live.socket(**options) as socket:
            await socket.subscribe(FETCH)
            answer = await socket.answer()
            return answer["errors"][0]["extensions"]["code"] if "errors" in answer else None

    header = {"Authorization": f"Bearer {TOKEN}"}
    assert await code() == "UNAUTHENTICATED"
    assert await code(additional_headers={"Authorization": "Bearer wrong"}) == "UNAUTHENTICATED"
    assert await code(additional_headers=header) is None
    assert await code(payload=header) is None
    assert await code(payload={"authorization": f"bearer {TOKEN}"}) is None


async def test_only_pages_of_this_server_and_of_cors_origins_open_sockets(live: LiveApi) -> None:
    for origin in (None, ORIGIN, f"http://127.0.0.1:{live.port}"):
        async with live.socket(origin=origin):
            pass
    forwarded = {"X-Forwarded-Proto": "https"}
    async with live.socket(origin=f"https://127.0.0.1:{live.port}", additional_headers=forwarded):
        pass
    with pytest.raises(InvalidStatus):
        async with live.open(origin=f"http://127.0.0.1:{live.port}", additional_headers=forwarded):
            pass
    for origin in ("https://elsewhere.example", f"http://127.0.0.1:{live.port + 1}", "null", "http://[", "file://"):
        with pytest.raises(InvalidStatus, match="403"):
            async with live.open(origin=origin):
                pass


async def test_operations_of_a_socket_are_limited(live: LiveApi) -> None:
    async with live.socket() as socket:
        for key in "abc":
            await socket.subscribe(FOLLOW, key)
        await socket.subscribe(QUERY, "d")
        message = await socket.receive()
        assert (message["type"], message["id"]) == ("error", "d")
        assert message["payload"][0]["extensions"] == {"code": "QUERY_TOO_COMPLEX"}
        await socket.send(type="complete", id="a")
        await socket.subscribe(QUERY, "d")
        assert await socket.answer() == {"data": {"latestPrices": []}}


async def test_sockets_of_a_client_are_limited(settings: Settings, pool: Pool) -> None:
    async with serve_live(settings, Limits(sockets=5)) as api:
        async with api.socket(), api.socket(), api.open() as third:
            assert await third.closed() == (1013, "Too many sockets; try again later")
        async with api.socket() as again:
            await again.subscribe(QUERY)
            assert await again.answer() == {"data": {"latestPrices": []}}


async def test_a_peer_that_does_not_answer_pings_is_disconnected(settings: Settings, pool: Pool) -> None:
    async with serve_live(settings) as api:
        api.server.config.ws_ping_interval = api.server.config.ws_ping_timeout = 0.2
        async with api.socket() as dead, api.socket() as living:
            dead.connection.transport.pause_reading()
            await asyncio.sleep(1)
            await living.subscribe(QUERY)
            assert await living.answer() == {"data": {"latestPrices": []}}
            dead.connection.transport.resume_reading()
            assert (await dead.closed())[0] == 1011


async def test_sending_to_a_disconnected_peer_logs_no_fault(settings: Settings, pool: Pool) -> None:
    """An operation may be about to send when its socket is closed."""
    async with serve_live(settings) as api:
        api.server.config.ws_ping_interval = api.server.config.ws_ping_timeout = 0.2
        async with api.socket() as dead:
            dead.connection.transport.pause_reading()
            [connection] = api.server.server_state.connections
            assert isinstance(connection, SocketProtocol)
            async with asyncio.timeout(20):
                while not connection.close_sent:
                    await asyncio.sleep(0.01)
            with pytest.raises(ClientDisconnected):
                await connection.send({"type": "websocket.send", "text": "late"})
            dead.connection.transport.abort()


async def test_a_shutdown_closes_sockets_and_streams_at_once(settings: Settings, pool: Pool) -> None:
    async with serve_live(settings) as api, api.socket() as socket:
        await socket.subscribe(FOLLOW)
        body = {"query": "subscription { priceUpdates { price } }"}
        async with api.http.stream("POST", "/graphql", json=body, headers={"accept": "text/event-stream"}) as stream:
            began = asyncio.get_running_loop().time()
            api.server.should_exit = True
            assert (await socket.closed())[0] == 1012
            text = "".join([chunk async for chunk in stream.aiter_text()])
            assert "complete" not in text
        assert asyncio.get_running_loop().time() - began < 5
