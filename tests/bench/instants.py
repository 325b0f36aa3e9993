"""A thousand instants in ten million rows: what `pricesAt` takes in PostgreSQL. A part of `tests.bench.exports`."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from shared.config.settings import load_settings
from shared.storage.database import Pool, create_pool
from shared.storage.pool import Connection
from shared.storage.questions.prices_at import prices_at
from tests.bench.rows import BEGIN, SECOND, TICKERS, database_time
from tests.reads import rows_of

INSTANTS = 1000


async def measure_instants(connection: Connection, dsn: str, rows_per_ticker: int) -> list[list[str]]:
    end = BEGIN + rows_per_ticker * SECOND
    spread = [BEGIN + (end - BEGIN) / INSTANTS * n + timedelta(milliseconds=500) for n in range(INSTANTS)]
    day = (end - timedelta(days=2)).replace(hour=0, minute=0, second=0, microsecond=0)
    missing = [day + timedelta(minutes=10 * (2 * (n % 72) + 1), seconds=60 + n // 72) for n in range(INSTANTS)]
    rows = []
    settings = load_settings(database_url=dsn, redis_url="redis://127.0.0.1")
    async with create_pool(settings, name="bench", size=1, statement_seconds=60) as pool:
        for name, instants in (("each with a price", spread), ("each in a gap", missing)):
            if instants is missing:
                await _make_gaps(connection, day)

            async def ask(pool: Pool, instants: Sequence[datetime] = instants) -> object:
                return await rows_of(pool, prices_at(TICKERS[0], instants, None, 1))

            found = await rows_of(pool, prices_at(TICKERS[0], instants, None, 1))
            column = "price_price" if instants is spread else "gap_from_dt"
            assert all(row[column] is not None for row in found), found[0]
            rows.append([name, f"{await database_time(connection, pool, ask) / 1000:.1f} ms"])
    return [["1,000 instants", "PostgreSQL"], *rows]


async def _make_gaps(connection: Connection, day: datetime) -> None:
    """Without triggers, which take minutes. The candles by the hour are counted again from those by the minute."""
    await connection.execute("alter table prices disable trigger user")
    for table, column in (("prices", "timestamp"), ("candle_minutes", "start")):
        await connection.execute(
            f"""
            delete from {table}
            where ticker = $1
              and {column} >= $2
              and {column} < $2::timestamptz + interval '1 day'
              and extract(minute from {column})::integer / 10 % 2 = 1
            """,
            TICKERS[0],
            day,
        )
    await connection.execute("alter table prices enable trigger user")
    hours = [day + timedelta(hours=n) for n in range(24)]
    await connection.execute("select refresh_candles($1, $2)", [TICKERS[0]] * len(hours), hours)
