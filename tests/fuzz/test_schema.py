"""What the schema allows, and what it nearly allows, as schemathesis makes it up: every answer is one, and coded."""

import asyncio
import re
import time
from collections import Counter
from typing import Any

import httpx
import pytest
import schemathesis
from arq.connections import ArqRedis
from graphql import introspection_from_schema
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis_graphql import nodes
from schemathesis import GenerationMode

from server.schema.root import schema
from shared.config.settings import Settings
from shared.storage.database import Pool
from shared.storage.prices import insert_prices
from tests.fuzz import verdict
from tests.fuzz.conftest import IS_LONG, SEED
from tests.fuzz.target import PATIENCE
from tests.integration.api_process import ApiProcess, run_api
from tests.integration.live import price

EXAMPLES = 1500 if IS_LONG else 80
"Of either mode."

INSTANTS = [
    "2026-01-31T00:00:00Z",
    "2026-01-31T12:30:00+01:00",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "",
    "x",
]
TICKER = re.compile(r'(tickers?: \[?)"(?:[^"\\]|\\.)*"')


def ask_all(api: ApiProcess, mode: GenerationMode) -> tuple[Counter[str], list[str], float]:
    """How many answers had which codes, what was wrong with them, and how long the slowest took."""
    schemathesis.graphql.scalar("DateTime", st.sampled_from(INSTANTS).map(nodes.String))
    codes: Counter[str] = Counter()
    wrong: list[str] = []
    slowest = 0.0
    made_up = schemathesis.graphql.from_dict(dict(introspection_from_schema(schema._schema)))

    with httpx.Client(base_url=f"http://127.0.0.1:{api.port}", timeout=PATIENCE, trust_env=False) as http:

        @seed(SEED)
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(made_up.as_strategy(generation_mode=mode), st.booleans(), st.sampled_from(["POST", "GET"]))
        def ask(case: schemathesis.Case[Any], is_known: bool, method: str) -> None:
            nonlocal slowest
            query = TICKER.sub(r'\1"btc_usd"', str(case.body)) if is_known else str(case.body)
            began = time.monotonic()
            asked = {"query": query}
            response = http.post("/graphql", json=asked) if method == "POST" else http.get("/graphql", params=asked)
            slowest = max(slowest, time.monotonic() - began)
            media_type = response.headers.get("content-type", "")
            found = list(verdict.of_http(response.status_code, media_type, response.text, is_graphql=True, asked=query))
            wrong.extend(f"{what}: {query}" for what in found)
            errors = [] if found else response.json().get("errors", [])
            codes.update({error["extensions"]["code"] for error in errors} or {"none"})

        ask()
    return codes, wrong, slowest


@pytest.mark.timeout(300)
async def test_whatever_is_made_of_the_schema_is_answered(
    settings: Settings, pool: Pool, redis: ArqRedis, request: pytest.FixtureRequest
) -> None:
    await insert_prices(pool, [price(ticker, minute) for ticker in ("btc_usd", "eth_usd") for minute in range(500)])
    answered: dict[GenerationMode, Counter[str]] = {}
    async with run_api(settings, FETCH_LIMIT_PER_CLIENT="0", FETCH_LIMIT_OVERALL="0") as api:
        for mode, name in ((GenerationMode.POSITIVE, "that fits"), (GenerationMode.NEGATIVE, "that does not fit")):
            codes, wrong, slowest = await asyncio.to_thread(ask_all, api, mode)
            row = (f"made of the schema, {name}", EXAMPLES, EXAMPLES, f"{slowest:.2f} s", len(wrong))
            request.node.user_properties.append(("bad inputs", row))
            assert wrong == []
            answered[mode] = codes
    assert "Traceback" not in api.final_log, api.final_log[-3000:]
    assert {"none", "UNKNOWN_TICKER", "BAD_USER_INPUT"} <= answered[GenerationMode.POSITIVE].keys()
    assert "GRAPHQL_VALIDATION_FAILED" in answered[GenerationMode.NEGATIVE]
