"""A data folder that another account prepared for root: nothing that a link leads to is changed."""

import os
from pathlib import Path

import pytest

from shared.local.child import EmbeddedError
from shared.local.data_folder import lock_data_folder, own_folder

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights that others lack")

STRANGER = 12_345


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "lock").write_text("kept")
    return folder


def state(victim: Path) -> tuple[int, int, str]:
    return victim.stat().st_uid, victim.stat().st_mode & 0o777, (victim / "lock").read_text()


def test_a_folder_of_another_account_is_refused(tmp_path: Path, victim: Path) -> None:
    folder = tmp_path / "data" / "live"
    folder.mkdir(parents=True)
    (folder / "lock").symlink_to(victim / "lock")
    for foreign in (folder, folder.parent):
        os.chown(foreign, STRANGER, STRANGER)
        with pytest.raises(EmbeddedError, match=rf"^{foreign} belongs to another account \(uid {STRANGER}\); as root"):
            lock_data_folder(folder)
    assert state(victim) == (0, 0o755, "kept")


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    os.chown(tmp_path, 0, STRANGER)
    tmp_path.chmod(mode)
    with pytest.raises(EmbeddedError, match=f"other accounts can write to {tmp_path}; as root"):
        lock_data_folder(tmp_path / "live")
    assert list(tmp_path.iterdir()) == []


def test_a_link_of_another_account_is_refused(tmp_path: Path, victim: Path) -> None:
    link = tmp_path / "data"
    link.symlink_to(victim)
    os.lchown(link, STRANGER, STRANGER)
    with pytest.raises(EmbeddedError, match=f"{link} belongs to another account"):
        lock_data_folder(link / "live")
    assert [path.name for path in victim.iterdir()] == ["lock"]


@pytest.mark.parametrize("name", ["lock", "postgres"])
def test_no_link_in_the_folder_is_followed(tmp_path: Path, victim: Path, name: str) -> None:
    (tmp_path / "live").mkdir()
    (tmp_path / "live" / name).symlink_to(victim / "lock" if name == "lock" else victim)
    with pytest.raises(EmbeddedError, match=f"{tmp_path}/live/{name} is a link; as root"):
        lock_data_folder(tmp_path / "live")
    assert state(victim) == (0, 0o755, "kept")


def test_a_server_gets_no_folder_through_a_link(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "postgres").symlink_to(victim)
    (tmp_path / "valkey").mkdir()
    (tmp_path / "valkey" / "password").symlink_to(victim / "lock")
    for name, link in (("postgres", "postgres"), ("valkey", "valkey/password")):
        with pytest.raises(EmbeddedError, match=f"{tmp_path}/{link} is a link"):
            own_folder(tmp_path / name)
    assert state(victim) == (0, 0o755, "kept")


def test_a_folder_of_roots_own_is_used_again(tmp_path: Path) -> None:
    for _ in (1, 2):
        with lock_data_folder(tmp_path / "data" / "live"):
            own_folder(tmp_path / "data" / "live" / "postgres")
