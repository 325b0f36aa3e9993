"""Request ids, for log lines and answers: the client's X-Request-ID, or a generated one.

The id is generated lazily, when a log line or an answer needs it. A WebSocket is one request; `operation_id`, which the
client chooses, tells its operations apart.
"""

import re
import uuid
from contextvars import ContextVar

from starlette.types import Scope
from structlog.typing import EventDict, WrappedLogger

HEADER = b"x-request-id"
_VALID = re.compile(rb"[A-Za-z0-9._:+/=-]{1,64}")
REQUEST_ID = "request_id"
"The key of a generated id in the request's scope, and on log lines."

_current: ContextVar[Scope | None] = ContextVar("request", default=None)

remember_request = _current.set
"Takes the request's scope. Call it in the task that answers the request."


def request_id_of(scope: Scope) -> str:
    if REQUEST_ID not in scope:
        given = [value for name, value in scope["headers"] if name == HEADER]
        is_valid = len(given) == 1 and _VALID.fullmatch(given[0])
        scope[REQUEST_ID] = given[0].decode() if is_valid else uuid.uuid4().hex
    request_id: str = scope[REQUEST_ID]
    return request_id


def add_request_id(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """A structlog processor."""
    if (request_id := current_request_id()) is not None:
        line[REQUEST_ID] = request_id
    return line


def current_request_id() -> str | None:
    scope = _current.get()
    return None if scope is None or "headers" not in scope else request_id_of(scope)  # the lifespan has none


def traceparent() -> str | None:
    """The request's W3C trace context. A WebSocket's operations do not belong to the trace of its handshake."""
    scope = _current.get()
    if scope is None or scope["type"] != "http":
        return None
    given = [value for name, value in scope["headers"] if name == b"traceparent"]
    return given[0].decode("latin-1") if len(given) == 1 else None
