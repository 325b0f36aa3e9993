# mypy: disable-error-code="import-not-found"
"""Limit 1: what a hand-written handler reaches. Starlette, asyncpg's rows, orjson; no GraphQL."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import asyncpg
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_SELECT = "select price, timestamp, source::text from prices where ticker = $1"
LATEST = f"{_SELECT} order by timestamp desc limit 1"
HISTORY = f"{_SELECT} order by timestamp desc limit $2"
CANDLES = """
    select start, open, high, low, close, samples, get_bit(seconds, 0) = 1 as complete
    from candle_minutes
    where ticker = $1 and start >= $2 and start <= $3
    order by start
"""
PERIOD = f"{_SELECT} and timestamp >= $2 and timestamp <= $3 order by timestamp limit $4"

Connection = Any  # asyncpg's pool hands out proxies


def _answer(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


def _price(row: asyncpg.Record) -> dict[str, Any]:
    price, timestamp, source = row
    return {"price": str(price), "timestamp": timestamp, "source": source}


def _candle(row: asyncpg.Record) -> dict[str, Any]:
    start, opened, high, low, close, samples, complete = row
    return {
        "start": start,
        "open": str(opened),
        "high": str(high),
        "low": str(low),
        "close": str(close),
        "samples": samples,
        "complete": complete,
    }


async def select_latest(connection: Connection, ticker: str) -> dict[str, Any] | None:
    row = await connection.fetchrow(LATEST, ticker)
    return _price(row) if row else None


async def select_history(connection: Connection, ticker: str, limit: int) -> list[dict[str, Any]]:
    return [_price(row) for row in await connection.fetch(HISTORY, ticker, limit)]


async def latest(request: Request) -> Response:
    async with request.state.pool.acquire() as connection:
        return _answer(await select_latest(connection, request.query_params["ticker"]))


async def history(request: Request) -> Response:
    query = request.query_params
    async with request.state.pool.acquire() as connection:
        return _answer(await select_history(connection, query["ticker"], int(query["limit"])))


async def period(request: Request) -> Response:
    query = request.query_params
    start, end = datetime.fromisoformat(query["from_dt"]), datetime.fromisoformat(query["to_dt"])
    async with request.state.pool.acquire() as connection:
        rows = await connection.fetch(PERIOD, query["ticker"], start, end, int(query["limit"]))
    return _answer([_price(row) for row in rows])


async def candles(request: Request) -> Response:
    query = request.query_params
    start, end = datetime.fromisoformat(query["from_dt"]), datetime.fromisoformat(query["to_dt"])
    async with request.state.pool.acquire() as connection:
        rows = await connection.fetch(CANDLES, query["ticker"], start, end)
    return _answer([_candle(row) for row in rows])


async def four(request: Request) -> Response:
    query = request.query_params
    first, second, limit = query["first"], query["second"], int(query["limit"])
    async with request.state.pool.acquire() as connection:
        return _answer(
            {
                "a": await select_latest(connection, first),
                "b": await select_latest(connection, second),
                "c": await select_history(connection, first, limit),
                "d": await select_history(connection, second, limit),
            }
        )


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
    # Generic plans here too: this measures Python, not the planner.
    settings = {"plan_cache_mode": "force_generic_plan", "jit": "off"}
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], max_size=10, server_settings=settings) as pool:
        yield {"pool": pool}


app = Starlette(
    routes=[
        Route("/latest", latest),
        Route("/history", history),
        Route("/period", period),
        Route("/four", four),
        Route("/candles", candles),
    ],
    lifespan=lifespan,
)
