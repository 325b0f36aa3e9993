"""Prices in PostgreSQL: order, bounds, digits, and which of two rows for one instant stays."""

import asyncio
import re
import time
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from shared.storage.database import Pool, fetch
from shared.storage.prices import Price, PriceSource, dump_price, insert_prices, load_price, select_latest_prices
from tests.integration.examples import MINUTE, NOON, example_price, select_all_prices
from tests.reads import select_first_timestamps, select_latest_price, select_price_history, select_prices_in_period

PRICES = [example_price(NOON + MINUTE * n, f"{91000 + n}.5") for n in range(5)]
OTHER = example_price(NOON + MINUTE * 9, "3210.1234", ticker="eth_usd")


@pytest.fixture
async def stored(pool: Pool) -> list[Price]:
    await insert_prices(pool, [*reversed(PRICES), OTHER])
    return PRICES


async def test_nothing_collected_is_empty_everywhere(pool: Pool) -> None:
    assert await select_latest_price(pool, "btc_usd") is None
    assert await select_latest_prices(pool, ["btc_usd", "eth_usd"]) == []
    assert await select_first_timestamps(pool, ["btc_usd"]) == {}
    assert await select_price_history(pool, "btc_usd", None, 10) == []
    assert await select_prices_in_period(pool, "btc_usd", NOON, NOON + MINUTE, None, 10) == []


async def test_latest_price_is_the_newest_of_its_ticker(pool: Pool, stored: list[Price]) -> None:
    assert await select_latest_price(pool, "btc_usd") == stored[-1]
    assert await select_latest_price(pool, "BTC_USD") is None


async def test_latest_prices_come_in_the_order_asked_for(pool: Pool, stored: list[Price]) -> None:
    assert await select_latest_prices(pool, ["sol_usd", "eth_usd", "btc_usd"]) == [OTHER, stored[-1]]
    assert await select_latest_prices(pool, []) == []


async def test_first_timestamps_are_the_oldest_of_each_ticker(pool: Pool, stored: list[Price]) -> None:
    first = await select_first_timestamps(pool, ["btc_usd", "eth_usd", "sol_usd"])
    assert first == {"btc_usd": NOON, "eth_usd": OTHER.timestamp}


async def test_history_is_newest_first_and_before_is_exclusive(pool: Pool, stored: list[Price]) -> None:
    assert await select_price_history(pool, "btc_usd", None, 100) == stored[::-1]
    assert await select_price_history(pool, "btc_usd", None, 2) == [stored[4], stored[3]]
    assert await select_price_history(pool, "btc_usd", stored[3].timestamp, 2) == [stored[2], stored[1]]
    just_after = stored[3].timestamp + timedelta(microseconds=1)
    assert await select_price_history(pool, "btc_usd", just_after, 1) == [stored[3]]
    assert await select_price_history(pool, "btc_usd", NOON, 1) == []


async def test_period_is_oldest_first_with_both_bounds_and_after_exclusive(pool: Pool, stored: list[Price]) -> None:
    first, last = stored[1].timestamp, stored[3].timestamp
    tick = timedelta(microseconds=1)
    assert await select_prices_in_period(pool, "btc_usd", first, last, None, 100) == stored[1:4]
    assert await select_prices_in_period(pool, "btc_usd", first + tick, last - tick, None, 100) == [stored[2]]
    assert await select_prices_in_period(pool, "btc_usd", first, last, None, 2) == stored[1:3]
    assert await select_prices_in_period(pool, "btc_usd", first, last, stored[2].timestamp, 100) == [stored[3]]
    assert await select_prices_in_period(pool, "btc_usd", first, last, NOON - MINUTE, 100) == stored[1:4]
    assert await select_prices_in_period(pool, "btc_usd", first, first, None, 100) == [stored[1]]
    assert await select_prices_in_period(pool, "btc_usd", last, first, None, 100) == []


async def test_paging_by_the_last_timestamp_gives_every_price_once(pool: Pool, stored: list[Price]) -> None:
    forwards: list[Price] = []
    while page := await select_prices_in_period(
        pool, "btc_usd", NOON, stored[-1].timestamp, forwards[-1].timestamp if forwards else None, 2
    ):
        forwards += page
    backwards: list[Price] = []
    while page := await select_price_history(pool, "btc_usd", backwards[-1].timestamp if backwards else None, 2):
        backwards += page
    assert (forwards, backwards) == (stored, stored[::-1])


DIGITS = {
    "91234.56": "91234.56",
    "91234.500": "91234.500",
    "7": "7",
    "100000": "100000",
    "9.123456E+4": "91234.56",
    "1E+3": "1000",
    "1.50E-7": "0.000000150",
    "1E-18": "0.000000000000000001",
    "1234567890123456789012.345678901234567890": "1234567890123456789012.345678901234567890",
}


async def test_every_digit_is_kept(pool: Pool) -> None:
    prices = [example_price(NOON + MINUTE * n, text) for n, text in enumerate(DIGITS)]
    inserted = await insert_prices(pool, prices)
    read = await select_prices_in_period(pool, "btc_usd", NOON, NOON + MINUTE * len(prices), None, 100)
    assert [format(price.price, "f") for price in read] == list(DIGITS.values())
    assert [format(price.price, "f") for price in inserted] == list(DIGITS.values())
    assert [format(load_price(dump_price(price)).price, "f") for price in prices] == list(DIGITS.values())


async def test_a_dumped_price_loads_as_it_was(pool: Pool) -> None:
    for price in (*PRICES, OTHER, example_price(source=PriceSource.BACKFILLED, observed_at=NOON)):
        assert load_price(dump_price(price)) == price


async def test_inserting_again_changes_nothing(pool: Pool) -> None:
    assert await insert_prices(pool, PRICES) == PRICES
    assert await insert_prices(pool, PRICES) == []
    assert await insert_prices(pool, []) == []
    assert await select_all_prices(pool) == PRICES


async def test_a_repeat_within_one_batch_is_one_row(pool: Pool) -> None:
    price = example_price()
    assert await insert_prices(pool, [price, OTHER, price]) == [price, OTHER]
    assert await select_all_prices(pool) == [price, OTHER]


@pytest.mark.parametrize("source", [PriceSource.SCHEDULED, PriceSource.REQUESTED])
async def test_an_observation_replaces_a_chart_average(pool: Pool, source: PriceSource) -> None:
    average = example_price(price="90000.0000", source=PriceSource.BACKFILLED, observed_at=NOON)
    observation = example_price(source=source)
    assert await insert_prices(pool, [average]) == [average]
    assert await insert_prices(pool, [observation]) == [observation]
    assert await select_all_prices(pool) == [observation]


async def test_an_observation_in_the_same_batch_as_a_chart_average_wins(pool: Pool) -> None:
    average = example_price(price="90000.0000", source=PriceSource.BACKFILLED, observed_at=NOON)
    observation = example_price()
    await insert_prices(pool, [observation, average])
    assert await select_all_prices(pool) == [observation]


@pytest.mark.parametrize("source", [PriceSource.SCHEDULED, PriceSource.REQUESTED, PriceSource.BACKFILLED])
async def test_nothing_replaces_an_observation(pool: Pool, source: PriceSource) -> None:
    observation = example_price()
    await insert_prices(pool, [observation])
    assert await insert_prices(pool, [example_price(price="1", source=source)]) == []
    assert await select_all_prices(pool) == [observation]


async def test_a_chart_average_does_not_replace_another(pool: Pool) -> None:
    average = example_price(source=PriceSource.BACKFILLED)
    await insert_prices(pool, [average])
    assert await insert_prices(pool, [example_price(price="1", source=PriceSource.BACKFILLED)]) == []
    assert await select_all_prices(pool) == [average]


@pytest.mark.parametrize("value", ["NaN", "sNaN", "0", "0.00", "-1", "-0.01", "Infinity", "-Infinity"])
async def test_the_database_refuses_values_that_are_not_prices(pool: Pool, value: str) -> None:
    with pytest.raises((asyncpg.CheckViolationError, asyncpg.InvalidTextRepresentationError)):
        await insert_prices(pool, [OTHER, example_price(price=value)])
    assert await select_all_prices(pool) == []


async def test_concurrent_inserts_of_the_same_rows_leave_one_row_each(pool: Pool) -> None:
    def batch(task: int) -> list[Price]:
        prices = [example_price(NOON + MINUTE * n, str(90_000 + n)) for n in range(300)]
        return prices if task % 2 else prices[::-1]

    inserted = await asyncio.gather(*(insert_prices(pool, batch(task)) for task in range(8)))
    stored = await select_all_prices(pool)
    assert stored == batch(1)
    assert sorted((price for prices in inserted for price in prices), key=lambda p: p.timestamp) == stored


async def test_latest_history_and_period_are_index_only_scans(pool: Pool) -> None:
    """With the pool's own settings and the very statements that the functions send, unless the cursor is selected."""
    await fetch(
        pool,
        """
        insert into prices (ticker, price, timestamp, observed_at, source, testnet)
        select ticker, 91234.56, at, at, 'SCHEDULED', true
        from unnest('{btc_usd,eth_usd}'::text[]) as ticker
        cross join generate_series($1::timestamptz, $1::timestamptz + interval '10000 minutes', interval '1 minute') at
        """,
        NOON,
        timeout=20,
    )
    # The test server commits asynchronously, and vacuum trusts only what has been written out.
    await fetch(pool, "checkpoint", timeout=20)
    await fetch(pool, "vacuum analyze prices", timeout=20)
    sent: list[Any] = []
    connection = await pool.take(time.monotonic() + 5)
    try:
        # Given back and taken again by each statement: it is the one that was used last.
        connection.add_query_logger(sent.append)
        pool.give_back(connection)
        await select_latest_price(pool, "btc_usd")
        await select_latest_prices(pool, ["btc_usd", "eth_usd"])
        await select_price_history(pool, "btc_usd", NOON + MINUTE * 5000, 100)
        await select_prices_in_period(pool, "btc_usd", NOON, NOON + MINUTE * 50, None, 100)
    finally:
        connection.remove_query_logger(sent.append)
    # As answers without a cursor wrap them.
    names = "ticker, price, timestamp, observed_at, source, testnet"
    plans = [
        "\n".join(
            row[0]
            for row in await connection.fetch(
                f"explain (analyze, buffers) select {names} from ({q.query}) as row", *q.args
            )
        )
        for q in sent
    ]
    assert len(plans) == 4
    for plan in plans:
        assert "Index Only Scan" in plan, plan
        assert not re.search(r"Seq Scan|Bitmap|Index Scan using", plan), plan
        assert "Heap Fetches: 0" in plan, plan
    # The rows that are not asked for are not read either: a page of 100 rows, not 10,000.
    buffers = [max(int(number) for number in re.findall(r"Buffers: shared hit=(\d+)", plan)) for plan in plans]
    assert max(buffers) < 20, plans
