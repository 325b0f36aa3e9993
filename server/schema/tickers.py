"""Tickers: what is collected, and how fresh it is."""

from dataclasses import dataclass
from datetime import UTC, datetime

import strawberry

from server.schema.context import Context, Info
from server.schema.prices import Price
from shared.storage import prices, retention

STALE_INTERVALS = 2


@strawberry.type(name="Ticker", description="An index that is collected, and how fresh its newest price is.")
class TickerType:
    name: str = strawberry.field(description="The index name.")
    interval_seconds: int = strawberry.field(description="The schedule's grid: seconds from slot to slot.")
    latest: Price | None = strawberry.field(description="The newest price; null while nothing has been collected.")
    lag_seconds: float | None = strawberry.field(
        description="Seconds since the instant the newest price stands for; null while there is none."
    )
    stale: bool = strawberry.field(description="Whether the newest price is older than two intervals, or missing.")
    first_timestamp: datetime | None = strawberry.field(description="The oldest price's timestamp, of those kept.")
    kept_from: datetime | None = strawberry.field(
        description=(
            "Prices before this instant were dropped for their age, and only candles and coverage tell of them; null "
            "while none were."
        )
    )


@dataclass(frozen=True, slots=True)
class Ticker:
    name: str
    interval_seconds: int
    latest: prices.Price | None
    lag_seconds: float | None
    stale: bool
    first_timestamp: datetime | None
    kept_from: datetime | None


@strawberry.type
class TickerQuery:
    @strawberry.field(graphql_type=list[TickerType] | None, description="Every index that is collected here.")
    async def tickers(self, info: Info) -> list[Ticker]:
        return await select_tickers(info.context)


async def select_tickers(context: Context) -> list[Ticker]:
    settings = context.settings
    # One after the other: of the pool's connections a field takes one.
    latest = await prices.select_latest_prices(context.pool, settings.tickers)
    first = await prices.select_first_timestamps(context.pool, settings.tickers)
    kept_from = await retention.select_kept_from(context.pool, settings.tickers)
    newest = {price.ticker: price for price in latest}
    now = datetime.now(UTC)
    lags = {name: (now - price.timestamp).total_seconds() for name, price in newest.items()}
    longest = STALE_INTERVALS * settings.fetch_interval_seconds
    return [
        Ticker(
            name=name,
            interval_seconds=settings.fetch_interval_seconds,
            latest=newest.get(name),
            lag_seconds=lags.get(name),
            stale=name not in lags or lags[name] > longest,
            first_timestamp=first.get(name),
            kept_from=kept_from.get(name),
        )
        for name in settings.tickers
    ]
