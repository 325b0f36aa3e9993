"""The embedded servers of the tests and of `make run`."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

from shared.local.child import EmbeddedError
from shared.local.data_folder import lock_data_folder
from shared.local.servers import PortTakenError
from tests.embedded import Server, free_port, start_postgres, start_valkey
from tests.integration.local_processes import ROOT, files_of_all, needs_linux, status_of, wait_until_gone

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes the account of its servers")


@pytest.fixture
def starting() -> Iterator[Callable[[Server], Server]]:
    with ExitStack() as stack:

        def stopped_after_test(server: Server) -> Server:
            stack.callback(server.stop)
            return server

        yield stopped_after_test


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose server is stopped, as a second start finds it."""
    folder = tmp_path_factory.mktemp("cluster")
    start_postgres(folder / "postgres").stop()
    return folder / "postgres"


async def test_second_start_finds_the_data(cluster: Path, tmp_path: Path) -> None:
    for start in (1, 2):
        postgres, valkey = start_postgres(cluster), start_valkey(tmp_path / "valkey")
        try:
            connection = await asyncpg.connect(postgres.url)
            await connection.execute("create table if not exists kept (n int)")
            await connection.execute("insert into kept values ($1)", start)
            numbers = [row["n"] for row in await connection.fetch("select n from kept order by n")]
            await connection.close()
            async with Redis.from_url(valkey.url) as redis:
                count = await redis.incr("kept")
        finally:
            valkey.stop()
            postgres.stop()
        assert (numbers, count) == (list(range(1, start + 1)), start)
        assert (postgres.process.returncode, valkey.process.returncode) == (0, 0)


async def test_encoding_durability_and_reach(cluster: Path, starting: Callable[[Server], Server]) -> None:
    server = starting(start_postgres(cluster, options={"work_mem": "5MB"}))
    connection = await asyncpg.connect(server.url)
    rows = await connection.fetch(
        "select name, setting from pg_settings where name = any($1)",
        ["server_encoding", "fsync", "listen_addresses", "unix_socket_directories", "work_mem"],
    )
    await connection.close()
    assert {row["name"]: row["setting"] for row in rows} == {
        "server_encoding": "UTF8",
        "fsync": "on",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "work_mem": "5120",
    }
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(server.url.replace("//postgres:", "//postgres:x"))


def test_half_written_folder_is_made_again(tmp_path: Path, starting: Callable[[Server], Server]) -> None:
    half = tmp_path / "postgres" / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    (tmp_path / "postgres" / "password").write_text("of the interrupted start")
    starting(start_postgres(tmp_path / "postgres"))
    assert not half.exists()


@pytest.mark.parametrize(
    ("version", "line"),
    [
        ("17\n", r"was written by PostgreSQL 17 and this is 18; .* DATA_DIR"),
        (None, r"not a complete PostgreSQL data folder"),
    ],
)
def test_unusable_folder(tmp_path: Path, version: str | None, line: str) -> None:
    data = tmp_path / "postgres" / "data"
    data.mkdir(parents=True)
    (tmp_path / "postgres" / "password").write_text("secret")
    if version is not None:
        (data / "PG_VERSION").write_text(version)
    with pytest.raises(EmbeddedError, match=line):
        start_postgres(tmp_path / "postgres")


def test_pid_file_of_a_killed_server(cluster: Path, starting: Callable[[Server], Server]) -> None:
    server = start_postgres(cluster)
    server.process.kill()
    server.process.wait()
    pid_file = cluster / "data" / "postmaster.pid"
    lines = pid_file.read_text().split("\n")
    pid_file.write_text("\n".join([str(os.getppid()), *lines[1:]]))  # now the pid of another program
    starting(start_postgres(cluster))


def test_taken_port(cluster: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"PostgreSQL did not start: port {port} is taken"):
            start_postgres(cluster, port=port)
        with pytest.raises(PortTakenError, match=f"Valkey did not start: port {port} is taken"):
            start_valkey(tmp_path / "valkey", port=port)


def test_port_lost_in_between_is_chosen_again(
    tmp_path: Path, starting: Callable[[Server], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1], free_port()])
        monkeypatch.setattr("tests.embedded.free_port", lambda: next(ports))
        assert starting(start_valkey(tmp_path / "valkey")).port != taken.getsockname()[1]


def test_second_copy_on_the_same_data(tmp_path: Path) -> None:
    message = rf"\(pid {os.getpid()}\); stop it, or set DATA_DIR"
    with lock_data_folder(tmp_path), pytest.raises(EmbeddedError, match=message):
        lock_data_folder(tmp_path)
    lock_data_folder(tmp_path).close()


@needs_linux
def test_passwords_are_for_the_server_alone(
    cluster: Path, tmp_path: Path, starting: Callable[[Server], Server]
) -> None:
    servers = starting(start_postgres(cluster)), starting(start_valkey(tmp_path / "valkey"))
    for server, folder in zip(servers, (cluster, tmp_path / "valkey"), strict=True):
        password = (folder / "password").read_text()
        assert password in server.url
        assert password not in repr(server)
        assert password.encode() not in b"".join(path.read_bytes() for path in files_of_all("cmdline"))
        assert [path.stat().st_mode & 0o777 for path in (folder / "password", folder)] == [0o600, 0o700]


STARTER = """
import sys, time
from pathlib import Path
from tests.embedded import start_postgres, start_valkey
servers = [start_postgres(Path(sys.argv[1]) / "postgres"), start_valkey(Path(sys.argv[1]) / "valkey")]
print(*(server.process.pid for server in servers), flush=True)
time.sleep(60)
"""


@needs_linux
@pytest.mark.parametrize("mode", [pytest.param(0o755, id="open"), pytest.param(0o700, id="closed", marks=needs_root)])
def test_servers_end_with_a_killed_parent(mode: int) -> None:
    """`closed`: a clone below a folder that only root may enter; the servers enter it without being root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(mode)
        command = [sys.executable, "-c", STARTER, name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as parent:
            try:
                assert parent.stdout is not None
                pids = [int(pid) for pid in parent.stdout.readline().split()]
                statuses = [status_of(pid) for pid in pids]
            finally:
                parent.kill()
        wait_until_gone(pids)
        assert len(pids) == 2
        if os.geteuid() == 0:
            above = {folder, *folder.parents, Path(sys.prefix), *Path(sys.prefix).parents}
            is_open = all(path.stat().st_mode & 0o001 for path in above)
            assert all(status["Uid"].split()[1] != "0" for status in statuses)
            read_and_search = 1 << 2
            assert {int(status["CapEff"], 16) for status in statuses} == {0 if is_open else read_and_search}
