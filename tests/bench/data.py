"""The data that is asked for: two tickers, a price a minute, in the real schema."""

from collections.abc import Sequence

import asyncpg

from shared.migrate import migrate

TICKERS = ("btc_usd", "eth_usd")
ROWS_PER_TICKER = 500_000
LAST_MINUTE = "2026-01-01T00:00:00+00:00"

POSTGRES_OPTIONS = {
    # What is written here is thrown away; everything that is read fits in memory.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "4GB",
    "shared_buffers": "384MB",
    "max_connections": "200",
}

_INSERT = """
    insert into prices (ticker, price, timestamp, observed_at, source, testnet)
    select
        ticker,
        round((base * (1 + sin(n / 5000.0) / 10))::numeric, 2 + n % 3),
        at,
        at + n % 900000 * interval '1 microsecond',
        (case when n % 50 = 0 then 'BACKFILLED' when n % 77 = 0 then 'REQUESTED' else 'SCHEDULED' end)::price_source,
        false
    from generate_series($1::int, $2::int) as n
    cross join lateral (select $3::text::timestamptz - ($4::int - n) * $5::int * interval '1 second' as at) as slot
    cross join (values ('btc_usd', 91234.5), ('eth_usd', 3123.45)) as tickers (ticker, base)
    where ticker = any($6::text[])
    order by n, ticker
"""
_PIECE = 250_000


async def fill(
    dsn: str,
    rows_per_ticker: int = ROWS_PER_TICKER,
    *,
    step_seconds: int = 60,
    tickers: Sequence[str] = TICKERS,
    has_candles: bool = False,
    rows_with_candles: int = 0,
) -> None:
    """The schema, its rows in the order a collector would have written them, and the vacuum it would have had.

    `has_candles`: of all rows, else of the last `rows_with_candles`, because the triggers take their time.
    """
    await migrate(dsn)
    connection = await asyncpg.connect(dsn)
    try:
        begin = 1 if has_candles else rows_per_ticker - rows_with_candles + 1
        await connection.execute("alter table prices disable trigger user")
        for first, last in [*_pieces(1, begin - 1), *_pieces(begin, rows_per_ticker)]:
            if first == begin:
                await connection.execute("alter table prices enable trigger user")
            await connection.execute(_INSERT, first, last, LAST_MINUTE, rows_per_ticker, step_seconds, tickers)
        await connection.execute("alter table prices enable trigger user")
        await connection.execute("vacuum (analyze, freeze)")
        await connection.execute("checkpoint")
    finally:
        await connection.close()


def _pieces(first: int, last: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + _PIECE - 1, last)) for begin in range(first, last + 1, _PIECE)]
