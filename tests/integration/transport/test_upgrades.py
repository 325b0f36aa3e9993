"""Requests that offer an upgrade to h2c, as Java's HttpClient and `curl --http2` send them."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from shared.config.settings import Settings
from tests.integration.api_process import ApiProcess, run_api

BODY = json.dumps({"query": "{ __typename }"}).encode()
ANSWER = b'{"data":{"__typename":"Query"}}'
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
JSON = b"Content-Type: application/json\r\n"
SIZED = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
IN_CHUNKS = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (5, BODY[:5], len(BODY) - 5, BODY[5:])

JAVA = """
import java.net.URI;
import java.net.http.*;

public class Client {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int i = 0; i < 3; i++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(arguments[1]))
                .build();
            HttpResponse<String> response = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(response.statusCode() + " " + response.body());
        }
    }
}
"""


@pytest.fixture(scope="module")
async def api(settings: Settings) -> AsyncIterator[ApiProcess]:
    async with run_api(settings) as api:
        yield api


def post(*headers: bytes, body: bytes = BODY) -> bytes:
    return b"POST /graphql HTTP/1.1\r\nHost: a\r\n" + JSON + b"".join(headers) + b"\r\n" + body


async def answers(port: int, segments: Iterable[bytes], count: int, pause: float = 0.0) -> list[tuple[int, bytes]]:
    """Status and body of `count` answers on one connection, which stays open after them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for segment in segments:
            writer.write(segment)
            await asyncio.sleep(pause)
        received = []
        async with asyncio.timeout(10):
            for _ in range(count):
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                assert length is not None, head
                received.append((int(head.split()[1]), await reader.readexactly(int(length[1]))))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.2)
        return received
    finally:
        writer.close()


@pytest.mark.parametrize(
    "request_",
    [post(OFFER, SIZED), post(OFFER, CHUNKED, body=IN_CHUNKS), post(SIZED, b"Upgrade: h2c\r\nConnection: upgrade\r\n")],
    ids=["sized", "chunked", "other order"],
)
@pytest.mark.parametrize("size", [1, 40, 4096])
async def test_a_body_behind_an_offer_is_read(api: ApiProcess, request_: bytes, size: int) -> None:
    segments = [request_[begin : begin + size] for begin in range(0, len(request_), size)]
    assert await answers(api.port, segments, 1, pause=0.0005) == [(200, ANSWER)]


async def test_pipelined_requests_are_answered_once_each(api: ApiProcess) -> None:
    asked = post(OFFER, SIZED) + post(SIZED) + post(OFFER, CHUNKED, body=IN_CHUNKS) + post(OFFER, SIZED)
    assert await answers(api.port, [asked], 4) == [(200, ANSWER)] * 4


async def test_a_long_row_of_offers_is_answered(api: ApiProcess) -> None:
    one = b"GET /livez HTTP/1.1\r\nHost: a\r\n" + OFFER + b"\r\n"
    assert await answers(api.port, [one * 1500], 1500) == [(200, b"ok\n")] * 1500


async def test_a_client_that_wants_to_close_is_heeded(api: ApiProcess) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    try:
        writer.write(post(SIZED, b"Connection: close, Upgrade\r\nUpgrade: h2c\r\n"))
        async with asyncio.timeout(10):
            received = await reader.read()
    finally:
        writer.close()
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.endswith(ANSWER)


async def test_two_lengths_behind_an_offer_are_refused(api: ApiProcess) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    try:
        writer.write(post(OFFER, SIZED, CHUNKED, body=IN_CHUNKS))
        async with asyncio.timeout(10):
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    finally:
        writer.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl(api: ApiProcess) -> None:
    url = f"http://127.0.0.1:{api.port}/graphql"
    features = await asyncio.to_thread(subprocess.run, ["curl", "--version"], capture_output=True, check=True)
    options = ["--http2"] if b"HTTP2" in features.stdout else []
    command = ["curl", "-sS", "--noproxy", "*", *options, "-H", "Content-Type: application/json", "-d", BODY.decode()]
    done = await asyncio.to_thread(subprocess.run, [*command, url, url], capture_output=True, check=False)
    assert (done.stdout, done.stderr) == (ANSWER * 2, b"")


@pytest.mark.skipif(shutil.which("javac") is None, reason="no JDK is installed")
@pytest.mark.timeout(120)
async def test_javas_client(api: ApiProcess, tmp_path: Path) -> None:
    (tmp_path / "Client.java").write_text(JAVA)
    command = ["java", str(tmp_path / "Client.java"), f"http://127.0.0.1:{api.port}/graphql", BODY.decode()]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
    assert (done.stdout, done.stderr) == ((b"200 " + ANSWER + b"\n") * 3, b"")
