"""Every argument that is refused, with its code and a message that names it."""

import json
from typing import Any

import pytest

from shared.storage.prices import insert_prices
from tests.integration.conftest import Api
from tests.integration.examples import example_price
from worker.context import Worker

DAY = 'fromDt: "2026-01-31T12:00:00Z", toDt: "2026-01-31T13:02:00+01:00"'
UNKNOWN = "is not collected here; these are: btc_usd, eth_usd."
INSTANT = "accepted is an RFC 3339 instant with its offset"
PERIOD = 'pricesInPeriod(ticker: "btc_usd", fromDt: "{}", toDt: "{}") {{ price }}'
REFUSED = {
    'latestPrice(ticker: "doge_usd") { price }': ("UNKNOWN_TICKER", f"'doge_usd' {UNKNOWN}"),
    'latestPrice(ticker: "") { price }': ("UNKNOWN_TICKER", f"'' {UNKNOWN}"),
    'latestPrices(tickers: ["btc_usd", "\\u0000"]) { price }': ("UNKNOWN_TICKER", UNKNOWN),
    'latestPrice(ticker: "btc_usd", maxAgeSeconds: -1) { price }': (
        "BAD_USER_INPUT",
        "maxAgeSeconds is -1; accepted is 0 or more.",
    ),
    'latestPrice(ticker: "btc_usd", maxAgeSeconds: 60) { price }': ("PRICE_STALE", "The newest price of btc_usd is "),
    'priceHistory(ticker: "btc_usd", limit: 0) { price }': ("BAD_USER_INPUT", "limit is 0; accepted are 1 to 10000."),
    'priceHistory(ticker: "btc_usd", limit: -5) { price }': ("BAD_USER_INPUT", "limit is -5; accepted are 1 to"),
    'priceHistory(ticker: "btc_usd", limit: 10001) { price }': ("BAD_USER_INPUT", "limit is 10001; accepted are 1 to"),
    'priceHistory(ticker: "btc_usd", before: "2026-01-31T12:00:00") { price }': ("BAD_USER_INPUT", "before is '2026-"),
    'priceHistory(ticker: "btc_usd", before: 5) { price }': ("BAD_USER_INPUT", "before"),
    PERIOD.format("2026-01-31T12:00:00", "2026-02-01T00:00:00Z"): ("BAD_USER_INPUT", "fromDt is '2026-01-31T12:00:00'"),
    PERIOD.format("2026-01-31T12:00:00Z", "yesterday"): ("BAD_USER_INPUT", f"toDt is 'yesterday'; {INSTANT}"),
    PERIOD.format("2026-02-30T12:00:00Z", "2026-03-01T00:00:00Z"): ("BAD_USER_INPUT", "fromDt is '2026-02-30T12:"),
    PERIOD.format("0001-01-01T00:00:00+01:00", "2026-03-01T00:00:00Z"): ("BAD_USER_INPUT", "fromDt is '0001-01-01T"),
    PERIOD.format("2026-02-02T00:00:00Z", "2026-02-01T00:00:00Z"): ("BAD_USER_INPUT", "fromDt is after toDt"),
    f'a: pricesInPeriod(ticker: "btc_usd", {DAY}, after: "x") {{ price }}': ("BAD_USER_INPUT", "after is 'x'"),
    f'coverage(ticker: "btc_usd", {DAY.replace("13:02", "12:02")}) {{ expected }}': ("BAD_USER_INPUT", "fromDt is aft"),
    f'coverage(ticker: "sol_usd", {DAY}) {{ expected }}': ("UNKNOWN_TICKER", UNKNOWN),
    'priceHistory(ticker: "btc_usd", limit: 99999999999) { price }': ("GRAPHQL_VALIDATION_FAILED", "99999999999"),
    "latestPrice { price }": ("GRAPHQL_VALIDATION_FAILED", "ticker"),
    "nothing": ("GRAPHQL_VALIDATION_FAILED", "'nothing'"),
    "latestPrices { price ": ("GRAPHQL_PARSE_FAILED", "Syntax Error"),
    " ".join(f'a{n}: priceHistory(ticker: "btc_usd", limit: 10000) {{ price }}' for n in range(2))
    + 'b: priceHistory(ticker: "btc_usd", limit: 1) { price }': ("QUERY_TOO_COMPLEX", "20000 rows"),
    " ".join(f"a{n}: __typename" for n in range(51)): ("QUERY_TOO_COMPLEX", "50 aliases"),
    "{ a " * 20 + "}" * 20: ("GRAPHQL_PARSE_FAILED", ""),
    "__schema { types " + "{ ofType " * 16 + "{ name }" + "}" * 17: ("QUERY_TOO_COMPLEX", "15 levels"),
    "a " * 2001: ("QUERY_TOO_COMPLEX", "2000 tokens"),
    "__typename" + " " * 20_000: ("QUERY_TOO_COMPLEX", "20000 characters"),
}


@pytest.mark.parametrize("query", REFUSED, ids=lambda query: query[:60])
async def test_a_refusal_has_its_code_and_names_the_argument(api: Api, worker: Worker, query: str) -> None:
    await insert_prices(worker.pool, [example_price()])
    code, message = await api.error(f"{{ {query} }}")
    assert code == REFUSED[query][0]
    assert REFUSED[query][1] in message


@pytest.mark.parametrize(
    ("mutation", "code", "said"),
    [
        ("fetchPrices(tickers: [])", "BAD_USER_INPUT", "tickers is empty; accepted are one or more, or null for all."),
        ('fetchPrices(tickers: ["btc_usd", "x_usd"])', "UNKNOWN_TICKER", f"'x_usd' {UNKNOWN}"),
    ],
)
async def test_a_fetch_of_nothing_is_refused_and_queues_nothing(
    api: Api, worker: Worker, mutation: str, code: str, said: str
) -> None:
    assert await api.error(f"mutation {{ {mutation} {{ id }} }}") == (code, said)
    assert await worker.redis.keys("*") == []


@pytest.mark.parametrize(
    ("declared", "value"),
    [("$v: Int!", 0), ("$v: Int!", "5"), ("$v: Int!", None), ("$v: Int!", 2**40), ("$v: Int!", 1.5)],
)
async def test_a_variable_that_is_refused_is_the_clients_input(api: Api, declared: str, value: object) -> None:
    query = f'query ({declared}) {{ priceHistory(ticker: "btc_usd", limit: $v) {{ price }} }}'
    code, message = await api.error(query, {"v": value})
    assert code == "BAD_USER_INPUT"
    assert "limit" in message or "$v" in message


@pytest.mark.parametrize(
    "body",
    [
        {"query": "{latestPrices{price}}", "operationName": "\ud800"},
        {"query": "query($t:[String!]){latestPrices(tickers:$t){price}}", "variables": {"t": ["btc_usd"] * 1001}},
    ],
)
async def test_what_was_once_too_much_has_its_code(api: Api, body: dict[str, Any]) -> None:
    headers = {"Content-Type": "application/json"}
    response = await api.http.post("/graphql", content=json.dumps(body), headers=headers)
    assert response.json()["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
