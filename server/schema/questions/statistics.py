"""The field `statistics`: change, average and volatility of a period, with the coverage that they rest on."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated

import strawberry

from server.reads.columns import CHANGES_WHILE_RUNNING
from server.reads.context import Context
from server.reads.fields import read_field
from server.schema.coverage import Coverage
from server.schema.prices import Price, Ticker, period
from shared.storage.database import Statement
from shared.storage.questions import statistics as storage


@strawberry.type(
    description=(
        "Of the prices kept in [fromDt, toDt); `coverage.dropped` tells the rest. Null where there are none (`change`, "
        "`changePercent` and `realizedVolatility`: fewer than two)."
    )
)
class Statistics:
    open: Price | None = strawberry.field(description="The first price.")
    close: Price | None = strawberry.field(description="The last price.")
    high: Price | None = strawberry.field(description="The highest price; the first of several.")
    low: Price | None = strawberry.field(description="The lowest price; the first of several.")
    change: Decimal | None = strawberry.field(description="close - open, exact.")
    change_percent: Decimal | None = strawberry.field(
        description="The change in percent of open, rounded to at least 16 significant digits."
    )
    twap: Decimal | None = strawberry.field(
        description=(
            "Time-weighted average: each price holds until the next one, the last until toDt (or now). Rounded to at "
            "least 16 significant digits."
        ),
        metadata=CHANGES_WHILE_RUNNING,
    )
    realized_volatility: float | None = strawberry.field(
        description=(
            "Annualised, as a fraction: sqrt(sum of squared log returns / years between first and last price); a year "
            "is 365 days."
        )
    )
    samples: int = strawberry.field(description="How many prices there are.")
    coverage: Coverage = strawberry.field(description="How complete the period is, and what is missing and why.")


@read_field(Statistics | None, description="What the prices kept in [fromDt, toDt) sum up to.")
def statistics(
    context: Context,
    ticker: Ticker,
    from_dt: Annotated[datetime, strawberry.argument(description="The period's first instant.")],
    to_dt: Annotated[datetime, strawberry.argument(description="The end of the period, exclusive.")],
) -> Statement:
    return storage.statistics(context.ticker(ticker), *period(from_dt, to_dt))
