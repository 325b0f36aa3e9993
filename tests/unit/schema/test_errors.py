"""Which part of an error the client sees, and which part only the log gets."""

import logging
from typing import Any

import pytest
from graphql import GraphQLError, GraphQLSyntaxError, Source

from server.reads.context import Context
from server.schema.errors import public_error
from server.schema.root import schema
from shared import errors
from shared.errors import ServiceError, UnknownTicker

HISTORY = 'priceHistory(ticker: "btc_usd", limit: $limit, before: $before) { price }'
ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, ServiceError)]


async def codes(context: Context, query: str, **variables: Any) -> list[tuple[str, str]]:
    result = await schema.execute(query, variables, context)
    return [(error.message, (error.extensions or {})["code"]) for error in result.errors or []]


def test_a_service_error_is_shown_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    cause = UnknownTicker("'xrp_usd' is not collected here; these are: btc_usd.")
    error = GraphQLError(str(cause), path=["latestPrice"], original_error=cause)
    assert public_error(error) is error
    assert error.formatted == {
        "message": "'xrp_usd' is not collected here; these are: btc_usd.",
        "path": ["latestPrice"],
        "extensions": {"code": "UNKNOWN_TICKER"},
    }
    assert caplog.records == []


@pytest.mark.parametrize("cause", [RuntimeError("secret detail"), AssertionError(), KeyError("secret detail")])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_an_internal_fault_is_masked_and_logged(
    cause: Exception, layers: int, caplog: pytest.LogCaptureFixture
) -> None:
    error = GraphQLError(str(cause), path=["tickers", 0], original_error=cause)
    for _ in range(layers - 1):
        error = GraphQLError(error.message, path=["tickers", 0], original_error=error)
    shown = public_error(error).formatted
    [record] = caplog.records
    error_id = shown["extensions"]["errorId"]
    assert shown == {
        "message": "Internal error.",
        "path": ["tickers", 0],
        "extensions": {"code": "INTERNAL_SERVER_ERROR", "errorId": error_id},
    }
    assert (record.levelname, vars(record)["error_id"]) == ("ERROR", error_id)
    assert error_id in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is cause


def test_two_faults_have_two_ids() -> None:
    shown = [public_error(GraphQLError("x", original_error=RuntimeError("x"))) for _ in range(2)]
    assert len({(error.extensions or {})["errorId"] for error in shown}) == 2


def test_an_existing_code_is_kept() -> None:
    error = GraphQLError("An instant is a string.", extensions={"code": "BAD_USER_INPUT", "hint": 1})
    assert public_error(error).extensions == {"code": "BAD_USER_INPUT", "hint": 1}


def test_other_extensions_are_kept() -> None:
    error = GraphQLError("no", extensions={"hint": 1})
    assert public_error(error).extensions == {"code": "GRAPHQL_VALIDATION_FAILED", "hint": 1}


def test_a_syntax_error_keeps_its_place() -> None:
    error = GraphQLSyntaxError(Source("{"), 1, "Expected Name")
    assert public_error(error).formatted == {
        "message": "Syntax Error: Expected Name",
        "locations": [{"line": 1, "column": 2}],
        "extensions": {"code": "GRAPHQL_PARSE_FAILED"},
    }


@pytest.mark.parametrize("query", ["{", "}", "query Q($a) {a}", "{a(b: )}", '{latestPrice(ticker: "\\ud800") {price}}'])
async def test_a_document_that_does_not_parse(query: str, unused_context: Context) -> None:
    assert [code for _, code in await codes(unused_context, query)] == ["GRAPHQL_PARSE_FAILED"]


@pytest.mark.parametrize(
    "query",
    [
        "{unknown}",
        "{latestPrice {price}}",
        "{latestPrice(ticker: 5) {price}}",
        "{tickers}",
        "{tickers {name {x}}}",
        '{priceHistory(ticker: "btc_usd", limit: "many") {price}}',
        '{priceHistory(ticker: "btc_usd", limit: 99999999999) {price}}',
        f'{{priceHistory(ticker: "btc_usd", limit: {"9" * 5000}) {{price}}}}',
        "query ($limit: Int) {tickers {name}}",
        "{latestPrice(ticker: $ticker) {price}}",
        'query ($limit: String!) {priceHistory(ticker: "btc_usd", limit: $limit) {price}}',
        "query ($a: Price) {tickers {name}}",
        "query ($a: Int, $a: Int) {tickers {name}}",
        'query ($a: Int = "x") {latestPrice(ticker: "btc_usd", maxAgeSeconds: $a) {price}}',
        "query A {tickers {name}} query A {tickers {name}}",
        "subscription {x}",
    ],
)
async def test_a_document_that_does_not_match_the_schema(query: str, unused_context: Context) -> None:
    answered = await codes(unused_context, query)
    assert {code for _, code in answered} == {"GRAPHQL_VALIDATION_FAILED"}, answered


@pytest.mark.parametrize(
    "variables",
    [
        {"limit": "many"},
        {"limit": None},
        {"limit": 1.5},
        {"limit": 2**40},
        {"limit": [1]},
        {},
        {"limit": 1, "before": 5},
        {"limit": 1, "before": "yesterday"},
        {"limit": 0},
        {"limit": 10_001},
    ],
)
async def test_a_variable_that_is_refused_is_the_clients_input(
    variables: dict[str, Any], unused_context: Context
) -> None:
    query = f"query ($limit: Int!, $before: DateTime) {{{HISTORY}}}"
    assert [code for _, code in await codes(unused_context, query, **variables)] == ["BAD_USER_INPUT"]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (
            'latestPrice(ticker: "xrp_usd") {price}',
            ("'xrp_usd' is not collected here; these are: btc_usd, eth_usd.", "UNKNOWN_TICKER"),
        ),
        (
            'priceHistory(ticker: "btc_usd", limit: 0) {price}',
            ("limit is 0; accepted are 1 to 10000.", "BAD_USER_INPUT"),
        ),
        (
            'coverage(ticker: "BTC_USD", fromDt: "2026-01-02T00:00:00Z", toDt: "2026-01-01T00:00:00Z") {ratio}',
            ("fromDt is after toDt; accepted is a fromDt that is earlier, or the same.", "BAD_USER_INPUT"),
        ),
        (
            'latestPrice(ticker: "btc_usd", maxAgeSeconds: -1) {price}',
            ("maxAgeSeconds is -1; accepted is 0 or more.", "BAD_USER_INPUT"),
        ),
        (
            'a: priceHistory(ticker: "btc_usd", before: 5) {price}',
            (
                "before is '5'; accepted is an RFC 3339 instant with its offset, "
                "such as 2026-01-31T08:00:00Z or 2026-01-31T09:00:00+01:00.",
                "BAD_USER_INPUT",
            ),
        ),
    ],
)
async def test_input_is_refused_before_anything_is_asked(
    selection: str, expected: tuple[str, str], unused_context: Context
) -> None:
    assert await codes(unused_context, f"{{{selection}}}") == [expected]


async def test_with_several_operations_the_name_of_one_is_required(unused_context: Context) -> None:
    result = await schema.execute("query A {__typename} query B {tickers {name}}", None, unused_context)
    assert (result.data, len(result.errors or [])) == (None, 1)


async def test_a_resolvers_fault_is_masked(unused_context: Context, caplog: pytest.LogCaptureFixture) -> None:
    # There is no pool in this context, which is a fault of ours if anything is.
    assert await codes(unused_context, '{latestPrice(ticker: "btc_usd") {price}}') == [
        ("Internal error.", "INTERNAL_SERVER_ERROR")
    ]
    assert [(record.name, record.levelname) for record in caplog.records] == [("server.schema.errors", "ERROR")]


def test_every_service_error_has_a_code_of_its_own() -> None:
    coded = {error.__name__: error.code for error in ERRORS if error is not ServiceError}
    assert set(coded.values()) <= {
        "BAD_USER_INPUT",
        "UNKNOWN_TICKER",
        "PRICE_STALE",
        "QUERY_TOO_COMPLEX",
        "PERSISTED_QUERY_NOT_FOUND",
        "UNAUTHENTICATED",
        "RATE_LIMITED",
        "STORAGE_UNAVAILABLE",
        "QUEUE_UNAVAILABLE",
    }
    assert len(set(coded.values())) == len(coded)


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server")
