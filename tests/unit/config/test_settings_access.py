"""Settings of the process that listens: combinations that are refused, in one message, at the start."""

from pathlib import Path

import pytest

from shared.config.settings import SettingsError
from tests.unit.conftest import Loader

TOKEN = "correct-horse-battery"
NO_TOKEN_FOR_READS = "REQUIRE_TOKEN_FOR_READS=1 needs a token: set API_TOKEN"
OPEN_TO_ALL = (
    "HOST=0.0.0.0 listens beyond this machine and anyone may run mutations: set API_TOKEN, "
    "or ALLOW_ANONYMOUS_MUTATIONS=1 to allow that"
)
FILE_RULE = "accepted: a file with one token a line, each of at least 8 printable ASCII characters without spaces"


def refusal(load: Loader, **variables: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(**variables).require_guarded_mutations()
    return str(caught.value).splitlines()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\nanother-token\n")
    return path


def test_a_file_guards_as_the_variable_does(load: Loader, file: Path) -> None:
    settings = load(HOST="0.0.0.0", API_TOKEN_FILE=str(file), REQUIRE_TOKEN_FOR_READS="1")
    settings.require_guarded_mutations()
    assert (settings.has_token, settings.read_tokens()) == (True, (TOKEN, "another-token"))


def test_several_tokens_in_the_variable(load: Loader) -> None:
    settings = load(HOST="0.0.0.0", API_TOKEN=f"{TOKEN}, another-token,{TOKEN}", REQUIRE_TOKEN_FOR_READS="1")
    settings.require_guarded_mutations()
    assert (settings.has_token, settings.read_tokens()) == (True, (TOKEN, "another-token"))


def test_no_token_is_needed_where_none_is_set(load: Loader) -> None:
    settings = load()
    settings.require_guarded_mutations()
    assert (settings.has_token, settings.read_tokens()) == (False, ())


def test_two_places_for_tokens_are_refused(load: Loader, file: Path) -> None:
    assert refusal(load, API_TOKEN=TOKEN, API_TOKEN_FILE=str(file)) == [
        "API_TOKEN and API_TOKEN_FILE are both set: keep one of them"
    ]


def test_closed_reads_need_a_token(load: Loader) -> None:
    assert refusal(load, REQUIRE_TOKEN_FOR_READS="1") == [NO_TOKEN_FOR_READS]
    assert refusal(load, REQUIRE_TOKEN_FOR_READS="1", HOST="0.0.0.0") == [NO_TOKEN_FOR_READS, OPEN_TO_ALL]


@pytest.mark.parametrize("content", ["", "hunter2", "hunter2 hunter2", "correct-horse\nhunter2", "päss-hunter2"])
def test_a_file_without_good_tokens_is_refused_and_not_shown(load: Loader, file: Path, content: str) -> None:
    file.write_text(content)
    assert refusal(load, API_TOKEN_FILE=str(file)) == [f"API_TOKEN_FILE={file} is refused; {FILE_RULE}"]


def test_a_file_that_is_not_there_is_refused(load: Loader, tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        assert refusal(load, API_TOKEN_FILE=str(path)) == [f"API_TOKEN_FILE={path} is refused; {reason}; {FILE_RULE}"]


def test_a_process_that_does_not_listen_needs_no_file(load: Loader, tmp_path: Path) -> None:
    """The worker is not given the secret."""
    assert load(API_TOKEN_FILE=str(tmp_path / "none")).has_token
