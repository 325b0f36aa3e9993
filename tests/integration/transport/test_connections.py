"""Slow and greedy clients on raw sockets: which connections are closed, when, and which stay open."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from server import process
from server.app import create_app
from server.http.endpoint import MAX_BODY_BYTES
from server.transport import http as connections
from server.transport.connections import CLOSED_AT_ONCE, MAX_CONNECTIONS, RESERVED_CONNECTIONS
from shared.config.settings import Settings
from shared.local.servers import free_port
from shared.storage.database import Pool
from tests.integration.live import FOLLOW, Server, serve_live

BODY = b'{"query": "{ latestPrices { price } }"}'
HEAD = b"POST /graphql HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
POST = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
ANSWER = b'{"data":{"latestPrices":[]}}'
UPGRADE = (
    b"GET /graphql HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: graphql-transport-ws\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
SUBSCRIBE = b'{"query": "subscription { priceUpdates { price } }"}'
STREAM = HEAD + b"Accept: text/event-stream\r\nContent-Length: %d\r\n\r\n%s" % (len(SUBSCRIBE), SUBSCRIBE)
TIMEOUT = b"HTTP/1.1 408 "


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send_slowly(self, pieces: Iterable[bytes], seconds: float = 0.05) -> None:
        """Until the server closes."""
        try:
            for piece in pieces:
                await self.send(piece)
                await asyncio.sleep(seconds)
        except OSError:
            pass

    async def answered(self) -> bytes:
        """One answer with a body of a known length."""
        async with asyncio.timeout(30):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            return head + await self.reader.readexactly(length)

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        received = b""
        try:
            async with asyncio.timeout(30):
                while data := await self.reader.read(65536):
                    received += data
        except ConnectionError:
            pass
        return received

    async def is_open(self, seconds: float) -> bool:
        """Whether it stays open for this time."""
        try:
            async with asyncio.timeout(seconds):
                while await self.reader.read(65536):
                    pass
        except TimeoutError:
            return True
        except ConnectionError:
            pass
        return False


@asynccontextmanager
async def opened(port: int, limit: int = 65536) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()


@pytest.fixture(scope="module")
async def _port(settings: Settings, _migrated: None) -> AsyncIterator[int]:
    async with serve_live(settings) as api:
        yield api.port


@pytest.fixture
def port(_port: int, pool: Pool) -> int:
    return _port


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short timeouts; connections are still checked once a second."""
    for name in ("HEADERS_SECONDS", "BODY_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(connections, name, 0.5)


def test_the_times_are_those_of_the_readme() -> None:
    assert (connections.HEADERS_SECONDS, connections.BODY_SECONDS, connections.ANSWER_SECONDS) == (10, 30, 60)
    assert (connections.MAX_HEADER_BYTES, MAX_CONNECTIONS) == (65536, 6000)
    assert connections.KEEP_ALIVE_SECONDS == 75


@pytest.mark.parametrize(
    "begin",
    [
        POST[:-1],  # the body's last byte is missing
        HEAD + b"Content-Length: 100000\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n",
        HEAD + b"X: ",
        b"P",
    ],
)
async def test_an_incomplete_request_times_out(port: int, hurry: None, begin: bytes) -> None:
    async with opened(port) as connection:
        await connection.send(begin)
        assert (await connection.rest()).startswith(TIMEOUT)


@pytest.mark.parametrize("begin", [HEAD + b"X: ", HEAD + b"Content-Length: 100000\r\n\r\n", b"GET /"])
async def test_a_request_that_arrives_byte_by_byte_times_out(port: int, hurry: None, begin: bytes) -> None:
    async with opened(port) as connection:
        await connection.send(begin)
        sending = asyncio.create_task(connection.send_slowly([b"a"] * 200))
        received = await connection.rest()
        assert received.startswith(TIMEOUT) or received == b""  # where its next byte has crossed with the answer
        assert not sending.done(), "it was cut off, and not ended"
        await sending


async def test_an_unused_connection_is_closed_without_an_answer(port: int, hurry: None) -> None:
    async with opened(port) as connection:
        assert await connection.rest() == b""


@pytest.mark.parametrize("begin", [b"GET /live", b"\r\n"])
async def test_the_next_request_of_a_connection_has_the_same_timeout(port: int, hurry: None, begin: bytes) -> None:
    async with opened(port) as connection:
        for _ in range(3):
            await connection.send(POST)
            assert (await connection.answered()).endswith(ANSWER)
        sending = asyncio.create_task(connection.send_slowly([begin, *[b"\r\n" if begin == b"\r\n" else b"a"] * 200]))
        received = await connection.rest()
        assert received == b"" or received.startswith(TIMEOUT)
        assert not sending.done()
        await sending


async def test_a_client_that_keeps_sending_after_the_answer_is_disconnected(port: int, hurry: None) -> None:
    async with opened(port) as connection:
        await connection.send(HEAD + b"Content-Length: 100000000\r\n\r\n" + b" " * 1_200_000)
        assert (await connection.answered()).startswith(b"HTTP/1.1 413 ")
        sending = asyncio.create_task(connection.send_slowly([b" "] * 200))
        assert await connection.rest() == b""
        assert not sending.done()
        await sending


async def test_a_client_that_does_not_read_its_answers_is_disconnected(port: int, hurry: None) -> None:
    """Pipelined requests, whose answers exceed the buffers between client and server."""
    async with opened(port, limit=1024) as connection:
        connection.writer.write(b"GET /schema.graphql HTTP/1.1\r\nHost: a\r\n\r\n" * 5000)
        await asyncio.sleep(3)
        received = await connection.rest()
    assert 0 < received.count(b"HTTP/1.1 200 ") < 5000


async def test_a_slow_reader_has_a_minute_on_a_closing_connection_too(
    port: int, hurry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "ANSWER_SECONDS", 60.0)
    asked = b"GET /schema.graphql HTTP/1.1\r\nHost: a\r\n"
    async with opened(port, limit=1024) as connection:
        connection.writer.write((asked + b"\r\n") * 1000 + asked + b"Connection: close\r\n\r\n")
        await asyncio.sleep(3)
        received = await connection.rest()
    assert received.count(b"HTTP/1.1 200 ") == 1001


async def test_a_client_with_occasional_requests_stays_connected(port: int, hurry: None) -> None:
    async with opened(port) as connection:
        for _ in range(2):
            await connection.send(POST)
            assert (await connection.answered()).endswith(ANSWER)
            assert await connection.is_open(2.5)


async def test_a_reader_of_an_event_stream_stays_connected(port: int, hurry: None) -> None:
    body = b'{"query": "subscription { priceUpdates { price } }"}'
    asked = HEAD + b"Accept: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with opened(port) as connection:
        await connection.send(asked)
        assert b"HTTP/1.1 200 " in await connection.reader.readuntil(b":\n\n")
        assert await connection.is_open(2.5)


async def test_a_reader_of_a_socket_stays_connected(settings: Settings, pool: Pool, hurry: None) -> None:
    async with serve_live(settings) as api, api.socket() as socket:
        await socket.subscribe(FOLLOW)
        assert await socket.is_silent(2.5)


async def test_a_slow_request_that_is_in_time_is_answered(port: int) -> None:
    async with opened(port) as connection:
        for data in (POST, POST[:40], POST[40:], *(POST[i : i + 1] for i in range(len(POST)))):
            await connection.send(data)
            await asyncio.sleep(0.002)
        for _ in range(3):
            assert (await connection.answered()).endswith(ANSWER)


@pytest.mark.parametrize("header", [b"X: %s\r\n", b"%s: x\r\n", b"Cookie: %s\r\n"])
@pytest.mark.parametrize("piece", [1_000_000, 1000])
async def test_headers_beyond_64_kib_are_refused(port: int, header: bytes, piece: int) -> None:
    async with opened(port) as connection:
        data = HEAD + header % (b"a" * 200_000)
        await connection.send_slowly((data[i : i + piece] for i in range(0, len(data), piece)), 0)
        received = await connection.rest()
    # A client that is still sending may see the connection reset before it sees the answer.
    assert received.startswith(b"HTTP/1.1 431 ") or received == b""


async def test_many_headers_and_a_long_path_are_refused_too(port: int) -> None:
    for data in (HEAD + b"a: b\r\n" * 20_000, b"GET /" + b"a" * 100_000):
        async with opened(port) as connection:
            await connection.send_slowly([data], 0)
            received = await connection.rest()
        assert received.startswith(b"HTTP/1.1 431 ") or received == b""


async def test_headers_below_64_kib_are_read(port: int) -> None:
    async with opened(port) as connection:
        for _ in range(3):
            await connection.send(POST.replace(b"Host: a\r\n", b"Host: a\r\nX: %s\r\n" % (b"a" * 60_000)))
            assert (await connection.answered()).endswith(ANSWER)


async def test_endless_trailers_are_refused(port: int) -> None:
    async with opened(port) as connection:
        await connection.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n")
        sent = 0
        try:
            while sent < 100_000_000:
                await connection.send(b"X: %s\r\n" % (b"a" * 65536))
                sent += 65536
        except OSError:
            pass
        received = await connection.rest()
    assert sent < 30_000_000  # what the kernel's buffers took, beyond 1 MiB
    assert received.startswith(b"HTTP/1.1 413 ") or received == b""


async def test_the_longest_body_in_pieces_is_read(port: int) -> None:
    body = BODY[:-1] + b" " * (MAX_BODY_BYTES - len(BODY)) + b"}"
    async with opened(port) as connection:
        for _ in range(2):
            await connection.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body))
            await connection.send_slowly((body[i : i + 10_000] for i in range(0, len(body), 10_000)), 0.01)
            assert (await connection.answered()).endswith(ANSWER)


@asynccontextmanager
async def serving(settings: Settings, maximum: int) -> AsyncIterator[int]:
    port = free_port()
    server = Server(process.create_server(create_app(settings), "127.0.0.1", port, maximum).config)
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield port
    finally:
        server.should_exit = True
        await serving


async def test_a_full_process_closes_idle_connections_to_make_room(settings: Settings, pool: Pool) -> None:
    async with serving(settings, 3) as port, opened(port) as first, opened(port) as silent, opened(port) as third:
        for connection in (first, third):
            await connection.send(GET)
            assert (await connection.answered()).endswith(b"ok\n")
        async with opened(port) as fourth:
            await fourth.send(POST)
            assert (await fourth.answered()).endswith(ANSWER)
            assert [await idle.rest() for idle in (first, silent, third)] == [b""] * 3
    assert CLOSED_AT_ONCE > 3


async def test_a_process_full_of_streams_answers_health_checks_alone(settings: Settings, pool: Pool) -> None:
    async with AsyncExitStack() as stack, serving(settings, 3) as port:
        streams = [await stack.enter_async_context(opened(port)) for _ in range(3)]
        for stream in streams:
            await stream.send(STREAM)
            await stream.reader.readuntil(b"\r\n\r\n")
        for path in (b"livez", b"readyz", b"livez"):
            async with opened(port) as health:
                await health.send(b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % path)
                assert (await health.rest()).startswith(b"HTTP/1.1 200 ")
        async with opened(port) as refused:
            await refused.send(POST)
            assert (await refused.rest()).startswith(b"HTTP/1.1 503 ")
        reserved = [await stack.enter_async_context(opened(port)) for _ in range(RESERVED_CONNECTIONS + 1)]
        assert not await reserved[0].is_open(0.5), "the reserve is not for those that send nothing"
        streams.pop().writer.transport.abort()
        await asyncio.sleep(0.1)
        async with opened(port) as last:
            await last.send(POST)
            assert (await last.answered()).endswith(ANSWER)


@pytest.mark.parametrize("body", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
async def test_an_upgrade_with_a_body_is_refused(port: int, body: bytes) -> None:
    async with opened(port) as connection:
        await connection.send(UPGRADE.replace(b"\r\n\r\n", b"\r\n%s\r\n\r\n" % body))
        assert (await connection.rest()).startswith(b"HTTP/1.1 400 ")
    async with opened(port) as connection:
        await connection.send(UPGRADE.replace(b"\r\n\r\n", b"\r\nContent-Length: 0\r\n\r\n"))
        assert (await connection.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")


async def test_no_answer_names_the_server(port: int) -> None:
    for data in (GET, b"nonsense\r\n\r\n", HEAD + b"X: %s" % (b"a" * 70_000), b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n"):
        async with opened(port) as connection:
            await connection.send(data)
            head = (await connection.reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith((b"http/1.1 200", b"http/1.1 400", b"http/1.1 404", b"http/1.1 431"))
            assert (b"\r\nserver:" in head, b"uvicorn" in head, b"python" in head) == (False, False, False)
