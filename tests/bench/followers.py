"""`python -m tests.bench.followers PORT SOCKETS`: sockets that follow the prices for as long as it takes.

Prints a line when all of them do. At the next line on its standard input it prints what came, as JSON, and ends. A
socket that was closed comes back with the newest timestamp it has seen, and why it was closed is told.
"""

import argparse
import asyncio
import base64
import json
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import uvloop

QUERY = (
    "subscription ($since: DateTime) { priceUpdates(tickers: [btc, eth], since: $since) { ticker timestamp source } }"
).replace("[btc, eth]", '["btc_usd", "eth_usd"]')
_PRICE = re.compile(rb'"ticker":"(\w+)","timestamp":"([^"]+)","source":"(\w+)"')
_AGAIN_SECONDS = 0.5
_AT_A_TIME = 50
_TEXT, _CLOSE, _PING = 1, 8, 9

Key = tuple[bytes, bytes, bytes]


@dataclass(frozen=True)
class Followed:
    """`prices`: by "ticker timestamp source", on how many sockets it came, and in how many frames in all."""

    sockets: int
    prices: dict[str, tuple[int, int]]
    closed: dict[str, int]


class Follower(asyncio.Protocol):
    """One socket, over all of its connections."""

    def __init__(self, numbers: dict[Key, int], closed: Counter[str]) -> None:
        self._numbers = numbers
        self._closed = closed
        self.came: Counter[int] = Counter()
        self.is_following = asyncio.Event()
        self._since: str | None = None
        self.is_ending = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, and does not say so
        self._data = b""
        self._is_open = False
        self._reason = "connection lost"
        key = base64.b64encode(os.urandom(16)).decode()
        lines = ["GET /graphql HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
        self._transport.write("\r\n".join([*lines, "Sec-WebSocket-Protocol: graphql-transport-ws", "", ""]).encode())

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._is_open:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return
            if not self._data.startswith(b"HTTP/1.1 101 "):
                self._reason = f"HTTP {self._data[9:12].decode()}"
                self._transport.abort()
                return
            self._is_open, self._data = True, self._data[end + 4 :]
            self._send({"type": "connection_init"})
        data = self._data
        while len(data) > 1:
            start, length = 2, data[1]
            if length == 126:
                start, length = 4, int.from_bytes(data[2:4])
            if len(data) < start + length:
                break
            self._frame(data[0] & 15, data[start : start + length])
            data = data[start + length :]
        self._data = data

    def _frame(self, kind: int, text: bytes) -> None:
        if kind == _PING:
            self._write(10, text)
        elif kind == _CLOSE:
            self._reason = str(int.from_bytes(text[:2]))
            self._write(_CLOSE, text[:2])
        elif match := _PRICE.search(text):
            key = cast(Key, match.groups())
            self.came[self._numbers.setdefault(key, len(self._numbers))] += 1
            self._since = max(self._since or "", key[1].decode())
        elif text.startswith(b'{"type":"connection_ack"'):
            # With `since` from the first: what is stored between the message and the answer to it is followed too.
            since = self._since or datetime.now(UTC).isoformat()
            self._send({"type": "subscribe", "id": "1", "payload": {"query": QUERY, "variables": {"since": since}}})
            self.is_following.set()
        elif kind == _TEXT and b'"type":"pong"' not in text:
            self._reason = f"said {text[:120].decode()}"
            self._transport.abort()

    def _send(self, message: object) -> None:
        self._write(_TEXT, json.dumps(message).encode())

    def _write(self, kind: int, data: bytes) -> None:
        """Masked with zeros: what it says is no secret."""
        length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2)
        self._transport.write(bytes([0x80 | kind]) + length + bytes(4) + data)

    def connection_lost(self, _: Exception | None) -> None:
        if not self.is_ending:
            self._closed[self._reason] += 1
            self._again = asyncio.get_running_loop().create_task(self.connect(_AGAIN_SECONDS))

    async def connect(self, pause: float = 0) -> None:
        await asyncio.sleep(pause)
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self.port)
        except OSError:
            self._closed["connection refused"] += 1
            self._again = asyncio.get_running_loop().create_task(self.connect(_AGAIN_SECONDS))

    port = 0


async def follow(port: int, sockets: int) -> Followed:
    numbers: dict[Key, int] = {}
    closed: Counter[str] = Counter()
    Follower.port = port
    followers = [Follower(numbers, closed) for _ in range(sockets)]
    for first in range(0, sockets, _AT_A_TIME):
        some = followers[first : first + _AT_A_TIME]
        await asyncio.gather(*(follower.connect() for follower in some))
        await asyncio.gather(*(follower.is_following.wait() for follower in some))
    print("following", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    on_sockets: Counter[int] = Counter()
    frames: Counter[int] = Counter()
    for follower in followers:
        follower.is_ending = True
        on_sockets.update(follower.came.keys())
        frames.update(follower.came)
    prices = {b" ".join(key).decode(): (on_sockets[n], frames[n]) for key, n in numbers.items()}
    return Followed(sockets, prices, dict(closed))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.followers")
    parser.add_argument("port", type=int)
    parser.add_argument("sockets", type=int)
    asked: Any = parser.parse_args()
    followed = uvloop.run(follow(asked.port, asked.sockets))
    print(json.dumps({"sockets": followed.sockets, "prices": followed.prices, "closed": followed.closed}), flush=True)


if __name__ == "__main__":
    main()
