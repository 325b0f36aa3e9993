"""Every query and the mutation over HTTP: whole answers, and every argument that is refused."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.grid import slot_of
from shared.queue.fetches import FetchFailure, finish_fetch_job, start_fetch_job
from shared.queue.worker_registry import report_worker
from shared.storage.missed_slots import GapReason, MissedSlot, MissingRun, insert_missed_slots, insert_unanswered
from shared.storage.prices import Price, PriceSource, insert_prices
from shared.storage.schedules import update_filling_to
from tests.integration.conftest import Api
from tests.integration.examples import MINUTE, NOON, example_price, insert_schedule_rows
from worker.context import Worker

FIELDS = "{ ticker price timestamp observedAt source testnet }"
PRICES = [
    example_price(NOON, "91234.500"),
    example_price(NOON + MINUTE, "91235", source=PriceSource.REQUESTED),
    example_price(NOON + MINUTE * 2, "1E+5", source=PriceSource.BACKFILLED),
]
OTHER = example_price(NOON, "0.000000000000000001", ticker="eth_usd")
ANSWERS = [
    ("91234.500", "2026-01-31T12:00:00.000000Z", "2026-01-31T12:00:00.123456Z", "SCHEDULED"),
    ("91235", "2026-01-31T12:01:00.000000Z", "2026-01-31T12:01:00.123456Z", "REQUESTED"),
    ("100000", "2026-01-31T12:02:00.000000Z", "2026-01-31T12:02:00.123456Z", "BACKFILLED"),
]


def answered(price: str, timestamp: str, observed_at: str, source: str, ticker: str = "btc_usd") -> dict[str, Any]:
    return {
        "ticker": ticker,
        "price": price,
        "timestamp": timestamp,
        "observedAt": observed_at,
        "source": source,
        "testnet": True,
    }


FIRST, SECOND, THIRD = (answered(*answer) for answer in ANSWERS)
OTHER_ANSWER = answered("0.000000000000000001", *ANSWERS[0][1:], ticker="eth_usd")


@pytest.fixture
async def stored(api: Api, worker: Worker) -> list[Price]:
    return await insert_prices(worker.pool, [*PRICES, OTHER])


EMPTY = {
    'latestPrice(ticker: "btc_usd") { price }': None,
    'latestPrice(ticker: "btc_usd", maxAgeSeconds: 0) { price }': None,
    "latestPrices { price }": [],
    'priceHistory(ticker: "btc_usd") { price }': [],
    'pricesInPeriod(ticker: "btc_usd", fromDt: "2026-01-31T00:00:00Z", toDt: "2026-02-01T00:00:00Z") { price }': [],
    'coverage(ticker: "btc_usd", fromDt: "2026-01-31T00:00:00Z", toDt: "2026-02-01T00:00:00Z")'
    " { expected present ratio complete gaps { missing } }": {
        "expected": 0,
        "present": 0,
        "ratio": 1.0,
        "complete": True,
        "gaps": [],
    },
    'fetchJob(id: "00000000000000000000000000000000") { status }': None,
    'fetchJob(id: "no id at all") { status }': None,
    "tickers { name intervalSeconds latest { price } lagSeconds stale firstTimestamp }": [
        {
            "name": name,
            "intervalSeconds": 60,
            "latest": None,
            "lagSeconds": None,
            "stale": True,
            "firstTimestamp": None,
        }
        for name in ("btc_usd", "eth_usd")
    ],
}


@pytest.mark.parametrize("query", EMPTY)
async def test_nothing_collected_yet_is_no_error(api: Api, query: str) -> None:
    assert await api.execute(f"{{ answer: {query} }}") == {"data": {"answer": EMPTY[query]}}


DAY = 'fromDt: "2026-01-31T12:00:00Z", toDt: "2026-01-31T13:02:00+01:00"'
FOUND = {
    'latestPrice(ticker: " BTC_usd ")': THIRD,
    'latestPrice(ticker: "btc_usd", maxAgeSeconds: 2147483647)': THIRD,
    "latestPrices": [THIRD, OTHER_ANSWER],
    'latestPrices(tickers: ["ETH_USD", "btc_usd", "eth_usd"])': [OTHER_ANSWER, THIRD],
    "latestPrices(tickers: [])": [],
    'priceHistory(ticker: "btc_usd")': [THIRD, SECOND, FIRST],
    'priceHistory(ticker: "btc_usd", limit: 1, before: "2026-01-31T12:02:00Z")': [SECOND],
    'priceHistory(ticker: "btc_usd", limit: 10000, before: "2026-01-31t12:01:00.000001z")': [SECOND, FIRST],
    f'pricesInPeriod(ticker: "btc_usd", {DAY})': [FIRST, SECOND, THIRD],
    f'pricesInPeriod(ticker: "btc_usd", {DAY}, limit: 1, after: "2026-01-31T12:00:00Z")': [SECOND],
}


@pytest.mark.parametrize("query", FOUND)
async def test_prices_are_answered_to_the_last_digit(api: Api, stored: list[Price], query: str) -> None:
    assert await api.execute(f"{{ answer: {query} {FIELDS} }}") == {"data": {"answer": FOUND[query]}}


async def test_tickers_tell_how_fresh_they_are(api: Api, worker: Worker) -> None:
    now = datetime.now(UTC)
    fresh = example_price(now - timedelta(seconds=100))
    stale = example_price(now - timedelta(seconds=130), ticker="eth_usd")
    await insert_prices(worker.pool, [fresh, stale, example_price()])
    answer = await api.execute("{ tickers { name stale lagSeconds firstTimestamp latest { price } } }")
    lags = [ticker.pop("lagSeconds") for ticker in answer["data"]["tickers"]]
    assert 100 <= lags[0] < 105
    assert 130 <= lags[1] < 135
    instant = stale.timestamp.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert answer["data"]["tickers"] == [
        {"name": "btc_usd", "stale": False, "firstTimestamp": ANSWERS[0][1], "latest": {"price": "91234.56"}},
        {"name": "eth_usd", "stale": True, "firstTimestamp": instant, "latest": {"price": "91234.56"}},
    ]


async def test_coverage_explains_what_is_missing(api: Api, worker: Worker, stored: list[Price]) -> None:
    await insert_schedule_rows(worker.pool, [("btc_usd", NOON, 60)])
    reason = MissedSlot("btc_usd", NOON + MINUTE * 4, GapReason.EXCHANGE_ERROR, "HTTP_502: bad")
    await insert_missed_slots(worker.pool, [reason])
    period = 'fromDt: "2026-01-31T12:00:00Z", toDt: "2026-01-31T12:05:00Z"'
    gaps = "gaps(limit: 2) { fromDt toDt missing reason detail }"
    query = f'{{ coverage(ticker: "btc_usd", {period}) {{ expected present ratio complete {gaps} }} }}'
    assert (await api.execute(query))["data"]["coverage"] == {
        "expected": 5,
        "present": 3,
        "ratio": 0.6,
        "complete": False,
        "gaps": [
            {
                "fromDt": "2026-01-31T12:03:00.000000Z",
                "toDt": "2026-01-31T12:04:00.000000Z",
                "missing": 1,
                "reason": "NOT_COLLECTED",
                "detail": None,
            },
            {
                "fromDt": "2026-01-31T12:04:00.000000Z",
                "toDt": "2026-01-31T12:05:00.000000Z",
                "missing": 1,
                "reason": "EXCHANGE_ERROR",
                "detail": "HTTP_502: bad",
            },
        ],
    }


async def test_recovered_prices_count_as_observed_and_a_filled_history_tells_its_holes(
    api: Api, worker: Worker, stored: list[Price]
) -> None:
    """`PRICES` are two observed minutes and an average from 12:00 on; the history before them is being filled."""
    history = [
        example_price(NOON - MINUTE * 3, source=PriceSource.RECOVERED),
        example_price(NOON - MINUTE, source=PriceSource.BACKFILLED),
    ]
    await insert_prices(worker.pool, history)
    await insert_schedule_rows(worker.pool, [("btc_usd", NOON - MINUTE * 3, 60), ("eth_usd", NOON - MINUTE * 3, 60)])
    for ticker, goal in (("btc_usd", NOON - MINUTE * 60), ("eth_usd", NOON)):
        await update_filling_to(worker.pool, ticker, goal)
    query = """
        query ($from: DateTime!, $to: DateTime!) {
          tickers { name fillingTo }
          pricesInPeriod(ticker: "btc_usd", fromDt: $from, toDt: $from) { source }
          coverage(ticker: "btc_usd", fromDt: $from, toDt: $to) {
            expected present observed averaged gaps { fromDt missing detail }
          }
        }
    """
    variables = {"from": (NOON - MINUTE * 3).isoformat(), "to": (NOON + MINUTE * 3).isoformat()}
    # Asked twice: the reason that healing notes is new data, and not answered from memory.
    for why in (None, "no trade within the slot; no chart point as fine as the grid"):
        if why:
            await insert_unanswered(worker.pool, "btc_usd", [MissingRun(NOON - MINUTE * 2, NOON - MINUTE, MINUTE)], why)
        assert (await api.execute(query, variables))["data"] == {
            "tickers": [
                {"name": "btc_usd", "fillingTo": "2026-01-31T11:00:00.000000Z"},
                {"name": "eth_usd", "fillingTo": None},
            ],
            "pricesInPeriod": [{"source": "RECOVERED"}],
            "coverage": {
                "expected": 6,
                "present": 5,
                "observed": 3,
                "averaged": 2,
                "gaps": [{"fromDt": "2026-01-31T11:58:00.000000Z", "missing": 1, "detail": why}],
            },
        }


JOB = "id status tickers enqueuedAt startedAt finishedAt prices " + FIELDS + " failures { ticker code message }"
FOLLOW = f"query ($id: ID!) {{ fetchJob(id: $id) {{ {JOB} }} }}"


async def test_a_fetch_can_be_asked_for_and_followed(api: Api, worker: Worker) -> None:
    asked = (await api.execute(f"mutation {{ fetchPrices {{ {JOB} }} }}"))["data"]["fetchPrices"]
    assert asked | {"id": "", "enqueuedAt": ""} == {
        "id": "",
        "status": "QUEUED",
        "tickers": ["btc_usd", "eth_usd"],
        "enqueuedAt": "",
        "startedAt": None,
        "finishedAt": None,
        "prices": [],
        "failures": [],
    }
    again = 'mutation { fetchPrices(tickers: ["ETH_usd", "btc_usd", "eth_usd"]) { id } }'
    assert (await api.execute(again))["data"]["fetchPrices"] == {"id": asked["id"]}

    await start_fetch_job(worker.redis, asked["id"])
    running = (await api.execute(FOLLOW, {"id": asked["id"]}))["data"]["fetchJob"]
    assert running == asked | {"status": "RUNNING", "startedAt": running["startedAt"]}

    failures = [FetchFailure("eth_usd", "BAD_PRICE", "price is not finite")]
    await finish_fetch_job(worker.redis, asked["id"], asked["tickers"], PRICES[:1], failures)
    ended = (await api.execute(FOLLOW, {"id": asked["id"]}))["data"]["fetchJob"]
    assert ended["startedAt"] < ended["finishedAt"]
    assert ended == running | {
        "status": "PARTIAL",
        "finishedAt": ended["finishedAt"],
        "prices": [FIRST],
        "failures": [{"ticker": "eth_usd", "code": "BAD_PRICE", "message": "price is not finite"}],
    }


async def test_readiness_tells_of_every_dependency(api: Api, worker: Worker) -> None:
    def states(response: Any) -> dict[str, str]:
        return {name: entry["status"] for name, entry in response.json()["dependencies"].items()}

    silent = await api.send("GET", "/readyz")
    assert (silent.status_code, silent.json()["status"]) == (200, "ok")
    assert silent.json()["dependencies"] == {
        "postgres": {"status": "ok", "reason": None},
        "redis": {"status": "ok", "reason": None},
        "worker": {"status": "warning", "reason": "no worker has reported lately"},
        "prices": {
            "status": "warning",
            "reason": "btc_usd: nothing collected yet; eth_usd: nothing collected yet",
        },
    }
    await report_worker(worker.redis, worker.name, {"eth_usd": ["eth_usdc", "eth_usdt"], "of_another_api": []})
    unknown = await api.send("GET", "/readyz")
    assert (unknown.status_code, unknown.json()["dependencies"]["worker"]) == (
        200,
        {
            "status": "warning",
            "reason": "index eth_usd does not exist at the exchange; near ones: eth_usdc, eth_usdt",
        },
    )
    await worker.redis.flushdb()
    await report_worker(worker.redis, worker.name, {})
    now = slot_of(datetime.now(UTC), MINUTE)
    await insert_prices(worker.pool, [example_price(now, ticker=ticker) for ticker in ("btc_usd", "eth_usd")])
    assert set(states(await api.send("GET", "/readyz")).values()) == {"ok"}
