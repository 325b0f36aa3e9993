"""Content negotiation: the media type of an answer, and which bodies are accepted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.http import negotiation
from server.http.negotiation import (
    CACHED_VALUES,
    EVENT_STREAM,
    GRAPHQL_RESPONSE,
    JSON,
    MAX_LENGTH,
    is_json,
    response_type,
)

APOLLO = "application/graphql-response+json,application/json;q=0.9"
URQL = (
    "application/graphql-response+json, application/graphql+json, application/json, text/event-stream, multipart/mixed"
)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"

ACCEPTED = {
    # What clients send.
    "": JSON,
    "*/*": JSON,
    APOLLO: GRAPHQL_RESPONSE,
    URQL: GRAPHQL_RESPONSE,
    "application/graphql-response+json; charset=utf-8, application/json; charset=utf-8": GRAPHQL_RESPONSE,
    "application/json, text/plain, */*": JSON,
    BROWSER: JSON,
    "text/event-stream": EVENT_STREAM,
    "text/event-stream, multipart/mixed": EVENT_STREAM,
    # By quality.
    "application/graphql-response+json;q=0.1, application/json;q=0.2": JSON,
    "application/json;q=0.2, application/graphql-response+json;q=0.9": GRAPHQL_RESPONSE,
    "application/json;q=0.5, text/event-stream": EVENT_STREAM,
    "application/graphql-response+json;q=0.5, */*": JSON,
    "application/json;q=0, */*": GRAPHQL_RESPONSE,
    "application/json;q=0, application/*;q=0.5": GRAPHQL_RESPONSE,
    # Of equal quality: exact names before wildcards, then the client's order.
    "*/*, application/graphql-response+json": GRAPHQL_RESPONSE,
    "application/*, application/graphql-response+json": GRAPHQL_RESPONSE,
    "application/json, application/graphql-response+json": JSON,
    "application/*": JSON,
    "*/*;q=0.1": JSON,
    # In other spellings.
    "Application/GraphQL-Response+JSON": GRAPHQL_RESPONSE,
    "  application/json ;\tq=1.0 ": JSON,
    'application/json;charset="UTF-8"': JSON,
    "application/json;charset=utf8": JSON,
    "application/json;profile=x": JSON,
    "application/json;q=high, application/graphql-response+json": GRAPHQL_RESPONSE,
    ", ,application/json,": JSON,
    # Types that are not offered.
    "text/html": None,
    "text/*": None,
    "image/png, application/xml": None,
    "application/json;q=0": None,
    "*/*;q=0": None,
    "application/json;charset=iso-8859-1": None,
    "application/json;q=2": None,
    "application/jsonp": None,
    "application/json-seq": None,
    "application/graphql+json": None,
    "json": None,
    "*": None,
    ",": None,
    "\xff\x00": None,
}


@pytest.mark.parametrize("accept", ACCEPTED)
def test_the_answer_has_the_media_type_that_is_wanted_most(accept: str) -> None:
    assert response_type(accept.encode("latin-1")) == ACCEPTED[accept]


def test_without_an_accept_header_the_answer_is_application_json() -> None:
    assert response_type(None) == JSON


def test_a_header_longer_than_any_real_clients_is_ignored() -> None:
    longest = b"text/html" + b" " * (MAX_LENGTH - 9)
    assert response_type(longest) is None
    assert response_type(longest + b" ") == JSON
    assert is_json(b"application/json".ljust(MAX_LENGTH))
    assert not is_json(b"application/json".ljust(MAX_LENGTH + 1))


@given(st.binary(max_size=60))
def test_any_header_gets_a_decision(header: bytes) -> None:
    assert response_type(header) in {None, JSON, GRAPHQL_RESPONSE, EVENT_STREAM}
    assert is_json(header) in {True, False}


def test_hostile_headers_do_not_fill_the_memory() -> None:
    for number in range(10 * CACHED_VALUES):
        response_type(b"text/x-%d" % number)
        is_json(b"text/x-%d" % number)
    seen = [cached.cache_info() for cached in (negotiation._response_type, negotiation._is_json)]
    assert [info.currsize for info in seen] == [CACHED_VALUES, CACHED_VALUES]
    long = b"text/html;" + b"x" * MAX_LENGTH
    response_type(long)
    is_json(long)
    assert [cached.cache_info() for cached in (negotiation._response_type, negotiation._is_json)] == seen


BODIES = {
    "application/json": True,
    "application/json; charset=utf-8": True,
    'Application/JSON;charset="UTF-8"': True,
    "application/json;charset=utf8": True,
    "application/json;charset=utf-16": False,
    "application/json; charset=latin1": False,
    "application/jsonp": False,
    "application/json-patch+json": False,
    "application/graphql": False,
    "text/plain": False,
    "text/plain;application/json": False,
    "text/plain, application/json": False,
    "application/json, application/json": False,
    "application/x-www-form-urlencoded": False,
    "multipart/form-data; boundary=application/json": False,
    "": False,
}


@pytest.mark.parametrize("content_type", BODIES)
def test_only_json_in_utf_8_is_accepted_as_a_body(content_type: str) -> None:
    assert is_json(content_type.encode()) == BODIES[content_type]
    assert not is_json(None)
