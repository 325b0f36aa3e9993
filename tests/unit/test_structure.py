"""The project's rules about itself: who imports whom, how long a file is, what the worker runs."""

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from arq.cron import CronJob
from hypothesis import given
from hypothesis import strategies as st

from shared.grid import EPOCH, slot_of
from shared.queue import client
from shared.queue import jobs as job_names
from shared.queue.client import open_redis
from shared.version import VERSION
from tests.unit.replies import settings_for
from worker.context import Worker
from worker.runner import create_worker
from worker.schedule import HEAL_TRIES, GridCron, cron_jobs

ROOT = Path(__file__).parents[2]
PACKAGES = ("server", "worker", "shared")
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
UNUSED: Any = None


@dataclass(frozen=True)
class Import:
    file: str
    module: str
    name: str | None

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def imports() -> Iterator[Import]:
    """Every import of the product, those inside functions too."""
    for path in FILES:
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (Import(path.as_posix(), alias.name, None) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                yield from (Import(path.as_posix(), node.module or "", alias.name) for alias in node.names)


IMPORTS = list(imports())


def test_the_rules_look_at_the_product() -> None:
    assert {path.parts[0] for path in FILES} == set(PACKAGES)
    assert {"asyncpg", "arq", "httpx", "strawberry", "shared"} <= {found.package for found in IMPORTS}


@pytest.mark.parametrize(("package", "forbidden"), [("server", "worker"), ("worker", "server")])
def test_server_and_worker_do_not_know_each_other(package: str, forbidden: str) -> None:
    assert [i for i in IMPORTS if i.file.startswith(f"{package}/") and i.package == forbidden] == []


def test_shared_knows_neither_server_nor_worker() -> None:
    """`make run` starts them as commands, which is no import."""
    assert [i for i in IMPORTS if i.file.startswith("shared/") and i.package in {"server", "worker", "tests"}] == []


FLOORS = {
    "server": (
        ("__main__",),
        ("process", "app"),
        ("compiled",),
        ("http",),
        ("subscriptions",),
        ("metrics",),
        ("schema",),
        ("reads",),
        ("schema/scalars",),
        ("protection", "feeds", "standbys", "transport", "lru", "request_ids"),
    ),
    "worker": (
        ("__main__",),
        ("runner",),
        ("schedule",),
        ("jobs",),
        ("exchange/retries",),
        ("exchange/index_check", "instrument"),
        ("context",),
        ("exchange", "simulator"),
        ("metrics",),
        ("exchange/errors",),
    ),
    "shared": (
        ("local", "migrate"),
        ("queue",),
        ("storage",),
        ("telemetry",),
        ("config",),
        ("errors", "grid", "version"),
    ),
}
"Rooms from the top floor down. A room may import rooms of lower floors, and itself."


def room_of(path: str, package: str) -> str:
    """`server/schema/prices.py` is in `schema`; a path that is named by itself in FLOORS is its own room."""
    inside = path.removeprefix(f"{package}/").removesuffix(".py")
    named = {room for floor in FLOORS[package] for room in floor}
    return inside if inside in named else inside.partition("/")[0]


def test_rooms_depend_downwards_only() -> None:
    files = {path.as_posix() for path in FILES}
    upwards = set()
    for package, floors in FLOORS.items():
        level = {room: number for number, floor in enumerate(floors) for room in floor}
        for found in IMPORTS:
            if not found.file.startswith(f"{package}/") or found.package != package:
                continue
            paths = (f"{found.module}.{found.name}".replace(".", "/") + ".py", found.module.replace(".", "/") + ".py")
            imported = next((path for path in paths if path in files), None)
            if imported is None:
                continue
            above, below = room_of(found.file, package), room_of(imported, package)
            if above != below and level[above] >= level[below]:
                upwards.add((found.file, imported))
    assert upwards == set()


def test_no_folder_has_more_than_12_modules() -> None:
    folders = Counter(path.parent.as_posix() for path in FILES if not path.stem.startswith("__"))
    assert {folder: count for folder, count in folders.items() if count > 12} == {}


def test_every_room_says_what_it_is_for() -> None:
    silent = [
        path
        for path in FILES
        if path.name == "__init__.py" and not ast.get_docstring(ast.parse((ROOT / path).read_text()))
    ]
    assert silent == []


def test_no_module_is_named_like_a_folder_beside_it() -> None:
    assert [path for path in FILES if (ROOT / path).with_suffix("").is_dir() or path.stem == path.parent.name] == []


@pytest.mark.parametrize("library", ["strawberry", "graphql", "starlette", "uvicorn"])
def test_only_the_server_knows_graphql_and_http(library: str) -> None:
    users = {i.file for i in IMPORTS if i.package == library}
    assert {file for file in users if not file.startswith(("server/", "worker/simulator/"))} == set()


def test_only_the_module_of_traces_imports_opentelemetry() -> None:
    """Its API always, its SDK and exporter only when traces are switched on."""
    assert {i.file for i in IMPORTS if i.package == "opentelemetry"} == {"shared/telemetry/traces.py"}
    code = (
        "import sys, server.__main__, worker.__main__;"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    imported = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert imported.stdout == "[]\n"


def test_arq_is_known_to_the_queue_and_the_worker() -> None:
    """Elsewhere only the type of its Redis client is used."""
    elsewhere = [i for i in IMPORTS if i.package == "arq" and not i.file.startswith(("shared/queue/", "worker/"))]
    assert {(i.module, i.name) for i in elsewhere} <= {("arq.connections", "ArqRedis")}


def test_only_settings_and_the_launcher_read_the_environment() -> None:
    readers = {i.file for i in IMPORTS if (i.module, i.name) in {("os", "environ"), ("os", "getenv")}}
    for path in FILES:
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}:
                readers.add(path.as_posix())
    assert {file for file in readers if not file.startswith("shared/local/")} == set()


def test_no_file_is_longer_than_250_lines() -> None:
    lengths = {path.as_posix(): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {file: length for file, length in lengths.items() if length > 250} == {}


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == VERSION


def a_worker(interval_seconds: int = 60, redis: Any = UNUSED) -> Worker:
    settings = settings_for(fetch_interval_seconds=interval_seconds)
    return Worker(settings, UNUSED, redis, UNUSED, name="unit:1")


async def test_every_job_is_registered_under_its_functions_name() -> None:
    async with open_redis(settings_for(), retries=0) as redis:
        worker = a_worker(redis=redis)
        jobs = cron_jobs(worker)
        arq_worker = create_worker(worker, jobs, handle_signals=False)
    crons = {job.coroutine.__qualname__ for job in jobs}
    names = {value for name, value in vars(job_names).items() if name.isupper() and isinstance(value, str)}
    assert names == {"fetch_prices", "fetch_slot", "store_deferred"}
    assert names - {name.removeprefix("cron:") for name in arq_worker.functions} == set()
    assert {job.name for job in jobs} == {f"cron:{name}" for name in crons} <= set(arq_worker.functions)
    assert (arq_worker.timezone, arq_worker.job_serializer, arq_worker.job_deserializer) == (
        (UTC, client.serialize, client.deserialize)
    )
    assert arq_worker.in_progress_timeout_s < 60, "a killed job is run again within its minute"


def cron_job(name: str, interval_seconds: int = 60) -> CronJob:
    return next(job for job in cron_jobs(a_worker(interval_seconds)) if job.coroutine.__qualname__ == name)


def test_a_slot_runs_once_and_is_tried_again() -> None:
    job = cron_job("fetch_slot")
    assert isinstance(job, GridCron)
    assert (job.unique, job.max_tries, job.keep_result_s, job.timeout_s, job.job_id, job.run_at_startup) == (
        (True, 3, 3600, 20, None, False)
    )
    assert (job.interval, (job.next_run or EPOCH) - slot_of(datetime.now(UTC), job.interval)) == (
        timedelta(seconds=60),
        timedelta(seconds=60),
    )


def test_healing_runs_between_the_slots_of_a_minute() -> None:
    job = cron_job("heal_gaps")
    assert isinstance(job, GridCron)
    assert (job.unique, job.max_tries, job.timeout_s, job.run_at_startup) == (True, HEAL_TRIES, 20, True)
    assert (job.interval, job.offset) == (timedelta(minutes=1), timedelta(seconds=45))


def test_old_prices_are_dropped_once_a_minute_and_not_at_the_start() -> None:
    """A setting that was wrong can still be taken back by who looks at the first lines of the log."""
    job = cron_job("drop_old_prices")
    assert isinstance(job, GridCron)
    assert (job.unique, job.max_tries, job.timeout_s, job.run_at_startup) == (True, 1, 20, False)
    assert (job.interval, job.offset) == (timedelta(minutes=1), timedelta(seconds=15))


@pytest.mark.parametrize("name", ["fetch_slot", "retry_slot", "heal_gaps", "drop_old_prices"])
def test_no_time_that_was_slept_through_is_worked_off(name: str) -> None:
    job = cron_job(name)
    job.calculate_next(datetime.now(UTC) - timedelta(hours=9))
    assert job.next_run is not None
    assert job.next_run > datetime.now(UTC) - timedelta(minutes=1)


@given(st.sampled_from((1, 5, 10, 60, 300, 3600)), st.floats(-7200, 7200))
def test_the_next_time_is_always_a_slot_that_has_not_been_run(interval_seconds: int, seconds: float) -> None:
    interval, now = timedelta(seconds=interval_seconds), datetime.now(UTC)
    job = cron_job("fetch_slot", interval_seconds)
    previous = slot_of(now + timedelta(seconds=seconds), interval)
    job.calculate_next(previous)
    assert job.next_run is not None
    assert (job.next_run - EPOCH) % interval == timedelta(0)
    assert job.next_run > previous
    assert job.next_run > now - interval
    assert job.next_run <= max(previous + interval, datetime.now(UTC))


def test_after_a_long_sleep_only_the_running_slot_is_made_up_for() -> None:
    job = cron_job("fetch_slot", 1)
    job.next_run = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    due = []
    while job.next_run <= datetime.now(UTC):
        due.append(job.next_run)
        job.calculate_next(job.next_run)
        assert len(due) < 4, "slots of the past are run one by one"
    assert len(due) <= 3
