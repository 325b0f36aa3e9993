"""The limits on documents, which are checked before validation and execution."""

from itertools import accumulate

import pytest
from graphql import GraphQLSyntaxError, parse
from hypothesis import given
from hypothesis import strategies as st

from server.reads.context import Context
from server.schema.documents import (
    MAX_ALIASES,
    MAX_DEPTH,
    MAX_FIELDS,
    MAX_FRAGMENTS,
    MAX_NAME_LENGTH,
    MAX_TOKENS,
    _parse,
    load_document,
)
from server.schema.root import schema
from shared.errors import QueryTooComplex

TOO_DEEP = "A document may be at most 15 levels deep."
TOO_MANY_ALIASES = "A document may have at most 50 aliases."
TOO_MANY_TOKENS = "A document may have at most 2000 tokens."


def verdict(query: str) -> str | None:
    try:
        load_document(query)
    except QueryTooComplex as error:
        return str(error)
    return None


def nested(depth: int) -> str:
    return "{a" * depth + "}" * depth


def aliased(count: int) -> str:
    return "{" + " ".join(f"a{number}: name" for number in range(count)) + "}"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("{a(b: [" + "1 " * (MAX_TOKENS - 9) + "])}", None),
        ("{a(b: [" + "1 " * (MAX_TOKENS - 8) + "])}", TOO_MANY_TOKENS),
        ("{" + "a " * MAX_FIELDS + "}", None),
        ("{" + "a " * (MAX_FIELDS + 1) + "}", f"A document may have at most {MAX_FIELDS} fields."),
        ("{" + "a" * MAX_NAME_LENGTH + "}", None),
        ("{" + "a" * (MAX_NAME_LENGTH + 1) + "}", f"A name may have at most {MAX_NAME_LENGTH} characters."),
        ("{a(b: [" + "1 " * MAX_TOKENS + "])}", TOO_MANY_TOKENS),
        ("#\n" * MAX_TOKENS + "{a}", TOO_MANY_TOKENS),
        (nested(MAX_DEPTH), None),
        (nested(MAX_DEPTH + 1), TOO_DEEP),
        (nested(600), TOO_DEEP),
        ("{a(b: " + "[" * 950 + "]" * 950 + ")}", TOO_DEEP),
        ("query ($a: " + "[" * 950 + "Int" + "]" * 950 + ") {a}", TOO_DEEP),
        ("{a}" + "fragment F on Query {a}" * MAX_FRAGMENTS, None),
        (
            "{a}" + " ".join(f"fragment F{n} on Query {{a}}" for n in range(MAX_FRAGMENTS + 1)),
            f"A document may have at most {MAX_FRAGMENTS} fragments.",
        ),
        (aliased(MAX_ALIASES), None),
        (aliased(MAX_ALIASES + 1), TOO_MANY_ALIASES),
        ("{a " + aliased(MAX_ALIASES + 1) + "}", TOO_MANY_ALIASES),
        ("query A {a} mutation B " + aliased(MAX_ALIASES + 1), TOO_MANY_ALIASES),
    ],
)
def test_the_limits_are_exact(query: str, message: str | None) -> None:
    assert verdict(query) == message


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("{...F ...F} fragment F on Query " + aliased(25), None),
        ("{...F ...F} fragment F on Query " + aliased(26), TOO_MANY_ALIASES),
        ("{...F a {...F} ... {...F}} fragment F on Query " + aliased(17), TOO_MANY_ALIASES),
        ("fragment F on Query " + aliased(26) + " {...F ...F}", TOO_MANY_ALIASES),
        ("{...on Query " + aliased(26) + "..." + aliased(25) + "}", TOO_MANY_ALIASES),
        ("{a {...F}} fragment F on Query " + nested(MAX_DEPTH - 1), None),
        ("{a {...F}} fragment F on Query " + nested(MAX_DEPTH), TOO_DEEP),
        ("{" + "... {" * 30 + "a" + "}" * 30 + "}", None),
        ("{...Unknown}", None),
    ],
)
def test_a_fragment_counts_wherever_it_is_spread(query: str, message: str | None) -> None:
    assert verdict(query) == message


def test_fragments_that_double_each_other_are_weighed_quickly() -> None:
    doubling = " ".join(f"fragment F{n} on Query {{...F{n + 1} ...F{n + 1}}}" for n in range(40))
    assert verdict("{...F0} " + doubling + " fragment F40 on Query {a: b}") == TOO_MANY_ALIASES


@pytest.mark.parametrize(
    "query",
    [
        "{...A} fragment A on Query {...A}",
        "{...A} fragment A on Query {a {...B}} fragment B on Query {b {...A}}",
        "fragment A on Query {...B} fragment B on Query {...C} fragment C on Query {...A} {...C}",
    ],
)
async def test_fragment_cycles_are_left_to_validation(query: str, unused_context: Context) -> None:
    assert verdict(query) is None
    result = await schema.execute(query, context_value=unused_context)
    codes = {(error.extensions or {})["code"] for error in result.errors or []}
    assert (result.data, codes) == (None, {"GRAPHQL_VALIDATION_FAILED"})


@pytest.mark.parametrize("query", ["{", "", "}", "{a(}", "#", "query {a", "\x00", "{a} \ud800"])
def test_a_document_that_cannot_be_parsed_is_a_syntax_error(query: str) -> None:
    with pytest.raises(GraphQLSyntaxError):
        load_document(query)


@pytest.mark.parametrize(
    ("query", "message"), [(nested(16), TOO_DEEP), (aliased(51), TOO_MANY_ALIASES), ("a " * 3000, TOO_MANY_TOKENS)]
)
async def test_the_message_names_the_limit(query: str, message: str, unused_context: Context) -> None:
    result = await schema.execute("{" + query + "}" if message == TOO_MANY_TOKENS else query, None, unused_context)
    assert [(error.message, error.extensions) for error in result.errors or []] == (
        [(message, {"code": "QUERY_TOO_COMPLEX"})]
    )


def test_a_document_that_is_too_long_is_not_cached() -> None:
    before = len(_parse)
    for number in range(3):
        verdict(f"{{a{number}}}" + " " * 500_000)
    assert len(_parse) == before
    assert load_document("{a}") is load_document("{a}")


def test_the_error_of_a_document_is_cached_and_raised_anew() -> None:
    errors = []
    for query in ["{a", "{" + "a " * 2001 + "}"] * 2:
        with pytest.raises((GraphQLSyntaxError, QueryTooComplex)) as caught:
            load_document(query)
        errors.append(caught.value)
    assert len(set(map(id, errors))) == 4
    assert [str(error) for error in errors[:2]] == [str(error) for error in errors[2:]]
    with pytest.raises(GraphQLSyntaxError) as parsed:
        parse("{a")
    assert str(errors[0]) == str(parsed.value)


SELECTIONS = st.recursive(
    st.just("a"),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda selections: f"a {{{' '.join(selections)}}}"),
    max_leaves=30,
)


@given(SELECTIONS, st.integers(1, MAX_DEPTH + 1))
def test_the_depth_is_that_of_the_braces(selection: str, wrapped: int) -> None:
    query = "{a " * (wrapped - 1) + "{" + selection + "}" * wrapped
    levels = accumulate((character == "{") - (character == "}") for character in query)
    assert verdict(query) == (TOO_DEEP if max(levels) > MAX_DEPTH else None)
