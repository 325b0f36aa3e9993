"""Tokens and clients: which tokens are accepted, reloading of the token file, and what counts as one client."""

import hmac
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Scope

from server.protection import auth as access
from server.protection.auth import UNKNOWN_CLIENT, Access, client_of, is_authenticated
from shared.config.settings import Settings, SettingsError
from tests.unit.replies import settings_for

OLD, NEW = "old-correct-horse", "new-battery-staple"


def scope_of(settings: Settings, *headers: tuple[bytes, bytes], client: Any = ("192.0.2.1", 5)) -> Scope:
    state = {"settings": settings, "access": Access(settings)}
    return {"type": "http", "headers": list(headers), "client": client, "state": state}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A token file that is checked at each request."""
    monkeypatch.setattr(access, "CHECK_SECONDS", 0.0)
    path = tmp_path / "token"
    path.write_text(f"{OLD}\n")
    return path


def test_each_of_several_tokens_is_accepted() -> None:
    both = Access(settings_for(api_token=f"{OLD}, {NEW}"))
    accepted = {text for text in (OLD, NEW, f"{OLD},{NEW}", OLD[:-1], f"{OLD}x", "") if both.accepts(f"Bearer {text}")}
    assert accepted == {OLD, NEW}


@pytest.mark.parametrize(
    "authorization",
    [OLD, f"Basic {OLD}", "Bearer", "Bearer ", f"Bearer{OLD}", f"Bearer {OLD} {OLD}", f"Bearer {OLD.upper()}", ""],
)
def test_another_scheme_or_another_token_is_not_accepted(authorization: str) -> None:
    assert not Access(settings_for(api_token=OLD)).accepts(authorization)


@pytest.mark.parametrize("text", ["\ud800" * 8, "pässword", "\0" * 8, "Bearer " * 1000])
def test_any_text_may_be_sent_as_a_token(text: str) -> None:
    assert not Access(settings_for(api_token=OLD)).accepts(f"Bearer {text}")


def test_every_token_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(given: bytes, known: bytes) -> bool:
        compared.append(known)
        return given == known

    three = Access(settings_for(api_token=f"{OLD},{NEW},a-third-token"))
    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert three.accepts(f"Bearer {OLD}")
    assert [len(known) for known in compared] == [32, 32, 32]


def test_only_a_single_authorization_header_is_checked() -> None:
    settings = settings_for(api_token=OLD)
    good, bad = (b"authorization", f"Bearer {OLD}".encode()), (b"authorization", b"Bearer \xff\xe9")
    assert is_authenticated(scope_of(settings, (b"accept", b"*/*"), good))
    assert [is_authenticated(scope_of(settings, *headers)) for headers in ((), (bad,), (bad, good), (good, good))] == (
        [False] * 4
    )
    assert not is_authenticated(scope_of(settings_for(), good))


def test_a_changed_token_file_is_read_again(file: Path) -> None:
    following = Access(settings_for(api_token_file=str(file)))

    def accepted() -> set[str]:
        return {token for token in (OLD, NEW) if following.accepts(f"Bearer {token}")}

    assert accepted() == {OLD}
    file.write_text(f"\n  {OLD}\r\n\n{NEW}\n")
    assert accepted() == {OLD, NEW}
    other = file.with_name("other")
    other.write_text(NEW)
    os.replace(other, file)
    assert accepted() == {NEW}


@pytest.mark.parametrize("content", [b"", b"\n \n", b"short\n", b"correct horse\n", b"correct-horse-\xff\n", None])
def test_an_unusable_token_file_leaves_the_old_tokens_valid(
    file: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    following = Access(settings_for(api_token_file=str(file)))
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with caplog.at_level(logging.INFO):
        assert [following.accepts(f"Bearer {OLD}") for _ in range(3)] == [True] * 3
    [record] = caplog.records
    assert (record.levelname, f"API_TOKEN_FILE={file} is refused; " in record.message) == ("ERROR", True)
    assert "horse" not in record.message
    file.write_text(NEW)
    assert following.accepts(f"Bearer {NEW}")


def test_a_file_that_cannot_be_used_at_the_start_is_refused(file: Path) -> None:
    file.write_text("hunter2")
    with pytest.raises(SettingsError, match=r"API_TOKEN_FILE=.* is refused; accepted: ") as caught:
        Access(settings_for(api_token_file=str(file)))
    assert "hunter2" not in f"{caught.value!r}{caught.value.__cause__!r}"


def test_tokens_are_not_shown(file: Path) -> None:
    settings = settings_for(api_token=OLD)
    following = Access(settings_for(api_token_file=str(file)))
    assert OLD not in f"{settings!r}{settings}{Access(settings)!r}{vars(following)}"


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("unknown", UNKNOWN_CLIENT),
        ("192.0.2.7:80:80", UNKNOWN_CLIENT),
        ("x" * 10_000, UNKNOWN_CLIENT),
        ("", UNKNOWN_CLIENT),
    ],
)
def test_a_client_is_an_address_or_a_network(host: str, client: str) -> None:
    assert client_of({"client": (host, 0)}) == client


def test_a_client_without_an_address_is_unknown() -> None:
    assert client_of({"client": None}) == UNKNOWN_CLIENT
