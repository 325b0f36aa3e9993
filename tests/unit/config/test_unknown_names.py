"""Names in `.env` that no setting has: one warning each, with the nearest setting."""

import re
from pathlib import Path

import pytest

from shared.config.settings import Settings
from shared.config.unknown_names import warn_about_unknown_names
from tests.unit.test_structure import ROOT


def warnings_of(path: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    warn_about_unknown_names(path)
    return caplog.messages


def test_a_misspelt_name_is_named_with_the_nearest_setting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / ".env"
    path.write_text("TIKERS=btc_usd\nexport redis_ulr=redis://h\nCOLOUR=blue\nPORT=9000\ntickers=eth_usd\n#HOTS=x\n")
    assert warnings_of(path, caplog) == [
        f"TIKERS in {path} is not a setting and is ignored; did you mean TICKERS?",
        f"redis_ulr in {path} is not a setting and is ignored; did you mean REDIS_URL?",
        f"COLOUR in {path} is not a setting and is ignored; see .env.example",
    ]


def test_variables_that_something_else_reads_are_not_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / ".env"
    compose = set(re.findall(r"\$\{(\w+)", (ROOT / "compose.yaml").read_text()))
    example = set(re.findall(r"^#(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    others = {"PGPASSWORD", "OTEL_SERVICE_NAME", "COMPOSE_PROJECT_NAME", "https_proxy", "PYTHONUNBUFFERED"}
    assert {name.upper() for name in Settings.model_fields} <= example
    path.write_text("".join(f"{name}=x\n" for name in compose | example | others))
    assert warnings_of(path, caplog) == []


def test_without_a_file_there_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(tmp_path / ".env", caplog) == []
