"""HTTP pipelining, and a client that does not wait for its answers."""

import asyncio
import json
import time
from contextlib import suppress

import asyncpg
from arq.connections import ArqRedis

from server.transport.http import HttpProtocol
from shared.config.settings import Settings
from shared.storage.database import Pool, fetch
from tests.fuzz.inputs import post
from tests.integration.api_process import run_api
from tests.integration.live import serve_live

READ_AT_ONCE = 256 * 1024
"By asyncio, of one connection."

WAITING = """
    select count(*)
    from pg_stat_activity
    where application_name = 'server'
      and wait_event_type = 'Lock'
"""


async def test_a_client_that_leaves_before_the_first_pipelined_answer_leaves_no_trace(
    settings: Settings, pool: Pool
) -> None:
    blocking = await asyncpg.connect(settings.database_url)
    async with run_api(settings) as api:
        try:
            for number in range(3):
                query = (
                    f"{{ a{number}: latestPrices {{ price }} }}"  # another one each time, because answers are cached
                )
                asked = post(json.dumps({"query": query}).encode()).replace(b"Connection: close\r\n", b"") * 3
                async with asyncio.timeout(30), blocking.transaction():
                    await blocking.execute("lock table prices in access exclusive mode")
                    _, writer = await asyncio.open_connection("127.0.0.1", api.port)
                    try:
                        writer.write(asked)
                        while not (await fetch(pool, WAITING))[0][0]:
                            await asyncio.sleep(0.01)
                    finally:
                        writer.transport.abort()
                    assert (await api.http.get("/livez")).text == "ok\n"  # which comes after the news of that
                assert await api.execute("{ latestPrices { price } }") == {"data": {"latestPrices": []}}
        finally:
            await blocking.close()
    assert "Traceback" not in api.final_log, api.final_log


async def test_no_more_is_read_than_is_answered(settings: Settings, pool: Pool, redis: ArqRedis) -> None:
    asked = post(b'{"query": "{ nothing }%s"}' % (b" " * 10_000)).replace(b"Connection: close\r\n", b"")
    most = 0
    async with serve_live(settings) as live:
        _, writer = await asyncio.open_connection("127.0.0.1", live.port)
        try:
            until = time.monotonic() + 1
            while time.monotonic() < until:
                writer.write(asked * 20)
                with suppress(TimeoutError):
                    await asyncio.wait_for(writer.drain(), 0.01)
                await asyncio.sleep(0)
                most = max(
                    [
                        most,
                        *(
                            len(one.pipeline)
                            for one in live.server.server_state.connections
                            if isinstance(one, HttpProtocol)
                        ),
                    ]
                )
        finally:
            writer.transport.abort()
    assert 0 < most <= READ_AT_ONCE // len(asked) + 1
