"""`python -m tests.bench.steady`: load held, and overload. Some 15 minutes; `--seconds 20` for a look.

One API process of this project, on servers started for it: 2 x 500,000 prices, a worker that stores one a second and
ticker, 500 sockets that follow them, and mixed traffic that comes whether or not it is answered. First the peak is
looked for; then 80 % of it are held; then three times as much comes as the peak. A run of ten minutes or more is
written to STEADY.md.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import linear_regression

import asyncpg

from shared.config.settings import Settings
from shared.local.child import spawn
from tests.bench import collecting, steady_report
from tests.bench.arrivals import WINDOW_SECONDS, Arrivals, Kind, Order, Phase, Seen
from tests.bench.data import ROWS_PER_TICKER, TICKERS, fill
from tests.bench.machine import Cores, cpu_seconds, kept_seconds, pin, rss_mib, share_out
from tests.bench.mixture import kinds
from tests.bench.peers import PROJECT, ROOT, Running, environment
from tests.bench.servers import started_servers

SECONDS = 600
SOCKETS = 500
BOUND_MS = 100.0
"What p99 may be for a rate to count as answered."

NORMAL_MS = 250.0
"What p99 of half a second may be in ordinary operation, whose luck is that of one machine among others."

HELD_SHARE, OVERLOAD = 0.8, 3.0
FIRST_RATE, FASTER = 200.0, 1.4
STEP_SECONDS, SETTLE_SECONDS = 15.0, 2.0
CALM_SECONDS, OVERLOAD_SECONDS, AFTER_SECONDS = 10.0, 25.0, 20.0
LEFT_OUT_SECONDS = 60.0
"Of memory's slope: the first minute fills what is kept, connections' buffers among it."

FOLLOWERS_SECONDS = 60.0
START_SECONDS = 60.0


@dataclass
class Used:
    """Sampled once a second, or over the whole time in cores."""

    rss: list[tuple[float, float]] = field(default_factory=list)
    api: list[float] = field(default_factory=list)
    "Cores of the API, second by second."
    cores: dict[str, float] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    "The share of the time that something else had the core, PostgreSQL's or another program's."

    @property
    def slope(self) -> float:
        """MiB an hour, by least squares; without the first minute where there is more."""
        left_out = LEFT_OUT_SECONDS if self.rss[-1][0] > 2 * LEFT_OUT_SECONDS else 0
        counted = [(at, mib) for at, mib in self.rss if at >= left_out]
        return linear_regression(*zip(*counted, strict=True)).slope * 3600


@dataclass(frozen=True)
class Sockets:
    sockets: int
    prices: int
    lost: int
    doubled: int
    closed: dict[str, int]


@dataclass(frozen=True)
class Slots:
    """Of the worker, by how they came to their prices."""

    expected: int
    on_time: int
    healed: int


@dataclass(frozen=True)
class Found:
    peak: float
    steps: list[tuple[float, Phase]]
    held: Phase
    used: Used
    before: Phase
    overload: Phase
    after: Phase
    back_seconds: float | None
    connections: int
    late_p99: float
    live: int
    "What the process said to /livez during the overload: how often 200, asked twice a second."
    live_asked: int
    live_longest: float
    sockets: Sockets
    slots: Slots


@dataclass(frozen=True)
class Stack:
    database_url: str
    cores: Cores
    api: Running
    arrivals: Arrivals
    pids: dict[str, int]
    kinds: list[Kind]

    def ask(self, *phases: tuple[float, float]) -> Seen:
        return self.arrivals.run(Order(self.api.ports[0], self.kinds, list(phases)))


def is_answered(phase: Phase) -> bool:
    return not phase.codes and phase.answers.p99 <= BOUND_MS


def find_peak(stack: Stack) -> tuple[float, list[tuple[float, Phase]]]:
    """The highest rate that is answered whole within the bound: faster and faster, then nearer and nearer."""
    steps: list[tuple[float, Phase]] = []

    def is_held(rate: float) -> bool:
        pids = stack.pids["API"], stack.pids["load generator"]
        before = [kept_seconds(pid) for pid in pids]
        [_, phase] = stack.ask((min(rate, FIRST_RATE), SETTLE_SECONDS), (rate, STEP_SECONDS)).phases
        kept = [kept_seconds(pid) - since for pid, since in zip(pids, before, strict=True)]
        steps.append((rate, phase))
        others = f"kept from its core {kept[0]:.1f} s, the generator {kept[1]:.1f} s"
        print(f"  {rate:,.0f}/s: p99 {phase.answers.p99:.0f} ms, not answered: {phase.codes}; {others}", flush=True)
        return is_answered(phase)

    low, high = 0.0, FIRST_RATE
    while is_held(high):
        low, high = high, high * FASTER
    for _ in range(3):
        middle = (low + high) / 2
        low, high = (middle, high) if is_held(middle) else (low, middle)
    if not low:
        raise RuntimeError(f"not even {FIRST_RATE / 8:.0f} requests a second: the machine is too busy")
    return low, steps


@contextmanager
def watching(stack: Stack, used: Used) -> Iterator[None]:
    """RSS and CPU of the API once a second, CPU of everything."""
    is_over = threading.Event()
    pid, began = stack.pids["API"], time.monotonic()
    before = {name: cpu_seconds(pid) for name, pid in stack.pids.items()}
    kept = {name: kept_seconds(pid) for name, pid in stack.pids.items() if name != "PostgreSQL"}

    def sample() -> None:
        last, spent = began, cpu_seconds(pid)
        while not is_over.wait(1 - (time.monotonic() - began) % 1):
            now, spends = time.monotonic(), cpu_seconds(pid)
            used.rss.append((now - began, rss_mib(pid)))
            used.api.append((spends - spent) / (now - last))
            last, spent = now, spends

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        lasted = time.monotonic() - began
        used.kept |= {name: (kept_seconds(stack.pids[name]) - since) / lasted for name, since in kept.items()}
        used.cores |= {name: (cpu_seconds(pid) - before[name]) / lasted for name, pid in stack.pids.items()}


def seconds_until_normal(after: Phase) -> float | None:
    """From the end of the overload until all that is due is answered, and p99 of each half second within the bound."""
    bad = [n for n, w in enumerate(after.windows) if w.others or not w.answered or w.p99 > NORMAL_MS]
    if bad and bad[-1] == len(after.windows) - 1:
        return None
    return (bad[-1] + 1) * WINDOW_SECONDS if bad else 0.0


@contextmanager
def asking_for_life(port: int, answers: list[float | None]) -> Iterator[None]:
    """/livez twice a second: how long each answer took, `None` for what was none."""
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.wait(0.5):
            began = time.monotonic()
            is_alive = steady_report.is_alive(port)
            answers.append(time.monotonic() - began if is_alive else None)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


async def wait_for_first_fill(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        async with asyncio.timeout(START_SECONDS):
            while await connection.fetchval("select count(*) from schedules where first_fill_done") < len(TICKERS):
                await asyncio.sleep(0.2)
    finally:
        await connection.close()


async def last_batch(database_url: str) -> int:
    connection = await asyncpg.connect(database_url)
    try:
        batch: int = await connection.fetchval("select max(batch) from prices")
        return batch
    finally:
        await connection.close()


async def check_sockets(
    database_url: str, first: int, last: int, seen: dict[str, list[int]], sockets: int
) -> tuple[int, int, int]:
    """How many prices were stored in these batches; how often one did not come to a socket, or came again."""
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch(
            "select ticker, timestamp, source::text from prices where batch > $1 and batch <= $2", first, last
        )
    finally:
        await connection.close()
    keys = [f"{ticker} {at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ} {source}" for ticker, at, source in rows]
    came = [seen.get(key, [0, 0]) for key in keys]
    return len(keys), sum(sockets - on for on, _ in came), sum(frames - on for on, frames in came)


async def check_slots(database_url: str, start: datetime, end: datetime) -> Slots:
    connection = await asyncpg.connect(database_url)
    try:
        sql = """
            select count(*) filter (where source = 'SCHEDULED'), count(*) filter (where source = 'BACKFILLED')
            from prices
            where timestamp >= $1 and timestamp < $2
              and extract(microseconds from timestamp)::int % 1000000 = 0
        """
        [(on_time, healed)] = await connection.fetch(sql, start, end)
    finally:
        await connection.close()
    return Slots(int((end - start).total_seconds()) * len(TICKERS), on_time, healed)


def measure(stack: Stack, sockets: int, seconds: int) -> Found:
    following = [sys.executable, "-m", "tests.bench.followers", str(stack.api.ports[0]), str(sockets)]
    followers = spawn(
        following,
        death_signal=signal.SIGKILL,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment("", ""),
    )
    try:
        pin(followers.pid, stack.cores.load)
        assert followers.stdin is not None
        assert followers.stdout is not None
        assert followers.stdout.readline() == b"following\n", "the sockets do not follow"
        time.sleep(SETTLE_SECONDS)
        first = asyncio.run(last_batch(stack.database_url))
        start = datetime.fromtimestamp(int(time.time()) + 1, UTC)
        stack.ask((FIRST_RATE, 2 * SETTLE_SECONDS))
        print("the peak:", flush=True)
        peak, steps = find_peak(stack)
        rate = HELD_SHARE * peak
        print(f"{rate:,.0f}/s for {seconds} s", flush=True)
        used = Used()
        with watching(stack, used):
            [_, held] = (held_seen := stack.ask((rate, SETTLE_SECONDS), (rate, seconds))).phases
        print(f"{OVERLOAD * peak:,.0f}/s for {OVERLOAD_SECONDS:.0f} s", flush=True)
        lives: list[float | None] = []
        with asking_for_life(stack.api.ports[0], lives):
            over_seen = stack.ask((rate, CALM_SECONDS), (OVERLOAD * peak, OVERLOAD_SECONDS), (rate, AFTER_SECONDS))
        before, overload, after = over_seen.phases
        last = asyncio.run(last_batch(stack.database_url))
        end = datetime.fromtimestamp(int(time.time()) - 1, UTC)
        time.sleep(2 * SETTLE_SECONDS)
        followers.stdin.write(b"\n")
        followers.stdin.flush()
        followed = json.loads(followers.stdout.readline())
    finally:
        followers.kill()
        followers.wait()
    counted = asyncio.run(check_sockets(stack.database_url, first, last, followed["prices"], sockets))
    return Found(
        peak=peak,
        steps=steps,
        held=held,
        used=used,
        before=before,
        overload=overload,
        after=after,
        back_seconds=seconds_until_normal(after),
        connections=over_seen.connections,
        late_p99=held_seen.late_p99,
        live=sum(taken is not None for taken in lives),
        live_asked=len(lives),
        live_longest=max((taken for taken in lives if taken is not None), default=0.0),
        sockets=Sockets(sockets, *counted, followed["closed"]),
        slots=asyncio.run(check_slots(stack.database_url, start, end - timedelta(seconds=1))),
    )


@contextmanager
def started(folder: Path) -> Iterator[Stack]:
    cores = share_out(sorted(os.sched_getaffinity(0)))
    with ExitStack() as stack:
        postgres, valkey = stack.enter_context(started_servers(folder, cores))
        asyncio.run(fill(postgres.url, has_candles=True))
        print(f"two times {ROWS_PER_TICKER:,} rows are there", flush=True)
        worker = stack.enter_context(
            collecting.worker(folder, cores, postgres.url, valkey.url, tickers=TICKERS, interval=1)
        )
        pin(worker, *cores.postgres)
        asyncio.run(wait_for_first_fill(postgres.url))
        api = Running(PROJECT, folder / "api.log")
        stack.callback(api.stop)
        limits = {"FETCH_LIMIT_PER_CLIENT": "0", "FETCH_LIMIT_OVERALL": "0"}  # one address asks for all fetches here
        settings = {"TICKERS": ",".join(TICKERS), "FETCH_INTERVAL_SECONDS": "1", **limits}
        api.start(environment(postgres.url, valkey.url, **settings), folder)
        api.wait_until_ready()
        pin(api.processes[0].pid, cores.server)
        arrivals = Arrivals()
        stack.callback(arrivals.stop)
        pin(arrivals.process.pid, cores.load)
        pids = {
            "API": api.processes[0].pid,
            "PostgreSQL": postgres.process.pid,
            "worker": worker,
            "load generator": arrivals.process.pid,
        }
        yield Stack(postgres.url, cores, api, arrivals, pids, kinds(api.ports[0]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.steady")
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--sockets", type=int, default=SOCKETS)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: parser.exit(1))
    for name in Settings.model_fields:
        os.environ.pop(name.upper(), None)
    Settings.model_config["env_file"] = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with started(folder) as stack:
            found = measure(stack, asked.sockets, asked.seconds)
            log = (folder / "api.log").read_text()
    text = steady_report.written(found, stack.kinds, asked.seconds, stack.cores, BOUND_MS, NORMAL_MS)
    print(text)
    said = Counter(re.sub(r"^\d\S+ \S+ ", "", line) for line in log.splitlines())
    print("the API's log:", *(f"{count} x {line}" for line, count in said.most_common(40)), sep="\n")
    if asked.seconds >= SECONDS:
        steady_report.STEADY.write_text(text, encoding="utf-8")
        print(f"written to {steady_report.STEADY.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
