"""Coverage: how complete a period is, and why anything in it is missing."""

from datetime import datetime
from enum import Enum
from typing import Annotated

import strawberry

from server.reads.columns import FREE_TEXT
from server.reads.context import Context
from server.reads.fields import read_field
from server.schema.prices import Limit, Ticker, period
from shared.storage import coverage as storage
from shared.storage import gaps as missing
from shared.storage.database import Statement


@strawberry.enum(description="Why a slot is missing.")
class GapReason(Enum):
    NOT_COLLECTED = strawberry.enum_value("NOT_COLLECTED", description="Nothing ran.")
    EXCHANGE_ERROR = strawberry.enum_value(
        "EXCHANGE_ERROR", description="The exchange did not answer, or answered with an error."
    )
    REJECTED_VALUE = strawberry.enum_value(
        "REJECTED_VALUE", description="The exchange's answer could not be a price of that slot."
    )
    STORAGE_ERROR = strawberry.enum_value(
        "STORAGE_ERROR", description="The price was fetched, but the storage did not take it."
    )


@strawberry.type(description="Consecutive slots that are missing for one reason.")
class Gap:
    from_dt: datetime = strawberry.field(description="The first missing slot.")
    to_dt: datetime = strawberry.field(description="The end of the last missing slot, exclusive.")
    missing: int = strawberry.field(description="How many slots are missing.")
    reason: GapReason = strawberry.field(description="Why.")
    detail: str | None = strawberry.field(
        description="The reason in words, such as the exchange's error and its code.", metadata=FREE_TEXT
    )


def _gaps(_: Context, counted: Statement, limit: Limit = 100) -> Statement:
    ticker, from_dt, to_dt, now = counted.parameters
    return missing.gaps(ticker, from_dt, to_dt, limit, now)  # type: ignore[arg-type]


@strawberry.type(
    description=(
        "How much of the schedule's grid is stored. Slots count once they have ended; before a ticker was first "
        "collected nothing is expected of it. Prices that were dropped for their age count as they did before."
    )
)
class Coverage:
    statement: strawberry.Private[Statement]
    expected: int = strawberry.field(description="How many slots there should be.")
    present: int = strawberry.field(description="How many have a price: observed + averaged.")
    observed: int = strawberry.field(description="How many of those that are present were observed in their slot.")
    averaged: int = strawberry.field(
        description="How many of those that are present hold an average of the exchange's chart, source BACKFILLED."
    )
    dropped: int = strawberry.field(
        description=(
            "How many of those that are present have been dropped for their age since: candles still tell of them, "
            "prices do not. See Ticker.keptFrom."
        )
    )
    ratio: float = strawberry.field(description="present / expected; 1 where nothing is expected.")
    complete: bool = strawberry.field(description="Whether nothing is missing.")

    gaps: list[Gap] = read_field(list[Gap], description="What is missing and why, oldest first.", skip_if="complete")(
        _gaps
    )


@read_field(
    Coverage | None,
    description="How much of the schedule's grid in [fromDt, toDt) is there, and what is missing and why.",
)
def coverage(
    context: Context,
    ticker: Ticker,
    from_dt: Annotated[datetime, strawberry.argument(description="The first slot asked about.")],
    to_dt: Annotated[datetime, strawberry.argument(description="The end of the period, exclusive.")],
) -> Statement:
    return storage.coverage(context.ticker(ticker), *period(from_dt, to_dt))
