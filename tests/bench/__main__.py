"""`make bench`, or `make bench QUICK=1`: this project beside its peers, on servers started for it alone.

Nothing has to be there before but the project's own environment. Everything that is started listens on loopback, and is
ended with this process, whatever ends that.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Never

import asyncpg

from shared.config.settings import Settings
from shared.local.child import spawn
from shared.migrate import migrate
from tests.bench import collecting, figures, growth, report, rounds, streaming
from tests.bench.data import LAST_MINUTE, POSTGRES_OPTIONS, ROWS_PER_TICKER, TICKERS, fill
from tests.bench.load import Generator, Order
from tests.bench.machine import Cores, busy_seconds, cpu_seconds, on_core, pin, share_out
from tests.bench.peers import HERE, PROJECT, ROOT, UNLIKE, Contestant, Running, environment, installed_peers
from tests.bench.questions import QUESTIONS
from tests.bench.sockets import SOCKETS, measure_sockets
from tests.embedded import Server, free_port, start_postgres, start_valkey


@dataclass(frozen=True)
class Scale:
    mode: str
    rounds: int
    seconds: float
    warm_up_seconds: float
    jobs: int
    memory_requests: int
    memory_seconds: float
    collecting_seconds: int
    sockets_seconds: int
    has_growth: bool
    at_most_seconds: int


QUICK = Scale("a quick run", 3, 0.3, 0.2, 60, 100_000, 12, 20, 10, False, 300)
FULL = Scale(report.FULL_RUN, 7, 1.5, 1.5, 1000, 1_000_000, 900, 60, 60, True, 3600)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--quick", action="store_true", help="some three minutes, with rougher figures")
    scale = QUICK if parser.parse_args().quick else FULL
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _stop)
    signal.alarm(scale.at_most_seconds)
    # The environment's settings, and those of an .env, decide nothing here.
    for name in Settings.model_fields:
        os.environ.pop(name.upper(), None)
    Settings.model_config["env_file"] = None
    cores = share_out(sorted(os.sched_getaffinity(0)))
    peers, skipped = installed_peers()
    print("\n".join([*skipped, cores.description]), flush=True)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        run(scale, cores, [PROJECT, *peers], skipped, Path(name), stack)
    return 0


def run(
    scale: Scale, cores: Cores, contestants: Sequence[Contestant], skipped: list[str], folder: Path, stack: ExitStack
) -> None:
    started = time.monotonic()
    postgres = start_postgres(folder / "postgres", options=POSTGRES_OPTIONS)
    stack.callback(postgres.stop)
    valkey = start_valkey(folder / "valkey")
    stack.callback(valkey.stop)
    asyncio.run(_prepare(postgres.url))
    pin(postgres.process.pid, *cores.postgres)
    pin(valkey.process.pid, *cores.postgres)
    generator = Generator()
    stack.callback(generator.stop)
    pin(generator.process.pid, cores.load)
    print(f"{_seconds(started)} two times 500,000 rows are there", flush=True)

    ceiling = measure_ceiling(generator, cores)
    with _running(contestants, folder, postgres, valkey, cores) as running:
        least = rounds.check_answers(postgres.url, running)
        print(f"{_seconds(started)} every contestant gives the rows of the database", flush=True)
        since, before = time.monotonic(), busy_seconds() - cpu_seconds(os.getpid())
        samples = rounds.measure(
            generator,
            running,
            postgres.process.pid,
            least,
            rounds=scale.rounds,
            seconds=scale.seconds,
            warm_up_seconds=scale.warm_up_seconds,
        )
        strangers = (busy_seconds() - cpu_seconds(os.getpid()) - before) / (time.monotonic() - since)
    others = measure_others(scale, cores, folder, postgres, valkey, generator)

    strangers_row = ["other programs on this machine, during the rounds", f"{max(strangers, 0):.2f} cores"]
    tables = [*report.question_tables(samples, contestants), ("Ratios", report.ratio_table(samples, contestants))]
    tables.append(("Ratios, no two requests alike", report.ratio_table(samples, contestants, UNLIKE)))
    tables.append(("Other figures", [["", "measured"], *ceiling, strangers_row, *others]))
    for title, table in tables:
        print(f"\n{title}\n{report.as_text(table)}")
    software = report.versions(contestants, asyncio.run(_postgres_version(postgres.url)))
    sections = [(title, report.as_markdown(table)) for title, table in tables]
    if skipped:
        sections.append(("Skipped", "\n".join(skipped)))
    is_written = report.write_results(sections, scale.mode, cores, software)
    name = report.RESULTS.relative_to(ROOT)
    print(f"\n{_seconds(started)} " + (f"written to {name}" if is_written else f"{name} keeps those of a full run"))
    print(report.json_line(samples), flush=True)


def measure_ceiling(generator: Generator, cores: Cores) -> list[list[str]]:
    """What the load generator can ask of a server that does nothing: no contestant can be seen to be faster."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.ceiling", str(port)]
    process = spawn(command, death_signal=signal.SIGKILL, env=environment("", ""), cwd=ROOT)
    try:
        pin(process.pid, cores.server)
        idle = Running(PROJECT, HERE, [port], [process])
        idle.wait_until_ready()
        seen = generator.run(Order([port], PROJECT.requests(QUESTIONS[0]), 50, 1.5))
    finally:
        process.kill()
        process.wait()
    return [
        ["load generator against a server that does nothing", f"{seen.rate:,.0f} req/s"],
        ["CPU of the load generator meanwhile", f"{seen.cpu_seconds / seen.answers * 1e6:.0f} µs/request"],
    ]


def measure_others(
    scale: Scale, cores: Cores, folder: Path, postgres: Server, valkey: Server, generator: Generator
) -> list[list[str]]:
    with _running([PROJECT], folder, postgres, valkey, cores) as [api]:
        memory = figures.measure_memory(generator, api, 50, scale.memory_requests, scale.memory_seconds)
    print("memory measured", flush=True)
    held, late = figures.measure_holding(generator, folder, cores.server, postgres.url, valkey.url)
    print("event loop measured", flush=True)
    ingest_url = asyncio.run(figures.create_database(postgres.url, "ingest"))
    with on_core(cores.server):
        ingest = asyncio.run(figures.measure_ingest(ingest_url))
    print("ingest measured", flush=True)
    redis_url = valkey.url.rpartition("/")[0]
    jobs_url = asyncio.run(figures.create_database(postgres.url, "jobs"))
    asyncio.run(migrate(jobs_url))
    with collecting.worker(folder, cores, jobs_url, f"{redis_url}/1", tickers=("btc_usd",), interval=60):
        p50, p99 = asyncio.run(figures.measure_job_starts(jobs_url, f"{redis_url}/1", scale.jobs))
    print("job starts measured", flush=True)
    collecting_url = asyncio.run(figures.create_database(postgres.url, "collecting"))
    collected = asyncio.run(
        collecting.measure_collecting(folder, cores, collecting_url, f"{redis_url}/2", scale.collecting_seconds)
    )
    print("collecting measured", flush=True)
    streamed_url = asyncio.run(figures.create_database(postgres.url, "streaming"))
    streamed = streaming.measure(folder, cores, streamed_url, f"{redis_url}/4", 50, scale.collecting_seconds)
    print("streaming measured", flush=True)
    sockets_url = asyncio.run(figures.create_database(postgres.url, "sockets"))
    sockets = measure_sockets(folder, cores, sockets_url, f"{redis_url}/3", SOCKETS, scale.sockets_seconds)
    print("sockets measured", flush=True)
    rows = [[f"memory of one API process after {requests:,} requests", f"{mib:.1f} MiB"] for requests, mib in memory]
    rows += [
        ["event loop held, at most, by answers of 10,000 rows, four at a time", f"{held:.1f} ms of CPU, {late:.1f} ms"],
        ["ingest, 2 x 30 days of minutes in batches of 2,000", f"{ingest:,.0f} rows/s"],
        [f"fetchPrices to the job's start, {scale.jobs} times, p50", f"{p50:.0f} ms"],
        [f"fetchPrices to the job's start, {scale.jobs} times, p99", f"{p99:.0f} ms"],
        [
            f"slots missed, 50 tickers a second for {scale.collecting_seconds} s, exchange takes 50 ms",
            f"{collected.missed} of {collected.slots}",
        ],
        ["CPU of the worker meanwhile", f"{collected.cores:.2f} cores"],
    ]
    rows += streamed.rows
    rows += sockets.rows
    return rows + (measure_growth(folder, cores) if scale.has_growth else [])


def measure_growth(folder: Path, cores: Cores) -> list[list[str]]:
    """On a PostgreSQL of its own, which keeps the time of statements: that would not do beside a race."""
    postgres = start_postgres(folder / "growth", options=growth.POSTGRES_OPTIONS)
    found = []
    try:
        pin(postgres.process.pid, cores.server)
        for rows in growth.ROWS:
            url = asyncio.run(figures.create_database(postgres.url, f"growth_{rows}"))
            found.append(asyncio.run(growth.measure_growth(url, rows)))
            print(f"growth measured at {rows:,} rows", flush=True)
        month = asyncio.run(growth.measure_month(asyncio.run(figures.create_database(postgres.url, "month"))))
    finally:
        postgres.stop()
    small, big = found
    sizes = " and ".join(f"{rows:,}" for rows in growth.ROWS)
    return [
        *[
            [f"database time of {name}, {sizes} rows", f"{small[name]:.0f} and {big[name]:.0f} µs"]
            for name in growth.QUESTIONS
        ],
        [f"database time of {growth.A_MONTH}", f"{month:,.0f} µs"],
    ]


async def _prepare(dsn: str) -> None:
    await fill(dsn, rows_with_candles=7 * 1440)
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            "insert into schedules (ticker, since, interval_seconds, first_fill_done) select ticker, $1, 60, true "
            "from unnest($2::text[]) as ticker",
            datetime.fromisoformat(LAST_MINUTE) - (ROWS_PER_TICKER - 1) * timedelta(minutes=1),
            list(TICKERS),
        )
        await connection.execute((HERE / "contestants" / "postgraphile.sql").read_text(encoding="utf-8"))
    finally:
        await connection.close()


@contextmanager
def _running(
    contestants: Sequence[Contestant], folder: Path, postgres: Server, valkey: Server, cores: Cores
) -> Iterator[list[Running]]:
    settings = environment(postgres.url, valkey.url)
    running = [Running(contestant, folder / f"{contestant.name}.log") for contestant in contestants]
    try:
        for one in running:
            one.start(settings, folder)
        for one in running:
            one.wait_until_ready()
            for core, process in zip((cores.server, cores.second_server), one.processes, strict=False):
                pin(process.pid, core)
        yield running
    finally:
        for one in running:
            one.stop()


async def _postgres_version(dsn: str) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        return f"PostgreSQL {await connection.fetchval('show server_version')}"
    finally:
        await connection.close()


def _seconds(started: float) -> str:
    return f"[{time.monotonic() - started:.0f} s]"


def _stop(number: int, _: object) -> Never:
    sys.exit(f"stopped by {signal.Signals(number).name}")


if __name__ == "__main__":
    sys.exit(main())
