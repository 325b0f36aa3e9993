"""Child processes that end with their parent, and servers that never run as root.

Linux ends a child when the thread that started it ends (`PR_SET_PDEATHSIG`), so call `spawn` on the main thread. On
other systems a kill -9 of the parent leaves its children running.
"""

import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# From linux/prctl.h, linux/securebits.h and linux/capability.h.
_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS = 28
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION_3 = 0x20080522

_IS_LINUX = sys.platform == "linux"
_libc = ctypes.CDLL(None, use_errno=True)


class EmbeddedError(Exception):
    """One line for the operator: what is wrong, and what to do."""


@dataclass(frozen=True)
class Account:
    uid: int
    gid: int


def unprivileged_account(folder: Path) -> Account | None:
    """If we are root: the owner of `folder`, or `nobody`, to run its server as. Otherwise None."""
    if os.geteuid() != 0:
        return None
    if folder.exists() and (owner := folder.stat()).st_uid != 0:
        with contextlib.suppress(KeyError):  # initdb refuses an account without a name
            return Account(pwd.getpwuid(owner.st_uid).pw_uid, owner.st_gid)
    nobody = pwd.getpwnam("nobody")
    return Account(nobody.pw_uid, nobody.pw_gid)


def spawn(
    command: Sequence[str | Path],
    *,
    death_signal: signal.Signals,
    env: Mapping[str, str],
    account: Account | None = None,
    reaches: Iterable[Path] = (),
    cwd: Path | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` in its own session, so that a terminal's Ctrl-C reaches only us. stderr goes to stdout.

    `reaches`: folders that `account` must enter. If it may not enter one of them or a parent (a clone below a 0700
    folder of root), the child keeps the capability to read and search everywhere, but none to write.
    """
    closed = [] if account is None else _closed_folders(account, reaches)
    if account is not None and closed and not _can_keep_search_right():
        raise EmbeddedError(
            f"{Path(command[0]).name} is not run as root, and uid {account.uid} cannot enter {closed[0]}; let others "
            f"enter it (chmod o+x {closed[0]}), or start as an ordinary user"
        )
    parent = os.getpid()

    def prepare() -> None:
        if account is not None:
            _become(account, keep_search_right=bool(closed))
        end_with_parent(death_signal, parent)

    return subprocess.Popen(
        [str(part) for part in command],
        env=dict(env),
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.STDOUT if stdout is not None else None,
        start_new_session=True,
        preexec_fn=prepare,
    )


def end_with_parent(death_signal: signal.Signals, parent: int) -> None:
    """Have the kernel send us `death_signal` when `parent` ends. Call it after a change of uid, which clears it."""
    if not _IS_LINUX:
        return
    _prctl(_PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:  # it ended before the line above
        os.kill(os.getpid(), signal.SIGKILL)


def _become(account: Account, *, keep_search_right: bool) -> None:
    if keep_search_right:
        # Otherwise the kernel drops capabilities with the uid, and access(2), which PostgreSQL calls, ignores them.
        _prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP)
    os.setgroups([])
    os.setgid(account.gid)
    os.setuid(account.uid)
    if keep_search_right:
        only = 1 << _CAP_DAC_READ_SEARCH
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        effective_permitted_inheritable = (ctypes.c_uint32 * 6)(only, only, only, 0, 0, 0)
        _check(_libc.capset(header, effective_permitted_inheritable))
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_READ_SEARCH)


def _closed_folders(account: Account, reaches: Iterable[Path]) -> list[Path]:
    """The folders and parents that `account` may not enter, by their mode bits."""
    closed = []
    for folder in {above for path in reaches for above in (path, *path.parents)}:
        status = folder.stat()
        bit = 0o100 if status.st_uid == account.uid else 0o010 if status.st_gid == account.gid else 0o001
        if not status.st_mode & bit:
            closed.append(folder)
    return sorted(closed)


def _can_keep_search_right() -> bool:
    """Containers often run root without this capability."""
    if not _IS_LINUX:
        return False
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return bool(int(status["CapPrm"], 16) & 1 << _CAP_DAC_READ_SEARCH)


def _prctl(option: int, *arguments: int) -> None:
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    _check(_libc.prctl(ctypes.c_int(option), *padded))


def _check(result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
