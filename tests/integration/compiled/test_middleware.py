"""The answer that PostgreSQL writes is the one that Strawberry gives."""

import json
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from strawberry.http import process_result

from server.compiled.execution import Compiled
from server.compiled.middleware import CompiledQueries
from server.http.endpoint import MAX_BODY_BYTES
from server.metrics import Metrics
from server.protection.admission import Admission
from server.reads.context import Context
from server.schema.persisted_queries import PersistedQueries
from server.schema.root import schema
from shared.config.settings import Settings
from shared.local.servers import free_port
from shared.queue.client import open_redis
from shared.storage.database import create_pool, fetch
from shared.storage.missed_slots import GapReason, MissedSlot, insert_missed_slots
from shared.storage.prices import Price, PriceSource, insert_prices
from shared.storage.schedules import insert_schedules

START = datetime(2026, 3, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
FIELDS = ["ticker", "price", "timestamp", "observedAt", "source", "testnet", "cursor", "__typename"]
CANDLE_FIELDS = ["ticker", "start", "open", "high", "low", "close", "samples", "complete", "__typename"]
COVERAGE_FIELDS = ["expected", "present", "dropped", "ratio", "complete", "__typename"]
GAP_FIELDS = ["fromDt", "toDt", "missing", "reason", "detail", "__typename"]
TICKER_FIELDS = ["name", "intervalSeconds", "stale", "firstTimestamp", "keptFrom", "__typename"]
STATISTICS_FIELDS = ["change", "twap", "changePercent", "realizedVolatility", "samples", "__typename"]
PRICE_AT_FIELDS = ["at", "ageSeconds", "__typename"]
FIELDS_OF = {
    "Price": FIELDS,
    "Candle": CANDLE_FIELDS,
    "Coverage": COVERAGE_FIELDS,
    "Gap": GAP_FIELDS,
    "Ticker": TICKER_FIELDS,
    "Statistics": STATISTICS_FIELDS,
    "PriceAt": PRICE_AT_FIELDS,
}
NESTED = {
    "Ticker": {"latest": "Price"},
    "Statistics": {"open": "Price", "high": "Price", "low": "Price", "coverage": "Coverage"},
    "PriceAt": {"price": "Price", "gap": "Gap"},
}
INTERVALS = ["ONE_MINUTE", "FIVE_MINUTES", "FIFTEEN_MINUTES", "ONE_HOUR", "FOUR_HOURS", "ONE_DAY", "ONE_WEEK"]
DIGITS = ["91234.56", "2722.40", "0.00001583", "7", "2200", "0.0000000001", "123456789012345678.123456789012345678"]
MICROSECONDS = [0, 1, 27885, 100000, 999999]
FETCHED_ROWS = 12


@dataclass
class Api:
    """The compiled path, and whether it passed a request on."""

    context: Context
    is_passed_on: bool = False
    http: httpx.AsyncClient = field(init=False)
    compiled: Compiled = field(init=False)

    def __post_init__(self) -> None:
        metrics = Metrics()
        self.compiled = Compiled(schema, metrics)
        compiled_queries = CompiledQueries(self.pass_on, self.compiled, PersistedQueries(), metrics)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            context = self.context
            scope["state"] = {
                "pool": context.pool,
                "redis": context.redis,
                "settings": context.settings,
                "admission": Admission(context.pool),
            }
            await compiled_queries(scope, receive, send)

        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api")

    async def pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.is_passed_on = True
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def post(self, query: str, variables: object = None, operation_name: str | None = None) -> str | None:
        """The compiled answer, `None` if the request was passed on."""
        self.is_passed_on = False
        body = {"query": query, "variables": variables, "operationName": operation_name}
        response = await self.http.post("/graphql", json=body)
        return None if self.is_passed_on else response.text

    async def get(self, query: str, variables: object = None) -> str | None:
        self.is_passed_on = False
        given = {"query": query} | ({"variables": json.dumps(variables)} if variables else {})
        response = await self.http.get("/graphql", params=given)
        return None if self.is_passed_on else response.text


def fresh(context: Context) -> Context:
    return Context(context.pool, context.redis, context.settings)


def strict(answer: str) -> object:
    """What the text means, with the order of its keys and the spelling of its floats."""
    return json.loads(answer, object_pairs_hook=list, parse_float=str)


async def plainly(context: Context, query: str, variables: Any = None, operation_name: str | None = None) -> str:
    """What Strawberry says, as its view writes it."""
    result = await schema.execute(query, variables, fresh(context), operation_name=operation_name)
    return json.dumps(process_result(result), separators=(",", ":"))


@pytest.fixture
async def api(context: Context) -> AsyncIterator[Api]:
    prices = [
        Price(
            ticker,
            Decimal(DIGITS[number % len(DIGITS)]),
            START + timedelta(minutes=number, microseconds=MICROSECONDS[number % len(MICROSECONDS)]),
            START + timedelta(minutes=number, microseconds=MICROSECONDS[(number + 2) % len(MICROSECONDS)]),
            list(PriceSource)[number % 3],
            number % 2 == 0,
        )
        for ticker in ("btc_usd", "eth_usd")
        for number in range(FETCHED_ROWS)
    ]
    await insert_prices(context.pool, prices)
    await insert_schedules(context.pool, ["btc_usd", "eth_usd"], START + 2 * MINUTE, MINUTE)
    reasons = ['a "quoted" text', "back\\slash, tab\t and line\nend", "snow \u2603 and \U0001f600", None]
    await insert_missed_slots(
        context.pool,
        [
            MissedSlot("btc_usd", START + number * 7 * MINUTE, GapReason.EXCHANGE_ERROR, detail)
            for number, detail in enumerate(reasons, 2)
        ],
    )
    api = Api(context)
    async with api.http:
        yield api


def mostly(good: list[Any], bad: list[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from(good * (12 * len(bad) // len(good) + 1) + bad)


instants = mostly(
    [*((START + timedelta(minutes=n)).isoformat() for n in (-1, 0, 3, 7, 60)), "2026-03-01T03:05:00+03:00"],
    ["2026-03-01T00:00:00", "yesterday"],
)
tickers = mostly(["btc_usd", "ETH_USD", " btc_usd "], ["no_such"])
limits = mostly([1, 2, 5, 10_000], [0, -1, 10_001])


def texts(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[str]:
    return strategy.map(json.dumps)


@st.composite
def arguments(draw: st.DrawFn, variables: dict[str, tuple[str, Any]], values: dict[str, tuple[str, Any]]) -> str:
    """Each argument left out, null, written in place, or a variable with or without a default."""
    written = []
    for name, (kind, strategy) in values.items():
        match draw(st.sampled_from(["written"] * 12 + ["variable"] * 6 + ["default"] * 4 + ["out", "null"])):
            case "written":
                written.append(f"{name}: {draw(texts(strategy))}")
            case "null":
                written.append(f"{name}: null")
            case "variable":
                variables[f"v{len(variables)}"] = (kind, draw(strategy))
                written.append(f"{name}: $v{len(variables) - 1}")
            case "default":
                nullable = kind.rstrip("!")
                variables[f"v{len(variables)}"] = (f"{nullable} = {draw(texts(strategy))}", ...)
                written.append(f"{name}: $v{len(variables) - 1}")
    return f"({', '.join(written)})" if written else ""


@st.composite
def selections(draw: st.DrawFn, kind: str = "Price", depth: int = 0) -> str:
    parts = []
    for name in draw(st.lists(st.sampled_from(FIELDS_OF[kind]), min_size=1, max_size=5)):
        alias = draw(st.sampled_from(["", "", "", f"as_{name}: "]))
        parts.append(f"{alias}{name}{draw(directives)}")
    if depth < 2 and draw(st.integers(0, 3)) == 0:
        condition = draw(st.sampled_from([f"... on {kind}"] * 9 + ["...", "... on Query"]))
        parts.append(f"{condition}{draw(directives)} {draw(selections(kind, depth + 1))}")
    if kind == "Price" and draw(st.integers(0, 3)) == 0:
        parts.append("...Named")
    for name, inner in NESTED.get(kind, {}).items():
        if draw(st.booleans()):
            parts.append(f"{name} {draw(selections(inner, 2))}")
    if kind == "Coverage" and draw(st.booleans()):
        names = draw(st.lists(st.sampled_from(GAP_FIELDS), min_size=1, max_size=4))
        parts.append(f"gaps{draw(st.sampled_from(['', '(limit: 2)', '(limit: 0)']))} {{ {' '.join(names)} }}")
    return "{ " + " ".join(parts) + " }"


directives = st.sampled_from(
    [""] * 20 + [" @include(if: true)", " @skip(if: true)", " @include(if: $yes)", " @skip(if: $yes)"]
)


@st.composite
def roots(draw: st.DrawFn, variables: dict[str, tuple[str, Any]]) -> str:
    """One root field with its arguments and selections."""
    ticker = {"ticker": ("String!", tickers)}
    bounds = dict.fromkeys(("fromDt", "toDt"), ("DateTime!", instants))
    limit = {"limit": ("Int!", limits)}

    def field(name: str, values: dict[str, tuple[str, Any]], kind: str) -> str:
        return f"{name}{draw(arguments(variables, values))}{draw(directives)} {draw(selections(kind))}"

    match draw(st.sampled_from([*range(7), 10, 11] * 3 + [7, 8, 9, 9])):
        case 0:
            ages = {"maxAgeSeconds": ("Int", st.sampled_from([10**9, 10**9, 5, -1]))}
            return field("latestPrice", ticker | (ages if draw(st.booleans()) else {}), "Price")
        case 1:
            return field("latestPrices", {"tickers": ("[String!]", st.lists(tickers, max_size=3))}, "Price")
        case 2:
            return field("priceHistory", ticker | limit | {"before": ("DateTime", instants)}, "Price")
        case 3:
            return field("pricesInPeriod", ticker | bounds | {"after": ("DateTime", instants)}, "Price")
        case 4:
            interval = draw(st.sampled_from(INTERVALS))
            written = draw(arguments(variables, ticker | bounds | limit)) or "()"
            return f"candles(interval: {interval}, {written[1:]}{draw(directives)} {draw(selections('Candle'))}"
        case 5:
            return field("coverage", ticker | bounds, "Coverage")
        case 10:
            return field("statistics", ticker | bounds, "Statistics")
        case 11:
            several = {"at": ("[DateTime!]!", st.lists(instants, max_size=4))}
            tolerance = {"toleranceSeconds": ("Int", mostly([0, 1, 300, 10**9], [-1]))}
            return field("pricesAt", ticker | several | tolerance, "PriceAt")
        case 6 | 7:
            return f"tickers {draw(selections('Ticker'))}"
        case 8:
            return draw(
                st.sampled_from(["__typename", "__schema { queryType { name } }", '__type(name: "Gap") { name }'])
            )
        case _:
            return f'fetchJob(id: "{"0" * 32}") {{ id }}'


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    variables: dict[str, tuple[str, Any]] = {}
    written = []
    for number in range(draw(st.integers(1, 4))):
        alias = draw(st.sampled_from([f"r{number}: "] * 8 + ["", "same: "]))
        written.append(alias + draw(roots(variables)))
    body = " ".join(written)
    if "$yes" in body:
        variables["yes"] = draw(st.sampled_from([("Boolean!", True), ("Boolean!", False), ("Boolean! = true", ...)]))
    declared = ", ".join(f"${name}: {kind}" for name, (kind, _) in variables.items())
    head = f"query Q({declared})" if declared else draw(st.sampled_from(["", "query Q"]))
    named = "fragment Named on Price { price at: timestamp }" if "...Named" in body else ""
    return f"{head} {{ {body} }} {named}", {n: v for n, (_, v) in variables.items() if v is not ...}


COMPILED: Counter[str] = Counter()
NOTED = ("candles", "coverage", "statistics", "pricesAt", "tickers", "maxAge", "@include", "@skip", "$yes")
"In nearly every run. Rarer shapes are among the ordinary documents below."


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=documents(), is_get=st.booleans())
async def test_the_compiled_answer_is_strawberrys(api: Api, document: tuple[str, dict[str, Any]], is_get: bool) -> None:
    query, variables = document
    answer = await (api.get if is_get else api.post)(query, variables)
    if answer is not None:
        COMPILED["documents"] += 1
        COMPILED.update(name for name in NOTED if name in query)
        assert strict(answer) == strict(await plainly(api.context, query, variables))


def test_a_good_part_of_the_generated_documents_was_compiled() -> None:
    assert COMPILED["documents"] > 100, COMPILED
    assert sum(COMPILED[name] > 0 for name in NOTED) >= 6, COMPILED


@pytest.mark.parametrize(
    "query",
    [
        '{ latestPrice(ticker: "btc_usd") { price timestamp } }',
        '{ latestPrice(ticker: "btc_usd", maxAgeSeconds: 1000000000) { price } }',
        '{ latestPrice(ticker: "btc_usd") @include(if: true) { price } }',
        '{ tickers { name stale latest { price timestamp } firstTimestamp } fetchJob(id: "x") { id } __typename }',
        '{ candles(ticker: "btc_usd", interval: FIVE_MINUTES, fromDt: "2026-03-01T00:00:00Z", '
        'toDt: "2026-03-01T00:09:00Z") { start open high low close samples complete } __schema { __typename } }',
        '{ coverage(ticker: "btc_usd", fromDt: "2026-03-01T00:00:00Z", toDt: "2026-03-01T01:00:00Z") '
        "{ expected present ratio gaps(limit: 9) { fromDt toDt missing reason detail } complete } }",
        '{ statistics(ticker: "btc_usd", fromDt: "2026-03-01T00:00:00Z", toDt: "2026-03-01T01:00:00Z") '
        "{ open { price } "
        "close { ...F } high { price } low { timestamp } change changePercent twap realizedVolatility samples "
        "coverage { present a: gaps(limit: 2) { fromDt detail } gaps { toDt reason } } } } "
        "fragment F on Price { price source }",
        'query ($at: [DateTime!]! = ["2026-03-01T00:03:00Z", "2026-03-01T00:59:59.999999Z", "2026-02-01T00:00:00Z"]) '
        '{ pricesAt(ticker: "btc_usd", at: $at) { at ageSeconds price { price observedAt } '
        "gap { fromDt toDt missing reason detail } } }",
        '{ pricesAt(ticker: "btc_usd", at: ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"]) '
        "{ at gap { toDt } } }",
        '{ pricesAt(ticker: "btc_usd", at: [], toleranceSeconds: 5) { at } b: pricesAt(ticker: "eth_usd", '
        'at: "2026-03-01T00:02:00Z") { at price { price } } }',
        '{ latestPrice(ticker: "eth_usd") { ...{ a: price } ...F } } fragment F on Price { __typename b: price }',
        "{ __typename latestPrices { ticker price observedAt testnet source timestamp __typename } }",
        'query ($n: Int! = 3) { priceHistory(ticker: "btc_usd", limit: $n) { price } priceHistory(ticker: "btc_usd", '
        "limit: $n) { timestamp } }",
        '{ a: pricesInPeriod(ticker: "eth_usd", fromDt: "2026-03-01T00:01:00Z", toDt: "2026-03-01T00:05:00Z") {price} '
        'b: pricesInPeriod(ticker: "eth_usd", fromDt: "2031-03-01T00:00:00Z", toDt: "2031-03-02T00:00:00Z") {price} }',
    ],
)
async def test_ordinary_documents_are_compiled(api: Api, query: str) -> None:
    for answer in (await api.post(query), await api.get(query)):
        assert answer is not None
        assert strict(answer) == strict(await plainly(api.context, query))


@pytest.mark.parametrize(
    "query",
    [
        '{ latestPrice(ticker: "btc_usd", maxAgeSeconds: 5) { price } }',
        '{ latestPrice(ticker: "btc_usd", maxAgeSeconds: -1) { price } }',
        '{ fetchJob(id: "x") { id } }',
        "{ __typename }",
        "{ __schema { queryType { name } } }",
        "mutation { fetchPrices { id } }",
        '{ priceHistory(ticker: "btc_usd", limit: 0) { price } }',
        '{ latestPrice(ticker: "no_such") { price } }',
        '{ pricesAt(ticker: "btc_usd", at: ["yesterday"]) { at } }',
        '{ pricesAt(ticker: "btc_usd", at: [], toleranceSeconds: -1) { at } }',
        "{ latestPrice { price } }",
        "{ nonsense",
        "query A { __typename } query B { latestPrices { price } }",
    ],
)
async def test_everything_else_is_passed_on(api: Api, query: str) -> None:
    assert await api.post(query) is None


async def test_the_named_operation_is_the_one_that_is_answered(api: Api) -> None:
    query = 'query A { latestPrice(ticker: "btc_usd") { price } } query B { latestPrice(ticker: "eth_usd") { ticker } }'
    assert await api.post(query, None, "B") == await plainly(api.context, query, None, "B")
    assert await api.post(query, None, "C") is None


async def test_more_rows_than_a_request_may_ask_for_are_passed_on(api: Api) -> None:
    fields = " ".join(f'{name}: priceHistory(ticker: "btc_usd", limit: 10000) {{ price }}' for name in "abc")
    assert await api.post(f"{{ {fields} }}") is None


@pytest.mark.parametrize(
    "query",
    [
        '{ __typename a: latestPrice(ticker: "btc_usd") { price } latestPrices { price } }',
        '{ fetchJob(id: "x") { id } a: latestPrice(ticker: "btc_usd") { price } __type(name: "Gap") { name } }',
    ],
)
async def test_an_outage_of_the_storage_is_answered_as_strawberry_would(
    redis: Any, settings: Settings, query: str
) -> None:
    nowhere = settings.model_copy(update={"database_url": f"postgresql://u:p@127.0.0.1:{free_port()}/d"})
    async with create_pool(nowhere, name="tests") as pool:
        api = Api(Context(pool, redis, settings))
        async with api.http:
            answer = await api.post(query)
        assert answer is not None
        assert json.loads(answer) == json.loads(await plainly(api.context, query))


async def test_an_outage_of_both_servers_is_answered_in_time(settings: Settings) -> None:
    """Their sockets take connections and never answer."""
    query = f'{{ fetchJob(id: "{"0" * 32}") {{ id }} a: latestPrice(ticker: "btc_usd") {{ price }} }}'
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        urls = {"database_url": f"postgresql://u:p@127.0.0.1:{port}/d", "redis_url": f"redis://127.0.0.1:{port}"}
        silenced = settings.model_copy(update=urls)
        async with create_pool(silenced, name="tests") as pool, open_redis(silenced, retries=0) as redis:
            api = Api(Context(pool, redis, silenced))
            started = time.monotonic()
            async with api.http:
                answer = json.loads(await api.post(query) or "null")
            assert time.monotonic() - started < 4  # one after the other they would take longer on any machine
    assert answer["data"] == {"fetchJob": None, "a": None}
    found = {error["path"][0]: error["extensions"]["code"] for error in answer["errors"]}
    assert found == {"a": "STORAGE_UNAVAILABLE", "fetchJob": "QUEUE_UNAVAILABLE"}
    assert [error["locations"] for error in answer["errors"] if error["path"] == ["fetchJob"]] == [
        [{"line": 1, "column": 3}]
    ]


async def test_a_fault_of_ours_is_passed_on_to_be_masked(api: Api) -> None:
    await fetch(api.context.pool, "alter table prices rename column source to origin")
    try:
        assert await api.post("{ latestPrices { price } }") is None
    finally:
        await fetch(api.context.pool, "alter table prices rename column origin to source")


async def test_what_is_too_long_for_a_document_is_not_remembered(api: Api) -> None:
    compiler = api.compiled.compiler
    before = len(compiler.plans)
    for number in range(3):
        assert await api.post("{ latestPrices { price } }" + " " * (20_001 + number)) is None
        assert await api.post("query A { latestPrices { price } }", None, "A" * (20_001 + number)) is None
    assert len(compiler.plans) == before


async def test_fragments_that_multiply_cost_nothing(api: Api) -> None:
    links = " ".join(f"fragment F{n} on Query {{ ...F{n + 1} ...F{n + 1} }}" for n in range(100))
    query = f"{{ ...F0 }} {links} fragment F100 on Query {{ latestPrices {{ price }} }}"
    started = time.monotonic()
    await api.post(query)
    assert time.monotonic() - started < 5  # it was longer than the universe has been

    query = "{ latestPrices { ...P ...P } } fragment P on Price { price ...Q ...Q } fragment Q on Price { ticker }"
    assert await api.post(query) == await plainly(api.context, query)


async def test_a_list_of_wrong_variables_is_refused_at_its_first(api: Api) -> None:
    started = time.monotonic()
    query = "query ($t: [String!]) { latestPrices(tickers: $t) { price } }"
    assert await api.post(query, {"t": [1] * 100_000}) is None
    assert time.monotonic() - started < 5


async def test_a_body_over_the_limit_is_passed_on_whole(api: Api) -> None:
    body = b'{"query": "{ latestPrices { price } }"}' + b" " * MAX_BODY_BYTES + b"}garbage"
    api.is_passed_on = False
    await api.http.post("/graphql", content=body, headers={"Content-Type": "application/json"})
    assert api.is_passed_on


async def test_values_are_counted_on_both_paths(api: Api) -> None:
    many = " ".join(f"t{number}: timestamp" for number in range(21))
    planned = f'{{ priceHistory(ticker: "btc_usd", limit: 10000) {{ {many} }} }}'
    assert await api.post(planned) is None
    for query in (planned, planned.replace("10000)", "10000) @include(if: true)")):
        answer = json.loads(await plainly(api.context, query))
        assert answer["errors"][0]["extensions"]["code"] == "QUERY_TOO_COMPLEX"
