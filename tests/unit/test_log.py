"""Log lines: one JSON object each, with what was passed along and the traceback in it."""

import json
import logging
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.log import JsonFormatter, configure_logging
from tests.unit.replies import settings_for

QUIET = ("httpx", "httpcore", "arq.worker")


@pytest.fixture
def _logging_restored() -> Iterator[None]:
    """pytest's own handlers are set aside, so that they are neither closed nor replaced."""
    loggers = [logging.root, *map(logging.getLogger, QUIET)]
    levels = [logger.level for logger in loggers]
    handlers, logging.root.handlers = logging.root.handlers, []
    yield
    logging.root.handlers = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def formatted(message: str, *arguments: object, exc_info: Any = None, **extra: Any) -> dict[str, Any]:
    record = logging.getLogger("worker.jobs").makeRecord(
        "worker.jobs", logging.WARNING, "jobs.py", 1, message, arguments, exc_info, extra=extra
    )
    record.created = 1791434504.601
    line = JsonFormatter().format(record)
    assert "\n" not in line
    entry: dict[str, Any] = json.loads(line)
    return entry


def test_a_line_is_one_object() -> None:
    assert formatted("%s: %d prices", "btc_usd", 5) == {
        "time": "2026-10-08T04:41:44.601+00:00",
        "level": "warning",
        "logger": "worker.jobs",
        "message": "btc_usd: 5 prices",
    }


def test_extras_are_members_whatever_their_type() -> None:
    instant = datetime(2026, 10, 8, tzinfo=UTC)
    entry = formatted("m", error_id="ab", price=Decimal("1.50"), at=instant, nested={"a": [1, None]}, thing=ValueError)
    assert {name: entry[name] for name in ("error_id", "price", "at", "nested", "thing")} == {
        "error_id": "ab",
        "price": "1.50",
        "at": "2026-10-08 00:00:00+00:00",
        "nested": {"a": [1, None]},
        "thing": "<class 'ValueError'>",
    }


def test_an_exception_is_in_its_line() -> None:
    try:
        raise RuntimeError("first line\nsecond line")
    except RuntimeError:
        entry = formatted("failed", exc_info=sys.exc_info())
    assert entry["message"] == "failed"
    assert re.fullmatch(r"Traceback .*RuntimeError: first line\nsecond line", entry["exception"], re.DOTALL)


@given(st.text() | st.text(st.characters(categories=("Cs", "Cc", "Zl", "Zp"))))
def test_any_text_stays_on_one_line(text: str) -> None:
    entry = formatted("%s", text, detail=text)
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")  # JSON joins halves of pairs
    assert (entry["message"], entry["detail"]) == (whole, whole)


@pytest.mark.usefixtures("_logging_restored")
def test_json_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings_for(log_format="json"))
    logging.getLogger("worker").info("one\ntwo", extra={"ticker": "btc_usd"})
    logging.getLogger("worker").debug("not shown")
    output = capsys.readouterr()
    [line] = output.err.splitlines()
    entry = json.loads(line)
    assert output.out == ""
    assert (entry["level"], entry["message"], entry["ticker"]) == ("info", "one\ntwo", "btc_usd")


@pytest.mark.usefixtures("_logging_restored")
def test_the_console_has_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings_for(log_level="warning"))
    logging.getLogger("worker").info("not shown")
    logging.getLogger("worker").warning("shown")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING worker: shown\n", capsys.readouterr().err)


@pytest.mark.usefixtures("_logging_restored")
@pytest.mark.parametrize(("level", "quiet"), [("debug", logging.WARNING), ("error", logging.ERROR)])
def test_libraries_that_log_every_request_are_quiet(level: str, quiet: int) -> None:
    configure_logging(settings_for(log_level=level))
    assert [logging.getLogger(name).level for name in QUIET] == [quiet] * len(QUIET)
    assert logging.root.level == getattr(logging, level.upper())


@pytest.mark.usefixtures("_logging_restored")
def test_configuring_twice_does_not_double_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        configure_logging(settings_for())
    logging.getLogger("worker").info("once")
    assert capsys.readouterr().err.count("once") == 1
