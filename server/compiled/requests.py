"""How a request that may be compiled is read: its headers, its body, its URL."""

from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import orjson
from starlette.types import Message, Receive, Scope

from server.compiled.plans import FallBackToStrawberry
from server.http.endpoint import MAX_BODY_BYTES
from server.http.negotiation import EVENT_STREAM, accepts_gzip, is_json, response_type, wants_page

MAX_URL_PARAMETERS = 200

MAX_NESTING = 200
"Brackets in a request's JSON. With more of them, the endpoint decides what is JSON."


class Asked(NamedTuple):
    """What the headers say of a request that may be compiled."""

    is_get: bool
    media_type: bytes
    accepts_gzip: bool
    tags: str | None
    "If-None-Match of a GET."


def read_headers(scope: Scope) -> Asked | None:
    """`None` if the endpoint has to answer: anything but JSON by GET, HEAD or POST."""
    if scope["type"] != "http" or scope["path"] != "/graphql" or scope["method"] not in ("GET", "HEAD", "POST"):
        return None
    content_type = accept = encodings = tags = None
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value if content_type is None else content_type + b"," + value
        elif name == b"accept":
            accept = value if accept is None else accept + b"," + value
        elif name == b"accept-encoding":
            encodings = value if encodings is None else encodings + b"," + value
        elif name == b"if-none-match":
            tags = value if tags is None else tags + b"," + value
        elif name == b"content-encoding" and value.lower() != b"identity":
            return None
    is_get = scope["method"] != "POST"
    media_type = response_type(accept)
    if (
        media_type is None
        or media_type is EVENT_STREAM
        or (wants_page(accept) if is_get else not is_json(content_type))
    ):
        return None
    asked_tags = tags.decode("latin-1") if is_get and tags is not None else None
    return Asked(is_get, media_type, accepts_gzip(encodings), asked_tags)


def read_parameters(key: bytes, *, is_get: bool) -> dict[str, Any]:
    """`key`: the body, or the URL's query behind a question mark. Raises `FallBackToStrawberry`."""
    if len(key) > MAX_NESTING and key.count(b"[") + key.count(b"{") > MAX_NESTING:
        raise FallBackToStrawberry
    try:
        given = _read_url(key[1:]) if is_get else orjson.loads(key)
    except ValueError as error:  # or JSON of a kind that only the endpoint takes
        raise FallBackToStrawberry from error
    if not isinstance(given, dict):
        raise FallBackToStrawberry
    return given


def _read_url(query_string: bytes) -> dict[str, Any]:
    """An empty parameter counts as none. Raises `ValueError`."""
    pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_URL_PARAMETERS)
    given: dict[str, Any] = {name: value for name, value in pairs if value}
    for name in given.keys() & {"variables", "extensions"}:
        given[name] = orjson.loads(given[name])
    return given


async def read_on(message: Message, receive: Receive) -> tuple[Message, bytes]:
    """The message that ends the body, or with which it is too long; and the body so far."""
    parts = [message.get("body", b"")]
    length = len(parts[0])
    while message.get("more_body") and length <= MAX_BODY_BYTES:
        message = await receive()
        parts.append(message.get("body", b""))
        length += len(parts[-1])
    return message, b"".join(parts)


def replay(message: Message, receive: Receive) -> Receive:
    """What was read already, as one message."""
    is_read = False

    async def replayed() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return message

    return replayed
