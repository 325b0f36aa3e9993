"""Log lines of every process and library in one shape: for people, or one JSON object a line for machines.

Modules write them with `logging`. What is worked on is bound once, with `structlog.contextvars`, and is then on every
line, whoever writes it: `request_id` and `operation_id` in the API, `job_id`, `function`, `slot`, `ticker` in a worker.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any
from urllib.parse import unquote

from structlog.contextvars import merge_contextvars
from structlog.dev import ConsoleRenderer
from structlog.processors import JSONRenderer, format_exc_info
from structlog.stdlib import ExtraAdder, ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from shared.config.settings import Settings, SettingsError
from shared.telemetry import traces

logger = logging.getLogger(__name__)

_QUIET = {
    # One line per request to the exchange, job or socket says nothing that a failure's own line does not. At the level
    # debug a socket's lines would show its headers and messages, tokens among them.
    **dict.fromkeys(("httpx", "httpcore", "arq.worker", "uvicorn.sockets", "urllib3"), logging.WARNING),
    "opentelemetry.exporter": logging.ERROR,  # one line for a batch that is lost, none for each try
}
_ABOUT = ("request_id", "operation_id", "job_id", "function", "slot", "ticker", "trace_id")
_SHORTEST_SECRET = 8
_URL_PASSWORD = re.compile(r"(://[^\s:/@]{0,100}):\S{0,500}@")
_PASSWORDS = re.compile(r"[?&]\w*password=([^&#]+)", re.IGNORECASE)
_PARAMETER = re.compile(r"(password=|\bbearer\s{1,10})[^\s&\"',]+", re.IGNORECASE)


def configure_logging(settings: Settings, *processors: Processor) -> None:
    """Send everything to standard error. `processors` may add to a line what only their process knows."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(create_formatter(settings, *processors, colors=sys.stderr.isatty()))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(max(level, logging.root.level))
    logging.captureWarnings(True)
    sys.excepthook = _log_end


def create_formatter(settings: Settings, *processors: Processor, colors: bool = False) -> logging.Formatter:
    is_json = settings.log_format == "json"
    ending: list[Processor] = (
        [JSONRenderer()]
        if is_json
        else [
            _Printable(),
            ConsoleRenderer(colors=colors, sort_keys=False, event_key="message", timestamp_key="time", pad_event_to=0),
        ]
    )
    return ProcessorFormatter(
        processors=[
            merge_contextvars,
            *processors,
            _add_trace,
            ExtraAdder(),
            format_exc_info,
            _in_order,
            _Masked(settings),
            *ending,
        ]
    )


def _add_trace(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    if (trace_id := traces.current_trace_id()) is not None:
        line["trace_id"] = trace_id
    return line


def _in_order(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """`time`, `level`, `logger`, `message`, what is bound, what was passed as `extra`, and at last the exception."""
    record: logging.LogRecord = line["_record"]
    ours = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": line["event"].rstrip(),
    }
    ours |= {key: line[key] for key in _ABOUT if line.get(key) is not None}
    left_out = {*ours, "event", "exception", "stack_info", "color_message", "taskName", "_record", "_from_structlog"}
    others = {key: value for key, value in line.items() if key not in left_out and value is not None}
    last = {"stack": line.get("stack_info"), "exception": line.get("exception")}
    return ours | others | {key: value for key, value in last.items() if value}


class _Masked:
    """Secrets stay out of a line, whoever brought them: a driver's exception may quote the URL it was given."""

    def __init__(self, settings: Settings) -> None:
        secrets = sorted(set(_secrets(settings)), key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, secrets)) or r"(?!)")

    def __call__(self, _: WrappedLogger, __: str, line: EventDict) -> EventDict:
        return {key: self._mask(value) for key, value in line.items()}

    def _mask(self, value: Any) -> Any:
        """A value of JSON, of whatever was passed."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, dict):
            return {self._text(str(key)): self._mask(member) for key, member in value.items()}
        if isinstance(value, list | tuple):
            return [self._mask(member) for member in value]
        return self._text(str(value))

    def _text(self, text: str) -> str:
        text = _URL_PASSWORD.sub(r"\1:***@", self._secrets.sub("***", text))
        return _PARAMETER.sub(r"\1***", text)


def _secrets(settings: Settings) -> Iterator[str]:
    """Those that are known by heart. A password that is its user's name is none, and would mask the name."""
    with contextlib.suppress(SettingsError):  # the start says so
        yield from settings.read_tokens()
    urls = settings.database_url, settings.database_read_url, settings.redis_url, settings.otel_exporter_otlp_endpoint
    for url in filter(None, urls):
        user, _, password = url.partition("://")[2].rpartition("@")[0].partition(":")
        for secret in (password, *_PASSWORDS.findall(url)):
            if secret != user and len(secret) >= _SHORTEST_SECRET:
                yield from (secret, unquote(secret))


class _Printable:
    """One line stays one line: what a client sent can neither begin another nor move the cursor.

    An exception has several, each of them indented.
    """

    def __call__(self, _: WrappedLogger, __: str, line: EventDict) -> EventDict:
        return {
            key: "\n".join("    " + _printable(text) for text in value.split("\n"))
            if key in {"exception", "stack"}
            else _printable(value if isinstance(value, str) else repr(value))
            for key, value in line.items()
        }


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _log_end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What ends the process is a line like any other."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logger.critical("the process ends", exc_info=(kind, error, trace))
