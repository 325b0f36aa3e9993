"""PostgreSQL and Valkey of the tests, from the binaries of `make run`: started, ready, and stopped by the test."""

import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from shared.local import servers
from shared.local.servers import PORT_ATTEMPTS, START_TIMEOUT, PortTakenError, free_port, spawn_postgres, spawn_valkey

__all__ = ["Server", "free_port", "start_postgres", "start_valkey"]


class Server(servers.Server):
    """One that its test stops; `make run` stops its servers in `shared/local/supervisor.py`."""

    def stop(self, timeout: float = 10) -> None:
        """End it cleanly, or kill it after `timeout` seconds. Does nothing if it has ended already."""
        if self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_postgres(directory: Path, *, port: int | None = None, options: Mapping[str, str] | None = None) -> Server:
    """Start PostgreSQL on `directory`, made by the first start, and wait until it is ready. Main thread only."""
    return _start(lambda chosen: spawn_postgres(directory, chosen, options), port)


def start_valkey(directory: Path, *, port: int | None = None) -> Server:
    """Start Valkey on `directory` and wait until it is ready. Main thread only."""
    return _start(lambda chosen: spawn_valkey(directory, chosen), port)


def _start(spawn_on: Callable[[int], servers.Server], port: int | None) -> Server:
    attempts = PORT_ATTEMPTS if port is None else 1
    while True:
        server = Server(**vars(spawn_on(free_port() if port is None else port)))
        attempts -= 1
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while not server.is_ready():
                assert time.monotonic() < deadline, f"{server.name} is not ready (log: {server.log})"
                time.sleep(0.02)
            return server
        except PortTakenError:  # another program was faster; choose another port, unless the test chose it
            if not attempts:
                raise
        except BaseException:
            server.stop(1)
            raise
