"""Content negotiation: what a request sends and accepts, read from its headers alone.

Decisions are cached by the header's value. A value longer than any real client's is ignored, so that hostile headers
cannot fill the memory.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from starlette.types import Scope

JSON = b"application/json; charset=utf-8"
GRAPHQL_RESPONSE = b"application/graphql-response+json; charset=utf-8"
EVENT_STREAM = b"text/event-stream"

MAX_LENGTH = 500
"Characters of a header's value. Browsers send up to 150."

CACHED_VALUES = 64

# In order of preference if the client leaves the choice open, as `*/*` does.
_OFFERED = (JSON, GRAPHQL_RESPONSE, EVENT_STREAM)


class _Range(NamedTuple):
    """A media range of a header, such as `application/json` or `*/*`; or another token with a quality."""

    name: str
    quality: float
    position: int


def header_of(scope: Scope, name: bytes) -> bytes | None:
    """All headers of that name, joined by commas; `None` if the request has none."""
    return b", ".join(value for found, value in scope["headers"] if found == name) or None


def response_type(accept: bytes | None) -> bytes | None:
    """The answer's `Content-Type`, one of the three constants above; `None` (status 406) if the client accepts none.

    `accept`: the request's Accept headers joined by commas, `None` if it has none.
    """
    if accept is None or len(accept) > MAX_LENGTH:  # RFC 9110 allows a server to ignore the header
        return JSON
    return _response_type(accept)


def is_json(content_type: bytes | None) -> bool:
    """Whether a request's body is JSON in UTF-8, the only kind that is accepted."""
    return content_type is not None and len(content_type) <= MAX_LENGTH and _is_json(content_type)


def wants_page(accept: bytes | None) -> bool:
    """Whether a browser asks for a page: it prefers HTML to every media type of an answer."""
    return accept is not None and len(accept) <= MAX_LENGTH and _wants_page(accept)


def accepts_gzip(encodings: bytes | None) -> bool:
    """`encodings`: the Accept-Encoding header. A wildcard does not count."""
    return encodings is not None and len(encodings) <= MAX_LENGTH and _accepts_gzip(encodings)


@lru_cache(maxsize=CACHED_VALUES)
def _wants_page(accept: bytes) -> bool:
    qualities = {found.name: found.quality for found in _ranges(accept)}
    answers = (offered.decode().partition(";")[0] for offered in _OFFERED)
    return qualities.get("text/html", 0) > max(qualities.get(answer, 0) for answer in answers)


@lru_cache(maxsize=CACHED_VALUES)
def _accepts_gzip(encodings: bytes) -> bool:
    return any(found.name in {"gzip", "x-gzip"} and found.quality > 0 for found in _ranges(encodings))


@lru_cache(maxsize=CACHED_VALUES)
def _response_type(accept: bytes) -> bytes | None:
    ranges = list(_ranges(accept))
    if not accept.strip():
        return JSON
    ranked = [(rank, offered) for offered in _OFFERED if (rank := _rank(offered, ranges)) is not None]
    return max(ranked, key=lambda found: found[0])[1] if ranked else None


def _rank(offered: bytes, ranges: list[_Range]) -> tuple[float, int, int] | None:
    """Sorts by quality, then exact names before wildcards, then the client's order."""
    name = offered.decode().partition(";")[0]
    # A wildcard never means an event stream.
    groups = (name,) if offered is EVENT_STREAM else (name, "application/*", "*/*")
    for specificity, group in enumerate(groups):
        for found in ranges:
            if found.name == group:
                return (found.quality, -specificity, -found.position) if found.quality > 0 else None
    return None


@lru_cache(maxsize=CACHED_VALUES)
def _is_json(content_type: bytes) -> bool:
    return [found.name for found in _ranges(content_type)] == ["application/json"]


def _ranges(header: bytes) -> Iterator[_Range]:
    """Skips ranges that are malformed or in another encoding than UTF-8."""
    for position, text in enumerate(header.decode("latin-1").lower().split(",")):
        name, *parameters = (part.strip() for part in text.split(";"))
        values = dict(parameter.partition("=")[::2] for parameter in parameters)
        try:
            quality = float(values.get("q", "1"))
        except ValueError:
            continue
        if 0 <= quality <= 1 and values.get("charset", "utf-8").strip('"') in {"utf-8", "utf8"}:
            yield _Range(name, quality, position)
