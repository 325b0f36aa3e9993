"""What a release asks of PostgreSQL, and is answered: every statement of its functions and of its GraphQL.

`python -m tests.integration.released_queries`, at a release, writes it down; `test_released_queries.py` asks the same
of every later schema. So the database can be migrated while processes of the release still run.
"""

import asyncio
import json
import tempfile
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import httpx
from arq.connections import ArqRedis

from server.app import create_app
from shared.config.settings import Settings, load_settings
from shared.migrate import migrate, read_migrations
from shared.queue.client import open_redis
from shared.queue.deferred import defer, store_oldest_deferred
from shared.storage.candles import CandleInterval
from shared.storage.database import Pool, create_pool
from shared.storage.gaps import select_missing_runs
from shared.storage.missed_slots import GapReason, MissedSlot, insert_missed_slots, insert_unanswered
from shared.storage.prices import Price, PriceSource, insert_prices, select_latest_prices, select_observed_tickers
from shared.storage.schedules import insert_schedules, move_beginning, select_beginnings, update_filling_to
from tests.embedded import start_postgres, start_valkey
from tests.reads import (
    select_candles,
    select_coverage,
    select_first_timestamps,
    select_gaps,
    select_latest_price,
    select_price_history,
    select_prices_in_period,
)

FILE = Path(__file__).with_suffix(".json")
TICKERS = ["btc_usd", "eth_usd"]
MINUTE = timedelta(minutes=1)
START = datetime(2026, 1, 31, 12, tzinfo=UTC)
END = START + 30 * MINUTE

PERIOD = f'fromDt: "{START:%FT%TZ}", toDt: "{END:%FT%TZ}"'
PRICE = "ticker price timestamp observedAt source testnet"
DOCUMENTS = [
    f'{{ latestPrice(ticker: "btc_usd") {{ {PRICE} }} }}',
    f'{{ latestPrice(ticker: "btc_usd", maxAgeSeconds: 2000000000) {{ {PRICE} }} }}',
    f"{{ latestPrices {{ {PRICE} }} }}",
    f'{{ priceHistory(ticker: "eth_usd", limit: 5) {{ {PRICE} }} }}',
    f'{{ priceHistory(ticker: "eth_usd", limit: 5, before: "{END:%FT%TZ}") {{ {PRICE} }} }}',
    f'{{ pricesInPeriod(ticker: "btc_usd", {PERIOD}) {{ {PRICE} }} }}',
    f'{{ pricesInPeriod(ticker: "btc_usd", {PERIOD}, limit: 3, after: "{START:%FT%TZ}") {{ {PRICE} }} }}',
    '{ a: latestPrice(ticker: "btc_usd") { price } b: priceHistory(ticker: "eth_usd", limit: 2) { timestamp } }',
    f'{{ candles(ticker: "btc_usd", interval: FIVE_MINUTES, {PERIOD}) {{ start open close samples complete }} }}',
    f'{{ coverage(ticker: "btc_usd", {PERIOD}) {{ expected present gaps {{ fromDt toDt missing reason detail }} }} }}',
    "{ tickers { name intervalSeconds lagSeconds stale firstTimestamp latest { price } } }",
]

_asked: ContextVar[list[dict[str, Any]] | None] = ContextVar("asked", default=None)


def price(number: int, ticker: str, source: PriceSource = PriceSource.SCHEDULED, digits: str = "91234.560") -> Price:
    at = START + number * MINUTE
    return Price(ticker, Decimal(digits) + number, at, at + timedelta(microseconds=123_456), source, testnet=True)


async def ask(pool: Pool, redis: ArqRedis) -> None:
    """What a worker stores, and all that can be read of it."""
    await insert_schedules(pool, TICKERS, START, MINUTE)
    await update_filling_to(pool, "btc_usd", START - 5 * MINUTE)
    beginning = (await select_beginnings(pool, TICKERS))["btc_usd"]
    await move_beginning(pool, "btc_usd", beginning, START - 5 * MINUTE, is_done=True)
    for ticker in TICKERS:
        await insert_prices(pool, [price(n, ticker, PriceSource.BACKFILLED) for n in range(-5, 3)])
        # Of these one is an observation in the place of an average, and one is there already.
        await insert_prices(pool, [price(n, ticker, digits="0.0000000001") for n in (2, 3, 4, 6, 7)])
        await insert_prices(pool, [price(3, ticker, digits="7")])
    asked = START + timedelta(seconds=222, microseconds=1)
    await insert_prices(pool, [Price("btc_usd", Decimal("5E+3"), asked, asked, PriceSource.REQUESTED, False)])
    await insert_schedules(pool, TICKERS, START + 10 * MINUTE, timedelta(seconds=30))
    missed = [MissedSlot("btc_usd", START + 5 * MINUTE, GapReason.EXCHANGE_ERROR, "HTTP 500")]
    await insert_missed_slots(pool, missed)
    for run in await select_missing_runs(pool, "btc_usd", START, END, END):
        await insert_unanswered(pool, "btc_usd", [run])
    refused = Price("eth_usd", Decimal(0), END, END, PriceSource.SCHEDULED, False)
    await defer(redis, [price(8, "eth_usd"), refused], missed)
    while await store_oldest_deferred(redis, pool):
        pass

    await select_latest_price(pool, "btc_usd")
    await select_latest_prices(pool, TICKERS)
    await select_first_timestamps(pool, TICKERS)
    await select_observed_tickers(pool, TICKERS, START + 6 * MINUTE)
    await select_price_history(pool, "btc_usd", None, 100)
    await select_price_history(pool, "btc_usd", START, 100)
    await select_prices_in_period(pool, "btc_usd", START, END, START, 100)
    for interval in CandleInterval:
        await select_candles(pool, "btc_usd", interval, START - 60 * MINUTE, END, 100, END)
    await select_coverage(pool, "btc_usd", START, END, END)
    await select_gaps(pool, "btc_usd", START, END, END, 100)


async def ask_in_graphql(settings: Settings, asked: list[dict[str, Any]]) -> None:
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:
        _asked.set(asked)  # not sooner: what the API does by itself is not of interest, and comes when it comes

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app(scope | {"state": dict(state or {})}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(with_state), base_url="http://api") as http:
            for document in DOCUMENTS:
                answer = (await http.post("/graphql", json={"query": document})).json()
                assert "errors" not in answer, answer


async def record(database_url: str, redis_url: str) -> dict[str, Any]:
    await migrate(database_url)
    settings = load_settings(database_url=database_url, redis_url=redis_url)
    fetch = asyncpg.Connection.fetch

    async def noted(connection: Any, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        entry: dict[str, Any] = {"sql": sql, "arguments": arguments}
        if (asked := _asked.get()) is not None:
            asked.append(entry)
        try:
            rows: list[asyncpg.Record] = await fetch(connection, sql, *arguments)
        except asyncpg.PostgresError as error:
            entry["error"] = error.sqlstate
            raise
        entry["rows"] = [list(row) for row in rows]
        return rows

    asked: list[dict[str, Any]] = []
    asyncpg.Connection.fetch = noted  # type: ignore[method-assign, assignment]
    try:
        async with create_pool(settings, name="tests", size=1) as pool, open_redis(settings, retries=1) as redis:
            _asked.set(asked)
            await ask(pool, redis)
            _asked.set(None)
        await ask_in_graphql(settings, asked)
    finally:
        asyncpg.Connection.fetch = fetch  # type: ignore[method-assign]
    return {"migrations": len(read_migrations()), "asked": asked}


def main() -> None:
    Settings.model_config["env_file"] = None
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        postgres, valkey = start_postgres(Path(folder, "postgres")), start_valkey(Path(folder, "valkey"))
        try:
            recorded = asyncio.run(record(postgres.url, valkey.url))
        finally:
            valkey.stop()
            postgres.stop()
    FILE.write_text(dump(recorded), encoding="utf-8")
    print(f"{len(recorded['asked'])} statements of migration {recorded['migrations']:04} are in {FILE.name}")


def dump(value: Any) -> str:
    return json.dumps(value, default=_encode, indent=1, ensure_ascii=False) + "\n"


def load(text: str) -> Any:
    return json.loads(text, object_hook=_decode)


def _encode(value: Any) -> Any:
    match value:
        case Decimal():
            return {"decimal": str(value)}
        case datetime():
            return {"instant": value.isoformat()}
        case timedelta():
            return {"seconds": value.total_seconds()}
        case bytes():
            return {"bytes": value.decode()}
    raise TypeError(f"{value!r} cannot be written down")


def _decode(value: dict[str, Any]) -> Any:
    match value:
        case {"decimal": str(digits)}:
            return Decimal(digits)
        case {"instant": str(text)}:
            return datetime.fromisoformat(text)
        case {"seconds": float(seconds)}:
            return timedelta(seconds=seconds)
        case {"bytes": str(text)}:
            return text.encode()
    return value


if __name__ == "__main__":
    main()
