"""What no answer may be or say, however bad the question was."""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

CODES = {
    "GRAPHQL_PARSE_FAILED",
    "GRAPHQL_VALIDATION_FAILED",
    "BAD_USER_INPUT",
    "UNKNOWN_TICKER",
    "PRICE_STALE",
    "QUERY_TOO_COMPLEX",
    "UNAUTHENTICATED",
    "RATE_LIMITED",
}
"STORAGE_UNAVAILABLE and QUEUE_UNAVAILABLE are not among them: both are there. Nor is INTERNAL_SERVER_ERROR."

# What is quoted of a question is no finding: none of ours has any of these in it. Hypothesis, though, makes strings of
# the constants that it finds in this project's modules.
LEAKS = re.compile(
    r"Traceback|site-packages|\.py\b|/tmp/|/usr/|/home/|asyncpg|redis|graphql\.error|strawberry|starlette|uvicorn|"
    r"\bselect (convert|count|price|ticker)|\bfrom prices|pg_|127\.0\.0\.1|localhost|postgres|Exception|"
    r"object at 0x|INTERNAL_SERVER_ERROR",
    re.IGNORECASE,
)
GRAPHQL_TYPES = ("application/json", "application/graphql-response+json")
CLOSE_CODES = {1000, 1002, 1003, 1005, 1007, 1009, 4400, 4401, 4403, 4406, 4408, 4409, 4429}


def of_answer(answer: Any) -> Iterator[str]:
    """What is wrong with one GraphQL answer, parsed."""
    if not isinstance(answer, dict) or not answer.keys() & {"data", "errors"} or answer.keys() - {"data", "errors"}:
        yield f"no GraphQL answer: {str(answer)[:100]}"
        return
    yield from of_errors(answer.get("errors", []) if "data" in answer else answer["errors"] or None)


def of_errors(errors: Any) -> Iterator[str]:
    if not isinstance(errors, list):
        yield f"no list of errors: {str(errors)[:100]}"
        return
    for error in errors:
        if not error.get("message") or error.get("extensions", {}).get("code") not in CODES:
            yield f"an error without a code of its own: {str(error)[:200]}"


def of_text(text: str, asked: str = "") -> Iterator[str]:
    told = (found for found in LEAKS.finditer(text) if found[0].lower() not in asked.lower())
    for found in itertools.islice(told, 1):
        yield f"tells of the inside: {text[max(0, found.start() - 60) : found.end() + 60]!r}"


def of_http(status: int, media_type: str, text: str, *, is_graphql: bool, asked: str = "") -> Iterator[str]:
    """`is_graphql`: it went to the endpoint with a method that GraphQL has. `asked`: what may be quoted."""
    if status >= 500:
        yield f"status {status}"
    yield from of_text(text, asked)
    if not is_graphql or not text or status in {204, 408, 431}:
        return
    if media_type.startswith("text/event-stream"):
        for line in text.splitlines():
            if line.startswith("data: "):
                yield from of_json(line.removeprefix("data: "))
    elif media_type.startswith(GRAPHQL_TYPES):
        yield from of_json(text)
    elif status != 400 and not media_type.startswith(("text/plain", "text/html")):
        yield f"media type {media_type}"


def of_json(text: str) -> Iterator[str]:
    try:
        answer = json.loads(text)
    except ValueError:
        yield f"no JSON: {text[:100]!r}"
    else:
        yield from of_answer(answer)


def of_message(text: str) -> Iterator[str]:
    """A socket's."""
    yield from of_text(text)
    message = json.loads(text)
    match message:
        case {"type": "next", "payload": payload}:
            yield from of_answer(payload)
        case {"type": "error", "payload": payload}:
            yield from of_errors(payload)
        case {"type": "connection_ack" | "ping" | "pong" | "complete"}:
            pass
        case _:
            yield f"no message of the protocol: {text[:100]}"
