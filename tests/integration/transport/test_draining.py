"""Shutdown: SIGTERM drains, SIGINT or a second signal ends the process at once."""

import asyncio
import json
import signal
import socket as sockets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from server.__main__ import CUT_SHORT
from server.app import create_app
from server.process import REPEATED_SECONDS
from shared.config.settings import Settings
from shared.storage.database import Pool, fetch
from shared.storage.prices import insert_prices
from tests.integration.api_process import ApiProcess, run_api
from tests.integration.live import FOLLOW, PRICES, Socket, at, price, serve_live, spelled

QUERY = "{ latestPrices { price } }"
ANSWER: dict[str, Any] = {"data": {"latestPrices": []}}
STREAM = {"query": "subscription { priceUpdates { price } }"}
EVENT_STREAM = {"accept": "text/event-stream"}
WAITING = "select count(*) from pg_stat_activity where application_name = 'server' and wait_event_type = 'Lock'"
DRAINING = {"status": "draining", "reason": "this process was told to end: ask another one", "dependencies": {}}


@asynccontextmanager
async def follower(api: ApiProcess) -> AsyncIterator[Socket]:
    url = f"ws://127.0.0.1:{api.port}/graphql"
    async with connect(url, subprotocols=[Subprotocol("graphql-transport-ws")], proxy=None) as connection:
        socket = Socket(connection)
        await socket.send(type="connection_init")
        assert await socket.receive() == {"type": "connection_ack"}
        await socket.subscribe(FOLLOW)
        yield socket


async def until_draining(api: ApiProcess) -> httpx.Response:
    """Answers what /readyz says then. On a connection of its own, which the answer ends."""
    async with asyncio.timeout(20):
        while True:
            async with httpx.AsyncClient(trust_env=False) as http:
                ready = await http.get(f"http://127.0.0.1:{api.port}/readyz")
            if ready.status_code == 503:
                return ready
            await asyncio.sleep(0.02)


async def code_of(api: ApiProcess) -> int:
    return await asyncio.to_thread(api.process.wait, 20)


async def test_sigterm_drains_and_a_second_one_ends_the_process(settings: Settings, pool: Pool) -> None:
    async with run_api(settings, DRAIN_SECONDS="600") as api, follower(api) as socket:
        before = await api.http.post("/graphql", json={"query": QUERY})
        assert (before.status_code, before.json(), before.headers.get("connection")) == (200, ANSWER, None)
        api.process.terminate()
        api.process.terminate()  # as `timeout` does; one of them is enough, and both are one
        ready = await until_draining(api)
        assert (ready.json(), ready.headers["cache-control"]) == (DRAINING, "no-store")

        # The next answer on a kept connection closes it, and so does the first one on a new connection.
        for client in (api.http, httpx.AsyncClient(base_url=api.http.base_url, trust_env=False)):
            answer = await client.post("/graphql", json={"query": QUERY})
            assert (answer.status_code, answer.json(), answer.headers.get("connection")) == (200, ANSWER, "close")
        assert (await api.http.get("/livez")).status_code == 200
        async with follower(api) as new:
            await insert_prices(pool, [price("btc_usd", 0)])
            for one in (socket, new):
                assert await one.prices(1) == spelled([price("btc_usd", 0)])

        await asyncio.sleep(REPEATED_SECONDS)
        api.process.terminate()
        assert (await socket.closed(20))[0] == 1012
        assert await code_of(api) == CUT_SHORT


async def test_after_draining_sockets_and_streams_are_closed(settings: Settings, pool: Pool) -> None:
    async with run_api(settings, DRAIN_SECONDS="1") as api, follower(api) as one, follower(api) as two:
        async with api.http.stream("POST", "/graphql", json=STREAM, headers=EVENT_STREAM) as stream:
            api.process.terminate()
            text = "".join([chunk async for chunk in stream.aiter_text()])
            assert "complete" not in text
        assert [(await socket.closed())[0] for socket in (one, two)] == [1012, 1012]
        assert await code_of(api) == 0
    assert "draining for 1 s" in api.final_log
    assert "ERROR" not in api.final_log


async def test_a_running_request_is_answered_during_shutdown(settings: Settings, pool: Pool) -> None:
    async with run_api(settings) as api:
        connection = await pool.take(time.monotonic() + 5)
        try:
            async with connection.transaction():
                await connection.execute("lock table prices in access exclusive mode")
                asking = asyncio.create_task(api.execute(QUERY))
                async with asyncio.timeout(10):
                    while not (await fetch(pool, WAITING))[0][0]:
                        assert not asking.done()
                        await asyncio.sleep(0.01)
                api.process.terminate()
                async with asyncio.timeout(10):
                    while "Shutting down" not in api.log:
                        await asyncio.sleep(0.01)
        finally:
            pool.give_back(connection)
        answer = await asking  # late, on a busy machine; but an answer
        assert answer == ANSWER or answer["errors"][0]["extensions"] == {"code": "STORAGE_UNAVAILABLE"}
        assert await code_of(api) == 0


async def test_the_app_can_be_closed_right_after_its_start(settings: Settings, pool: Pool) -> None:
    """redis-py can lose a cancellation while it connects; the job feed ran on, and shutdown waited for it."""
    for number in range(100):
        app = create_app(settings)
        async with asyncio.timeout(20), app.router.lifespan_context(app):
            await asyncio.sleep(number / 10_000)


async def test_ctrl_c_does_not_drain(settings: Settings, pool: Pool) -> None:
    async with run_api(settings, DRAIN_SECONDS="600") as api, follower(api) as socket:
        api.process.send_signal(signal.SIGINT)
        assert (await socket.closed(20))[0] == 1012
        assert await code_of(api) == 0
    assert "draining" not in api.final_log


async def test_an_unread_event_stream_does_not_delay_shutdown(
    settings: Settings, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    """Its client reads nothing and stays connected, so shutdown would wait for it to read the rest."""
    fields = " ".join(f"t{number}: timestamp" for number in range(40))  # long events, so that few fill the buffers
    body = json.dumps({"query": PRICES % fields, "variables": {"since": at(-1)}}).encode()
    await insert_prices(pool, [price("btc_usd", minute) for minute in range(5000)])
    own = sockets.socket()
    own.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    own.setblocking(False)
    async with serve_live(settings) as api:
        await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", api.port))
        reader, writer = await asyncio.open_connection(sock=own, limit=1024)
        head = "POST /graphql HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\naccept: text/event-stream\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        try:
            await reader.readuntil(b":\n\n")
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            [connection] = api.server.server_state.connections
            async with asyncio.timeout(20):
                while not connection.transport.get_write_buffer_size():
                    await asyncio.sleep(0.02)
        except BaseException:
            writer.transport.abort()
            raise
        api.server.should_exit = True
    writer.transport.abort()
    assert [record.message for record in caplog.records if "graceful shutdown exceeded" in record.message] == []
