"""The worker on the exchange's stream, a price a second: slots, CPU, and how old a price is in a subscriber's frame.

`python -m tests.bench.streaming` measures 50 and 200 tickers alone. The stand-in's messages carry its clock, which is
this machine's, so the latency is from the exchange's timestamp to the frame. A message waits for its slot's job.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from shared.migrate import migrate
from tests.bench import collecting
from tests.bench.figures import create_database
from tests.bench.load import quantile
from tests.bench.machine import Cores, cpu_seconds, pin, share_out
from tests.bench.peers import PROJECT, Running, environment
from tests.bench.servers import started_servers

QUERY = "subscription { priceUpdates { timestamp observedAt } }"
AFTER_SECONDS = 2.0


@dataclass(frozen=True)
class Streamed:
    """Milliseconds, cores. `missed`: slots without a price of their own; `frames`: those that the latencies are of."""

    tickers: int
    slots: int
    missed: int
    over_http: int
    cores: float
    frames: int
    p50: float
    p99: float

    @property
    def rows(self) -> list[list[str]]:
        what = f"{self.tickers} tickers a second on the stream"
        return [
            [f"slots missed, {what}", f"{self.missed} of {self.slots}"],
            ["slots observed over HTTP meanwhile", f"{self.over_http}"],
            ["CPU of the worker meanwhile", f"{self.cores:.2f} cores"],
            [f"{what}, the exchange's timestamp to the subscriber's frame, p50", f"{self.p50:.0f} ms"],
            ["the same, p99", f"{self.p99:.0f} ms"],
        ]


def measure(folder: Path, cores: Cores, database_url: str, redis_url: str, tickers: int, seconds: int) -> Streamed:
    asyncio.run(migrate(database_url))
    api = Running(PROJECT, folder / "streaming-api.log")
    names = tuple(f"sim{number}_usd" for number in range(tickers))
    with ExitStack() as stack:
        stack.callback(api.stop)
        worker = stack.enter_context(
            collecting.worker(folder, cores, database_url, redis_url, tickers=names, interval=1, stream="1")
        )
        api.start(environment(database_url, redis_url, TICKERS=",".join(names), FETCH_INTERVAL_SECONDS="1"), folder)
        api.wait_until_ready()
        pin(api.processes[0].pid, cores.server)
        return asyncio.run(_measure(worker, api.ports[0], database_url, tickers, seconds))


async def _measure(worker: int, port: int, database_url: str, tickers: int, seconds: int) -> Streamed:
    await collecting.wait_for_first_fill(database_url, tickers)
    latencies: dict[datetime, list[float]] = {}
    following = asyncio.create_task(_follow(port, latencies))
    start = datetime.fromtimestamp(int(time.time()) + 3, UTC)
    end = start + timedelta(seconds=seconds)
    await asyncio.sleep(start.timestamp() - time.time())
    used, since = cpu_seconds(worker), time.perf_counter()
    await asyncio.sleep(end.timestamp() - time.time())
    used, lasted = cpu_seconds(worker) - used, time.perf_counter() - since
    await asyncio.sleep(AFTER_SECONDS)  # the last slot is stored by now, or it is missed
    following.cancel()
    connection = await asyncpg.connect(database_url)
    try:
        # A message's time is in whole milliseconds; a reply's clock is to the microsecond.
        sql = """
            select
                count(*) as stored,
                count(*) filter (where extract(microseconds from observed_at)::int % 1000 > 0) as http
            from prices
            where source = 'SCHEDULED' and timestamp >= $1 and timestamp < $2
        """
        found = await connection.fetchrow(sql, start, end)
    finally:
        await connection.close()
    assert found is not None
    seen = sorted(ms for slot, of_slot in latencies.items() if start <= slot < end for ms in of_slot)
    slots = tickers * seconds
    p50, p99 = quantile(seen, 0.5), quantile(seen, 0.99)
    return Streamed(tickers, slots, slots - found["stored"], found["http"], used / lasted, len(seen), p50, p99)


async def _follow(port: int, latencies: dict[datetime, list[float]]) -> None:
    """By slot, how old each price was when its frame came, in ms."""
    protocols = [Subprotocol("graphql-transport-ws")]
    async with connect(f"ws://127.0.0.1:{port}/graphql", subprotocols=protocols, max_queue=None) as socket:
        await socket.send('{"type":"connection_init"}')
        await socket.send(json.dumps({"type": "subscribe", "id": "1", "payload": {"query": QUERY}}))
        async for text in socket:
            now = time.time()
            message = json.loads(text)
            if message["type"] == "next":
                price = message["payload"]["data"]["priceUpdates"]
                observed_at = datetime.fromisoformat(price["observedAt"]).timestamp()
                latencies.setdefault(datetime.fromisoformat(price["timestamp"]), []).append((now - observed_at) * 1000)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.streaming")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--tickers", type=int, nargs="*", default=[50, 200])
    asked = parser.parse_args()
    cores = share_out(sorted(os.sched_getaffinity(0)))
    for tickers in asked.tickers:
        with tempfile.TemporaryDirectory() as folder, started_servers(Path(folder), cores) as (postgres, valkey):
            url = asyncio.run(create_database(postgres.url, "streaming"))
            streamed = measure(Path(folder), cores, url, valkey.url, tickers, asked.seconds)
            for row in streamed.rows:
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
