"""What a request is called, in the log and in its answer: by the client's own X-Request-ID, or by a name made here.

A request costs no more than remembering it: it is named when a line is written about it, or an answer is to carry the
name. A socket is one request; what is done in it is told apart by `operation_id`, the client's own.
"""

import re
import uuid
from contextvars import ContextVar

from starlette.types import Scope
from structlog.typing import EventDict, WrappedLogger

HEADER = b"x-request-id"
_SANE = re.compile(rb"[A-Za-z0-9._:+/=-]{1,64}")
REQUEST_ID = "request_id"
"In the scope of a request that has been named, as on its lines."

_current: ContextVar[Scope | None] = ContextVar("request", default=None)

remember_request = _current.set
"To be called with a request's scope, in the task that answers it."


def request_id_of(scope: Scope) -> str:
    if REQUEST_ID not in scope:
        given = [value for name, value in scope["headers"] if name == HEADER]
        is_sane = len(given) == 1 and _SANE.fullmatch(given[0])
        scope[REQUEST_ID] = given[0].decode() if is_sane else uuid.uuid4().hex
    request_id: str = scope[REQUEST_ID]
    return request_id


def add_request_id(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """For `configure_logging`."""
    if (request_id := current_request_id()) is not None:
        line[REQUEST_ID] = request_id
    return line


def current_request_id() -> str | None:
    scope = _current.get()
    return None if scope is None or "headers" not in scope else request_id_of(scope)  # a process's start has none


def traceparent() -> str | None:
    """Of the trace that the request says it belongs to. One that a socket's handshake says is not its operations'."""
    scope = _current.get()
    if scope is None or scope["type"] != "http":
        return None
    given = [value for name, value in scope["headers"] if name == b"traceparent"]
    return given[0].decode("latin-1") if len(given) == 1 else None
