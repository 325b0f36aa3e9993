"""The price feed and the cache of its events, without servers; tests/integration runs them with servers."""

from datetime import timedelta
from decimal import Decimal
from typing import Any, cast

import pytest

from server.compiled.execution import Compiled
from server.feeds.price_feed import PriceFeed
from server.metrics import Metrics
from server.protection.admission import Admission
from server.reads.context import Context
from server.schema.documents import GraphQLRequest
from server.schema.root import schema
from server.subscriptions.operations import MAX_SHARED_CHARACTERS, Streams
from shared.config.settings import Settings, load_settings
from shared.grid import EPOCH
from shared.storage.pool import Pool
from shared.storage.price_log import Position, Stored
from shared.storage.prices import Price, PriceSource

QUERY = "subscription { priceUpdates { ticker } }"


@pytest.fixture
def settings() -> Settings:
    return load_settings(database_url="postgresql://localhost/prices", redis_url="redis://localhost")


def stored(batch: int, ticker: str) -> Stored:
    timestamp = EPOCH + timedelta(minutes=batch)
    price = Price(ticker, Decimal(1), timestamp, timestamp, PriceSource.SCHEDULED, False)
    return Stored(Position(batch, timestamp, ticker), price)


def test_a_batch_never_splits_a_timestamp(settings: Settings) -> None:
    """A client that is disconnected between batches reconnects with the last timestamp that it got."""
    feed = PriceFeed(settings, 1000)
    tickers = [f"index_{number:02}" for number in range(50)]
    feed._log = [stored(batch, ticker) for batch in range(3) for ticker in tickers]
    assert feed._batch(0) == feed._log[:50]
    assert feed._batch(40) == feed._log[40:100]
    assert feed._batch(100) == feed._log[100:]
    feed._log = [stored(batch, "btc_usd") for batch in range(100)]
    assert feed._batch(10) == feed._log[10:30]


class Feed:
    """Prices without a database."""

    async def updates(self, *_: Any) -> Any:
        for batch in range(3):
            yield stored(batch, "btc_usd").price


class StoredFeeds:
    pool = None
    prices = Feed()


async def answers(streams: Streams, settings: Settings, query: str, variables: dict[str, Any] | None) -> list[str]:
    context = Context(cast(Any, None), cast(Any, None), settings, feeds=cast(Any, StoredFeeds()))
    admission = Admission(Pool(cast(Any, None), 1))
    return [answer async for answer in streams.answers(context, GraphQLRequest(query, None, variables), admission)]


async def test_the_events_of_a_long_request_are_not_cached(settings: Settings) -> None:
    streams = Streams(schema, Compiled(schema, metrics := Metrics()), metrics)
    ordinary = await answers(streams, settings, QUERY, None)
    assert ordinary == ['{"data":{"priceUpdates":{"ticker":"btc_usd"}}}'] * 3
    assert len(streams._written) == 3
    assert await answers(streams, settings, QUERY, {"junk": "x" * MAX_SHARED_CHARACTERS}) == ordinary
    assert len(streams._written) == 3
