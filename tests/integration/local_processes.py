"""The processes that a test started, as `/proc` shows them."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals and /proc are Linux's")


def files_of_all(name: str) -> Iterator[Path]:
    return (path for path in Path("/proc").glob(f"[0-9]*/{name}") if path.exists())


def status_of(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def wait_until_gone(pids: list[int], timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while left := [pid for pid in pids if not status_of(pid).get("State", "Z").startswith("Z")]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.02)
