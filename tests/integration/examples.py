"""Rows and instants that several tests start from."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from shared.storage.database import Pool, fetch
from shared.storage.missed_slots import GapReason, MissedSlot
from shared.storage.prices import Price, PriceSource

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def example_price(
    timestamp: datetime = NOON,
    price: str = "91234.56",
    *,
    ticker: str = "btc_usd",
    source: PriceSource = PriceSource.SCHEDULED,
    observed_at: datetime | None = None,
) -> Price:
    observed_at = timestamp + timedelta(microseconds=123456) if observed_at is None else observed_at
    return Price(ticker, Decimal(price), timestamp, observed_at, source, testnet=True)


async def select_all_prices(pool: Pool) -> list[Price]:
    sql = """
        select ticker, price, timestamp, observed_at, source::text, testnet
        from prices
        order by ticker, timestamp
    """
    rows = await fetch(pool, sql)
    return [Price(row[0], row[1], row[2], row[3], PriceSource(row[4]), row[5]) for row in rows]


async def select_all_missed_slots(pool: Pool) -> list[MissedSlot]:
    sql = """
        select ticker, slot, reason::text, detail
        from missed_slots
        order by ticker, slot
    """
    return [MissedSlot(row[0], row[1], GapReason(row[2]), row[3]) for row in await fetch(pool, sql)]


async def select_unanswered(pool: Pool) -> list[tuple[datetime, datetime]]:
    """The runs of slots that the charts were asked about in vain: the first one, and the end."""
    return [tuple(row) for row in await fetch(pool, "select first, until from unanswered_runs order by first")]


async def insert_schedule_rows(pool: Pool, rows: Sequence[tuple[str, datetime, int]]) -> None:
    """(ticker, since, interval in seconds) as they stand after the first fill."""
    sql = """
        insert into schedules (ticker, since, interval_seconds, first_fill_done)
        values ($1, $2, $3, true)
    """
    for row in rows:
        await fetch(pool, sql, *row)
