"""A million prices as a file, beside other requests; and a thousand instants in ten million rows.

`python -m tests.bench.exports` measures both in four minutes and writes EXPORTS.md.
"""

import asyncio
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from asyncio.subprocess import PIPE
from collections.abc import Awaitable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TypeVar
from urllib.parse import urlencode

import asyncpg

from shared.migrate import migrate
from tests.bench.instants import measure_instants
from tests.bench.load import quantile
from tests.bench.machine import Cores, describe_cpu, pin, rss_mib, share_out
from tests.bench.peers import ROOT
from tests.bench.report import as_markdown, commit
from tests.bench.rows import BEGIN, POSTGRES_OPTIONS, SECOND, TICKERS, History, load
from tests.bench.servers import started_servers
from tests.embedded import free_port

T = TypeVar("T")
FILE = Path(__file__).parent / "EXPORTS.md"
ROWS = 10_000_000
EXPORTED = 1_000_000
EXPORTS = 3
RATE, CONNECTIONS, CALM_SECONDS = 200, 4, 5.0
LINES = (
    "rows a second",
    "size of the file",
    "memory, growth at most",
    "other requests, p99 meanwhile",
    "p99 just before",
)
ENCODINGS = {"identity": "as it is", "gzip": "gzip"}

METHOD = """
## How it is measured

`python -m tests.bench.exports`: a price a second of four tickers, as in [ROWS.md](ROWS.md); PostgreSQL with 2 GB
of shared buffers and fsync off. One API process runs on a core of its own; PostgreSQL uses both cores, the clients the
other one.

- Each export is a million prices, read by a process of its own that unpacks them and counts their lines. It has started
  before the measurement begins, because the start of a Python process delays the other clients. Figures are medians of
  {exports} exports.
- Meanwhile, and for five seconds before each export, {connections} clients ask for `latestPrice` {rate} times a second,
  no two requests alike. p99 is the middle one of the exports.
- Memory is the growth of the API's resident set, at most, over what it was before the first export.
- The thousand instants are spread evenly over all the prices of a ticker, each between two prices. Those in gaps lie in
  a day of which every other ten minutes are missing; each answer names its gap. The time is PostgreSQL's
  execution time (pg_stat_statements), the median of batches of 20, prepared and with the pages in memory.
"""


def read(port: int, encoding: str) -> None:
    """In a process of its own: one export, its lines, seconds and bytes as JSON. Begins when it reads a line."""
    given = {"ticker": TICKERS[0], "from": BEGIN.isoformat(), "to": (BEGIN + EXPORTED * SECOND).isoformat()}
    connection = http.client.HTTPConnection("127.0.0.1", port)
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    connection.request("GET", f"/export/prices.csv?{urlencode(given)}", headers={"Accept-Encoding": encoding})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    unzip = zlib.decompressobj(zlib.MAX_WBITS | 16) if encoding == "gzip" else None
    lines = size = 0
    while piece := response.read1(1 << 18):
        size += len(piece)
        lines += (piece if unzip is None else unzip.decompress(piece)).count(b"\n")
    assert unzip is None or unzip.eof
    print(json.dumps([lines - 1, time.monotonic() - began, size]))


class Probe:
    """Other requests, and how long each of them took, in ms."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._number = 0

    async def ask(self, until: asyncio.Event) -> list[float]:
        found = await asyncio.gather(*(self._client(number / RATE, until) for number in range(CONNECTIONS)))
        return sorted(one for part in found for one in part)

    async def _client(self, offset: float, until: asyncio.Event) -> list[float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        clock, latencies = asyncio.get_running_loop().time, []
        due = clock() + offset
        while not until.is_set():
            await asyncio.sleep(due - clock())
            writer.write(self._request())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            [length] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            await reader.readexactly(int(length[15:]))
            latencies.append((clock() - due) * 1000)
            due = max(due + CONNECTIONS / RATE, clock())
        writer.close()
        return latencies

    def _request(self) -> bytes:
        self._number += 1
        query = "query ($t: String!) { latestPrice(ticker: $t) { price timestamp source } }"
        body = json.dumps({"query": query, "variables": {"t": TICKERS[0], "n": self._number}}).encode()
        head = "POST /graphql HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def measure_exports(pid: int, port: int, cores: Cores) -> list[list[str]]:
    probe = Probe(port)
    for _ in range(100):
        try:
            await _during(asyncio.sleep(1), probe)
            break
        except OSError:
            await asyncio.sleep(0.1)
    base, table = rss_mib(pid), [["", *ENCODINGS.values()]]
    columns = []
    for encoding in ENCODINGS:
        rates, p99s, calm, sizes, growths = [], [], [], [], []
        for _ in range(EXPORTS):
            memory: list[float] = []
            watching = asyncio.create_task(_watch_memory(pid, memory))
            command = [sys.executable, "-m", "tests.bench.exports", str(port), encoding]
            process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=PIPE, stdout=PIPE)
            pin(process.pid, cores.load)
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdout.readline()
            _, latencies = await _during(asyncio.sleep(CALM_SECONDS), probe)
            calm.append(quantile(latencies, 0.99))
            process.stdin.write(b"\n")
            answer, latencies = await _during(process.stdout.readline(), probe)
            watching.cancel()
            lines, seconds, size = json.loads(answer)
            await process.wait()
            assert lines == EXPORTED, lines
            rates.append(lines / seconds)
            p99s.append(quantile(latencies, 0.99))
            sizes.append(size / 1e6)
            growths.append(max(memory) - base)
        columns.append([f"{median(rates):,.0f}", f"{median(sizes):.1f} MB", f"{max(growths):.1f} MiB"])
        columns[-1] += [f"{median(p99s):.1f} ms", f"{median(calm):.1f} ms"]
    return table + [[name, *row] for name, row in zip(LINES, zip(*columns, strict=True), strict=True)]


async def _watch_memory(pid: int, found: list[float]) -> None:
    while True:
        found.append(rss_mib(pid))
        await asyncio.sleep(0.05)


async def _during(work: Awaitable[T], probe: Probe) -> tuple[T, list[float]]:
    until = asyncio.Event()
    asking = asyncio.create_task(probe.ask(until))
    done = await work
    until.set()
    return done, await asking


async def _prepare(dsn: str) -> list[list[str]]:
    await migrate(dsn)
    connection = await asyncpg.connect(dsn)
    await connection.execute("create extension pg_stat_statements")
    await load(connection, dsn, History(ROWS // len(TICKERS)))
    found = await measure_instants(connection, dsn, ROWS // len(TICKERS))
    await connection.execute("checkpoint")  # not during the exports
    await connection.close()
    return found


def main() -> None:
    cores, cpu = share_out(sorted(os.sched_getaffinity(0))), describe_cpu()
    with (
        tempfile.TemporaryDirectory() as name,
        started_servers(Path(name), cores, POSTGRES_OPTIONS) as (postgres, valkey),
    ):
        instants = asyncio.run(_prepare(postgres.url))
        print(instants, flush=True)
        port = free_port()
        env = {"DATABASE_URL": postgres.url, "REDIS_URL": valkey.url, "PORT": str(port), "DRAIN_SECONDS": "0"}
        env |= {"TICKERS": ",".join(TICKERS), "FETCH_INTERVAL_SECONDS": "1"}
        command = [sys.executable, "-m", "server"]
        with subprocess.Popen(command, env={**os.environ, **env}, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            pin(process.pid, cores.server)
            pin(os.getpid(), cores.load)
            try:
                exports = asyncio.run(measure_exports(process.pid, port, cores))
            finally:
                process.terminate()
    head = "# A million prices as a file, and a thousand instants in ten million rows\n\n"
    head += f"{cpu}, {datetime.now(UTC):%Y-%m-%d}, commit {commit()}.\n\n"
    tables = f"{as_markdown(exports)}\n\n{as_markdown(instants)}\n"
    method = METHOD.format(exports=EXPORTS, rate=RATE, connections=CONNECTIONS)
    FILE.write_text(head + tables + method, encoding="utf-8")
    print(tables)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        read(int(sys.argv[1]), sys.argv[2])
    else:
        main()
