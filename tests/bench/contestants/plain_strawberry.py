# mypy: disable-error-code="import-not-found,untyped-decorator"
"""Strawberry as its documentation has it: types, resolvers, an asyncpg pool. No caches."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from enum import Enum

import asyncpg
import strawberry
from starlette.applications import Starlette
from starlette.routing import Route
from strawberry.asgi import GraphQL

_COLUMNS = "ticker, price, timestamp, observed_at, source::text, testnet"


@strawberry.enum
class PriceSource(Enum):
    SCHEDULED = "SCHEDULED"
    REQUESTED = "REQUESTED"
    BACKFILLED = "BACKFILLED"


@strawberry.type
class Price:
    ticker: str
    price: Decimal
    timestamp: datetime
    observed_at: datetime
    source: PriceSource
    testnet: bool


@strawberry.enum
class CandleInterval(Enum):
    ONE_MINUTE = "ONE_MINUTE"


@strawberry.type
class Candle:
    start: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    samples: int
    complete: bool


class App:
    pool: "asyncpg.Pool[asyncpg.Record]"


async def select_prices(sql: str, *arguments: object) -> list[Price]:
    return [
        Price(
            ticker=row["ticker"],
            price=row["price"],
            timestamp=row["timestamp"],
            observed_at=row["observed_at"],
            source=PriceSource(row["source"]),
            testnet=row["testnet"],
        )
        for row in await App.pool.fetch(f"select {_COLUMNS} from prices where {sql}", *arguments)
    ]


@strawberry.type
class Query:
    @strawberry.field
    async def latest_price(self, ticker: str) -> Price | None:
        prices = await select_prices("ticker = $1 order by timestamp desc limit 1", ticker)
        return prices[0] if prices else None

    @strawberry.field
    async def price_history(self, ticker: str, limit: int = 100) -> list[Price]:
        return await select_prices("ticker = $1 order by timestamp desc limit $2", ticker, limit)

    @strawberry.field
    async def prices_in_period(self, ticker: str, from_dt: datetime, to_dt: datetime, limit: int = 100) -> list[Price]:
        return await select_prices(
            "ticker = $1 and timestamp >= $2 and timestamp <= $3 order by timestamp limit $4",
            ticker,
            from_dt,
            to_dt,
            limit,
        )

    @strawberry.field
    async def candles(
        self, ticker: str, interval: CandleInterval, from_dt: datetime, to_dt: datetime, limit: int = 500
    ) -> list[Candle]:
        sql = """
            select start, open, high, low, close, samples, get_bit(seconds, 0) = 1 as complete
            from candle_minutes
            where ticker = $1 and start >= $2 and start <= $3
            order by start limit $4
        """
        return [Candle(**row) for row in await App.pool.fetch(sql, ticker, from_dt, to_dt, limit)]


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], max_size=10) as App.pool:
        yield


app = Starlette(routes=[Route("/graphql", GraphQL[None, None](strawberry.Schema(Query)))], lifespan=lifespan)
