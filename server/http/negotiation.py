"""What media type a request has and its answer gets: read from headers alone, before anything is run.

Both decisions are remembered by the header's value, of which there are few; a value longer than any client's is decided
without being remembered, so that nobody can fill the memory with them.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

JSON = b"application/json; charset=utf-8"
GRAPHQL_RESPONSE = b"application/graphql-response+json; charset=utf-8"
EVENT_STREAM = b"text/event-stream"

MAX_LENGTH = 500
"Characters of a header's value. Browsers send up to 150."

REMEMBERED = 64

# Where a client leaves the choice open, such as with `*/*`, the first: what clients have always been sent.
_OFFERED = (JSON, GRAPHQL_RESPONSE, EVENT_STREAM)


class _Range(NamedTuple):
    """One of the media types that a header names, or a group of them such as `*/*`."""

    name: str
    quality: float
    position: int


def response_type(accept: bytes | None) -> bytes | None:
    """The media type of the answer as the `Content-Type` header to send, one of the three constants above.

    `accept` is the request's header (several of them joined by commas), `None` where it has none. `None` is answered
    where the client accepts nothing that there is: status 406.
    """
    if accept is None or len(accept) > MAX_LENGTH:  # disregarded, as the specification allows
        return JSON
    return _response_type(accept)


def is_json(content_type: bytes | None) -> bool:
    """Whether a request's body is JSON in UTF-8, the one kind that is read."""
    return content_type is not None and len(content_type) <= MAX_LENGTH and _is_json(content_type)


def wants_page(accept: bytes | None) -> bool:
    """Whether a browser asks for a page: it prefers HTML to every media type of an answer."""
    return accept is not None and len(accept) <= MAX_LENGTH and _wants_page(accept)


def accepts_gzip(encodings: bytes | None) -> bool:
    """`encodings`: the Accept-Encoding header. A wildcard does not count."""
    return encodings is not None and len(encodings) <= MAX_LENGTH and _accepts_gzip(encodings)


@lru_cache(maxsize=REMEMBERED)
def _wants_page(accept: bytes) -> bool:
    qualities = {found.name: found.quality for found in _ranges(accept)}
    answers = (offered.decode().partition(";")[0] for offered in _OFFERED)
    return qualities.get("text/html", 0) > max(qualities.get(answer, 0) for answer in answers)


@lru_cache(maxsize=REMEMBERED)
def _accepts_gzip(encodings: bytes) -> bool:
    return any(found.name in {"gzip", "x-gzip"} and found.quality > 0 for found in _ranges(encodings))


@lru_cache(maxsize=REMEMBERED)
def _response_type(accept: bytes) -> bytes | None:
    ranges = list(_ranges(accept))
    if not accept.strip():
        return JSON
    ranked = [(rank, offered) for offered in _OFFERED if (rank := _rank(offered, ranges)) is not None]
    return max(ranked, key=lambda found: found[0])[1] if ranked else None


def _rank(offered: bytes, ranges: list[_Range]) -> tuple[float, int, int] | None:
    """By quality, then what is named before what a wildcard includes, then in the client's order."""
    name = offered.decode().partition(";")[0]
    # Only JSON is meant by a wildcard: an event stream is asked for.
    groups = (name,) if offered is EVENT_STREAM else (name, "application/*", "*/*")
    for specificity, group in enumerate(groups):
        for found in ranges:
            if found.name == group:
                return (found.quality, -specificity, -found.position) if found.quality > 0 else None
    return None


@lru_cache(maxsize=REMEMBERED)
def _is_json(content_type: bytes) -> bool:
    return [found.name for found in _ranges(content_type)] == ["application/json"]


def _ranges(header: bytes) -> Iterator[_Range]:
    """What is malformed, or in another encoding than UTF-8, is left out."""
    for position, text in enumerate(header.decode("latin-1").lower().split(",")):
        name, *parameters = (part.strip() for part in text.split(";"))
        values = dict(parameter.partition("=")[::2] for parameter in parameters)
        try:
            quality = float(values.get("q", "1"))
        except ValueError:
            continue
        if 0 <= quality <= 1 and values.get("charset", "utf-8").strip('"') in {"utf-8", "utf8"}:
            yield _Range(name, quality, position)
