"""HTTP and WebSocket by hand, so that anything at all can be sent."""

import asyncio
import base64
import contextlib
import os
import re
import struct
import time
from dataclasses import dataclass, field

IDLE_SECONDS = 0.15
"After which nothing more is expected of a server that keeps the connection."

HANDSHAKE = (
    "GET /graphql HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: graphql-transport-ws\r\nSec-WebSocket-Key: {}\r\n\r\n"
)


@dataclass
class Reply:
    """All that came back, and the longest time that any of it took. To HEAD no body comes, whatever is announced."""

    is_head: bool = False
    data: bytes = b""
    seconds: float = 0.0
    statuses: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    close_code: int | None = None

    @property
    def head(self) -> str:
        return self.data.partition(b"\r\n\r\n")[0].decode("latin-1").lower()

    @property
    def media_type(self) -> str:
        found = re.search(r"^content-type: *([^\r\n]*)", self.head, re.MULTILINE)
        return found[1] if found else ""

    @property
    def body(self) -> str:
        body = self.data.partition(b"\r\n\r\n")[2]
        return (_without_chunks(body) if "transfer-encoding: chunked" in self.head else body).decode(errors="replace")


async def exchange(port: int, data: bytes, patience: float, *, is_whole: bool = True) -> Reply:
    """Send, and read until the server closes, has said what it announced, or has nothing more to say.

    `is_whole`: there is a request in it that has an end, so that something comes back.
    """
    reply = Reply(data.startswith(b"HEAD "))
    began = time.monotonic()
    try:
        async with asyncio.timeout(patience):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
            try:
                writer.write(data)
                await _read(reader, reply, began, is_whole)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except OSError:  # it has closed before all was sent; TimeoutError is one, too
        if time.monotonic() - began >= patience:
            reply.seconds = patience
    reply.statuses = [int(found) for found in re.findall(rb"(?:^|[\n}])HTTP/1\.1 (\d{3})", reply.data)]
    return reply


async def _read(reader: asyncio.StreamReader, reply: Reply, began: float, expects: bool) -> None:
    while True:
        try:
            # What is announced comes, and a first byte too; for the rest one waits a moment.
            wait = None if _is_announced(reply) or (expects and not reply.data) else IDLE_SECONDS
            async with asyncio.timeout(wait):
                chunk = await reader.read(2**18)
        except TimeoutError:
            return
        if not chunk:
            return
        reply.data += chunk
        reply.seconds = time.monotonic() - began
        if _is_whole(reply):
            return


def _length(reply: Reply) -> int | None:
    found = re.search(r"^content-length: *(\d+)", reply.head, re.MULTILINE)
    return int(found[1]) if found else None


def _is_announced(reply: Reply) -> bool:
    length = _length(reply)
    return length is not None and not reply.is_head and len(reply.data.partition(b"\r\n\r\n")[2]) < length


def _is_whole(reply: Reply) -> bool:
    if reply.data.endswith(b"\r\n0\r\n\r\n"):
        return True
    length = _length(reply)
    return "connection: close" in reply.head and length is not None and not _is_announced(reply)


def _without_chunks(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        parts.append(body[:length])
        body = body[length + 2 :]
    return b"".join(parts)


def frame(opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    head = bytes([(fin << 7) | (rsv << 4) | opcode])
    mask = masked << 7
    if len(payload) < 126:
        head += bytes([mask | len(payload)])
    elif len(payload) < 2**16:
        head += bytes([mask | 126]) + struct.pack("!H", len(payload))
    else:
        head += bytes([mask | 127]) + struct.pack("!Q", len(payload))
    return head + (bytes(4) + payload if masked else payload)  # masked with zeros, which changes nothing


async def converse(port: int, frames: list[bytes], patience: float) -> Reply:
    """Open a socket, send the frames as they are, and read what comes until nothing more does."""
    handshake = HANDSHAKE.format(base64.b64encode(os.urandom(16)).decode()).encode()
    reply = await exchange(port, handshake + b"".join(frames), patience)
    head, _, rest = reply.data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101"):
        return reply
    reply.statuses = []
    while len(rest) >= 2:
        opcode, length, begin = rest[0] & 15, rest[1] & 127, 2
        if length >= 126:
            size = 2 if length == 126 else 8
            length, begin = int.from_bytes(rest[2 : 2 + size]), 2 + size
        payload, rest = rest[begin : begin + length], rest[begin + length :]
        if len(payload) < length:
            break
        if opcode == 1:
            reply.texts.append(payload.decode())
        elif opcode == 8:
            reply.close_code = int.from_bytes(payload[:2]) if payload else 1005
    return reply
