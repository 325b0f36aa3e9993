"""The machine: which core does what, and what a process and its children have used of it. Linux."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
MIB = 1024 * 1024


@dataclass(frozen=True)
class Cores:
    """Server and load generator never share one. PostgreSQL's processes have both where there are only two."""

    server: int
    second_server: int
    postgres: tuple[int, ...]
    load: int

    @property
    def description(self) -> str:
        postgres = " and ".join(map(str, self.postgres))
        return (
            f"server on core {self.server}, second server on core {self.second_server}, PostgreSQL on core {postgres}, "
            f"load generator on core {self.load}"
        )


def share_out(cores: list[int]) -> Cores:
    match cores:
        case [one]:
            return Cores(one, one, (one,), one)
        case [one, two]:
            return Cores(one, two, (one, two), two)
        case [one, two, three]:
            return Cores(one, three, (two,), three)
        case [one, two, three, four, *_]:
            return Cores(one, four, (two,), three)
    raise RuntimeError("no core to run on")


def pin(pid: int, *cores: int) -> None:
    """The process, its threads and all that it has started."""
    for member in tree(pid):
        for thread in Path(f"/proc/{member}/task").iterdir():
            try:
                os.sched_setaffinity(int(thread.name), cores)
            except ProcessLookupError:  # it ended meanwhile
                continue


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """This thread alone, for as long as it measures itself."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def tree(root: int) -> list[int]:
    """`root` and its descendants."""
    children: dict[int, list[int]] = {}
    for pid, fields in _stats().items():
        children.setdefault(int(fields[1]), []).append(pid)
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """User and system time of the tree, with that of children that have ended. Exact to a clock tick a process."""
    stats = _stats()
    return sum(int(field) for pid in tree(root) if pid in stats for field in stats[pid][11:15]) * TICK_SECONDS


def busy_seconds() -> float:
    """What all cores together have worked since the start of the machine, or were kept from by its host."""
    user, nice, system, _, _, irq, softirq, steal, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) * TICK_SECONDS


def kept_seconds(pid: int) -> float:
    """How long its main thread could have run, and something else had the core."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def rss_mib(root: int) -> float:
    return sum(_resident_kib(pid) for pid in tree(root)) / 1024


def describe_cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    kib = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    kernel = ".".join(platform.release().split(".")[:2])
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {kib / MIB:.0f} GiB, Linux {kernel}"


def _stats() -> dict[int, list[str]]:
    """`/proc/<pid>/stat` of every process from the third field on: the name before it may hold anything."""
    stats: dict[int, list[str]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stats[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return stats


def _resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in status if line.startswith("VmRSS")), 0)
