"""Log lines: one shape, the context of the work in each, secrets masked, one line for one event."""

import json
import logging
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.contextvars import bound_contextvars

from shared.config.settings import Settings
from shared.telemetry.logs import create_formatter
from tests.unit.replies import settings_for
from tests.unit.test_structure import ROOT

TOKEN, PASSWORD = "correct-horse-battery", "p%40ss/w0rd-of-ours"
SECRETIVE = {"database_url": f"postgresql://collector:{PASSWORD}@db/prices", "api_token": f"other-token,{TOKEN}"}


def settings_with(**given: Any) -> Settings:
    return settings_for().model_copy(update=given)


JSON, CONSOLE = settings_with(log_format="json"), settings_with(log_format="console")


def written(settings: Settings, message: str, *arguments: object, exc_info: Any = None, **extra: Any) -> str:
    record = logging.getLogger("worker.jobs.slots").makeRecord(
        "worker.jobs.slots", logging.WARNING, "jobs.py", 1, message, arguments, exc_info, extra=extra
    )
    return create_formatter(settings).format(record)


def formatted(message: str, *arguments: object, exc_info: Any = None, **extra: Any) -> dict[str, Any]:
    line = written(JSON, message, *arguments, exc_info=exc_info, **extra)
    assert "\n" not in line
    entry: dict[str, Any] = json.loads(line)
    return entry


def is_now(time: str) -> bool:
    return abs(datetime.fromisoformat(time) - datetime.now(UTC)) < timedelta(minutes=5)


def caught(error: Exception) -> Any:
    try:
        raise error
    except type(error):
        return sys.exc_info()


def test_a_line_is_one_object() -> None:
    line = formatted("%s: %d prices", "btc_usd", 5)
    assert is_now(line.pop("time"))
    assert line == {
        "level": "warning",
        "logger": "worker.jobs.slots",
        "message": "btc_usd: 5 prices",
    }


def test_the_order_is_context_then_extras_then_exception() -> None:
    with bound_contextvars(job_id="cron:fetch_prices:1", slot="2026-10-08T04:41:00+00:00"):
        entry = formatted("m", exc_info=caught(ValueError("x")), error_id="ab", color_message="\x1b[1mm", absent=None)
    assert list(entry) == ["time", "level", "logger", "message", "job_id", "slot", "error_id", "exception"]
    assert (entry["job_id"], entry["slot"], entry["error_id"]) == (
        "cron:fetch_prices:1",
        "2026-10-08T04:41:00+00:00",
        "ab",
    )
    assert "job_id" not in formatted("m")


def test_extras_and_context_do_not_replace_time_level_logger_and_message() -> None:
    with bound_contextvars(message="bound", level="bound"):
        entry = formatted("m", time="never", logger="other")
    assert is_now(entry["time"])
    assert (entry["level"], entry["logger"], entry["message"]) == ("warning", "worker.jobs.slots", "m")


def test_extras_of_any_type_are_members() -> None:
    instant = datetime(2026, 10, 8, tzinfo=UTC)
    entry = formatted("m", price=Decimal("1.50"), at=instant, nested={"a": [1, None, {2}]}, thing=ValueError, no=False)
    assert {name: entry[name] for name in ("price", "at", "nested", "thing", "no")} == {
        "price": "1.50",
        "at": "2026-10-08 00:00:00+00:00",
        "nested": {"a": [1, None, "{2}"]},
        "thing": "<class 'ValueError'>",
        "no": False,
    }


def test_an_exception_is_part_of_its_line() -> None:
    entry = formatted("failed", exc_info=caught(RuntimeError("first line\nsecond line")))
    assert entry["message"] == "failed"
    assert re.fullmatch(r"Traceback .*RuntimeError: first line\nsecond line", entry["exception"], re.DOTALL)


@given(st.text() | st.text(st.characters(categories=("Cs", "Cc", "Zl", "Zp"))))
def test_any_text_stays_on_one_line(text: str) -> None:
    entry = formatted("|%s|", text, detail=text)
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")  # JSON joins halves of pairs
    assert (entry["message"], entry["detail"]) == (f"|{whole}|", whole)
    line = written(CONSOLE, "%s", text, detail=text)
    assert line.isprintable(), line


def test_a_line_for_people() -> None:
    with bound_contextvars(ticker="btc_usd"):
        time, _, rest = written(CONSOLE, "%d prices", 5, detail="two words").partition(" ")
    assert is_now(time)
    assert rest == "[warning  ] 5 prices [worker.jobs.slots] ticker=btc_usd detail='two words'"


def test_text_from_a_client_cannot_forge_a_line() -> None:
    forged = "x\n2026-10-08T04:41:44.601+00:00 [error    ] forged\r\x1b[2K\u2028\x85"
    first, *traceback = written(CONSOLE, "refused: %s", forged, id=forged, exc_info=caught(KeyError(forged))).split(
        "\n"
    )
    assert first.count("[error") == 2  # quoted, within the line
    assert traceback
    assert all(line.startswith("    ") and line.isprintable() for line in traceback)


@pytest.mark.parametrize("settings", [settings_with(**SECRETIVE, log_format=f) for f in ("json", "console")])
def test_secrets_are_masked_in_messages_extras_and_exceptions(settings: Settings) -> None:
    quoted = f"cannot connect to redis://:hunter2@h/0 and postgresql://u:a@b/hunter2@h,i/db?password=hunter2&x={TOKEN}"
    error = caught(OSError(f"{quoted} {SECRETIVE['database_url']}"))
    extra: dict[str, Any] = {"url": quoted, "nested": [{"k": error[1]}], "header": "Bearer hunter2"}
    line = written(settings, "%s; Authorization: bearer hunter2, %s p@ss/w0rd-of-ours", quoted, PASSWORD, **extra)
    line += written(settings, "m", exc_info=error)
    for secret in ("hunter2", TOKEN, "other-token", "w0rd"):
        assert secret not in line
    for kept in ("cannot connect to redis://:***@h/0", "postgresql://u:***@h,i/db?password=***&x=***", "OSError"):
        assert kept in line


def test_every_url_of_the_settings_has_its_secrets_masked() -> None:
    settings = settings_with(
        database_url="postgresql://h/d?user=u&password=of%2Fthe-primary",
        database_read_url="postgresql://reader:of-the-standby@r/d",
        redis_url="redis+sentinel://:of-the-master@s/m/0?sentinel_password=of-the-sentinels",
        otel_exporter_otlp_endpoint="https://u:of-the-collector@c:4318",
    )
    known = "of%2Fthe-primary of/the-primary of-the-standby of-the-master of-the-sentinels of-the-collector"
    line = written(settings, "%s", known)
    line += written(CONSOLE, "redis+sentinel://s/m?sentinel_password=%s", "unknown-one")
    assert not [secret for secret in (*known.split(), "unknown-one") if secret in line]


def test_a_password_equal_to_the_user_name_is_not_masked_everywhere() -> None:
    settings = settings_with(database_url="postgresql://postgres:postgres@postgres/prices", log_format="json")
    assert json.loads(written(settings, "postgres is unavailable"))["message"] == "postgres is unavailable"
    assert "://postgres:***@postgres/" in written(settings, settings.database_url)


def test_masking_a_long_text_takes_no_quadratic_time() -> None:
    text = "://x:" * 20_000
    assert json.loads(written(JSON, text))["message"] == text  # within the time that a test has


PROCESS = """
import asyncio, logging, sys, warnings
from shared.telemetry.logs import configure_logging
from shared.config.settings import load_settings
for _ in range(2):
    configure_logging(load_settings(database_url="postgresql://h/d", redis_url="redis://h", log_level=sys.argv[1]))
for name in ("worker", "httpx", "httpcore", "arq.worker", "uvicorn.sockets", "opentelemetry.exporter.otlp"):
    for level in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger(name), level)("one of\\n%s", name)
warnings.warn("a warning", stacklevel=1)
print("colours" if "\\x1b" in logging.root.handlers[0].format(logging.makeLogRecord({})) else "plain")
raise RuntimeError("the end of redis://:hunter2@h")
"""


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", {"worker": "debug", "quiet": "warning"}),
        ("info", {"worker": "info", "quiet": "warning"}),
        ("error", {"worker": "error", "quiet": "error"}),
    ],
)
def test_a_process_writes_every_line_in_one_shape(level: str, shown: dict[str, str]) -> None:
    env = {"LOG_FORMAT": "json", "PYTHONPATH": str(ROOT), "PATH": ""}
    ended = subprocess.run(
        [sys.executable, "-c", PROCESS, level], env=env, capture_output=True, text=True, check=False, timeout=30
    )
    assert (ended.returncode, ended.stdout) == (1, "plain\n")
    *lines, last = map(json.loads, ended.stderr.splitlines())
    levels = ["debug", "info", "warning", "error"]
    wanted = {name: levels[levels.index(shown["quiet"]) :] for name in ("httpx", "httpcore", "arq.worker")}
    wanted["uvicorn.sockets"] = wanted["httpx"]
    wanted["worker"] = levels[levels.index(shown["worker"]) :]
    wanted["opentelemetry.exporter.otlp"] = ["error"]
    found: dict[str, list[str]] = {}
    for line in lines:
        if line["logger"] == "py.warnings":
            assert "UserWarning: a warning" in line["message"]
            continue
        assert line["message"] == f"one of\n{line['logger']}"
        found.setdefault(line["logger"], []).append(line["level"])
    assert found == wanted
    assert len(lines) - sum(map(len, wanted.values())) == (1 if level != "error" else 0)
    assert (last["level"], last["message"]) == ("critical", "the process ends")
    assert last["exception"].endswith("RuntimeError: the end of redis://:***@h")
