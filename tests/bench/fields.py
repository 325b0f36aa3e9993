"""`python -m tests.bench.fields`: what each query field costs the API. Some three minutes; writes FIELDS.md."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode

import asyncpg
import psutil

from tests.bench.data import LAST_MINUTE, POSTGRES_OPTIONS, fill
from tests.bench.machine import describe_cpu
from tests.bench.report import commit
from tests.embedded import free_port, start_postgres, start_valkey

ROOT = Path(__file__).parents[2]
ROWS = 60_000
ROUNDS = 5
CLIENTS = 8
LAST = datetime.fromisoformat(LAST_MINUTE)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
PRICE = "price timestamp source"

FIELDS = Path(__file__).parent / "FIELDS.md"
HEAD = """# What each query field costs the API

CPU time of the API's process for each request, by the operating system's accounting, as a multiple of POST
`latestPrice` (new: {base:.0f} µs). "New" means that no two requests of a row are alike; "again" means that all are,
while nothing is stored. `python -m tests.bench.fields` on {date:%Y-%m-%d}, commit {commit}, {cpu}.

| field | new | again |
|---|---:|---:|
"""

Build = Callable[[int], tuple[str, dict[str, Any]]]


def _latest(number: int) -> tuple[str, dict[str, Any]]:
    return f"query ($t: String!) {{ latestPrice(ticker: $t) {{ {PRICE} }} }}", {"t": "btc_usd", "n": number}


def _candles(minutes: int) -> Build:
    query = """query ($t: String!, $a: DateTime!, $b: DateTime!, $l: Int!) {
        candles(ticker: $t, interval: ONE_MINUTE, fromDt: $a, toDt: $b, limit: $l)
        { ticker start open high low close samples complete }
    }"""

    def build(number: int) -> tuple[str, dict[str, Any]]:
        end = LAST - (number % 20_000) * MINUTE
        begin = end - (minutes - 1) * MINUTE
        return query, {"t": "btc_usd", "a": begin.isoformat(), "b": end.isoformat(), "l": minutes, "n": number}

    return build


def _coverage(hours: int) -> Build:
    query = """query ($t: String!, $a: DateTime!, $b: DateTime!) {
        coverage(ticker: $t, fromDt: $a, toDt: $b) { expected present ratio gaps(limit: 5) { fromDt toDt reason } }
    }"""

    def build(number: int) -> tuple[str, dict[str, Any]]:
        end = LAST - (number % 20_000) * MINUTE
        begin = end - hours * HOUR
        return query, {"t": "btc_usd", "a": begin.isoformat(), "b": end.isoformat(), "n": number}

    return build


def _history(directive: str) -> Build:
    query = f"""query ($t: String!, $before: DateTime!) {{
        priceHistory(ticker: $t, limit: 100, before: $before) {{ {PRICE} {directive} }}
    }}"""
    return lambda number: (
        query,
        {"t": "btc_usd", "before": (LAST - (number % 20_000) * MINUTE).isoformat(), "n": number},
    )


def _prices_at(count: int) -> Build:
    query = f"""query ($t: String!, $at: [DateTime!]!) {{
        pricesAt(ticker: $t, at: $at) {{ at ageSeconds price {{ {PRICE} }} gap {{ fromDt toDt reason }} }}
    }}"""

    def build(number: int) -> tuple[str, dict[str, Any]]:
        """Every two hours backwards, as an accountant asks: each instant between two prices."""
        last = LAST - (number % 20_000) * MINUTE
        instants = [(last - n * 2 * HOUR + timedelta(seconds=17)).isoformat() for n in range(count)]
        return query, {"t": "btc_usd", "at": instants, "n": number}

    return build


def _statistics(hours: int) -> Build:
    query = """query ($t: String!, $a: DateTime!, $b: DateTime!) {
        statistics(ticker: $t, fromDt: $a, toDt: $b) {
            open { price timestamp } close { price timestamp } high { price timestamp } low { price timestamp }
            change changePercent twap realizedVolatility samples coverage { expected present ratio }
        }
    }"""

    def build(number: int) -> tuple[str, dict[str, Any]]:
        end = LAST - (number % 20_000) * MINUTE
        return query, {"t": "btc_usd", "a": (end - hours * HOUR).isoformat(), "b": end.isoformat(), "n": number}

    return build


QUESTIONS: dict[str, tuple[str, Build]] = {
    "latestPrice": ("POST", _latest),
    "latestPrice by GET": ("GET", _latest),
    "latestPrice, maxAgeSeconds": (
        "POST",
        lambda n: (
            f"query ($t: String!) {{ latestPrice(ticker: $t, maxAgeSeconds: 1000000000) {{ {PRICE} }} }}",
            {"t": "btc_usd", "n": n},
        ),
    ),
    "priceHistory 100": ("POST", _history("")),
    "priceHistory 100 by GET": ("GET", _history("")),
    "priceHistory 100, @include": ("POST", _history("testnet @include(if: true)")),
    "tickers": ("POST", lambda n: ("{ tickers { name stale latest { price timestamp } } }", {"n": n})),
    "coverage of an hour": ("POST", _coverage(1)),
    "coverage of a day": ("POST", _coverage(24)),
    "candles, 60 of a minute": ("POST", _candles(60)),
    "candles, a day of minutes": ("POST", _candles(1440)),
    "pricesAt, 100 instants": ("POST", _prices_at(100)),
    "statistics of a day": ("POST", _statistics(24)),
}


def _request(method: str, build: Build, number: int) -> bytes:
    query, variables = build(number)
    if method == "GET":
        path = "/graphql?" + urlencode({"query": query, "variables": json.dumps(variables)})
        return f"GET {path} HTTP/1.1\r\nhost: bench\r\naccept: application/json\r\n\r\n".encode()
    body = json.dumps({"query": query, "variables": variables}).encode()
    head = f"POST /graphql HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"content-type: application/json\r\n\r\n" + body


async def _ask(port: int, requests: list[bytes]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    for request in requests:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))[15:])
        answer = await reader.readexactly(length)
        assert b'"errors"' not in answer[:200], answer[:300]
    writer.close()


async def _cost(server: psutil.Process, port: int, requests: list[bytes]) -> float:
    """Microseconds of CPU for each request."""
    before = server.cpu_times()
    await asyncio.gather(*(_ask(port, requests[first::CLIENTS]) for first in range(CLIENTS)))
    after = server.cpu_times()
    return (after.user + after.system - before.user - before.system) / len(requests) * 1e6


async def measure(server: psutil.Process, port: int) -> dict[tuple[str, str], float]:
    costs: dict[tuple[str, str], list[float]] = {}
    number = 0
    for is_counted in (False, *[True] * ROUNDS):
        for name, (method, build) in QUESTIONS.items():
            size = 400 if "day of minutes" in name else 1500
            for kind in ("new", "again"):
                requests = [_request(method, build, number + (n if kind == "new" else 0)) for n in range(size)]
                number += size
                cost = await _cost(server, port, requests)
                if is_counted:
                    costs.setdefault((name, kind), []).append(cost)
    return {key: median(values) for key, values in costs.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        postgres = start_postgres(folder / "postgres", options=POSTGRES_OPTIONS)
        valkey = start_valkey(folder / "valkey")
        port = free_port()
        try:
            asyncio.run(_prepare(postgres.url))
            env = {"DATABASE_URL": postgres.url, "REDIS_URL": valkey.url, "PORT": str(port), "DRAIN_SECONDS": "0"}
            command = [sys.executable, "-m", "server"]
            with subprocess.Popen(command, env={**os.environ, **env}, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
                try:
                    costs = asyncio.run(_measure_when_up(process.pid, port))
                finally:
                    process.terminate()
        finally:
            valkey.stop()
            postgres.stop()
    base = costs["latestPrice", "new"]
    rows = [
        f"| {question} | {costs[question, 'new'] / base:.2f} | {costs[question, 'again'] / base:.2f} |\n"
        for question in QUESTIONS
    ]
    text = HEAD.format(base=base, date=datetime.now(UTC), commit=commit(), cpu=describe_cpu()) + "".join(rows)
    FIELDS.write_text(text, encoding="utf-8")
    print(text)


async def _prepare(url: str) -> None:
    await fill(url, ROWS, has_candles=True)
    connection = await asyncpg.connect(url)
    await connection.execute(
        "insert into schedules (ticker, since, interval_seconds, first_fill_done) select ticker, $1, 60, true "
        "from unnest(array['btc_usd', 'eth_usd']) as ticker",
        LAST - ROWS * MINUTE + MINUTE,
    )
    await connection.execute("vacuum (analyze)")
    await connection.close()


async def _measure_when_up(pid: int, port: int) -> dict[tuple[str, str], float]:
    for _ in range(100):
        try:
            await _ask(port, [_request("POST", _latest, 0)])
            break
        except OSError:
            await asyncio.sleep(0.1)
    return await measure(psutil.Process(pid), port)


if __name__ == "__main__":
    main()
