"""Coverage: how complete a period is, and why anything in it is missing."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated

import strawberry

from server.schema.context import Info, selected
from server.schema.prices import Limit, Ticker, period
from shared.storage import coverage


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
    detail: str | None = strawberry.field(description="The reason in words, such as the exchange's error and its code.")


@dataclass(frozen=True, slots=True)
class Asked:
    """A counted period, and what it takes to look for its gaps when they are selected."""

    counted: coverage.Coverage
    ticker: str
    from_dt: datetime
    to_dt: datetime
    now: datetime


@strawberry.type(
    description=(
        "How much of the schedule's grid is stored. Slots count once they have ended; before a ticker was first "
        "collected nothing is expected of it. Prices that were dropped for their age count as they did before."
    )
)
class Coverage:
    @strawberry.field(description="How many slots there should be.")
    def expected(root: strawberry.Parent[Asked]) -> int:
        return root.counted.expected

    @strawberry.field(description="How many there are, backfilled ones included.")
    def present(root: strawberry.Parent[Asked]) -> int:
        return root.counted.present

    @strawberry.field(
        description=(
            "How many of those that are present have been dropped for their age since: candles still tell of them, "
            "prices do not. See Ticker.keptFrom."
        )
    )
    def dropped(root: strawberry.Parent[Asked]) -> int:
        return root.counted.dropped

    @strawberry.field(description="present / expected; 1 where nothing is expected.")
    def ratio(root: strawberry.Parent[Asked]) -> float:
        return root.counted.present / root.counted.expected if root.counted.expected else 1.0

    @strawberry.field(description="Whether nothing is missing.")
    def complete(root: strawberry.Parent[Asked]) -> bool:
        return root.counted.present == root.counted.expected

    @strawberry.field(graphql_type=list[Gap], description="What is missing and why, oldest first.")
    async def gaps(root: strawberry.Parent[Asked], info: Info, limit: Limit = 100) -> list[coverage.Gap]:
        rows = info.context.rows(limit, selected(info))
        if root.counted.present == root.counted.expected:
            return []
        return await coverage.select_gaps(info.context.pool, root.ticker, root.from_dt, root.to_dt, root.now, rows)


@strawberry.type
class CoverageQuery:
    @strawberry.field(
        graphql_type=Coverage | None,
        description="How much of the schedule's grid in [fromDt, toDt) is there, and what is missing and why.",
    )
    async def coverage(
        self,
        info: Info,
        ticker: Ticker,
        from_dt: Annotated[datetime, strawberry.argument(description="The first slot asked about.")],
        to_dt: Annotated[datetime, strawberry.argument(description="The end of the period, exclusive.")],
    ) -> Asked:
        context = info.context
        name, (start, end), now = context.ticker(ticker), period(from_dt, to_dt), datetime.now(UTC)
        counted = await coverage.select_coverage(context.pool, name, start, end, now)
        return Asked(counted, name, start, end, now)
