"""`python -m tests.fuzz.watch PORT PID`: a neighbour of the attackers. It asks the API until its input is closed.

A process of its own, so that the attackers' work does not delay it. It prints what it saw as JSON.
"""

import json
import re
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path

PATIENCE = 20.0
HOST = b"Host: localhost\r\n"
ALIVE = b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n"
READY = b"GET /readyz HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
_LATEST = b'{"query":"{ latestPrice(ticker: \\"btc_usd\\") { price } }"}'
LATEST = b"POST /graphql HTTP/1.1\r\n%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    HOST,
    len(_LATEST),
    _LATEST,
)


class Watch:
    def __init__(self, port: int, pid: int) -> None:
        self._port = port
        self._loop = Path(f"/proc/{pid}/schedstat")  # of the first thread, which is the loop's
        self._status = Path(f"/proc/{pid}/status")
        self.seconds: dict[str, float] = {"livez": 0.0, "latestPrice": 0.0, "readyz": 0.0, "held": 0.0}
        self.answers: Counter[str] = Counter()
        self.resident = 0

    def ask(self, name: str, request: bytes, pause: float, is_over: threading.Event) -> None:
        connection: socket.socket | None = None
        while not is_over.wait(pause):
            began, worked = time.monotonic(), self._worked()
            answer = "none"
            try:
                connection = connection or socket.create_connection(("127.0.0.1", self._port), PATIENCE)
                connection.sendall(request)
                answer = _status_of(connection)
            except OSError:
                connection = None
            self.answers[f"{name} {answer}"] += 1
            self.seconds[name] = max(self.seconds[name], time.monotonic() - began)
            if name == "livez":
                self.seconds["held"] = max(self.seconds["held"], self._worked() - worked)
                self.resident = max(self.resident, self.resident_kib())
            if answer == "none" or name == "readyz":
                connection = None

    def _worked(self) -> float:
        return int(self._loop.read_text().split()[0]) / 1e9

    def resident_kib(self) -> int:
        found = re.search(r"VmRSS:\s+(\d+)", self._status.read_text())
        assert found
        return int(found[1])


def _status_of(connection: socket.socket) -> str:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(4096)
        if not chunk:
            return "none"
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    found = re.search(rb"(?i)content-length: (\d+)", head)
    while found and len(body) < int(found[1]):
        body += connection.recv(4096)
    return head[9:12].decode()


def main() -> None:
    watch = Watch(int(sys.argv[1]), int(sys.argv[2]))
    is_over = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        is_over.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    probes = [
        threading.Thread(target=watch.ask, args=(*probe, is_over))
        for probe in (("livez", ALIVE, 0.01), ("latestPrice", LATEST, 0.1), ("readyz", READY, 0.5))
    ]
    for probe in probes:
        probe.start()
    for probe in probes:
        probe.join()
    print(json.dumps({"seconds": watch.seconds, "answers": watch.answers, "resident": watch.resident}))


if __name__ == "__main__":
    main()
