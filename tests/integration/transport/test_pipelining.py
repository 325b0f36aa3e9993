"""HTTP pipelining, and a client that does not wait for its answers."""

import asyncio
import json

import asyncpg

from shared.config.settings import Settings
from shared.storage.database import Pool, fetch
from tests.fuzz.inputs import post
from tests.integration.api_process import run_api

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
                    writer.write(asked)
                    while not (await fetch(pool, WAITING))[0][0]:
                        await asyncio.sleep(0.01)
                    writer.transport.abort()
                    assert (await api.http.get("/livez")).text == "ok\n"  # which comes after the news of that
                assert await api.execute("{ latestPrices { price } }") == {"data": {"latestPrices": []}}
        finally:
            await blocking.close()
    assert "Traceback" not in api.final_log, api.final_log
