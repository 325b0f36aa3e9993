"""The API on uvicorn, as its command runs it, with clients for its WebSockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from server import process
from server.app import create_app
from server.subscriptions.websocket import Limits
from shared.config.settings import Settings
from shared.local.servers import free_port
from shared.storage.prices import Price, PriceSource

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
PRICES = "subscription($tickers: [String!], $since: DateTime) { priceUpdates(tickers: $tickers, since: $since) { %s } }"
FOLLOW = PRICES % "ticker price timestamp"


def price(ticker: str, minute: float, source: PriceSource = PriceSource.SCHEDULED, digits: str = "1.5") -> Price:
    at = NOON + minute * MINUTE
    return Price(ticker, Decimal(digits), at, at, source, False)


def spelled(prices: Iterable[Price]) -> list[tuple[str, str, str]]:
    return [(p.ticker, str(p.price), f"{p.timestamp:%Y-%m-%dT%H:%M:%S.%fZ}") for p in prices]


def at(minute: float) -> str:
    return (NOON + minute * MINUTE).isoformat()


class Server(process.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ctrl-C must end the test run, not this server."""
        yield


class Socket:
    """A graphql-transport-ws client."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, **message: Any) -> None:
        await self.connection.send(json.dumps(message))

    async def receive(self, seconds: float = 10) -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            message: dict[str, Any] = json.loads(await self.connection.recv())
        return message

    async def subscribe(self, query: str, key: str = "1", **variables: Any) -> None:
        await self.send(type="subscribe", id=key, payload={"query": query, "variables": variables})

    async def answer(self, seconds: float = 10) -> Any:
        """The payload of the next message, which must be a `next`."""
        message = await self.receive(seconds)
        assert message["type"] == "next", message
        return message["payload"]

    async def price(self) -> tuple[str, str, str]:
        payload = await self.answer()
        assert payload.keys() == {"data"}, payload
        found = payload["data"]["priceUpdates"]
        return found["ticker"], found["price"], found["timestamp"]

    async def prices(self, count: int) -> list[tuple[str, str, str]]:
        return [await self.price() for _ in range(count)]

    async def is_silent(self, seconds: float = 0.3) -> bool:
        try:
            message = await self.receive(seconds)
        except TimeoutError:
            return True
        raise AssertionError(f"not silent: {message}")

    async def closed(self, seconds: float = 10) -> tuple[int | None, str | None]:
        async with asyncio.timeout(seconds):
            await self.connection.wait_closed()
        return self.connection.close_code, self.connection.close_reason


class LiveApi:
    def __init__(self, settings: Settings, port: int, server: Server, http: httpx.AsyncClient) -> None:
        self.settings = settings
        self.port = port
        self.server = server
        self.http = http

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/graphql"

    @asynccontextmanager
    async def open(
        self, protocols: tuple[str, ...] = ("graphql-transport-ws",), **options: Any
    ) -> AsyncIterator[Socket]:
        subprotocols = [Subprotocol(name) for name in protocols] or None
        async with connect(self.url, subprotocols=subprotocols, proxy=None, **options) as connection:
            yield Socket(connection)

    @asynccontextmanager
    async def socket(self, payload: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[Socket]:
        async with self.open(**options) as socket:
            await socket.send(type="connection_init", **({"payload": payload} if payload else {}))
            assert await socket.receive() == {"type": "connection_ack"}
            yield socket


@asynccontextmanager
async def serve_live(settings: Settings, limits: Limits | None = None) -> AsyncIterator[LiveApi]:
    port = free_port()
    made = process.create_server(create_app(settings, limits or Limits()), "127.0.0.1", port)
    server = Server(made.config)
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            assert not serving.done(), "the server did not start"
            await asyncio.sleep(0.01)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as http:
            yield LiveApi(settings, port, server, http)
    finally:
        server.should_exit = True
        await serving
