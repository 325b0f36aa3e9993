"""What one client can do to take the service: each attack as large as the limits let it be.

Each is a coroutine that attacks for a while. What it leaves open stays open until its connections are closed.
"""

import asyncio
import base64
import contextlib
import json
import os
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from tests.fuzz.wire import HANDSHAKE, frame

LIVE = "subscription($tickers: [String!]) { priceUpdates(tickers: $tickers) { %s } }"
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
SECONDS = 2.0
"How long an attack that repeats itself goes on."

INIT = b'{"type":"connection_init"}'


class Attackers:
    """The attackers' connections, and how they send. `scale`: how many of them there are."""

    def __init__(self, port: int, scale: int = 1) -> None:
        self.port = port
        self.scale = scale
        self.writers: list[asyncio.StreamWriter] = []
        self.answers: list[bytes] = []
        self._reading: set[asyncio.Task[None]] = set()

    async def connect(self, *, is_read: bool = True) -> asyncio.StreamWriter:
        _, writer = await self._open(is_read=is_read)
        return writer

    async def _open(self, *, is_read: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        if is_read:
            self._keep_reading(reader)
        return reader, writer

    def _keep_reading(self, reader: asyncio.StreamReader) -> None:
        task = asyncio.create_task(self._read(reader))
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(2**18):
                if len(self.answers) < 10_000:
                    self.answers.append(chunk[:300])

    async def socket(self) -> asyncio.StreamWriter:
        reader, writer = await self._open(is_read=False)
        writer.write(HANDSHAKE.format(base64.b64encode(os.urandom(16)).decode()).encode())
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            async with asyncio.timeout(5):
                await reader.readuntil(b"\r\n\r\n")  # what comes before is not read as frames
        writer.write(frame(1, INIT))
        self._keep_reading(reader)
        return writer

    async def subscribe(self, writer: asyncio.StreamWriter, key: str, query: str, **variables: Any) -> None:
        await self.send(writer, subscription(key, query, **variables))

    async def send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if writer.transport.is_closing():
            return
        with contextlib.suppress(OSError):
            writer.write(data)
            await asyncio.wait_for(writer.drain(), 5)

    async def post(self, query: str, writer: asyncio.StreamWriter | None = None, **headers: str) -> None:
        await self.send(writer or await self.connect(), request(query, **headers))

    async def close(self) -> None:
        for task in self._reading:
            task.cancel()
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.gather(*self._reading, return_exceptions=True)
        self.writers.clear()


def subscription(key: str, query: str, **variables: Any) -> bytes:
    message = {"id": key, "type": "subscribe", "payload": {"query": query, "variables": variables}}
    return frame(1, json.dumps(message).encode())


def request(query: str, **headers: str) -> bytes:
    body = json.dumps({"query": query}).encode()
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return (
        f"POST /graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{head}"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def undeclared_variables(a: Attackers) -> None:
    for _ in range(4 * a.scale):
        writer = await a.socket()
        for number in range(50):
            await a.subscribe(writer, str(number), LIVE % "price", filling="x" * 130_000)


async def undeclared_variables_of_streams(a: Attackers) -> None:
    body = json.dumps({"query": LIVE % "price", "variables": {"filling": "x" * 130_000}}).encode()
    head = (
        b"POST /graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: text/event-stream\r\n"
    )
    for _ in range(150 * a.scale):
        await a.send(await a.connect(), head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))


async def declared_variables(a: Attackers) -> None:
    """As long as a request may be, and all of it is kept: names of tickers that are all the same."""
    for _ in range(4 * a.scale):
        writer = await a.socket()
        for number in range(50):
            await a.subscribe(writer, str(number), LIVE % "price", tickers=["btc_usd"] * 1000)


def long_document(number: int) -> str:
    """Close to 2,000 tokens and all fields that a document may have."""
    return LIVE % " ".join(f"a{number}x{field}: price" if field < 49 else "ticker price" for field in range(173))


async def long_documents(a: Attackers) -> None:
    for socket in range(4 * a.scale):
        writer = await a.socket()
        for number in range(50):
            await a.subscribe(writer, str(number), long_document(socket * 50 + number))


CANDLES = """candles(ticker: "%s", interval: ONE_MINUTE, fromDt: "2025-12-27T12:00:00Z",
toDt: "2026-01-31T12:00:00Z", limit: 10000) { ticker start open high low close samples complete }"""


async def large_pages(a: Attackers) -> None:
    query = "{{ a: {} b: {} }}".format(CANDLES % "btc_usd", CANDLES % "eth_usd")
    await repeat(a, 5 * a.scale, request(query))


async def large_pages_by_strawberry(a: Attackers) -> None:
    query = '{{ a: {} b: {} wrong: latestPrice(ticker: "no_such") {{ price }} }}'.format(
        CANDLES % "btc_usd",
        CANDLES % "eth_usd",
    )
    await repeat(a, 5 * a.scale, request(query))


async def large_page_by_socket(a: Attackers) -> None:
    query = "{{ a: {} b: {} }}".format(CANDLES % "btc_usd", CANDLES % "eth_usd")
    writers = [await a.socket() for _ in range(5 * a.scale)]
    until = time.monotonic() + SECONDS
    number = 0
    while time.monotonic() < until:
        for writer in writers:
            await a.subscribe(writer, str(number), query)
            number += 1
        await asyncio.sleep(0.1)


async def many_aliases(a: Attackers) -> None:
    fields = " ".join(f"{'x' * 90}{number}: price" for number in range(18))
    query = '{ priceHistory(ticker: "btc_usd", limit: 10000) { %s } wrong: latestPrice(ticker: "no_such") { price } }'
    await repeat(a, 5 * a.scale, request(query % fields))


async def unread_answers(a: Attackers) -> None:
    for number in range(60 * a.scale):
        query = f"{{ a{number}: {CANDLES % 'btc_usd'} b: {CANDLES % 'eth_usd'} }}"
        writer = await a.connect(is_read=False)
        await a.send(writer, request(query))
    await asyncio.sleep(SECONDS)


async def old_since(a: Attackers) -> None:
    query = 'subscription { priceUpdates(since: "2020-01-01T00:00:00Z") { a%d: price ticker timestamp } }'
    for socket in range(4 * a.scale):
        writer = await a.socket()
        for number in range(50):
            await a.subscribe(writer, str(number), query % (socket * 50 + number))
    await asyncio.sleep(SECONDS)


async def different_live_documents(a: Attackers) -> None:
    """Each document of its own; the prices come from `store`, which the test gives."""
    for socket in range(60):
        writer = await a.socket()
        for number in range(50):
            await a.subscribe(writer, str(number), LIVE % f"a{socket}_{number}: price ticker timestamp source testnet")
    await asyncio.sleep(SECONDS)


async def subscribe_and_complete(a: Attackers) -> None:
    writers = [await a.socket() for _ in range(20)]
    pairs = b"".join(
        subscription(str(n), LIVE % "price") + frame(1, json.dumps({"id": str(n), "type": "complete"}).encode())
        for n in range(200)
    )
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        await asyncio.gather(*(a.send(writer, pairs) for writer in writers), return_exceptions=True)
        await asyncio.sleep(0.01)


async def unknown_fields(a: Attackers) -> None:
    padded = "{{ {} }}".format(" ".join(f"p{number}{'riceHistor' * 8}" for number in range(220)))
    requests = b"".join(request(padded.replace("p1", f"p{n}q")) for n in range(20))
    await repeat(a, 5 * a.scale, requests)


async def chained_fragments(a: Attackers) -> None:
    def document(number: int) -> str:
        spread = "{ tickers { ...f0 } }" + "".join(
            f" fragment f{n} on Ticker {{ name ...f{n + 1} }}" for n in range(169)
        )
        return spread + " fragment f169 on Ticker { name }" + " " * number

    await repeat(a, 5 * a.scale, b"".join(request(document(n)) for n in range(20)))


async def many_fields(a: Attackers) -> None:
    """Valid, and as costly to validate as any: 299 fields of one level, in pairs."""
    requests = []
    for number in range(20):
        fields = " ".join(["price ticker timestamp source"] * 74)
        requests.append(request(f'{{ a{number}: latestPrice(ticker: "btc_usd") {{ {fields} }} }}'))
    await repeat(a, 5 * a.scale, b"".join(requests))


async def event_streams(a: Attackers) -> None:
    for _ in range(1000 * a.scale):
        try:
            writer = await a.connect()
        except OSError:
            break
        await a.send(writer, request(LIVE % "price", accept="text/event-stream"))
    await asyncio.sleep(SECONDS)


async def half_open_upgrades(a: Attackers) -> None:
    head = HANDSHAKE.format("AAAAAAAAAAAAAAAAAAAAAA==").replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\n").encode()
    for _ in range(1000 * a.scale):
        try:
            writer = await a.connect()
        except OSError:
            break
        await a.send(writer, head)
    await asyncio.sleep(SECONDS)


async def silent_connections(a: Attackers) -> None:
    for _ in range(1000 * a.scale):
        try:
            await a.connect()
        except OSError:
            break
    await asyncio.sleep(SECONDS)


async def malformed_requests(a: Attackers) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        writer = await a.connect()
        await a.send(writer, b"NONSENSE\x00\r\n\r\n")


async def h2c_upgrades(a: Attackers) -> None:
    head = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    await repeat(a, 2, head * 20)


async def repeat(a: Attackers, clients: int, data: bytes) -> None:
    until = time.monotonic() + SECONDS

    async def client() -> None:
        writer = await a.connect()
        while time.monotonic() < until:
            if writer.transport.is_closing():
                writer = await a.connect()
            await a.send(writer, data)
            await asyncio.sleep(0.02)

    await asyncio.gather(*(client() for _ in range(clients)), return_exceptions=True)


ATTACKS: dict[str, Callable[[Attackers], Awaitable[None]]] = {
    attack.__name__: attack
    for attack in (
        undeclared_variables,
        undeclared_variables_of_streams,
        declared_variables,
        long_documents,
        large_pages,
        large_pages_by_strawberry,
        large_page_by_socket,
        many_aliases,
        unread_answers,
        old_since,
        different_live_documents,
        subscribe_and_complete,
        unknown_fields,
        chained_fragments,
        many_fields,
        event_streams,
        half_open_upgrades,
        silent_connections,
        malformed_requests,
        h2c_upgrades,
    )
}
