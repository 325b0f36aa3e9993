"""Right answers first; then rounds in which every contestant has its turn at every question."""

import asyncio
import http.client
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import asyncpg

from tests.bench.load import Generator, Order, Seen
from tests.bench.machine import cpu_seconds
from tests.bench.peers import Running
from tests.bench.questions import QUESTIONS, read_rows, select_rows


@dataclass(frozen=True)
class Sample:
    seen: Seen
    server_seconds: float
    postgres_seconds: float


Key = tuple[str, str]
Samples = dict[Key, list[Sample]]


@dataclass(frozen=True)
class Result:
    """Medians over the rounds; CPU time is that of all rounds by all their requests."""

    rate: float
    p99_ms: float
    server_us: float
    postgres_us: float
    server_busy: float

    @property
    def cpu_us(self) -> float:
        return self.server_us + self.postgres_us


def check_answers(dsn: str, running: Sequence[Running]) -> dict[Key, int]:
    """Ask every contestant everything. Answers a length below which no answer of theirs can be right.

    Raises `AssertionError` where one gives other rows than the table has.
    """
    expected = asyncio.run(_expected(dsn))
    least: dict[Key, int] = {}
    for question in QUESTIONS:
        for one in [one for one in running if one.contestant.answers(question)]:
            for variables, rows in zip(question.sample, expected[question.name], strict=True):
                for port in one.ports:
                    body = _ask(port, one.contestant.ask(question, variables))
                    try:
                        is_right = read_rows(body) == rows
                    except (ValueError, KeyError, TypeError, AttributeError):
                        is_right = False
                    if not is_right:
                        what = f"{one.contestant.label} gives other rows for {question.label}"
                        raise AssertionError(f"{what}: {body[:300]!r}")
                    key = one.contestant.name, question.name
                    least[key] = min(least.get(key, len(body)), len(body) // 2)
    return least


def measure(
    generator: Generator,
    running: Sequence[Running],
    postgres_pid: int,
    least: dict[Key, int],
    *,
    rounds: int,
    seconds: float,
    warm_up_seconds: float,
) -> Samples:
    samples: Samples = defaultdict(list)
    for number in range(rounds + 1):
        for question in QUESTIONS:
            # Whoever is first in one round is last in the next.
            for one in running if number % 2 else reversed(running):
                if not one.contestant.answers(question):
                    continue
                key = one.contestant.name, question.name
                order = Order(
                    ports=one.ports,
                    requests=one.contestant.requests(question),
                    least_bytes=least[key],
                    seconds=seconds if number else warm_up_seconds,
                )
                sample = _sample(generator, one, postgres_pid, order)
                if sample.seen.bad:
                    raise AssertionError(f"{one.contestant.label}, {question.label}: {sample.seen.bad} bad answers")
                if number:
                    samples[key].append(sample)
        print(f"round {number} of {rounds} done" if number else "warmed up", flush=True)
    return samples


def summarize(samples: Sequence[Sample]) -> Result:
    answers = sum(sample.seen.answers for sample in samples)
    server = sum(sample.server_seconds for sample in samples)
    return Result(
        rate=median(sample.seen.rate for sample in samples),
        p99_ms=median(sample.seen.p99 for sample in samples) * 1000,
        server_us=server / answers * 1e6,
        postgres_us=sum(sample.postgres_seconds for sample in samples) / answers * 1e6,
        server_busy=server / sum(sample.seen.seconds for sample in samples),
    )


def paired_ratio(ours: Iterable[Sample], theirs: Iterable[Sample]) -> float:
    """Of requests per second, each round with itself: what slows a machine down slows its neighbours in time."""
    return median(our.seen.rate / their.seen.rate for our, their in zip(ours, theirs, strict=True))


def _sample(generator: Generator, one: Running, postgres_pid: int, order: Order) -> Sample:
    def used() -> tuple[float, float]:
        return sum(cpu_seconds(process.pid) for process in one.processes), cpu_seconds(postgres_pid)

    before = used()
    seen = generator.run(order)
    after = used()
    return Sample(seen, after[0] - before[0], after[1] - before[1])


async def _expected(dsn: str) -> dict[str, list[object]]:
    connection = await asyncpg.connect(dsn)
    try:
        return {
            question.name: [await select_rows(connection, question, variables) for variables in question.sample]
            for question in QUESTIONS
        }
    finally:
        await connection.close()


def _ask(port: int, request: str) -> bytes:
    """The very request the load generator sends, by way of a proper HTTP client."""
    head, _, body = request.partition("\r\n\r\n")
    line, *fields = head.split("\r\n")
    method, path, _ = line.split(" ")
    headers = dict(field.split(": ", 1) for field in fields)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body.encode() or None, headers)
        return connection.getresponse().read()
    finally:
        connection.close()
