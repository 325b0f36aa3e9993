"""Tickers: what is collected, and how fresh it is."""

from datetime import datetime

import strawberry

from server.reads.columns import CHANGES_EVERY_SECOND
from server.reads.context import Context
from server.reads.fields import read_field, read_rows
from server.schema.prices import Price
from shared.storage import prices
from shared.storage.database import Statement


@strawberry.type(description="An index that is collected, and how fresh its newest price is.")
class Ticker:
    name: str = strawberry.field(description="The index name.")
    interval_seconds: int = strawberry.field(description="The schedule's grid: seconds from slot to slot.")
    latest: Price | None = strawberry.field(description="The newest price; null while nothing has been collected.")
    lag_seconds: float | None = strawberry.field(
        description="Seconds since the instant the newest price stands for; null while there is none.",
        metadata=CHANGES_EVERY_SECOND,
    )
    stale: bool = strawberry.field(description="Whether the newest price is older than two intervals, or missing.")
    first_timestamp: datetime | None = strawberry.field(description="The oldest price's timestamp, of those kept.")
    kept_from: datetime | None = strawberry.field(
        description=(
            "Prices before this instant were dropped for their age, and only candles and coverage tell of them; null "
            "while none were."
        )
    )
    filling_to: datetime | None = strawberry.field(
        description=(
            "How far back the history is being filled; null when it is there, or when no perpetual has this index "
            "(then nothing is expected from before the chart's reach)."
        )
    )


@read_field(list[Ticker] | None, description="Every index that is collected here.")
def tickers(context: Context) -> Statement:
    return prices.tickers(context.settings.tickers, context.settings.fetch_interval_seconds)


async def select_tickers(context: Context) -> list[Ticker]:
    return await read_rows(
        context.pool, Ticker, prices.tickers(context.settings.tickers, context.settings.fetch_interval_seconds)
    )
