"""The field `pricesAt`: the price that held at each of many instants."""

from datetime import datetime
from typing import Annotated

import strawberry

from server.reads.context import Context
from server.reads.fields import read_field
from server.schema.coverage import Gap
from server.schema.prices import Price, Ticker
from server.schema.scalars import instant
from shared.errors import BadUserInput
from shared.storage.database import Statement
from shared.storage.questions.prices_at import prices_at as select_prices_at

MAX_INSTANTS = 1000


@strawberry.type(
    description=(
        "The price that held at an instant. Without one in reach `price` is null, and `gap` says what is missing "
        "there, if anything was expected."
    )
)
class PriceAt:
    at: datetime = strawberry.field(description="The instant that was asked about.")
    price: Price | None = strawberry.field(
        description="The newest price at or before the instant; null if it was older than toleranceSeconds then."
    )
    age_seconds: float | None = strawberry.field(description="How old the price was then, in seconds.")
    gap: Gap | None = strawberry.field(
        description=(
            "Only without a price: the missing slots that include the newest slot in reach that had ended. Null if no "
            "slot was expected there, or if its price was dropped for its age."
        )
    )


@read_field(
    list[PriceAt] | None, description="The newest price at or before each instant, in the order asked.", counts="at"
)
def prices_at(
    context: Context,
    ticker: Ticker,
    at: Annotated[list[datetime], strawberry.argument(description="The instants, up to 1,000 in any order.")],
    tolerance_seconds: Annotated[
        int | None,
        strawberry.argument(
            description=(
                "How old a price may be at its instant; by default two intervals of the schedule in force then."
            )
        ),
    ] = None,
) -> Statement:
    if len(at) > MAX_INSTANTS:
        raise BadUserInput(f"at has {len(at)} instants; accepted are up to {MAX_INSTANTS}.")
    if tolerance_seconds is not None and tolerance_seconds < 0:
        raise BadUserInput(f"toleranceSeconds is {tolerance_seconds}; accepted is 0 or more.")
    instants = [instant(one, "at") for one in at]
    interval = context.settings.fetch_interval_seconds
    return select_prices_at(context.ticker(ticker), instants, tolerance_seconds, interval)
