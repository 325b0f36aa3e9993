"""The price feed and the cache of its events, without servers; tests/integration runs them with servers."""

from datetime import timedelta
from decimal import Decimal
from typing import Any, cast

import pytest

from server.compiled.execution import Compiled
from server.feeds.recent_prices import RecentPrices, TooSlow
from server.metrics import Metrics
from server.protection.admission import Admission
from server.reads.context import Context
from server.schema.documents import GraphQLRequest
from server.schema.root import schema
from server.subscriptions.operations import MAX_SHARED_CHARACTERS, Streams
from shared.config.settings import Settings, load_settings
from shared.cursor import BEGINNING, Position
from shared.grid import EPOCH
from shared.storage.pool import Pool
from shared.storage.price_log import Stored
from shared.storage.prices import Price, PriceSource

QUERY = "subscription { priceUpdates { ticker } }"


@pytest.fixture
def settings() -> Settings:
    return load_settings(database_url="postgresql://localhost/prices", redis_url="redis://localhost")


def stored(batch: int, ticker: str) -> Stored:
    timestamp = EPOCH + timedelta(minutes=batch)
    price = Price(ticker, Decimal(1), timestamp, timestamp, PriceSource.SCHEDULED, False)
    return Stored(Position(batch, timestamp, ticker), price)


def log_of(*prices: Stored, limit: int = 1000) -> RecentPrices:
    log = RecentPrices(limit, page=10)
    log.restart(BEGINNING)
    log.add(prices)
    return log


def test_a_batch_never_splits_a_timestamp() -> None:
    """A client that is disconnected between batches may reconnect with the last timestamp that it got."""
    tickers = [f"index_{number:02}" for number in range(50)]
    prices = [stored(batch, ticker) for batch in range(3) for ticker in tickers]
    log = log_of(*prices)
    assert log.batch(0) == prices[:50]
    assert log.batch(40) == prices[40:100]
    assert log.batch(100) == prices[100:]
    assert log.batch(150) == []
    prices = [stored(batch, "btc_usd") for batch in range(100)]
    assert log_of(*prices).batch(10) == prices[10:30]


def test_the_log_finds_the_place_behind_a_position_that_it_reaches() -> None:
    prices = [stored(batch, ticker) for batch in range(1, 31) for ticker in ("btc_usd", "eth_usd")]
    log = log_of(*prices[:30], limit=40)
    log.add(prices[30:])
    assert log.next_place == 60
    assert log.begin == prices[19].position, "twenty are removed"
    assert [log.place_after(one.position) for one in prices] == [None] * 19 + list(range(20, 61))
    assert [log.has(one.position) for one in prices] == [False] * 20 + [True] * 40
    assert log.place_after(stored(31, "btc_usd").position) is None
    between = Position(20, prices[39].position.timestamp, "c")
    assert (log.place_after(between), log.has(between)) == (39, False)
    with pytest.raises(TooSlow):
        log.batch(19)
    assert log.batch(20)[0] == prices[20]


def test_positions_that_come_again_are_found_in_the_new_generation() -> None:
    lost = [stored(batch, "btc_usd") for batch in range(1, 21)]
    log = log_of(*lost)
    log.restart(lost[9].position)
    again = [stored(batch, "eth_usd") for batch in range(12, 31)]
    log.add(again)
    assert log.generation == 2
    assert log.positions() == [one.position for one in again]
    assert log.place_after(lost[8].position) is None
    assert log.place_after(lost[9].position) == 20
    assert [log.has(one.position) for one in lost] == [False] * 20
    assert log.place_after(again[3].position) == 24
    assert log.batch(15) == [*lost[15:], *again[:15]]


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
