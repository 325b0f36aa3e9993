"""INTROSPECTION=0: no answer reveals the schema, and other queries are answered as usual."""

import json
from collections.abc import AsyncIterator

import pytest
from arq.connections import ArqRedis
from graphql import get_introspection_query

from server.http.sdl import SDL
from shared.config.settings import Settings
from shared.storage.database import Pool
from tests.integration.live import LiveApi, serve_live
from tests.integration.ways import WAYS, ask, refusals

REFUSED = "GraphQL introspection has been disabled, but the requested query contained the field '__{}'."


@pytest.fixture(scope="module")
async def _untold(settings: Settings, _migrated: None) -> AsyncIterator[LiveApi]:
    async with serve_live(settings.model_copy(update={"introspection": False})) as api:
        yield api


@pytest.fixture
def untold(_untold: LiveApi, pool: Pool, redis: ArqRedis) -> LiveApi:
    return _untold


@pytest.mark.parametrize("way", WAYS)
async def test_introspection_is_refused(untold: LiveApi, way: str) -> None:
    asked = {
        "{ __schema { queryType { name } } }": "schema",
        '{ latestPrices { price } __type(name: "Price") { name } }': "type",
        "query A { ...F } fragment F on Query { a: __schema { description } }": "schema",
    }
    for query, field in asked.items():
        found = refusals(await ask(untold, way, query))
        assert ("GRAPHQL_VALIDATION_FAILED", REFUSED.format(field)) in found
        assert {code for code, _ in found} == {"GRAPHQL_VALIDATION_FAILED"}
    answer = await ask(untold, way, get_introspection_query())
    assert ("data" in answer, "BACKFILLED" in json.dumps(answer)) == (False, False)


@pytest.mark.parametrize("way", WAYS)
async def test_errors_suggest_no_names_of_the_schema(untold: LiveApi, way: str) -> None:
    said = {
        "{ latestPrise { price } }": "Cannot query field 'latestPrise' on type 'Query'.",
        "{ latestPrices { prise } }": "Cannot query field 'prise' on type 'Price'.",
        '{ priceHistory(tikker: "x", ticker: "btc_usd") { price } }': (
            "Unknown argument 'tikker' on field 'Query.priceHistory'."
        ),
    }
    for query, message in said.items():
        assert refusals(await ask(untold, way, query)) == {("GRAPHQL_VALIDATION_FAILED", message)}
    wrong = 'query ($i: CandleInterval!) { candles(ticker: "btc_usd", interval: $i, fromDt: "", toDt: "") { open } }'
    [(code, text)] = refusals(await ask(untold, way, wrong, {"i": "ONE_HOURS"}))
    assert (code, "ONE_HOUR'" in text, "Did you mean" in text) == ("BAD_USER_INPUT", False, False)


@pytest.mark.parametrize("way", WAYS)
async def test_names_of_types_are_answered(untold: LiveApi, way: str) -> None:
    """Clients add `__typename` to their queries."""
    for query in (
        "{ __typename latestPrices { __typename } }",
        "{ __typename tickers { name } latestPrices { price } }",
    ):
        answer = await ask(untold, way, query)
        assert (answer["data"]["__typename"], answer["data"]["latestPrices"]) == ("Query", [])


async def test_the_sdl_is_not_published(untold: LiveApi) -> None:
    response = await untold.http.get("/schema.graphql")
    assert (response.status_code, response.text) == (404, "This server does not publish its schema.\n")


async def test_introspection_is_on_by_default(settings: Settings, pool: Pool) -> None:
    async with serve_live(settings) as api:
        assert (await api.http.get("/schema.graphql")).text == SDL
        for way in WAYS:
            assert "__schema" in (await ask(api, way, get_introspection_query()))["data"]
            [(_, message)] = refusals(await ask(api, way, "{ latestPrise { price } }"))
            assert "Did you mean 'latestPrice'" in message
