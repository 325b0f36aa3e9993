"""The stream against an exchange that sends anything: only prices are used, and nothing stops."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from arq.connections import ArqRedis
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.unit.exchange.test_stream import until, values
from tests.unit.replies import settings_for
from worker.exchange import stream as stream_module
from worker.exchange.http import Observation
from worker.exchange.stream import Stream

NOW = time.time_ns() // 1_000_000
DIGITS = "91234.567890123456789012345678901234567890"


def price(**changes: Any) -> dict[str, Any]:
    data = {"timestamp": NOW, "price": 1.5, "index_name": "btc_usd"} | changes
    return {
        "jsonrpc": "2.0",
        "method": "subscription",
        "params": {"channel": "deribit_price_index.btc_usd", "data": data},
    }


def text(**changes: str) -> str:
    """A message whose members are given as text."""
    data = {"timestamp": str(NOW), "price": "1.5", "index_name": '"btc_usd"'} | changes
    members = ",".join(f'"{name}":{value}' for name, value in data.items())
    return f'{{"method":"subscription","params":{{"channel":"deribit_price_index.btc_usd","data":{{{members}}}}}}}'


UNREADABLE: list[str | bytes] = [
    "",
    "null",
    "[]",
    "1",
    '"text"',
    "{",
    "{}",
    "[" * 60_000,
    "9" * 5_000,
    b"\xff\xfe\xfd",
    '{"id":"1","result":[]}',
    '{"method":"subscription"}',
    '{"method":"subscription","params":[]}',
    '{"method":"subscription","params":{"channel":1,"data":{}}}',
    '{"method":"subscription","params":{"channel":"deribit_price_index.btc_usd","data":[]}}',
    *(
        text(price=value)
        for value in (
            *("null", "true", '"1.5"', "[1.5]", "{}", "0", "-1.5", "NaN", "Infinity", "-Infinity"),
            *("1e400", "1e99999999999999999999", "1e-400", "9" * 61, "0." + "1" * 30_000, "1" * 4_301),
        )
    ),
    *(
        text(timestamp=value)
        for value in (
            "null",
            "true",
            f'"{NOW}"',
            f"{NOW}.5",
            "NaN",
            "-1e400",
            "9" * 30,
            "9" * 4_301,
            "[]",
            f"-{'9' * 30}",
        )
    ),
    text(index_name='"eth_usd"'),
    text(index_name="1"),
    json.dumps(price()).replace("deribit_price_index.btc_usd", "deribit_price_index.eth_usd"),
    json.dumps(price()).replace("deribit_price_index.btc_usd", "\\ud800"),
    "{}" + " " * 60_000,
]
OF_ANOTHER_TIME = [price(timestamp=NOW + ms) for ms in (-86_400_000, -60_000, 60_000, 86_400_000)]
HARMLESS = [
    '{"id":99,"result":[]}',
    '{"id":true,"result":[]}',
    '{"method":"heartbeat"}',
    '{"method":"heartbeat","params":{"type":"heartbeat"}}',
    '{"method":"subscription","params":{"channel":"platform_state","data":{"maintenance":[]}}}',
]

Sends = Callable[[ServerConnection], Any]


@asynccontextmanager
async def stream_from(sends: Sends) -> AsyncIterator[Stream]:
    """A stream of `btc_usd` from an exchange that acknowledges what is asked, and then sends something."""

    async def answer(socket: ServerConnection) -> None:
        try:
            async for call in socket:
                asked = json.loads(call)
                await socket.send(json.dumps({"id": asked["id"], "result": asked["params"].get("channels", "ok")}))
                if asked["method"] == "public/subscribe":
                    await sends(socket)
        except ConnectionClosed:
            pass

    async with serve(answer, "127.0.0.1", 0, max_size=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        settings = settings_for(f"http://127.0.0.1:{port}/api/v2", tickers="btc_usd", fetch_interval_seconds=1)
        redis = ArqRedis(port=1)
        stream = Stream(settings, redis, lambda: datetime.now(UTC))
        running = asyncio.create_task(stream.run())
        yield stream
        assert not running.done()
        running.cancel()
        await asyncio.wait([running])
        await redis.aclose()


async def test_only_prices_are_used_whatever_else_is_sent() -> None:
    at = [time.time_ns() // 1_000_000]

    async def send(socket: ServerConnection) -> None:
        for frame in [*UNREADABLE, *map(json.dumps, OF_ANOTHER_TIME), *HARMLESS]:
            await socket.send(frame)
        await socket.send(text(timestamp=str(at[0]), price=DIGITS))
        await socket.send(text(timestamp=str(at[0]), price="1.5"))

    async with stream_from(send) as stream:
        await until(lambda: values(stream, "stream_messages_total")["repeated"] == 3)
        assert values(stream, "stream_messages_total") == {
            "used": 1,
            "repeated": 3,
            "lagging": 2 * len(OF_ANOTHER_TIME),
            "unreadable": 2 * len(UNREADABLE),
        }
        observed_at = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=at[0])
        found = await stream.observe("btc_usd", observed_at, timedelta(seconds=1))
        assert found == Observation("btc_usd", Decimal(DIGITS), observed_at, testnet=False)
        assert values(stream, "stream_sockets") == {"": 2}
        assert sum(values(stream, "stream_reconnects_total").values()) == 0


async def test_a_frame_of_ten_megabytes_is_not_read_and_the_socket_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "FIRST_BACKOFF_SECONDS", 0.05)
    left = [2]

    async def send(socket: ServerConnection) -> None:
        if left[0]:
            left[0] -= 1
            await socket.send("[" + "1," * 5_000_000 + "1]")
        await socket.send(text(timestamp=str(time.time_ns() // 1_000_000)))

    async with stream_from(send) as stream:
        await until(lambda: values(stream, "stream_reconnects_total")["closed"] == 2)
        await until(lambda: values(stream, "stream_messages_total")["used"] > 0)


async def test_sockets_are_replaced_ever_more_rarely_if_an_index_has_only_the_first_price(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As an index whose others are no longer computed: every new socket begins with its last price."""
    for name, seconds in (("SILENT", 0.3), ("CHECK", 0.05), ("WELL", 0.1), ("FIRST_BACKOFF", 0.2)):
        monkeypatch.setattr(stream_module, f"{name}_SECONDS", seconds)

    async def send(socket: ServerConnection) -> None:
        await asyncio.sleep(0.05)  # until the acknowledgement is read
        await socket.send(text(timestamp=str(time.time_ns() // 1_000_000)))

    async with stream_from(send) as stream:
        await until(lambda: values(stream, "stream_reconnects_total")["silent"] >= 6)
    pauses = [float(found[1]) for found in re.finditer(r"socket 1 is replaced in ([\d.]+) s, silent", caplog.text)]
    assert len(pauses) >= 3
    assert pauses[:3] == sorted(set(pauses[:3]))
