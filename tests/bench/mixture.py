"""What such a service is asked in ordinary times: by programs and by pages, compiled and not, by POST and GET."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from tests.bench.arrivals import Kind
from tests.bench.data import LAST_MINUTE, TICKERS
from tests.bench.questions import DOCUMENTS, PRICES, to_graphql
from tests.bench.rounds import _ask

_LAST = datetime.fromisoformat(LAST_MINUTE)
_ROW = "price timestamp source"


def kinds(port: int) -> list[Kind]:
    """All of them, each once asked and answered well. Raises `AssertionError`."""
    latest, history, period, four = (
        [to_graphql(question, variables) for variables in question.variables] for question in PRICES
    )
    now = datetime.now(UTC).replace(microsecond=0)
    pages = [
        {"ticker": TICKERS[n % 2], "before": (_LAST - timedelta(hours=n)).isoformat(), "limit": 20 + n % 50}
        for n in range(1000)
    ]
    hours = [{"ticker": TICKERS[n % 2], "from": (now - timedelta(hours=1, seconds=n)).isoformat()} for n in range(200)]
    days = [
        {"ticker": TICKERS[n % 2], "from": day.isoformat(), "to": (day + timedelta(days=7)).isoformat()}
        for n in range(200)
        for day in [_LAST - timedelta(days=7 + n)]
    ]
    mixed: Sequence[tuple[str, float, list[str]]] = [
        ("latestPrice", 30, latest),
        ("priceHistory 100", 15, history),
        ("4 root fields", 15, four),
        ("priceHistory, 1,000 different pages", 10, [_post(_PAGE, page) for page in pages]),
        ("pricesInPeriod 1000", 5, period),
        ("latestPrice by GET", 7, [_get(DOCUMENTS["latest"], {"ticker": ticker}) for ticker in TICKERS]),
        ("latestPrice, maxAgeSeconds", 5, [_post(_FRESH, {"ticker": ticker}) for ticker in TICKERS]),
        ("tickers", 5, [_post("{ tickers { name lagSeconds stale latest { price timestamp } } }", {})]),
        ("candles, a week of hours", 4, [_post(_CANDLES, day) for day in days]),
        ("coverage, an hour of seconds", 2, [_post(_COVERAGE, hour) for hour in hours]),
        ("fetchJob", 1.9, [_post('{ fetchJob(id: "' + "0" * 32 + '") { status } }', {})]),
        ("fetchPrices", 0.1, [_post("mutation { fetchPrices { id status } }", {})]),
    ]
    assert sum(weight for _, weight, _ in mixed) == 100
    return [Kind(name, weight, requests, _least(port, name, requests)) for name, weight, requests in mixed]


def _least(port: int, name: str, requests: list[str]) -> int:
    """A length below which no answer is right."""
    answers = [_ask(port, request) for request in requests[:: max(1, len(requests) // 4)]]
    for answer in answers:
        assert b'"errors"' not in answer, f"{name}: {answer[:300]!r}"
    return min(map(len, answers)) // 2


def _post(document: str, variables: dict[str, Any]) -> str:
    body = json.dumps({"query": " ".join(document.split()), "variables": variables})
    return (
        "POST /graphql HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/graphql-response+json, application/json\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}"
    )


def _get(document: str, variables: dict[str, Any]) -> str:
    asked = f"query={quote(' '.join(document.split()))}&variables={quote(json.dumps(variables))}"
    return f"GET /graphql?{asked} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n\r\n"


_PAGE = f"""query ($ticker: String!, $before: DateTime!, $limit: Int!) {{
    priceHistory(ticker: $ticker, before: $before, limit: $limit) {{ {_ROW} }}
}}"""
_FRESH = f"query ($ticker: String!) {{ latestPrice(ticker: $ticker, maxAgeSeconds: 3600) {{ {_ROW} }} }}"
_CANDLES = """query ($ticker: String!, $from: DateTime!, $to: DateTime!) {
    candles(ticker: $ticker, interval: ONE_HOUR, fromDt: $from, toDt: $to) { start open high low close samples }
}"""
_COVERAGE = f"""query ($ticker: String!, $from: DateTime!) {{
    coverage(ticker: $ticker, fromDt: $from, toDt: "{datetime.now(UTC) - timedelta(minutes=1):%Y-%m-%dT%H:%M:%SZ}") {{
        expected present gaps(limit: 10) {{ fromDt toDt reason }}
    }}
}}"""
