"""Public GraphQL clients under Node: their packages, installed once, and ways to run them."""

import asyncio
import fcntl
import hashlib
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parent
PACKAGES = CLIENTS / "node_modules"
_LOCK = CLIENTS / "package-lock.json"
_INSTALLED = PACKAGES / ".installed"
_INSTALL = (
    "npm",
    "ci",
    "--ignore-scripts",
    "--no-audit",
    "--no-fund",
    "--prefer-offline",
    "--fetch-retries=1",
    "--fetch-retry-mintimeout=1000",
)
_OFFLINE = re.compile(r"npm error code (ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|ETIMEDOUT|ENOTCACHED)")
_SECONDS = 40


def install() -> None:
    """Skips the test where there is no Node, or no way to the packages."""
    if missing := _missing():
        pytest.skip(missing)


@cache
def _missing() -> str | None:
    """What is, after the packages have been installed where they can be; one of several test processes does it."""
    if not (shutil.which("node") and shutil.which("npm")):
        return "node and npm are not there"
    wanted = hashlib.sha256(_LOCK.read_bytes()).hexdigest()
    with _LOCK.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _INSTALLED.is_file() and _INSTALLED.read_text() == wanted:
            return None
        npm = subprocess.run(_INSTALL, cwd=CLIENTS, capture_output=True, text=True, check=False)
        if offline := _OFFLINE.search(npm.stderr):
            return f"the npm packages cannot be had: {offline[1]}"
        assert npm.returncode == 0, npm.stderr
        _INSTALLED.write_text(wanted)
        return None


@cache
def node() -> tuple[str, ...]:
    """The command. Node 20 has a browser's `WebSocket` only when asked."""
    command = ["node", "--print", "typeof WebSocket"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return ("node",) if said == "function\n" else ("node", "--experimental-websocket")


@asynccontextmanager
async def running(*command: str | Path, cwd: Path = CLIENTS) -> AsyncIterator[asyncio.StreamReader]:
    """What a command says, while it runs. It is killed at the end of the context."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def run(*command: str | Path, cwd: Path = CLIENTS) -> str:
    """What a command says that succeeds, and does not take long."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), _SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, said.decode()
    return said.decode()
