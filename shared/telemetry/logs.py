"""Every log line of every process and library in one shape: for people, or one JSON object a line for machines.

Modules write lines with `logging`. The context of the work is bound once, with `structlog.contextvars`, and is then on
every line: `request_id` and `operation_id` in the API, `job_id`, `function`, `slot`, `ticker` in a worker.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any
from urllib.parse import unquote

from structlog.contextvars import merge_contextvars
from structlog.dev import ConsoleRenderer
from structlog.processors import JSONRenderer, TimeStamper, add_log_level, format_exc_info
from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_logger_name
from structlog.typing import EventDict, Processor, WrappedLogger

from shared.config.settings import Settings, SettingsError
from shared.telemetry import traces
from shared.telemetry.log_limit import LogLimit

logger = logging.getLogger(__name__)

_LEAST_LEVELS = {
    # One line per request to the exchange, job or socket says no more than the line of a failure does. At the level
    # debug a socket's lines would show its headers and messages, tokens among them.
    **dict.fromkeys(("httpx", "httpcore", "arq.worker", "uvicorn.sockets", "websockets", "urllib3"), logging.WARNING),
    "opentelemetry.exporter": logging.ERROR,  # one line for each batch that is lost, none for each attempt
}
_FIRST = ("time", "level", "logger", "message")
_CONTEXT = ("request_id", "operation_id", "job_id", "function", "slot", "ticker", "trace_id")
_SHORTEST_SECRET = 8
_URL_PASSWORD = re.compile(r"(://[^\s:/@]{0,100}):\S{0,500}@")
_PASSWORDS = re.compile(r"[?&]\w*password=([^&#]+)", re.IGNORECASE)
_PARAMETER = re.compile(r"(password=|\bbearer\s{1,10})[^\s&\"',]+", re.IGNORECASE)


def configure_logging(settings: Settings, *processors: Processor) -> None:
    """Send every line to standard error. `processors` add what only this process knows."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(create_formatter(settings, *processors, colors=sys.stderr.isatty()))
    handler.addFilter(LogLimit(handler))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for name, level in _LEAST_LEVELS.items():
        logging.getLogger(name).setLevel(max(level, logging.root.level))
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught


def create_formatter(settings: Settings, *processors: Processor, colors: bool = False) -> logging.Formatter:
    renderers: list[Processor] = [JSONRenderer()]
    if settings.log_format == "console":
        console = ConsoleRenderer(
            colors=colors, sort_keys=False, event_key="message", timestamp_key="time", pad_event_to=0
        )
        renderers = [_escape_control_characters, console]
    return ProcessorFormatter(
        processors=[
            merge_contextvars,
            *processors,
            _add_trace,
            ExtraAdder(),
            # After the extras, so that none of them replaces these.
            TimeStamper("iso", key="time"),
            add_log_level,
            add_logger_name,
            format_exc_info,
            _in_order,
            _mask_secrets(settings),
            *renderers,
        ]
    )


def _add_trace(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    if (trace_id := traces.current_trace_id()) is not None:
        line["trace_id"] = trace_id
    return line


def _in_order(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """`time`, `level`, `logger`, `message`, the context, what was passed as `extra`, and the exception last."""
    line["message"] = line["event"].rstrip()
    line.update({"stack": line.pop("stack_info", None), "exception": line.pop("exception", None)})
    keys = dict.fromkeys((*_FIRST, *_CONTEXT, *line))
    left_out = {"event", "color_message", "_record", "_from_structlog"}
    return {key: line[key] for key in keys if key not in left_out and line.get(key) is not None}


def _mask_secrets(settings: Settings) -> Processor:
    """Keeps secrets out of every line: a driver's exception may quote the URL that it was given."""
    literals = sorted(set(_secrets(settings)), key=len, reverse=True)
    secrets = re.compile("|".join(map(re.escape, literals)) or r"(?!)")

    def mask_text(text: str) -> str:
        text = _URL_PASSWORD.sub(r"\1:***@", secrets.sub("***", text))
        return _PARAMETER.sub(r"\1***", text)

    def mask(value: Any) -> Any:
        """The same value as JSON can hold it; a value of an unknown type becomes its text."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, dict):
            return {mask_text(str(key)): mask(member) for key, member in value.items()}
        if isinstance(value, list | tuple):
            return [mask(member) for member in value]
        return mask_text(str(value))

    return lambda _, __, line: {key: mask(value) for key, value in line.items()}


def _secrets(settings: Settings) -> Iterator[str]:
    """Literal secrets from the settings. Skips a password equal to its user name."""
    with contextlib.suppress(SettingsError):  # an unreadable token file is reported at the start
        yield from settings.read_tokens()
    urls = settings.database_url, settings.database_read_url, settings.redis_url, settings.otel_exporter_otlp_endpoint
    for url in filter(None, urls):
        user, _, password = url.partition("://")[2].rpartition("@")[0].partition(":")
        for secret in (password, *_PASSWORDS.findall(url)):
            if secret != user and len(secret) >= _SHORTEST_SECRET:
                yield from (secret, unquote(secret))


def _escape_control_characters(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """Text from a client can neither begin a new line nor move the cursor. The lines of an exception are indented."""
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


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The exception that ends the process is a log line like any other."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logger.critical("the process ends", exc_info=(kind, error, trace))
