"""What growth does to the time that PostgreSQL spends, in the project's own statements."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from statistics import median

import asyncpg

from shared.config.settings import load_settings
from shared.storage.candles import CandleInterval
from shared.storage.database import Pool, create_pool
from tests.bench import data
from tests.bench.data import LAST_MINUTE, TICKERS, fill
from tests.reads import select_candles, select_latest_price, select_price_history, select_prices_in_period

ROWS = (100_000, 10_000_000)
BATCHES, REPEATS = 15, 20
POSTGRES_OPTIONS = data.POSTGRES_OPTIONS | {"shared_preload_libraries": "pg_stat_statements"}
MONTH = timedelta(days=30)
_NOW = datetime.now(UTC)
_END = datetime.fromisoformat(LAST_MINUTE) - timedelta(days=10)

Ask = Callable[[Pool], Awaitable[object]]
QUESTIONS: dict[str, Ask] = {
    "latestPrice": lambda pool: select_latest_price(pool, "btc_usd"),
    "priceHistory 100": lambda pool: select_price_history(pool, "btc_usd", before=None, limit=100),
    "pricesInPeriod 1000": lambda pool: select_prices_in_period(
        pool, "btc_usd", _END - timedelta(days=7), _END, after=None, limit=1000
    ),
    "a day of minute candles": lambda pool: select_candles(
        pool, "btc_usd", CandleInterval.ONE_MINUTE, _END - timedelta(days=1), _END, limit=1440, now=_NOW
    ),
}
A_MONTH = "a month of hourly candles of one-second data"


async def measure_growth(database_url: str, rows: int) -> dict[str, float]:
    """Median µs that PostgreSQL spends executing what each question leads to, with so many rows."""
    await fill(database_url, rows // len(TICKERS), has_candles=True)
    return await _measure(database_url, QUESTIONS)


async def measure_month(database_url: str) -> float:
    """The same for a month of hourly candles over a price a second."""
    seconds = (MONTH + timedelta(days=11)) // timedelta(seconds=1)
    await fill(database_url, seconds, step_seconds=1, tickers=("btc_usd",), has_candles=True)

    def month(pool: Pool) -> Awaitable[object]:
        return select_candles(pool, "btc_usd", CandleInterval.ONE_HOUR, _END - MONTH, _END, limit=1000, now=_NOW)

    return (await _measure(database_url, {A_MONTH: month}))[A_MONTH]


async def _measure(database_url: str, questions: dict[str, Ask]) -> dict[str, float]:
    """By the project's own functions and pool, whose statements are prepared; PostgreSQL itself keeps the time."""
    settings = load_settings(database_url=database_url, redis_url="redis://127.0.0.1")
    watcher = await asyncpg.connect(database_url)
    try:
        await watcher.execute("create extension pg_stat_statements")
        async with create_pool(settings, name="bench", size=1) as pool:
            return {name: await _measure_one(watcher, pool, ask) for name, ask in questions.items()}
    finally:
        await watcher.close()


async def _measure_one(watcher: "asyncpg.Connection[asyncpg.Record]", pool: Pool, ask: Ask) -> float:
    batches = []
    for _ in range(BATCHES + 1):
        await watcher.execute("select pg_stat_statements_reset()")
        for _ in range(REPEATS):
            await ask(pool)
        milliseconds: float = await watcher.fetchval("""
            select coalesce(sum(total_exec_time), 0)
            from pg_stat_statements
            join pg_database on pg_database.oid = dbid
            where datname = current_database()
              and query not like '%pg_stat_statements%'
        """)
        batches.append(milliseconds / REPEATS * 1000)
    return median(batches[1:])  # the first one warms up
