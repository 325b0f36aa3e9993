"""Messages of graphql-transport-ws: what is one, and the codes with which a socket is closed."""

import json
from contextlib import suppress
from typing import Any

from starlette.types import Message

from server.schema.persisted_queries import PERSISTED

TRY_AGAIN_LATER = 1013


class Closed(Exception):
    """Raised to close the socket with a code."""

    def __init__(self, code: int = 4400, reason: str = "Invalid message") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def is_operation(payload: dict[str, Any]) -> bool:
    """Whether the protocol has such an operation. That of a persisted query may come without its document."""
    kinds = {"query": str, "operationName": str, "variables": dict, "extensions": dict}
    has_document = payload.get("query") is not None or PERSISTED in (payload.get("extensions") or {})
    return has_document and all(isinstance(payload.get(name), kind | None) for name, kind in kinds.items())


def parse(message: Message) -> dict[str, Any]:
    """Raises `Closed` unless the message is a text with a JSON object."""
    with suppress(KeyError, TypeError, ValueError, RecursionError):
        if isinstance(parsed := json.loads(message["text"]), dict):
            return parsed
    raise Closed
