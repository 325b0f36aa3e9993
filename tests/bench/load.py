"""`python -m tests.bench.load`: the load generator, a process of its own.

It reads one order a line from standard input and answers one line with what it saw. Each connection sends its next
request when the last answer is complete. Requests are bytes made beforehand; of an answer only its status and length
are read. Every request that was sent is waited for and counted, up to the time of the last answer, so that a server's
CPU time can be divided by them.
"""

import gc
import json
import select
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tests.bench.ordered import Ordered

_buffer = bytearray(1 << 20)  # for all connections: an answer is looked at when it comes, and not kept
_LONGEST_SECONDS = 60.0
_ERRORS_WITHIN = 128


@dataclass(frozen=True)
class Order:
    """`ports` share the connections. Ends after `seconds`, or after `requests` answers if those are fewer."""

    ports: list[int]
    requests: list[str]
    least_bytes: int
    seconds: float
    connections: int = 32
    at_most: int = 1 << 60


@dataclass(frozen=True)
class Seen:
    """`bad` counts answers with another status than 200, with errors, or too short to be right."""

    answers: int
    bad: int
    seconds: float
    p50: float
    p99: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        return self.answers / self.seconds


class Connection:
    __slots__ = ("data", "missing", "sent_at", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_LONGEST_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.data = b""  # a header that is not complete
        self.missing = 0  # bytes of the answer yet to come, once its header is there
        self.sent_at = 0.0


def run(order: Order) -> Seen:
    messages = [request.encode() for request in order.requests]
    connections = [Connection(order.ports[n % len(order.ports)]) for n in range(order.connections)]
    latencies: list[float] = []
    bad = sent = 0
    clock = time.perf_counter
    by_number = {connection.socket.fileno(): connection for connection in connections}
    with select.epoll() as epoll:  # without the layer above it, which costs a tenth of what is asked
        for number in by_number:
            epoll.register(number, select.EPOLLIN)
        cpu, started = time.process_time(), clock()
        deadline = started + order.seconds
        for connection in connections:
            connection.sent_at = clock()
            connection.socket.sendall(messages[sent % len(messages)])
            sent += 1
        waiting = sent
        while waiting:
            ready = epoll.poll(_LONGEST_SECONDS)
            if not ready:
                raise TimeoutError(f"no answer within {_LONGEST_SECONDS:g} s")
            for number, _ in ready:
                connection = by_number[number]
                is_good = _receive(connection, order.least_bytes)
                if is_good is None:
                    continue
                now = clock()
                latencies.append(now - connection.sent_at)
                bad += not is_good
                if now < deadline and sent < order.at_most:
                    connection.sent_at = now
                    connection.socket.sendall(messages[sent % len(messages)])
                    sent += 1
                else:
                    waiting -= 1
                    epoll.unregister(number)  # its server may close it while others are still waited for
        seconds, cpu = clock() - started, time.process_time() - cpu
    for connection in connections:
        connection.socket.close()
    latencies.sort()
    return Seen(len(latencies), bad, seconds, quantile(latencies, 0.5), quantile(latencies, 0.99), cpu)


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _receive(connection: Connection, least_bytes: int) -> bool | None:
    """Whether the answer is good, `None` while it is not complete."""
    count = connection.socket.recv_into(_buffer)
    if not count:
        raise ConnectionError("the server closed a connection that was to be kept alive")
    if connection.missing > 0:
        connection.missing -= count
        return None if connection.missing > 0 else True
    data: bytes | bytearray = _buffer
    if connection.data:
        data = connection.data + _buffer[:count]
        count = len(data)
    end = data.find(b"\r\n\r\n", 0, count)
    header = bytes(data[:end]).lower() if end >= 0 else b""
    at = header.find(b"content-length: ")
    if at >= 0:
        length = int(header[at + 16 :].partition(b"\r")[0])
    elif header and data.endswith(b"0\r\n\r\n", 0, count):  # in chunks: the last one is empty
        length = count - end - 4
    else:
        connection.data = bytes(data[:count])
        return None
    connection.data = b""
    connection.missing = end + 4 + length - count
    is_error = data.find(b'"errors"', end, min(count, end + _ERRORS_WITHIN)) >= 0  # GraphQL's come with a 200
    if header[9:12] != b"200" or length < least_bytes or is_error:
        connection.missing = 0
        return False
    return None if connection.missing > 0 else True


class Generator(Ordered):
    def __init__(self) -> None:
        super().__init__("tests.bench.load")

    def run(self, order: Order) -> Seen:
        return Seen(**self.ask(asdict(order)))


def main() -> None:
    gc.disable()  # a collection would be seen as a server's pause
    for line in sys.stdin:
        try:
            answer = asdict(run(Order(**json.loads(line))))
        except OSError as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
