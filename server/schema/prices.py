"""Prices: the newest, the history, and a period."""

from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated

import strawberry

from server.reads.context import Context
from server.reads.fields import read_field
from server.schema.scalars import BadInstant, instant
from shared.errors import BadUserInput
from shared.storage import prices
from shared.storage.database import Statement


@strawberry.enum(description="How a price came to be stored.")
class PriceSource(Enum):
    SCHEDULED = strawberry.enum_value("SCHEDULED", description="Observed for a slot of the schedule's grid.")
    REQUESTED = strawberry.enum_value("REQUESTED", description="Observed because somebody asked for it.")
    RECOVERED = strawberry.enum_value(
        "RECOVERED",
        description=("Observed by the exchange and read later: the index price on the first trade within the slot."),
    )
    BACKFILLED = strawberry.enum_value(
        "BACKFILLED", description="An average from the exchange's chart, for a slot that was missed."
    )


@strawberry.type(description="One price of one index. Prices are stored once per ticker and timestamp.")
class Price:
    ticker: str = strawberry.field(description="The index name, such as btc_usd.")
    price: Decimal = strawberry.field(
        description="The index price, every digit as the exchange gave it, in quote currency per 1 base."
    )
    timestamp: datetime = strawberry.field(
        description=(
            "The instant this price stands for: the schedule's slot, or for a requested fetch the exchange's own clock."
        )
    )
    observed_at: datetime = strawberry.field(
        description=(
            "The exchange's clock when it gave the price, to the microsecond; for a recovered price the trade's time, "
            "for a backfilled one the chart point's."
        )
    )
    source: PriceSource = strawberry.field(description="How the price came to be stored.")
    testnet: bool = strawberry.field(description="Whether the exchange called itself a test network.")
    cursor: strawberry.ID = strawberry.field(
        description=(
            "Opaque: the price's place in the order of storing, wherever the price is read (`FetchJob.prices` too). "
            "Pass it as `after` to `priceUpdates` to go on exactly behind it."
        )
    )


Ticker = Annotated[str, strawberry.argument(description="An index name, in any case.")]
Tickers = Annotated[list[str] | None, strawberry.argument(description="Index names, in any case; all by default.")]
Limit = Annotated[int, strawberry.argument(description="How many at most, 1 to 10,000.")]


@read_field(Price | None, description="The newest price. Null while nothing has been collected.")
def latest_price(
    context: Context,
    ticker: Ticker,
    max_age_seconds: Annotated[
        int | None,
        strawberry.argument(description="Answer PRICE_STALE instead of a price that stands for an older instant."),
    ] = None,
) -> Statement:
    if max_age_seconds is not None and max_age_seconds < 0:
        raise BadUserInput(f"maxAgeSeconds is {max_age_seconds}; accepted is 0 or more.")
    return prices.latest_price(context.ticker(ticker), max_age_seconds)


@read_field(list[Price] | None, description="The newest price of each ticker, without those that have none yet.")
def latest_prices(context: Context, tickers: Tickers = None) -> Statement:
    return prices.latest_prices(context.tickers(tickers))


@read_field(list[Price] | None, description="Newest first. `before` is exclusive: pass the last timestamp to page on.")
def price_history(
    context: Context,
    ticker: Ticker,
    limit: Limit = 100,
    before: Annotated[
        datetime | None, strawberry.argument(description="Only prices with an earlier timestamp.")
    ] = None,
) -> Statement:
    return prices.price_history(context.ticker(ticker), before and instant(before, "before"), limit)


@read_field(
    list[Price] | None,
    description="Oldest first, both bounds inclusive. `after` is exclusive: pass the last timestamp to page on.",
)
def prices_in_period(
    context: Context,
    ticker: Ticker,
    from_dt: Annotated[datetime, strawberry.argument(description="The period's first instant.")],
    to_dt: Annotated[datetime, strawberry.argument(description="The period's last instant.")],
    limit: Limit = 100,
    after: Annotated[datetime | None, strawberry.argument(description="Only prices with a later timestamp.")] = None,
) -> Statement:
    name, bounds = context.ticker(ticker), period(from_dt, to_dt)
    return prices.prices_in_period(name, *bounds, after and instant(after, "after"), limit)


def period(
    from_dt: datetime | BadInstant, to_dt: datetime | BadInstant, names: tuple[str, str] = ("fromDt", "toDt")
) -> tuple[datetime, datetime]:
    """Raises `BadUserInput` for a period that ends before it begins. `names`: of the arguments."""
    start, end = instant(from_dt, names[0]), instant(to_dt, names[1])
    if start > end:
        raise BadUserInput(f"{names[0]} is after {names[1]}; accepted is a {names[0]} that is earlier, or the same.")
    return start, end
