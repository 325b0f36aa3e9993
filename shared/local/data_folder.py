"""The folder of an embedded server: its owner, lock, password and log, and the processes that run on it."""

import contextlib
import fcntl
import os
import re
import secrets
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import psutil

from shared.local.child import Account, EmbeddedError, spawn, unprivileged_account

_PREDECESSOR_TIMEOUT = 20.0
# Our own environment may hold secrets. The locale is fixed, because log lines are searched for English words.
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
_AS_ROOT = "as root, set DATA_DIR to a folder that only root can write to"
_SEVERE = re.compile(r"^.*?(?:FATAL|PANIC|ERROR|error): +|^\d+:\w .*? # ")


def lock_data_folder(directory: Path) -> TextIO:
    """Lock `directory` against a second copy of this program, as long as the returned file is open.

    Raises `EmbeddedError` if root cannot trust the folder or its parent.
    """
    with operator_errors(directory):
        _require_trusted(directory.parent)
        directory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _require_trusted(directory)
        directory.mkdir(mode=0o755, exist_ok=True)
        _require_no_links(directory)
        lock = os.fdopen(os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644), "a+")
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
def operator_errors(directory: Path) -> Iterator[None]:
    """Turn an `OSError` in `directory` into an `EmbeddedError` that says what to do."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise EmbeddedError(
            f"{directory.resolve()} cannot be used ({what}); make it yours, or set DATA_DIR to another folder"
        ) from error


def own_folder(directory: Path) -> tuple[Path, Account | None]:
    """The folder, made if missing, open only to the account that its server runs as. Parents stay as they are.

    Raises `EmbeddedError` if there are links that root would follow.
    """
    _require_no_links(directory)
    directory = directory.resolve()
    account = unprivileged_account(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if account is not None:
        os.chown(directory, account.uid, account.gid)
    directory.chmod(0o700)
    return directory, account


def _require_trusted(folder: Path) -> None:
    """As root, raise `EmbeddedError` if another account can put files and links into the folder, or has made it a link.

    The account that owns this program is trusted, because root runs its code.
    """
    if os.geteuid() != 0:
        return
    trusted = {0, Path(__file__).stat().st_uid}
    for status in [path_status() for path_status in (folder.lstat, folder.stat) if os.path.lexists(folder)]:
        if status.st_uid not in trusted:
            raise EmbeddedError(f"{folder.absolute()} belongs to another account (uid {status.st_uid}); {_AS_ROOT}")
        others = status.st_mode & (stat.S_IWOTH if status.st_gid == 0 else stat.S_IWOTH | stat.S_IWGRP)
        if not stat.S_ISLNK(status.st_mode) and others and not status.st_mode & stat.S_ISVTX:
            raise EmbeddedError(f"other accounts can write to {folder.absolute()}; {_AS_ROOT}")


def _require_no_links(folder: Path) -> None:
    """As root, raise `EmbeddedError` if the folder, or something in it, is a link.

    Root would truncate the file that it leads to, or give that folder away.
    """
    if os.geteuid() == 0 and folder.exists():
        for path in (folder, *folder.iterdir()):
            if path.is_symlink():
                raise EmbeddedError(f"{path.absolute()} is a link; {_AS_ROOT}")


def write_password(file: Path, account: Account | None) -> None:
    """Write a new random password that only `account` can read. The file is complete or does not exist."""
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


def wait_for_predecessor(program: str, folder: Path) -> None:
    """Wait until no `program` runs on `folder`. Raises `EmbeddedError` after `_PREDECESSOR_TIMEOUT` seconds.

    A server whose parent was killed needs a moment to end, and a second one beside it would destroy the data.
    """
    deadline = time.monotonic() + _PREDECESSOR_TIMEOUT
    while pids := _processes_in(program, folder):
        if time.monotonic() > deadline:
            raise EmbeddedError(f"{program} still runs on {folder} (pid {pids[0]}); stop it first")
        time.sleep(0.05)


def spawn_server(
    command: Sequence[str | Path],
    death_signal: signal.Signals,
    account: Account | None,
    data: Path,
    log: Path,
    text: str = "",
) -> subprocess.Popen[bytes]:
    """Run in the folder of `log`, which is emptied first, so that it stays small. `text` is the standard input."""
    # O_NOFOLLOW, because root writes here into a folder of another account, which could hold a link.
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
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # it ended at once; its log says why
            pipe.write(text.encode())
    return process


def failure(what: str, log: Path) -> EmbeddedError:
    """`what`, with the last severe line of the log as the reason."""
    lines = log_text(log).splitlines()
    severe = [line for line in lines if _SEVERE.match(line)] or lines
    last = _SEVERE.sub("", severe[-1]).strip() if severe else "its log is empty"
    return EmbeddedError(f"{what}: {last} (log: {log})")


def log_text(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def _processes_in(program: str, folder: Path) -> list[int]:
    # `cwd` and `exe` are None for a process of another user.
    return [
        process.pid
        for process in psutil.process_iter(["cwd", "exe"])
        if process.info["cwd"] == str(folder) and Path(process.info["exe"] or "").name.startswith(program)
    ]
