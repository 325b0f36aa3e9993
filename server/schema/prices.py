"""Prices: the newest, the history, and a period."""

from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated

import strawberry

from server.schema.context import Context, Info, selected
from server.schema.scalars import BadInstant, instant
from shared.errors import BadUserInput, PriceStale
from shared.storage import prices


@strawberry.enum(description="How a price came to be stored.")
class PriceSource(Enum):
    SCHEDULED = strawberry.enum_value("SCHEDULED", description="Observed for a slot of the schedule's grid.")
    REQUESTED = strawberry.enum_value("REQUESTED", description="Observed because somebody asked for it.")
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
            "The exchange's clock when it gave the price, to the microsecond; for a backfilled price the chart "
            "point's time."
        )
    )
    source: PriceSource = strawberry.field(description="How the price came to be stored.")
    testnet: bool = strawberry.field(description="Whether the exchange called itself a test network.")


DEFAULT_LIMIT = 100

Ticker = Annotated[str, strawberry.argument(description="An index name, in any case.")]
Tickers = Annotated[list[str] | None, strawberry.argument(description="Index names, in any case; all by default.")]
Limit = Annotated[int, strawberry.argument(description="How many at most, 1 to 10,000.")]


@strawberry.type
class PriceQuery:
    @strawberry.field(
        graphql_type=Price | None,
        description="The newest price. Null while nothing has been collected.",
    )
    async def latest_price(
        self,
        info: Info,
        ticker: Ticker,
        max_age_seconds: Annotated[
            int | None,
            strawberry.argument(description="Answer PRICE_STALE instead of a price that stands for an older instant."),
        ] = None,
    ) -> prices.Price | None:
        context = info.context
        if max_age_seconds is not None and max_age_seconds < 0:
            raise BadUserInput(f"maxAgeSeconds is {max_age_seconds}; accepted is 0 or more.")
        price = await prices.select_latest_price(context.pool, *latest_parameters(context, ticker))
        if price and max_age_seconds is not None:
            age = (datetime.now(UTC) - price.timestamp).total_seconds()
            if age > max_age_seconds:
                raise PriceStale(f"The newest price of {price.ticker} is {age:.0f} s old, not {max_age_seconds} s.")
        return price

    @strawberry.field(
        graphql_type=list[Price] | None,
        description="The newest price of each ticker, those left out that have none yet.",
    )
    async def latest_prices(self, info: Info, tickers: Tickers = None) -> list[prices.Price]:
        return await prices.select_latest_prices(info.context.pool, *latest_prices_parameters(info.context, tickers))

    @strawberry.field(
        graphql_type=list[Price] | None,
        description="Newest first. `before` is exclusive: pass the last timestamp to page on.",
    )
    async def price_history(
        self,
        info: Info,
        ticker: Ticker,
        limit: Limit = DEFAULT_LIMIT,
        before: Annotated[
            datetime | None, strawberry.argument(description="Only prices with an earlier timestamp.")
        ] = None,
    ) -> list[prices.Price]:
        return await prices.select_price_history(
            info.context.pool, *history_parameters(info.context, ticker, limit, before, width=selected(info))
        )

    @strawberry.field(
        graphql_type=list[Price] | None,
        description="Oldest first, both bounds inclusive. `after` is exclusive: pass the last timestamp to page on.",
    )
    async def prices_in_period(
        self,
        info: Info,
        ticker: Ticker,
        from_dt: Annotated[datetime, strawberry.argument(description="The period's first instant.")],
        to_dt: Annotated[datetime, strawberry.argument(description="The period's last instant.")],
        limit: Limit = DEFAULT_LIMIT,
        after: Annotated[
            datetime | None, strawberry.argument(description="Only prices with a later timestamp.")
        ] = None,
    ) -> list[prices.Price]:
        return await prices.select_prices_in_period(
            info.context.pool,
            *period_parameters(info.context, ticker, from_dt, to_dt, limit, after, width=selected(info)),
        )


# Arguments as the parameters of the statements in shared/storage/prices.py. Each raises the errors of its field.


def latest_parameters(context: Context, ticker: str) -> tuple[str]:
    return (context.ticker(ticker),)


def latest_prices_parameters(context: Context, tickers: list[str] | None = None) -> tuple[list[str]]:
    return (context.tickers(tickers),)


def history_parameters(
    context: Context,
    ticker: str,
    limit: int = DEFAULT_LIMIT,
    before: datetime | BadInstant | None = None,
    *,
    width: int,
) -> tuple[str, datetime | None, int]:
    return context.ticker(ticker), None if before is None else instant(before, "before"), context.rows(limit, width)


def period_parameters(
    context: Context,
    ticker: str,
    from_dt: datetime | BadInstant,
    to_dt: datetime | BadInstant,
    limit: int = DEFAULT_LIMIT,
    after: datetime | BadInstant | None = None,
    *,
    width: int,
) -> tuple[str, datetime, datetime, datetime | None, int]:
    name, (start, end) = context.ticker(ticker), period(from_dt, to_dt)
    return name, start, end, None if after is None else instant(after, "after"), context.rows(limit, width)


def period(from_dt: datetime | BadInstant, to_dt: datetime | BadInstant) -> tuple[datetime, datetime]:
    """Raises `BadUserInput` for a period that ends before it begins."""
    start, end = instant(from_dt, "fromDt"), instant(to_dt, "toDt")
    if start > end:
        raise BadUserInput("fromDt is after toDt; accepted is a fromDt that is earlier, or the same.")
    return start, end
