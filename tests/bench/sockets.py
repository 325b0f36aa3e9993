"""A thousand sockets that follow two tickers, a price a second each: how long from the commit to each one's frame.

`python -m tests.bench.sockets` measures this alone. The prices are stored by `insert_prices`, as the worker stores
them, in this process, which also has all the clients. A frame's time is when this process has it: what the clients
hold each other up is part of it.
"""

import argparse
import asyncio
import base64
import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import cast

import uvloop

from shared.config.settings import Settings, load_settings
from shared.migrate import migrate
from shared.storage.database import create_pool
from shared.storage.prices import Price, PriceSource, insert_prices
from tests.bench.data import TICKERS
from tests.bench.load import quantile
from tests.bench.machine import Cores, cpu_seconds, on_core, pin, rss_mib, share_out
from tests.bench.peers import PROJECT, Running, environment
from tests.bench.servers import started_servers

SOCKETS = 1000
QUERY = "subscription { priceUpdates { ticker price timestamp } }"
_SETTLE_SECONDS = 2.0
_TEXT, _PING, _PONG = 0x81, 0x89, 0x8A
_TIMESTAMP = re.compile(rb'"ticker":"(\w+)".*?"timestamp":"([^"]+)"')


@dataclass(frozen=True)
class Seen:
    """Milliseconds, MiB, cores. `lost`: frames that never came, or came twice."""

    sockets: int
    frames: int
    lost: int
    p50: float
    p99: float
    longest: float
    kib_a_socket: float
    cores: float

    @property
    def rows(self) -> list[list[str]]:
        what = f"{self.sockets:,} sockets x {len(TICKERS)} tickers x 1 price/s, commit to frame"
        return [
            [f"{what}, p50", f"{self.p50:.0f} ms"],
            [f"{what}, p99", f"{self.p99:.0f} ms"],
            [f"{what}, longest", f"{self.longest:.0f} ms"],
            ["frames lost or doubled meanwhile", f"{self.lost} of {self.frames:,}"],
            ["CPU of the API meanwhile", f"{self.cores:.2f} cores"],
            ["memory of the API for each socket", f"{self.kib_a_socket:.0f} KiB"],
        ]


class Client(asyncio.Protocol):
    """Follows the prices, and keeps what comes with its time; it is looked at afterwards."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.chunks: list[tuple[float, bytes]] = []
        self.is_ready = asyncio.Event()
        self._is_open = False
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, and does not say so
        key = base64.b64encode(os.urandom(16)).decode()
        lines = ["GET /graphql HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
        self._transport.write("\r\n".join([*lines, "Sec-WebSocket-Protocol: graphql-transport-ws", "", ""]).encode())

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self.is_ready.is_set():
            self.chunks.append((now, data))
            self._answer_pings(data)
        elif not self._is_open:
            assert data.startswith(b"HTTP/1.1 101 "), data
            self._is_open = True
            self._send({"type": "connection_init"})
        else:
            assert b"connection_ack" in data, data
            self._send({"type": "subscribe", "id": str(self.number), "payload": {"query": QUERY}})
            self.is_ready.set()

    def _answer_pings(self, data: bytes) -> None:
        """Who does not is cut off after 40 s."""
        frames, self._rest = _split(self._rest + data)
        for kind, payload in frames:
            if kind == _PING:
                self._write(_PONG, payload)

    def _send(self, message: object) -> None:
        self._write(_TEXT, json.dumps(message).encode())

    def _write(self, kind: int, payload: bytes) -> None:
        """Masked with zeros: what it says is no secret."""
        assert self._transport is not None
        assert len(payload) < 126
        self._transport.write(bytes([kind, 0x80 | len(payload)]) + bytes(4) + payload)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def measure(api: Running, database_url: str, sockets: int, seconds: int) -> Seen:
    loop = asyncio.get_running_loop()
    pid = api.processes[0].pid
    settings = load_settings(database_url=database_url, redis_url="redis://127.0.0.1")
    before = rss_mib(pid)
    clients = []
    for number in range(sockets):
        _, client = await loop.create_connection(lambda: Client(number), "127.0.0.1", api.ports[0])  # noqa: B023
        await client.is_ready.wait()
        clients.append(client)
    await asyncio.sleep(_SETTLE_SECONDS)
    committed: dict[tuple[str, str], float] = {}
    async with create_pool(settings, name="bench", size=1) as pool:
        # The first one opens connections and is written by code that has not run yet: its frames are not counted.
        start = datetime(2026, 1, 1, tzinfo=UTC)
        used, since = 0.0, 0.0
        for second in range(-1, seconds):
            if second == 0:
                used, since = cpu_seconds(pid), time.perf_counter()
            instant = start + timedelta(seconds=second)
            prices = [
                Price(ticker, Decimal(9_123_450 + second) / 100, instant, instant, PriceSource.SCHEDULED, False)
                for ticker in TICKERS
            ]
            began = time.perf_counter()
            await insert_prices(pool, prices)
            at = time.perf_counter()
            if second >= 0:
                committed |= {(ticker, f"{instant:%Y-%m-%dT%H:%M:%S.%fZ}"): at for ticker in TICKERS}
            await asyncio.sleep(1 - (time.perf_counter() - began))
        used, lasted = cpu_seconds(pid) - used, time.perf_counter() - since
    await asyncio.sleep(_SETTLE_SECONDS)
    after = rss_mib(pid)
    latencies, lost = [], 0
    for client in clients:
        client.close()
        came = [(key, at) for key, at in _frames(client) if key in committed]
        latencies += [at - committed[key] for key, at in came]
        lost += len(committed) - len({key for key, _ in came}) + len(came) - len({key for key, _ in came})
    latencies.sort()
    return Seen(
        sockets=sockets,
        frames=len(committed) * sockets,
        lost=lost,
        p50=quantile(latencies, 0.5) * 1000,
        p99=quantile(latencies, 0.99) * 1000,
        longest=latencies[-1] * 1000,
        kib_a_socket=(after - before) * 1024 / sockets,
        cores=used / lasted,
    )


def _frames(client: Client) -> Iterator[tuple[tuple[str, str], float]]:
    """What came: (ticker, timestamp), and when its last byte was there."""
    data = b""
    for at, chunk in client.chunks:
        frames, data = _split(data + chunk)
        for kind, payload in frames:
            if kind == _TEXT and (match := _TIMESTAMP.search(payload)):
                yield (match[1].decode(), match[2].decode()), at


def _split(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The frames that are complete, each with its first byte; and what is there of the next."""
    frames, position = [], 0
    while len(data) - position > 1:
        start, length = position + 2, data[position + 1]
        if length == 126:
            start, length = position + 4, int.from_bytes(data[position + 2 : position + 4])
        if len(data) < start + length:
            break
        frames.append((data[position], data[start : start + length]))
        position = start + length
    return frames, data[position:]


@contextmanager
def api(folder: Path, database_url: str, redis_url: str, core: int) -> Iterator[Running]:
    running = Running(PROJECT, folder / "sockets.log")
    try:
        running.start(environment(database_url, redis_url), folder)
        running.wait_until_ready()
        pin(running.processes[0].pid, core)
        yield running
    finally:
        running.stop()


def measure_sockets(folder: Path, cores: Cores, database_url: str, redis_url: str, sockets: int, seconds: int) -> Seen:
    """`database_url` is empty, or migrated and without prices."""
    asyncio.run(migrate(database_url))
    with api(folder, database_url, redis_url, cores.server) as running, on_core(cores.load):
        return uvloop.run(measure(running, database_url, sockets, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sockets")
    parser.add_argument("--sockets", type=int, default=SOCKETS)
    parser.add_argument("--seconds", type=int, default=20)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: parser.exit(1))
    for name in Settings.model_fields:
        os.environ.pop(name.upper(), None)
    Settings.model_config["env_file"] = None
    cores = share_out(sorted(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        postgres, valkey = stack.enter_context(started_servers(folder, cores))
        seen = measure_sockets(folder, cores, postgres.url, valkey.url, asked.sockets, asked.seconds)
    for title, figure in seen.rows:
        print(f"{title}: {figure}")


if __name__ == "__main__":
    main()
