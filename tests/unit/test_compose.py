"""Dockerfile, compose.yaml and .env.example, held against the code: nothing here starts a container."""

import http.server
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.process import FINISH_SECONDS
from shared.config.settings import Settings, load_settings
from worker.runner import JOB_SECONDS

ROOT = Path(__file__).resolve().parents[2]
APP_SERVICES = ("api", "migrate", "worker")
SETTINGS = {name.upper() for name in Settings.model_fields}
COMPOSE_ONLY = {"POSTGRES_PASSWORD"}
# The original brief's file, to the letter.
BRIEF_ENV = {
    "DATABASE_URL": "postgresql+asyncpg://postgres:postgres@postgres:5432/deribit",
    "REDIS_URL": "redis://redis:6379/0",
    "DERIBIT_BASE_URL": "https://deribit.com/api/v2/public",
}

COMPOSE_TEXT = (ROOT / "compose.yaml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ENV_EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")


def _instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, as ("RUN", "the rest") with continuation lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


INSTRUCTIONS = _instructions()
FINAL_STAGE = INSTRUCTIONS[max(i for i, (word, _) in enumerate(INSTRUCTIONS) if word == "FROM") :]
HEALTHCHECK = next(rest for word, rest in FINAL_STAGE if word == "HEALTHCHECK").partition(" CMD ")[2]
IMAGE_ENV = dict(
    assignment.split("=", 1) for word, rest in FINAL_STAGE if word == "ENV" for assignment in rest.split(" ")
)


def _resolve(text: str, environment: dict[str, str]) -> str:
    """Compose's `${NAME:-default}`, the innermost first."""
    while match := re.search(r"\$\{(\w+):-([^${}]*)\}", text):
        text = text.replace(match[0], environment.get(match[1]) or match[2])
    assert "$" not in text
    return text


def _container_environment(service: str, environment: dict[str, str]) -> dict[str, str]:
    """What the service's process sees: the image's variables, then .env, then compose's own."""
    own = {name: _resolve(value, environment) for name, value in SERVICES[service]["environment"].items()}
    return IMAGE_ENV | environment | own


def _python_commands() -> dict[str, list[str]]:
    commands = {f"{name}.command": SERVICES[name]["command"] for name in APP_SERVICES}
    commands |= {
        f"{name}.healthcheck": SERVICES[name]["healthcheck"]["test"][1:]
        for name in APP_SERVICES
        if "test" in SERVICES[name]["healthcheck"]
    }
    commands["Dockerfile.CMD"] = json.loads(next(rest for word, rest in FINAL_STAGE if word == "CMD"))
    commands["Dockerfile.HEALTHCHECK"] = json.loads(HEALTHCHECK)
    return commands


PYTHON_COMMANDS = _python_commands()
MODULE_COMMANDS = {name: command for name, command in PYTHON_COMMANDS.items() if command[1] == "-m"}
HTTP_CHECKS = {"Dockerfile.HEALTHCHECK": "/livez", "api.healthcheck": "/readyz"}


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in os.environ:
        if name.upper() in SETTINGS:
            monkeypatch.delenv(name)
    return monkeypatch


# --- commands


def test_commands_are_the_three_processes() -> None:
    assert {name: SERVICES[name]["command"] for name in APP_SERVICES} == {
        "api": ["python", "-m", "server"],
        "migrate": ["python", "-m", "shared.migrate"],
        "worker": ["python", "-m", "worker"],
    }
    assert PYTHON_COMMANDS["Dockerfile.CMD"] == SERVICES["api"]["command"]
    assert SERVICES["worker"]["healthcheck"]["test"] == ["CMD", *SERVICES["worker"]["command"], "--health"]


@pytest.mark.parametrize("name", sorted(MODULE_COMMANDS))
def test_module_of_command_can_be_run(name: str) -> None:
    program, _, module, *flags = MODULE_COMMANDS[name]
    spec = importlib.util.find_spec(module)
    assert spec is not None
    if spec.submodule_search_locations is not None:  # a package is run through its __main__
        spec = importlib.util.find_spec(f"{module}.__main__")
    assert program == "python"
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    assert all(flag in source for flag in flags)


class _Answer(http.server.BaseHTTPRequestHandler):
    """200 on the one path of the server, 503 on every other."""

    def do_GET(self) -> None:
        assert isinstance(self.server, _AnswerServer)
        self.send_response(200 if self.path == self.server.healthy_path else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


class _AnswerServer(http.server.ThreadingHTTPServer):
    healthy_path = ""


@pytest.fixture
def answer_server() -> Iterator[_AnswerServer]:
    with _AnswerServer(("127.0.0.1", 0), _Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("name", "path"), sorted(HTTP_CHECKS.items()))
def test_http_check_follows_the_status(name: str, path: str, answer_server: _AnswerServer) -> None:
    def run(port: int) -> int:
        # A proxy for the way to the exchange must not be asked for the way to ourselves.
        environment = {"PORT": str(port), "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
        command = [sys.executable, *PYTHON_COMMANDS[name][1:]]
        return subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=False).returncode

    answer_server.healthy_path = path
    assert run(answer_server.server_port) == 0
    answer_server.healthy_path = "/elsewhere"
    assert run(answer_server.server_port) != 0
    assert run(1) != 0  # nobody listens there


def test_checked_paths_are_routes_of_the_server() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "server").rglob("*.py")]
    missing = [path for path in HTTP_CHECKS.values() if not any(f'"{path}"' in source for source in sources)]
    assert missing == []


# --- environment


def test_every_variable_is_a_setting() -> None:
    for name in APP_SERVICES:
        own = SETTINGS - {"DATA_DIR"}  # of the embedded servers only
        assert set(SERVICES[name]["environment"]) == own | {"PGPASSWORD"}
    assert set(re.findall(r"\$\{(\w+)", COMPOSE_TEXT)) <= SETTINGS | COMPOSE_ONLY | {"PGPASSWORD"}
    assert {name for name in IMAGE_ENV if name != "PATH" and not name.startswith("PYTHON")} <= SETTINGS
    assert {"PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"} <= set(IMAGE_ENV)


@pytest.mark.parametrize("service", APP_SERVICES)
def test_defaults_are_accepted(service: str, clean_environment: pytest.MonkeyPatch) -> None:
    for name, value in _container_environment(service, {}).items():
        clean_environment.setenv(name, value)
    assert load_settings(_env_file=None) == Settings(
        _env_file=None,
        database_url="postgresql://postgres@postgres:5432/deribit",
        redis_url="redis://redis:6379/0",
        host="0.0.0.0",
        port=8000,
        metrics_port=9464,
        allow_anonymous_mutations=True,
        log_format="json",
    )


@pytest.mark.parametrize("service", APP_SERVICES)
def test_env_of_the_brief_is_accepted(service: str, clean_environment: pytest.MonkeyPatch) -> None:
    for name, value in _container_environment(service, BRIEF_ENV).items():
        clean_environment.setenv(name, value)
    settings = load_settings(_env_file=None)
    # Compose's own database must be the one that this file names.
    own = {name: _resolve(value, BRIEF_ENV) for name, value in SERVICES["postgres"]["environment"].items()}
    assert settings.database_url == (
        f"postgresql://{own['POSTGRES_USER']}:{own['POSTGRES_PASSWORD']}@postgres:5432/{own['POSTGRES_DB']}"
    )
    assert settings.redis_url == BRIEF_ENV["REDIS_URL"]
    assert settings.deribit_base_url == "https://deribit.com/api/v2"


@pytest.mark.parametrize("service", APP_SERVICES)
def test_every_variable_of_an_env_file_arrives(service: str) -> None:
    given = {name: f"given-{name}" for name in SETTINGS | COMPOSE_ONLY}
    # Where the container listens is not where this machine publishes it.
    assert _container_environment(service, given).items() >= (given | {"HOST": "0.0.0.0", "PORT": "8000"}).items()
    assert SERVICES[service]["env_file"] == [{"path": ".env", "required": False}]


@pytest.mark.parametrize("password", ["another", "p@ss:w/rd#%41?q=1&r[x] y"])
def test_password_of_the_database_reaches_both_sides(password: str) -> None:
    """In no URL, so that it may have any characters."""
    given = {"POSTGRES_PASSWORD": password}
    assert _resolve(SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"], given) == password
    for service in APP_SERVICES:
        environment = _container_environment(service, given)
        assert environment["PGPASSWORD"] == password
        assert [name for name, value in environment.items() if password in value] == ["POSTGRES_PASSWORD", "PGPASSWORD"]
    assert _container_environment("api", given | {"PGPASSWORD": "of another server"})["PGPASSWORD"] != password


def test_env_example_names_every_setting_and_changes_nothing() -> None:
    names = re.findall(r"^#([A-Z_]+)=", ENV_EXAMPLE, re.MULTILINE)
    assert sorted(names) == sorted(SETTINGS | COMPOSE_ONLY)
    assert [line for line in ENV_EXAMPLE.splitlines() if line and not line.startswith("#")] == []


def test_env_example_shows_the_defaults(tmp_path: Path, clean_environment: pytest.MonkeyPatch) -> None:
    uncommented = tmp_path / ".env"
    uncommented.write_text(re.sub(r"^#(?=[A-Z_]+=)", "", ENV_EXAMPLE, flags=re.MULTILINE), encoding="utf-8")
    settings = load_settings(_env_file=uncommented)
    assert settings == Settings(_env_file=None, database_url=settings.database_url, redis_url=settings.redis_url)


# --- services


def test_services_start_in_order() -> None:
    assert set(SERVICES) == {"postgres", "redis", *APP_SERVICES}
    needed = {
        "postgres": {"condition": "service_healthy"},
        "redis": {"condition": "service_healthy"},
        "migrate": {"condition": "service_completed_successfully"},
    }
    assert {name: service.get("depends_on") for name, service in SERVICES.items()} == {
        "postgres": None,
        "redis": None,
        "migrate": {"postgres": needed["postgres"]},
        "api": needed,
        "worker": needed,
    }
    for service in SERVICES.values():
        for name, need in service.get("depends_on", {}).items():
            assert need["condition"] != "service_healthy" or "test" in SERVICES[name]["healthcheck"]


def test_services_restart_except_the_one_shot() -> None:
    restart = {name: service["restart"] for name, service in SERVICES.items()}
    assert restart == dict.fromkeys(SERVICES, "unless-stopped") | {"migrate": "no"}


def test_data_outlives_the_containers() -> None:
    mounts = {name: service["volumes"] for name, service in SERVICES.items() if "volumes" in service}
    assert mounts == {"postgres": ["postgres-data:/var/lib/postgresql"], "redis": ["redis-data:/data"]}
    assert {mount.split(":")[0] for paths in mounts.values() for mount in paths} == set(COMPOSE["volumes"])
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options == {"--appendonly": "yes", "--appendfsync": "everysec", "--maxmemory-policy": "noeviction"}


def test_only_the_api_is_published_and_only_to_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert list(published) == ["api"]
    assert [_resolve(port, {}) for port in published["api"]] == ["127.0.0.1:8000:8000"]
    assert [_resolve(port, {"PORT": "8000-8001"}) for port in published["api"]] == ["127.0.0.1:8000-8001:8000"]
    assert not any(service.get("network_mode") for service in SERVICES.values())
    assert ("EXPOSE", SERVICES["api"]["environment"]["PORT"]) in FINAL_STAGE


def test_services_can_be_scaled_and_stopped() -> None:
    assert not any("container_name" in service or "hostname" in service for service in SERVICES.values())
    assert ("STOPSIGNAL", "SIGTERM") in FINAL_STAGE


def test_services_are_confined() -> None:
    for service in SERVICES.values():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["pids_limit"] > 0
        assert not {"privileged", "cap_add", "devices", "pid", "ipc", "userns_mode"} & set(service)
    assert {name: SERVICES[name]["tmpfs"] for name in SERVICES} == {name: ["/tmp"] for name in SERVICES} | {
        "postgres": ["/tmp", "/run/postgresql:uid=999,gid=999,mode=0775"]
    }


def test_no_service_runs_as_root() -> None:
    # Those of the project take the image's USER; the others' images start as root unless they are told not to.
    users = {name: service.get("user") for name, service in SERVICES.items()}
    assert users == dict.fromkeys(APP_SERVICES) | dict.fromkeys(("postgres", "redis"), "999:999")


def test_what_a_fault_can_take_is_limited() -> None:
    assert {name: service.get("mem_limit") for name, service in SERVICES.items()} == dict.fromkeys(SERVICES) | (
        dict.fromkeys(APP_SERVICES, "512m")
    )
    rotated = {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}}
    assert [service["logging"] for service in SERVICES.values()] == [rotated] * len(SERVICES)
    # The process raises its own limit of open files. One that the daemon cannot grant keeps a container from starting.
    assert not any("ulimits" in service for service in SERVICES.values())


def test_services_are_given_longer_to_stop_than_they_take() -> None:
    graces = {
        name: int(service["stop_grace_period"].removesuffix("s"))
        for name, service in SERVICES.items()
        if name != "migrate"
    }
    assert graces["api"] > Settings.model_fields["drain_seconds"].default + FINISH_SECONDS
    assert graces["worker"] > JOB_SECONDS
    assert min(graces["postgres"], graces["redis"]) >= 30  # a checkpoint, and the last of the append-only file
    assert "stop_grace_period" not in SERVICES["migrate"]  # a transaction that is cut off leaves nothing


# --- image


def test_every_image_has_a_tag() -> None:
    stages = {rest.rpartition(" AS ")[2] for word, rest in INSTRUCTIONS if word == "FROM" and " AS " in rest}
    bases = {rest.partition(" AS ")[0] for word, rest in INSTRUCTIONS if word == "FROM"} - stages
    images = bases | {service["image"] for name, service in SERVICES.items() if name not in APP_SERVICES}
    assert len(images) == 4
    for image in images:
        assert re.fullmatch(r"[a-z/]+:\d+(\.\d+)*(-[a-z]+)*", image)  # a version, so never "latest"
        assert "latest" not in image


def test_one_image_is_built_once() -> None:
    """Compose would build the same image for each service that has `build`, also when only workers are added."""
    own = {name: SERVICES[name] for name in APP_SERVICES}
    assert {service["image"] for service in own.values()} == {"deribit-price-collector"}
    assert {name: service.get("build") for name, service in own.items()} == dict.fromkeys(own) | {"migrate": "."}
    assert {name: service["pull_policy"] for name, service in own.items()} == dict.fromkeys(own, "never") | {
        "migrate": "build"
    }


def test_image_installs_the_runtime_from_the_lock() -> None:
    install = next(rest for word, rest in INSTRUCTIONS if word == "RUN" and "uv pip install" in rest)
    for option in ("--require-hashes", "--constraints requirements.lock", "--requirements pyproject.toml"):
        assert f" {option}" in install
    assert re.findall(r"--extra (\S+)|--all-extras", install) == ["traces"]
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {re.split(r"[^a-z0-9-]", need)[0] for need in project["dependencies"]} <= locked


def test_final_image_holds_the_packages_and_no_tools() -> None:
    copied = {tuple(rest.split()) for word, rest in INSTRUCTIONS if word == "COPY"}
    assert {(f"{package}/", f"{package}/") for package in ("server", "worker", "shared")} <= copied
    final = {rest.split()[0] for word, rest in FINAL_STAGE if word == "COPY"}
    assert final == {"--from=builder"}
    context = {source for *sources, _ in copied if not sources[0].startswith("--") for source in sources}
    assert all((ROOT / source).exists() for source in context)
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    assert {line[1:] for line in ignore if line.startswith("!")} == {
        source for source in context if not source.startswith("server/web/")
    }
    assert "*" in ignore
    assert not any(re.search(r"\b(apt|apt-get|pip|uv)\b", rest) for word, rest in FINAL_STAGE if word == "RUN")


def test_pages_of_the_image_are_built_from_the_lock() -> None:
    stage = next(i for i, (word, rest) in enumerate(INSTRUCTIONS) if word == "FROM" and rest.endswith(" AS pages"))
    install, build = (rest for word, rest in INSTRUCTIONS[stage : stage + 6] if word == "RUN")
    assert install.startswith("npm ci --omit=dev --ignore-scripts")
    scripts = json.loads((ROOT / "server/web/package.json").read_text(encoding="utf-8"))["scripts"]
    assert (build, scripts["build"]) == ("npm run build", "vite build")
    # vite.config.ts puts them into ../static.
    assert ("COPY", "--from=pages /build/static/ server/static/") in INSTRUCTIONS
    assert 'outDir: "../static"' in (ROOT / "server/web/vite.config.ts").read_text(encoding="utf-8")
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    assert {"server/static*/", "server/web/node_modules/", "server/web/.node/"} <= set(ignore)


def test_image_runs_as_a_fixed_user_that_is_not_root() -> None:
    users = [rest for word, rest in FINAL_STAGE if word == "USER"]
    assert users == ["10001:10001"]
    assert any("useradd --uid 10001 " in rest for word, rest in FINAL_STAGE if word == "RUN")
