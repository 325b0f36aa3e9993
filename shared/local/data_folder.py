"""The folder of an embedded server: whose it is, its password, its log, and who may still be running on it."""

import contextlib
import fcntl
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from shared.local.child import Account, EmbeddedError, spawn, unprivileged_account

_PREDECESSOR_TIMEOUT = 20.0
# Nothing of our environment, which may hold secrets; one locale, so that log lines are the ones looked for here.
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
_SEVERE = re.compile(r"^.*?(?:FATAL|PANIC|ERROR|error): +|^\d+:\w .*? # ")


def lock_data_folder(directory: Path) -> TextIO:
    """Keep a second copy off `directory` for as long as the file returned is open."""
    with one_line(directory):
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        pid = lock.read().strip() or "unknown"
        lock.close()
        if not isinstance(error, BlockingIOError):
            raise EmbeddedError(f"{directory.resolve()} cannot be locked ({error.strerror}); set DATA_DIR") from error
        raise EmbeddedError(
            f"Another copy is running on {directory.resolve()} (pid {pid}); stop it, or set DATA_DIR to another folder"
        ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


@contextlib.contextmanager
def one_line(directory: Path) -> Iterator[None]:
    """Turn what the system refuses in `directory` into the operator's line."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise EmbeddedError(
            f"{directory.resolve()} cannot be used ({what}); make it yours, or set DATA_DIR to another folder"
        ) from error


def own_folder(directory: Path) -> tuple[Path, Account | None]:
    """The folder, made if missing, for the account its server runs as and no one else. Parents stay as they are."""
    directory = directory.resolve()
    account = unprivileged_account(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if account is not None:
        os.chown(directory, account.uid, account.gid)
    directory.chmod(0o700)
    return directory, account


def write_password(file: Path, account: Account | None) -> None:
    """A new random one, complete or not there at all, readable by the server's account alone."""
    unfinished = file.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as output:
        output.write(secrets.token_urlsafe(24))
        if account is not None:
            os.fchown(descriptor, account.uid, account.gid)
        output.flush()
        os.fsync(descriptor)
    unfinished.rename(file)


def wait_for_predecessor(program: str, folder: Path) -> bool:
    """Whether it is sure that no `program` runs on `folder`.

    One whose parent was killed needs a moment to end, and a second one beside it would ruin the data.
    """
    deadline = time.monotonic() + _PREDECESSOR_TIMEOUT
    while pids := _processes_in(program, folder):
        if time.monotonic() > deadline:
            raise EmbeddedError(f"{program} still runs on {folder} (pid {pids[0]}); stop it first")
        time.sleep(0.05)
    return sys.platform == "linux"  # elsewhere processes cannot be listed this way


def spawn_server(
    command: Sequence[str | Path],
    death_signal: signal.Signals,
    account: Account | None,
    data: Path,
    log: Path,
    text: str = "",
) -> subprocess.Popen[bytes]:
    """Run in the folder of `log`, which is emptied first: it cannot grow over the starts. `text` is standard input."""
    # As root we write into another account's folder: a link planted there is not followed.
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        process = spawn(
            command,
            death_signal=death_signal,
            env=_ENVIRONMENT,
            account=account,
            reaches=(data, Path(command[0]).parent),
            cwd=log.parent,
            stdin=subprocess.PIPE,
            stdout=descriptor,
        )
    except subprocess.SubprocessError as error:
        raise EmbeddedError(f"{Path(command[0]).name} cannot be started under another account: {error}") from error
    finally:
        os.close(descriptor)
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # it may have ended at once; its log says why
            pipe.write(text.encode())
    return process


def failure(what: str, log: Path) -> EmbeddedError:
    """`what`, with the line of the log that most likely says why."""
    lines = log_text(log).splitlines()
    severe = [line for line in lines if _SEVERE.match(line)] or lines
    last = _SEVERE.sub("", severe[-1]).strip() if severe else "it said nothing"
    return EmbeddedError(f"{what}: {last} (log: {log})")


def log_text(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def _processes_in(program: str, folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            if os.readlink(entry / "cwd") == str(folder) and Path(os.readlink(entry / "exe")).name.startswith(program):
                found.append(int(entry.name))
    return found
