"""Candles: prices summed up by the minute, the hour, the day."""

from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated

import strawberry

from server.reads.context import Context
from server.reads.fields import read_field
from server.schema.prices import Limit, Ticker, period
from shared.storage import candles as rollups
from shared.storage.database import Statement


@strawberry.enum(description="How long a candle is. All are aligned to UTC.")
class CandleInterval(Enum):
    ONE_MINUTE = strawberry.enum_value("ONE_MINUTE", description="From each full minute.")
    THREE_MINUTES = strawberry.enum_value("THREE_MINUTES", description="From 00:00, 00:03, 00:06, …")
    FIVE_MINUTES = strawberry.enum_value("FIVE_MINUTES", description="From 00:00, 00:05, 00:10, …")
    FIFTEEN_MINUTES = strawberry.enum_value("FIFTEEN_MINUTES", description="From 00:00, 00:15, 00:30, …")
    THIRTY_MINUTES = strawberry.enum_value("THIRTY_MINUTES", description="From each full and half hour.")
    ONE_HOUR = strawberry.enum_value("ONE_HOUR", description="From each full hour.")
    TWO_HOURS = strawberry.enum_value("TWO_HOURS", description="From 00:00, 02:00, 04:00, …")
    FOUR_HOURS = strawberry.enum_value("FOUR_HOURS", description="From 00:00, 04:00, 08:00, …")
    SIX_HOURS = strawberry.enum_value("SIX_HOURS", description="From 00:00, 06:00, 12:00, 18:00.")
    TWELVE_HOURS = strawberry.enum_value("TWELVE_HOURS", description="From midnight and noon.")
    ONE_DAY = strawberry.enum_value("ONE_DAY", description="From midnight.")
    ONE_WEEK = strawberry.enum_value("ONE_WEEK", description="From midnight between Sunday and Monday.")


@strawberry.type(
    description=(
        "The prices with a timestamp in [start, start + interval). All of them count: scheduled, requested and "
        "backfilled."
    )
)
class Candle:
    ticker: str = strawberry.field(description="The index name.")
    start: datetime = strawberry.field(description="The candle's beginning; its end is exclusive.")
    open: Decimal = strawberry.field(description="The first price.")
    high: Decimal = strawberry.field(description="The highest price.")
    low: Decimal = strawberry.field(description="The lowest price.")
    close: Decimal = strawberry.field(description="The last price, so far where the candle has not ended.")
    samples: int = strawberry.field(description="How many prices it is made of.")
    complete: bool = strawberry.field(
        description=(
            "Whether it has ended and no slot of the schedule's grid in it is missing. False for one that begins "
            "before the ticker was first scheduled: nothing was expected then."
        )
    )


@read_field(
    list[Candle] | None,
    description=(
        "Oldest first, buckets aligned to UTC; `start` is the bucket's beginning, buckets are half-open. From the "
        "bucket that contains fromDt to the one that contains toDt, each of them whole; those without prices are "
        "left out. To page on, pass the last start plus the interval as fromDt."
    ),
)
def candles(
    context: Context,
    ticker: Ticker,
    interval: Annotated[CandleInterval, strawberry.argument(description="How long each candle is.")],
    from_dt: Annotated[datetime, strawberry.argument(description="An instant in the first candle.")],
    to_dt: Annotated[datetime, strawberry.argument(description="An instant in the last candle.")],
    limit: Limit = 500,
) -> Statement:
    name, bounds = context.ticker(ticker), period(from_dt, to_dt)
    return rollups.candles(name, rollups.CandleInterval[interval.name], *bounds, limit)
