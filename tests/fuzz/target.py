"""The API as its command runs it, asked by several at once; what came back is judged, and how it fares is watched."""

import asyncio
import contextlib
import random
import re
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz import verdict
from tests.fuzz.inputs import KINDS, Http
from tests.fuzz.wire import Reply, converse, exchange
from tests.integration.api_process import ApiProcess

AT_ONCE = 8
PATIENCE = 10.0
"Seconds until an answer that does not come is a finding: for a machine that does much else."

PROBE_SECONDS = 0.01
SAMPLES = 50
"Of memory, over the whole time."


@dataclass
class Record:
    tried: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, tuple[float, int]] = field(default_factory=dict)
    "By kind: seconds, and the number of the input."
    findings: list[str] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)
    "How many inputs, and KiB that are resident after them; at even intervals."
    held: float = 0.0
    "The most seconds of its own that the process worked while another connection waited for a plain answer."

    def slope(self) -> float:
        """KiB for a thousand inputs, of the last half of the run."""
        points = self.memory[len(self.memory) // 2 :]
        if len(points) < 2:
            return 0.0
        mean_x, mean_y = sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
        spread = sum((x - mean_x) ** 2 for x, _ in points)
        return 1000 * sum((x - mean_x) * (y - mean_y) for x, y in points) / spread

    @property
    def growth(self) -> int:
        """KiB, since a fifth of the run was over: caches are full by then."""
        return self.memory[-1][1] - self.memory[len(self.memory) // 5][1]

    @property
    def fifths(self) -> list[float]:
        """MiB that were resident at the end of each fifth of the run."""
        return [self.memory[len(self.memory) * part // 5 - 1][1] / 1024 for part in range(1, 6)]


class Target:
    def __init__(self, api: ApiProcess, seed: int) -> None:
        self.api = api
        self.seed = seed
        self.record = Record()

    async def try_all(self, kinds: list[str], count: int, seconds: float) -> Record:
        """`count` inputs of the kinds in turn, fewer where `seconds` are over."""
        numbers = iter(range(count))
        began = time.monotonic()

        async def go_on() -> None:
            for number in numbers:
                passed = time.monotonic() - began
                if passed > seconds:
                    return
                await self._try(kinds[number % len(kinds)], number)
                if passed > len(self.record.memory) * seconds / SAMPLES:
                    self.record.memory.append((number, self._resident()))

        probe = Probe(self.api)
        try:
            await asyncio.gather(*(go_on() for _ in range(AT_ONCE)))
        finally:
            self.record.held = probe.stop()
        self.record.memory.append((sum(self.record.tried.values()), self._resident()))
        return self.record

    async def _try(self, kind: str, number: int) -> None:
        given = KINDS[kind](random.Random(f"{self.seed}-{kind}-{number}"))
        if isinstance(given, Http):
            reply = await exchange(self.api.port, given.data, PATIENCE, is_whole=given.is_whole)
            wrong = list(_of_http(given, reply))
        else:
            reply = await converse(self.api.port, given, PATIENCE)
            wrong = list(_of_socket(reply))
        self.record.tried[kind] += 1
        self.record.answered[kind] += bool(reply.data)
        self.record.slowest[kind] = max(self.record.slowest.get(kind, (0.0, 0)), (reply.seconds, number))
        if reply.seconds >= PATIENCE:
            wrong.append("no answer in time")
        if self.api.process.poll() is not None:
            wrong.append("the process has ended")
        self.record.findings += [f"{kind} {number}, seed {self.seed}: {what}" for what in wrong]

    def _resident(self) -> int:
        status = Path(f"/proc/{self.api.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        assert found
        return int(found[1])


def _of_http(given: Http, reply: Reply) -> list[str]:
    if not reply.data:
        return ["no answer"] if given.is_whole else []
    if b" /readyz " in given.data[:60]:  # which names what it needs, and answers 503 where there is no worker, say
        return []
    wrong = [f"status {status}" for status in reply.statuses if status >= 500]
    if given.is_whole:
        [status] = reply.statuses[:1] or [0]
        wrong += verdict.of_http(status, reply.media_type, reply.body, is_graphql=given.is_graphql)
    else:
        wrong += verdict.of_text(reply.data.decode(errors="replace"))
    return wrong


def _of_socket(reply: Reply) -> list[str]:
    wrong = [f"status {status}" for status in reply.statuses if status >= 500]
    wrong += [what for text in reply.texts for what in verdict.of_message(text)]
    if reply.close_code is not None and reply.close_code not in verdict.CLOSE_CODES:
        wrong.append(f"closed with {reply.close_code}")
    return wrong


class Probe:
    """Somebody else, who asks every few milliseconds whether the process is there."""

    def __init__(self, api: ApiProcess) -> None:
        self._port = api.port
        self._worked = Path(f"/proc/{api.process.pid}/schedstat")  # of its first thread, which is the loop's
        self._longest = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        question = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
        while not self._is_over.is_set():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 5) as connection:
                while not self._is_over.wait(PROBE_SECONDS):
                    began = self._nanoseconds()
                    connection.sendall(question)
                    if not connection.recv(1000):
                        break
                    self._longest = max(self._longest, (self._nanoseconds() - began) / 1e9)

    def _nanoseconds(self) -> int:
        return int(self._worked.read_text().split()[0])

    def stop(self) -> float:
        self._is_over.set()
        self._thread.join()
        return self._longest
