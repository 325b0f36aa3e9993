"""`python -m tests.bench.arrivals`: a load generator whose requests come when they come, answered or not.

It reads one order a line from standard input and answers one line with what it saw. Requests come at random, so many a
second on average, and do not wait for each other: each takes a connection that is free, or a new one. Its time counts
from the instant it was due, so that what a slow answer, or this process, holds up is part of it.
"""

import asyncio
import gc
import json
import random
import re
import sys
import time
from array import array
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import uvloop

from tests.bench.load import quantile
from tests.bench.ordered import Ordered

WINDOW_SECONDS = 0.5
GIVE_UP_SECONDS = 10.0
MOST_CONNECTIONS = 3000
_TICK_SECONDS = 0.001
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_CODE = re.compile(rb'"code": ?"(\w+)"')
_LOOKED_AT = 400
"Bytes of a body in which errors show: GraphQL's come with a 200."

NO_ANSWER = "no answer"
CONNECTION = "connection lost or refused"


@dataclass(frozen=True)
class Kind:
    """`weight`: how often, beside the others. An answer shorter than `least_bytes` is wrong."""

    name: str
    weight: float
    requests: list[str]
    least_bytes: int


@dataclass(frozen=True)
class Order:
    """`phases`: (requests a second, seconds), one after the other without a pause."""

    port: int
    kinds: list[Kind]
    phases: list[tuple[float, float]]


@dataclass(frozen=True)
class Spread:
    """Milliseconds."""

    count: int
    p50: float
    p99: float
    longest: float


@dataclass(frozen=True)
class Window:
    """Half a second of requests, by when they were due."""

    answered: int
    others: int
    p99: float


@dataclass(frozen=True)
class Phase:
    asked: int
    answers: Spread
    refusals: Spread
    codes: dict[str, int]
    "Of what was not answered: the code, or what else was wrong."
    kinds: dict[str, Spread]
    windows: list[Window]


@dataclass(frozen=True)
class Seen:
    phases: list[Phase]
    connections: int
    late_p99: float
    "Milliseconds between the instant a request was due and its sending, where a connection was free."
    cpu_seconds: float


@dataclass
class _Tally:
    kinds: list[Kind]
    asked: int = 0
    answers: "array[float]" = field(default_factory=lambda: array("f"))
    refusals: "array[float]" = field(default_factory=lambda: array("f"))
    codes: Counter[str] = field(default_factory=Counter)
    windows: "list[array[float]]" = field(default_factory=list)
    others: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.of_kind = [array("f") for _ in self.kinds]

    def answered(self, window: int, kind: int, seconds: float) -> None:
        while len(self.windows) <= window:
            self.windows.append(array("f"))
        self.answers.append(seconds)
        self.windows[window].append(seconds)
        self.of_kind[kind].append(seconds)

    def refused(self, window: int, code: str, seconds: float | None) -> None:
        """`seconds`: until it was said; `None` where nothing was."""
        self.codes[code] += 1
        self.others[window] += 1
        if seconds is not None:
            self.refusals.append(seconds)

    def phase(self) -> Phase:
        length = max(len(self.windows), *(window + 1 for window in self.others), 0)
        windows = [
            Window(len(of), self.others[n], _spread(of).p99)
            for n, of in enumerate([*self.windows, *(array("f") for _ in range(length - len(self.windows)))])
        ]
        names = [kind.name for kind in self.kinds]
        return Phase(
            self.asked,
            _spread(self.answers),
            _spread(self.refusals),
            dict(self.codes),
            {name: _spread(of) for name, of in zip(names, self.of_kind, strict=True)},
            windows,
        )


def _spread(seconds: "array[float]") -> Spread:
    if not seconds:
        return Spread(0, 0, 0, 0)
    ordered = sorted(seconds)
    return Spread(len(ordered), *(1000 * s for s in (quantile(ordered, 0.5), quantile(ordered, 0.99), ordered[-1])))


@dataclass(slots=True)
class _Request:
    message: bytes
    kind: int
    phase: int
    window: int
    due: float


class _Connection(asyncio.Protocol):
    def __init__(self, run: "_Run") -> None:
        self._run = run
        self._request: _Request | None = None
        self._data = b""
        self._missing = 0
        self._failure = ""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: _Request) -> None:
        self._request = request
        self._transport.write(request.message)

    def data_received(self, data: bytes) -> None:
        if self._request is None:
            return
        if self._missing:
            self._missing -= len(data)
        else:
            data = self._data + data
            end = data.find(b"\r\n\r\n")
            length = int(match[1]) if end >= 0 and (match := _LENGTH.search(data, 0, end)) else 0
            if end < 0 or len(data) < end + 4 + min(length, _LOOKED_AT):
                self._data = data
                return
            self._data = b""
            self._missing = end + 4 + length - len(data)
            self._failure = self._look(data, end + 4, length)
        if self._missing <= 0:
            request, self._request, self._missing = self._request, None, 0
            self._run.done(request, self._failure)
            self._run.free(self)

    def _look(self, data: bytes, start: int, length: int) -> str:
        assert self._request is not None
        if code := _CODE.search(data, start, start + _LOOKED_AT):
            return code[1].decode()
        if data[9:12] != b"200":
            return f"HTTP {data[9:12].decode()}"
        return "too short" if length < self._run.least_bytes[self._request.kind] else ""

    def connection_lost(self, _: Exception | None) -> None:
        self._run.lost(self)
        if self._request is not None:
            self._run.done(self._request, CONNECTION)
            self._request = None

    def close(self) -> None:
        self._transport.abort()


class _Run:
    def __init__(self, order: Order) -> None:
        self._order = order
        self.least_bytes = [kind.least_bytes for kind in order.kinds]
        self._tallies = [_Tally(order.kinds) for _ in order.phases]
        self._free: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._opening = 0
        self._most = 0
        self._waiting: deque[_Request] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._left = 0
        self._late = array("f")

    async def run(self) -> Seen:
        chance = random.Random(7)
        messages = [[request.encode() for request in kind.requests] for kind in self._order.kinds]
        weights = [kind.weight for kind in self._order.kinds]
        deck = chance.choices(range(len(weights)), weights, k=100_000)
        cpu, at, number = time.process_time(), time.perf_counter() + 0.1, 0
        for phase, (rate, seconds) in enumerate(self._order.phases):
            began, end, tally = at, at + seconds, self._tallies[phase]
            due = began + chance.expovariate(rate)
            while due < end:
                now = time.perf_counter()
                if due > now:
                    await asyncio.sleep(max(due - now, _TICK_SECONDS))
                    continue
                kind = deck[number % len(deck)]
                of_kind = messages[kind]
                message = of_kind[number * 31 % len(of_kind)]
                self._send(_Request(message, kind, phase, int((due - began) / WINDOW_SECONDS), due))
                tally.asked += 1
                number += 1
                due += chance.expovariate(rate)
            at = end
        deadline = time.perf_counter() + GIVE_UP_SECONDS
        while self._left and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)
        cpu = time.process_time() - cpu
        for tally, left in zip(self._tallies, self._unanswered(), strict=True):
            if left:
                tally.codes[NO_ANSWER] += left
        phases = [tally.phase() for tally in self._tallies]
        for connection in list(self._all):
            connection.close()
        return Seen(phases, self._most, _spread(self._late).p99, cpu)

    def _unanswered(self) -> list[int]:
        return [tally.asked - len(tally.answers) - sum(tally.codes.values()) for tally in self._tallies]

    def _send(self, request: _Request) -> None:
        self._left += 1
        if self._free:
            self._late.append(time.perf_counter() - request.due)
            self._free.pop().send(request)
            return
        self._waiting.append(request)
        if len(self._all) + self._opening < MOST_CONNECTIONS:
            self._opening += 1
            task = asyncio.get_running_loop().create_task(self._open())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self), "127.0.0.1", self._order.port
            )
        except OSError:
            if self._waiting:
                self.done(self._waiting.popleft(), CONNECTION)
            return
        finally:
            self._opening -= 1
        self._all.add(connection)
        self._most = max(self._most, len(self._all))
        self.free(connection)

    def free(self, connection: _Connection) -> None:
        if self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self._free.append(connection)

    def lost(self, connection: _Connection) -> None:
        self._all.discard(connection)
        if connection in self._free:
            self._free.remove(connection)

    def done(self, request: _Request, failure: str) -> None:
        self._left -= 1
        seconds = time.perf_counter() - request.due
        tally = self._tallies[request.phase]
        if failure:
            tally.refused(request.window, failure, None if failure == CONNECTION else seconds)
        else:
            tally.answered(request.window, request.kind, seconds)


class Arrivals(Ordered):
    def __init__(self) -> None:
        super().__init__("tests.bench.arrivals")

    def run(self, order: Order) -> Seen:
        answer = self.ask(asdict(order))
        return Seen(**{**answer, "phases": [_phase(phase) for phase in answer["phases"]]})


def _phase(given: dict[str, Any]) -> Phase:
    return Phase(
        **{
            **given,
            "answers": Spread(**given["answers"]),
            "refusals": Spread(**given["refusals"]),
            "kinds": {name: Spread(**spread) for name, spread in given["kinds"].items()},
            "windows": [Window(**window) for window in given["windows"]],
        }
    )


def main() -> None:
    gc.disable()  # a collection would be seen as a server's pause
    for line in sys.stdin:
        given = json.loads(line)
        order = Order(given["port"], [Kind(**kind) for kind in given["kinds"]], given["phases"])
        print(json.dumps(asdict(uvloop.run(_Run(order).run()))), flush=True)


if __name__ == "__main__":
    main()
