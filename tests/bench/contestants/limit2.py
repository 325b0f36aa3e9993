# mypy: disable-error-code="import-not-found"
"""Limit 2: what the machine reaches. Bare ASGI; one prepared statement a request, whose one value is the answer.

PostgreSQL writes the JSON, plans are generic, and a connection is handed back as it is, without a reset.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

import asyncpg

_ROW = """
    '{"price":"' || price::text
    || '","timestamp":"' || to_char(timestamp at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
    || '","source":"' || source::text || '"}'
"""


def _latest(ticker: str) -> str:
    one = f"(select {_ROW} from prices where ticker = {ticker} order by timestamp desc limit 1)"
    return f"coalesce({one}, 'null')"


def _list(condition: str, order: str, limit: str) -> str:
    rows = f"select {_ROW} as row from prices where {condition} order by {order} limit {limit}"
    return f"(select '[' || coalesce(string_agg(row, ','), '') || ']' from ({rows}) as rows)"


def _history(ticker: str, limit: str) -> str:
    return _list(f"ticker = {ticker}", "timestamp desc", limit)


_CANDLE = """
    '{"start":"' || to_char(start at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || '","open":"' || open::text
    || '","high":"' || high::text || '","low":"' || low::text || '","close":"' || close::text
    || '","samples":' || samples::text || ',"complete":' || (get_bit(seconds, 0) = 1)::text || '}'
"""
_CANDLES = f"""
    select '[' || coalesce(string_agg(row, ','), '') || ']'
    from (
        select {_CANDLE} as row from candle_minutes where ticker = $1 and start >= $2 and start <= $3 order by start
    ) as rows
"""

_FOUR = f"""
    '{{"a":' || {_latest("$1")} || ',"b":' || {_latest("$2")}
    || ',"c":' || {_history("$1", "$3::int")} || ',"d":' || {_history("$2", "$3::int")} || '}}'
"""

STATEMENTS = {
    "/latest": f"select {_latest('$1')}",
    "/history": f"select {_history('$1', '$2::int')}",
    "/period": f"select {_list('ticker = $1 and timestamp >= $2 and timestamp <= $3', 'timestamp', '$4::int')}",
    "/four": f"select {_FOUR}",
    "/candles": _CANDLES,
}
READERS: dict[str, Callable[[str], Any]] = {
    "from_dt": datetime.fromisoformat,
    "to_dt": datetime.fromisoformat,
    "limit": int,
}
CONNECTIONS = 10
HEADERS_200 = [(b"content-type", b"application/json")]

Send = Callable[[dict[str, Any]], Awaitable[None]]
_idle: "asyncio.LifoQueue[dict[str, Any]]" = asyncio.LifoQueue()


async def connect() -> dict[str, Any]:
    """The connection's prepared statements by path."""
    settings = {"plan_cache_mode": "force_generic_plan", "jit": "off", "timezone": "UTC"}
    connection = await asyncpg.connect(os.environ["DATABASE_URL"], server_settings=settings)
    return {path: await connection.prepare(sql) for path, sql in STATEMENTS.items()}


async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send) -> None:
    if scope["type"] == "lifespan":
        await receive()
        for _ in range(CONNECTIONS):
            _idle.put_nowait(await connect())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    arguments = [READERS.get(name, str)(value) for name, value in parse_qsl(scope["query_string"].decode())]
    statements = await _idle.get()
    try:
        body = (await statements[scope["path"]].fetchval(*arguments)).encode()
    finally:
        _idle.put_nowait(statements)
    headers = [*HEADERS_200, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
