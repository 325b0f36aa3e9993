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
from hypothesis import given
from hypothesis import strategies as st

from shared.grid import EPOCH
from shared.queue import client
from shared.queue import jobs as job_names
from shared.queue.client import open_redis
from shared.queue.jobs import FETCH_PRICES, FETCH_SLOT, STORE_DEFERRED, slot_job_id
from shared.version import VERSION
from tests.unit.replies import settings_for
from worker.context import Worker
from worker.runner import create_worker
from worker.schedule import entries

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
        ("runner", "schedule", "reporting"),
        ("jobs",),
        ("exchange/retries",),
        ("exchange/index_check", "instrument"),
        ("context",),
        ("exchange", "simulator"),
        ("metrics",),
        ("exchange/errors", "clock"),
    ),
    "shared": (
        ("local", "migrate"),
        ("queue",),
        ("storage",),
        ("telemetry",),
        ("config",),
        ("cursor",),
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
    elsewhere = {file for file in readers if not file.startswith("shared/local/")}
    # The variables of libpq, and those of proxies and certificates, which are not settings of ours.
    assert elsewhere == {"shared/config/database_url.py", "shared/config/outbound.py"}


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
        arq_worker = create_worker(worker, handle_signals=False)
    names = {value for name, value in vars(job_names).items() if name.isupper() and name[0] != "_" and name != "QUEUE"}
    released = {"cron:fetch_prices", "cron:fetch_again", "cron:heal_gaps", "cron:drop_old_prices"}
    assert set(arq_worker.functions) == names | released
    assert {entry.job for entry in entries(worker)} == names - {FETCH_PRICES, STORE_DEFERRED}
    assert (arq_worker.queue_name, arq_worker.job_serializer, arq_worker.job_deserializer) == (
        (client.QUEUE, client.serialize, client.deserialize)
    )
    assert arq_worker.in_progress_timeout_s < 60, "a killed job is run again within its minute"
    assert {function.keep_result_s for function in arq_worker.functions.values()} == {0}


def test_jobs_of_a_minute_do_not_coincide_with_its_slots() -> None:
    due = {(entry.job, entry.every.total_seconds(), entry.offset.total_seconds()) for entry in entries(a_worker())}
    assert due == {
        ("fetch_slot", 60, 0),
        ("retry_slot", 60, 30),
        ("heal_gaps", 60, 45),
        ("drop_old_prices", 60, 15),
    }


@given(st.sampled_from((1, 5, 10, 60, 300, 3600)), st.floats(0, 4e9))
def test_a_job_is_due_on_its_grid_and_at_most_one_interval_ago(interval_seconds: int, seconds: float) -> None:
    now = datetime.fromtimestamp(seconds, UTC)
    for entry in entries(a_worker(interval_seconds)):
        due = entry.due(now)
        assert (due - entry.offset - EPOCH) % entry.every == timedelta(0)
        assert due <= now < due + entry.every


@given(st.sets(st.sampled_from(["a", "b", "c"]), min_size=1), st.integers(0, 10**9), st.sampled_from([1, 60]))
def test_a_slots_job_has_one_id_for_all_workers_that_want_the_same(tickers: set[str], slot: int, interval: int) -> None:
    names = sorted(tickers)
    job_id = slot_job_id(FETCH_SLOT, slot, interval, names)
    assert job_id == slot_job_id(FETCH_SLOT, slot, interval, names[::-1])
    others = [(slot + interval, interval, names), (slot, interval + 1, names), (slot, interval, [*names, "d"])]
    assert job_id not in {slot_job_id(FETCH_SLOT, *other) for other in others}
