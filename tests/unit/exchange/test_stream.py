"""The stream against the simulator's sockets: each of the ways in which sockets fail."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
import uvicorn
from arq.connections import ArqRedis
from websockets.asyncio.client import connect

from shared.local.servers import free_port
from tests.unit.replies import settings_for
from worker.exchange import stream as stream_module
from worker.exchange.http import Observation
from worker.exchange.sockets import connection as connection_module
from worker.exchange.sockets.connection import Connection
from worker.exchange.stream import Stream
from worker.simulator.app import create_app
from worker.simulator.prices import spot_price
from worker.simulator.stream import PERIOD_MS, newest_message

SECOND = timedelta(seconds=1)
TICKERS = ("btc_usd", "eth_usd")


class Exchange:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._http = httpx.AsyncClient(base_url=self.url, trust_env=False)

    async def switch(self, **switches: Any) -> dict[str, Any]:
        reply = await self._http.put("/simulator/stream", json=switches)
        assert reply.is_success, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    async def close(self) -> None:
        await self._http.aclose()


@pytest.fixture(scope="module")
async def _exchange() -> AsyncIterator[Exchange]:
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(create_app(), port=port, log_config=None, lifespan="off", ws="websockets-sansio")
    )
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    exchange = Exchange(port)
    yield exchange
    await exchange.close()
    server.should_exit = True
    await serving


@pytest.fixture
async def exchange(_exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Exchange]:
    monkeypatch.setattr(stream_module, "SILENT_SECONDS", 1.2)
    monkeypatch.setattr(stream_module, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(stream_module, "FIRST_BACKOFF_SECONDS", 0.05)
    yield _exchange
    await _exchange.switch()


@pytest.fixture
async def run(exchange: Exchange) -> AsyncIterator[Callable[..., Stream]]:
    """On a Redis that is unavailable, which spaces the calls of several workers."""
    tasks: list[asyncio.Task[None]] = []
    redis = ArqRedis(port=1)

    def start(tickers: tuple[str, ...] = TICKERS) -> Stream:
        settings = settings_for(f"{exchange.url}/api/v2", tickers=",".join(tickers), fetch_interval_seconds=1)
        stream = Stream(settings, redis, lambda: datetime.now(UTC))
        tasks.append(asyncio.create_task(stream.run()))
        return stream

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await redis.aclose()


def values(stream: Stream, name: str) -> dict[str, float]:
    """A metric by its one label."""
    return {
        "".join(sample.labels.values()): sample.value
        for metric in stream.collect()
        for sample in metric.samples
        if sample.name == f"deribit_collector_{name}"
    }


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_true():
            await asyncio.sleep(0.02)


async def both_open(stream: Stream) -> None:
    await until(lambda: values(stream, "stream_sockets") == {"": 2})


async def observe(stream: Stream, ticker: str = "btc_usd") -> Observation | None:
    """In the slot of two seconds that begins now, in which a message must come."""
    return await stream.observe(ticker, datetime.now(UTC), 2 * SECOND)


async def observed_again(stream: Stream, ticker: str) -> None:
    async with asyncio.timeout(20):
        while await observe(stream, ticker) is None:
            await asyncio.sleep(0.02)


async def test_a_slot_gets_the_message_with_its_exact_digits_and_the_exchanges_clock(
    run: Callable[..., Stream],
) -> None:
    stream = run()
    await both_open(stream)
    slot = datetime.now(UTC)
    observation = await stream.observe("btc_usd", slot, 2 * SECOND)
    at = newest_message("btc_usd", round(slot.timestamp() * 1000)) + PERIOD_MS
    observed_at = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=at)
    assert observation == Observation("btc_usd", spot_price("btc_usd", observed_at), observed_at, testnet=True)
    await until(lambda: values(stream, "stream_messages_total")["repeated"] > 2)
    assert values(stream, "stream_messages_total")["unreadable"] == 0
    assert set(values(stream, "stream_age_seconds")) == set(TICKERS)


async def test_a_socket_that_is_cut_is_replaced_while_the_other_one_serves(
    run: Callable[..., Stream], exchange: Exchange
) -> None:
    stream = run()
    await both_open(stream)
    await exchange.switch(cut=True)
    await until(lambda: values(stream, "stream_reconnects_total")["closed"] == 2)
    await both_open(stream)
    assert await observe(stream) is not None


@pytest.mark.parametrize(
    ("switches", "cause", "why"),
    [
        ({"silent": ["btc_usd"]}, "silent", "btc_usd: no price for 1.2 s"),
        ({"silent": ["*"]}, "silent", "no price for 1.2 s"),
        ({"garbage": True}, "silent", "no price for 1.2 s"),
        ({"lag_seconds": 4}, "lagging", "its clock differs from ours by more than 2 s"),
    ],
)
async def test_a_socket_without_usable_messages_is_replaced_and_http_is_asked_meanwhile(
    run: Callable[..., Stream],
    exchange: Exchange,
    caplog: pytest.LogCaptureFixture,
    switches: dict[str, Any],
    cause: str,
    why: str,
) -> None:
    stream = run()
    await both_open(stream)
    assert await observe(stream) is not None
    await exchange.switch(**switches)
    await until(lambda: values(stream, "stream_reconnects_total")[cause] == 2)
    assert await observe(stream) is None
    assert any(cause in line and why in line for line in caplog.messages)
    await exchange.switch()
    await observed_again(stream, "btc_usd")


async def test_an_exchange_that_refuses_is_asked_again_with_a_backoff(
    run: Callable[..., Stream], exchange: Exchange, caplog: pytest.LogCaptureFixture
) -> None:
    await exchange.switch(refuse=True)
    stream = run()
    await until(lambda: values(stream, "stream_reconnects_total")["refused"] > 5)
    refused = [line for line in caplog.messages if "refused: InvalidStatus" in line]
    assert len(refused) == 2  # one line a socket, whatever the number of attempts
    assert await observe(stream) is None
    await exchange.switch()
    await both_open(stream)


@pytest.mark.parametrize("switch", ["duplicate", "out_of_order"])
async def test_messages_that_repeat_or_come_late_change_nothing(
    run: Callable[..., Stream], exchange: Exchange, switch: str
) -> None:
    await exchange.switch(**{switch: True})
    stream = run()
    await both_open(stream)
    for _ in range(2):
        slot = datetime.now(UTC)
        observation = await stream.observe("eth_usd", slot, 2 * SECOND)
        assert observation is not None
        assert slot <= observation.observed_at < slot + SECOND
        assert observation.price == spot_price("eth_usd", observation.observed_at)


async def test_an_index_that_is_not_acknowledged_is_reported_once_and_asked_for_again(
    run: Callable[..., Stream],
    exchange: Exchange,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_module, "ASK_AGAIN_SECONDS", 0.3)
    await exchange.switch(unacknowledged=["eth_usd"])
    stream = run((*TICKERS, "nope_usd"))
    await both_open(stream)
    assert await observe(stream, "eth_usd") is None
    assert await observe(stream) is not None
    for ticker in ("eth_usd", "eth_usd", "btc_usd"):  # HTTP does not have nope_usd, which index_check.py reports
        stream.note_http(ticker)
    await exchange.switch()
    await observed_again(stream, "eth_usd")
    reported = [(r.levelno, r.getMessage()) for r in caplog.records if "does not have" in r.getMessage()]
    assert reported == [(logging.ERROR, "the exchange's stream does not have eth_usd: asked over HTTP")]


async def test_heartbeats_are_answered_and_a_socket_that_does_not_answer_is_closed(
    run: Callable[..., Stream], exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_HEARTBEAT_SECONDS", 0.2)
    stream = run()
    async with connect(f"ws{exchange.url.removeprefix('http')}/ws/api/v2", proxy=None) as mute:
        call = {"jsonrpc": "2.0", "id": 1, "method": "public/set_heartbeat", "params": {"interval": 0.2}}
        await mute.send(json.dumps(call))
        methods = [json.loads(await mute.recv()).get("method") for _ in range(2)]
        async with asyncio.timeout(5):
            await mute.wait_closed()
        assert (methods, mute.close_code) == ([None, "heartbeat"], 4000)
    await both_open(stream)
    await asyncio.sleep(1.5)  # as long as it takes to close a socket that does not answer
    assert values(stream, "stream_reconnects_total")["closed"] == 0


async def test_an_exchange_without_heartbeats_is_reported_once_and_its_indices_are_still_watched(
    run: Callable[..., Stream], exchange: Exchange, caplog: pytest.LogCaptureFixture
) -> None:
    await exchange.switch(no_heartbeats=True)
    stream = run()
    await both_open(stream)
    assert await observe(stream) is not None
    await exchange.switch(no_heartbeats=True, silent=["*"])
    await until(lambda: values(stream, "stream_reconnects_total")["silent"] == 2)
    lines = [line for line in caplog.messages if "heartbeats" in line]
    assert lines == ["the exchange's stream sends no heartbeats: RPC_11050: bad_request"]


async def test_the_platforms_state_is_known_while_it_lasts(run: Callable[..., Stream], exchange: Exchange) -> None:
    stream = run()
    await both_open(stream)
    await exchange.switch(locked=["btc_usd"])
    await until(lambda: stream.state_of("btc_usd") is not None)
    assert stream.state_of("btc_usd") == "INDEX_LOCKED: the exchange has locked this index: simulated"
    assert stream.state_of("eth_usd") is None
    await asyncio.sleep(1.5)  # a locked index is not a silent one
    assert values(stream, "stream_reconnects_total")["silent"] == 0
    await exchange.switch(maintenance=True)
    await until(lambda: stream.state_of("eth_usd") is not None)
    assert stream.state_of("eth_usd") == "MAINTENANCE: the exchange announced a maintenance"
    await asyncio.sleep(1.5)  # so is each index during a maintenance
    assert values(stream, "stream_reconnects_total")["silent"] == 0
    await exchange.switch()
    await until(lambda: stream.state_of("btc_usd") is None and stream.state_of("eth_usd") is None)
    assert await observe(stream) is not None  # each index has its time again before it is silent
    assert values(stream, "stream_reconnects_total")["silent"] == 0


async def test_a_socket_that_died_during_a_maintenance_is_replaced(
    run: Callable[..., Stream], exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "DEAD_SECONDS", 1.0)
    stream = run()
    await both_open(stream)
    await exchange.switch(maintenance=True)
    await until(lambda: values(stream, "stream_reconnects_total")["silent"] > 0)
    assert stream.state_of("btc_usd") is not None


async def test_an_old_socket_is_replaced_before_it_is_closed(
    run: Callable[..., Stream], monkeypatch: pytest.MonkeyPatch, exchange: Exchange, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(stream_module, "LIFE_SECONDS", 0.6)
    is_closed_first: list[bool] = []
    close = Connection.close

    async def noting_close(connection: Connection) -> None:
        is_closed_first.append(connection in stream._connections.values())
        await close(connection)

    monkeypatch.setattr(Connection, "close", noting_close)
    stream = run()
    await both_open(stream)
    fewest = 2.0

    def is_replaced() -> bool:
        nonlocal fewest
        fewest = min(fewest, values(stream, "stream_sockets")[""])
        return values(stream, "stream_reconnects_total")["aged"] >= 4

    await until(is_replaced)
    assert fewest == 2
    assert is_closed_first
    assert not any(is_closed_first)
    lines = [line for line in caplog.messages if "replaced" in line]
    assert set(lines) == {f"stream socket {number} is replaced, aged: as planned" for number in (1, 2)}
    assert len(lines) == values(stream, "stream_reconnects_total")["aged"]
    assert (await exchange.switch())["sockets"] <= 4


async def test_many_indices_are_subscribed_in_calls_that_the_exchange_takes(run: Callable[..., Stream]) -> None:
    stream = run(tuple(f"sim{number}_usd" for number in range(600)))
    await both_open(stream)
    assert await observe(stream, "sim599_usd") is not None


async def test_a_price_is_never_a_float() -> None:
    stream = Stream(settings_for(fetch_interval_seconds=1), ArqRedis(), lambda: datetime.now(UTC))
    assert stream.receive(Observation("btc_usd", Decimal("1.10"), datetime.now(UTC), False))
    assert str((await stream.observe("btc_usd", datetime.now(UTC) - SECOND, 2 * SECOND)).price) == "1.10"  # type: ignore[union-attr]
