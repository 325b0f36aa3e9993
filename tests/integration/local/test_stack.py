"""`make run` and `make demo` as a user runs them."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.local.checks import warn_if_unreachable
from shared.local.servers import free_port
from tests.integration.local_processes import ROOT, files_of_all, status_of


async def test_exchange_out_of_reach(capsys: pytest.CaptureFixture[str]) -> None:
    await warn_if_unreachable(f"http://127.0.0.1:{free_port()}/api/v2")
    line = capsys.readouterr().out
    assert line.startswith("The exchange (127.0.0.1) cannot be reached: ConnectError: ")
    assert "make demo" in line


class Demo:
    """`make demo`, without make."""

    def __init__(self, folder: Path, port: int, *, mode: str = "demo", **env: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.output = folder / f"output-{time.monotonic_ns()}"
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "shared.local", mode],
                cwd=folder,  # which has no .env
                env={
                    **inherited,
                    "PYTHONPATH": str(ROOT),
                    "DATA_DIR": str(folder),
                    "PORT": str(port),
                    "HISTORY_FROM": "",  # filling weeks takes a third of a core
                    **env,
                },
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def text(self) -> str:
        return self.output.read_text()

    async def said(self, words: str) -> None:
        while words not in self.text():
            assert self.process.poll() is None, self.text()
            await asyncio.sleep(0.05)

    def children(self) -> dict[str, int]:
        found = {}
        for path in files_of_all("cmdline"):
            pid = int(path.parent.name)
            arguments = path.read_bytes().decode().split("\0")
            if status_of(pid).get("PPid") == str(self.process.pid):
                found[arguments[2] if arguments[1] == "-m" else Path(arguments[0].split(" ")[0]).name] = pid
        return found

    async def query(self, query: str) -> Any:
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as http:
            reply = await http.post("/graphql", json={"query": query})
        return json.loads(reply.text)


def test_bad_setting(tmp_path: Path) -> None:
    run = Demo(tmp_path, free_port(), mode="run", TICKERS=",", REDIS_URL="redis://user:secret@:x")
    assert run.process.wait(10) == 2
    assert "TICKERS=" in run.text()
    assert "REDIS_URL=redis://user:***@" in run.text()
    assert "secret" not in run.text()


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALL_PROXY", "socks4://u:secret@127.0.0.1:9"), ("HTTPS_PROXY", "http://u:secret"), ("SSL_CERT_FILE", "/no/such")],
)
def test_a_bad_way_to_the_exchange_stops_the_start(tmp_path: Path, name: str, value: str) -> None:
    run = Demo(tmp_path, free_port(), mode="run", **{name: value})
    assert run.process.wait(10) == 2
    assert run.text().startswith(f"{name}=")
    assert run.text().count("\n") == 1
    assert "secret" not in run.text()


@pytest.mark.parametrize("module", ["shared.migrate", "server", "worker"])
def test_a_bad_variable_of_libpq_stops_each_process(module: str) -> None:
    urls = {"DATABASE_URL": "postgresql://u:secret@127.0.0.1:1/db", "REDIS_URL": "redis://127.0.0.1:1"}
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **urls, "PGSSLMODE": "nonsense"}
    run = subprocess.run([sys.executable, "-m", module], env=env, cwd="/", capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert "(from PGSSLMODE)" in run.stderr
    assert run.stderr.count("\n") == 2
    assert "secret" not in run.stderr


def test_a_worker_with_a_bad_proxy_stops(tmp_path: Path) -> None:
    urls = {"DATABASE_URL": "postgresql://127.0.0.1:1/db", "REDIS_URL": "redis://127.0.0.1:1"}
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **urls, "ALL_PROXY": "socks4://u:secret@p"}
    command = [sys.executable, "-m", "worker"]
    run = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr.count("\n"), run.stderr[:10]) == (2, 1, "ALL_PROXY=")
