"""Candles, held against a recount in plain Python of the prices that are stored."""

import asyncio
import random
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from shared.config.settings import Settings
from shared.grid import EPOCH, slot_of
from shared.migrate import migrate, read_migrations
from shared.storage.candles import LENGTHS, MONDAY, CandleInterval
from shared.storage.database import Pool, create_pool, fetch
from shared.storage.prices import Price, PriceSource, insert_prices
from tests.integration.examples import MINUTE, NOON, example_price, insert_schedule_rows, select_all_prices
from tests.reads import Candle, select_candles

TICKERS = ("btc_usd", "eth_usd")
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
FROM, TO = NOON - timedelta(days=30), NOON + timedelta(days=30)
Schedules = Sequence[tuple[str, datetime, int]]


def bucket_of(instant: datetime, length: timedelta) -> datetime:
    """The beginning of the candle; weeks begin on Monday."""
    return instant - (instant - MONDAY) % length


def recount(
    prices: Iterable[Price], schedules: Schedules, ticker: str, interval: CandleInterval, now: datetime
) -> list[Candle]:
    """All candles there are, from the prices; every slot of the grid is looked for one by one."""
    length = LENGTHS[interval]
    own = sorted((p for p in prices if p.ticker == ticker), key=lambda p: p.timestamp)
    buckets: dict[datetime, list[Price]] = {}
    for price in own:
        buckets.setdefault(bucket_of(price.timestamp, length), []).append(price)
    stored = {price.timestamp for price in own}
    grids = sorted((since, seconds) for name, since, seconds in schedules if name == ticker)
    untils = [*(since for since, _ in grids[1:]), datetime.max.replace(tzinfo=UTC)]

    def is_complete(start: datetime) -> bool:
        end = start + length
        if end > now or not grids or start < grids[0][0]:
            return False
        for (since, seconds), until in zip(grids, untils, strict=True):
            step = timedelta(seconds=seconds)
            slot = max(since, start)
            slot += (EPOCH - slot) % step
            while slot < min(until, end):
                if slot not in stored:
                    return False
                slot += step
        return True

    return [
        Candle(
            ticker,
            start,
            open=inside[0].price,
            high=max(p.price for p in inside),
            low=min(p.price for p in inside),
            close=inside[-1].price,
            samples=len(inside),
            complete=is_complete(start),
        )
        for start, inside in sorted(buckets.items())
    ]


async def check(pool: Pool, schedules: Schedules, now: datetime = TO) -> dict[CandleInterval, list[Candle]]:
    """Compare all candles of all intervals, and those of the time in which one schedule is in force.

    Returns the first ticker's.
    """
    prices = await select_all_prices(pool)
    found = {}
    for ticker in reversed(TICKERS):
        grids = sorted(since for name, since, _ in schedules if name == ticker)
        for interval in CandleInterval:
            candles = await select_candles(pool, ticker, interval, FROM, TO, 10_000, now)
            assert candles == recount(prices, schedules, ticker, interval, now), (ticker, interval)
            found[interval] = candles
            length = LENGTHS[interval]
            for since, until in zip(grids, [*grids[1:], TO], strict=False):
                begin, end = bucket_of(since + length, length), until - length
                if begin <= end:
                    inside = [candle for candle in candles if begin <= candle.start <= end]
                    assert await select_candles(pool, ticker, interval, begin, end, 10_000, now) == inside, interval
    return found


def random_price(chance: random.Random, timestamp: datetime) -> Price:
    digits = f"{chance.randrange(1, 10**6)}.{chance.randrange(10 ** chance.randrange(1, 9))}"
    return example_price(
        timestamp, digits, ticker=chance.choice(TICKERS), source=chance.choice([*PriceSource, PriceSource.BACKFILLED])
    )


def random_prices(chance: random.Random, seconds: int) -> list[Price]:
    """A run of slots, a run with holes, or instants that are no slots: in a few minutes or over days."""
    start = slot_of(NOON + SECOND * chance.randrange(-100_000, 100_000), timedelta(seconds=seconds))
    match chance.randrange(3):
        case 0:
            stamps = [start + SECOND * seconds * n for n in range(chance.choice([1, 30, 300]))]
        case 1:
            stamps = [start + SECOND * seconds * n for n in range(40) if chance.random() < 0.8]
        case _:
            reach = chance.choice([60, 4000, 100_000])
            stamps = [start + timedelta(microseconds=chance.randrange(reach * 10**6)) for _ in range(20)]
    prices = [random_price(chance, stamp) for stamp in stamps]
    chance.shuffle(prices)
    return prices


async def change(pool: Pool, chance: random.Random, seconds: int) -> None:
    """Store, store again, replace, delete or move prices."""
    stored = await select_all_prices(pool)
    some = chance.sample(stored, min(len(stored), chance.choice([1, 50])))
    keys = [p.ticker for p in some], [p.timestamp for p in some]
    these = "(ticker, timestamp) in (select * from unnest($1::text[], $2::timestamptz[]))"
    match chance.randrange(8):
        case 0:
            await insert_prices(pool, some)
        case 1:
            late = [example_price(p.timestamp, "7.5", ticker=p.ticker) for p in some]
            await insert_prices(pool, [*late, *random_prices(chance, seconds)])
        case 2:
            await fetch(pool, f"delete from prices where {these}", *keys)
        case 3:
            shift = timedelta(microseconds=chance.randrange(-(10**11), 10**11))  # onto keys that nobody has
            await fetch(pool, f"update prices set timestamp = timestamp + $3 where {these}", *keys, shift)
        case _:
            await insert_prices(pool, random_prices(chance, seconds))


@pytest.mark.parametrize("seed", range(16))
async def test_candles_are_those_of_the_prices_whatever_was_done_to_them(pool: Pool, seed: int) -> None:
    chance = random.Random(seed)
    seconds = chance.choice([5, 60, 60, 180, 300, 3600])
    schedules = [(ticker, NOON - SECOND * chance.randrange(100_000), seconds) for ticker in TICKERS]
    if chance.random() < 0.6:
        later = schedules[0][1] + SECOND * chance.randrange(1, 90_000)
        schedules.append((TICKERS[0], later, chance.choice([1, 15, 60, 120, 900, 3600])))
    await insert_schedule_rows(pool, schedules)
    for _ in range(6):
        for _ in range(3):
            await change(pool, chance, seconds)
        await check(pool, schedules, NOON + SECOND * chance.randrange(-100_000, 200_000))


async def test_complete_candles_of_every_interval(pool: Pool) -> None:
    midnight = NOON - 12 * HOUR
    schedules = [("btc_usd", midnight, 60), ("btc_usd", midnight + 6 * HOUR + MINUTE * 7 + SECOND * 20, 20)]
    await insert_schedule_rows(pool, schedules)
    slots = [midnight + MINUTE * n for n in range(6 * 60 + 8)]
    slots += [slots[-1] + SECOND * 20 * n for n in range(1, 3 * 60 * 18)]
    await insert_prices(pool, [example_price(slot) for slot in slots if slot < midnight + 24 * HOUR])
    assert {interval: all(c.complete for c in found) for interval, found in (await check(pool, schedules)).items()} == (
        {interval: interval is not CandleInterval.ONE_WEEK for interval in CandleInterval}
    )
    await fetch(pool, "delete from prices where timestamp = $1", NOON + SECOND * 40)
    missing = {
        name: [c.start for c in found if not c.complete] for name, found in (await check(pool, schedules)).items()
    }
    assert missing == {name: [bucket_of(NOON, length)] for name, length in LENGTHS.items()}
    assert [(c.start, c.complete) for c in (await check(pool, schedules, NOON))[CandleInterval.ONE_DAY]] == (
        [(midnight, False)]
    )


async def test_a_week_is_complete_from_monday_to_monday(pool: Pool) -> None:
    monday = datetime(2026, 1, 26, tzinfo=UTC)
    schedules = [("btc_usd", monday - HOUR, 3600)]
    await insert_schedule_rows(pool, schedules)
    await insert_prices(pool, [example_price(monday + HOUR * n, f"{n + 2}.5") for n in range(-1, 2 * 7 * 24)])
    weeks = (await check(pool, schedules))[CandleInterval.ONE_WEEK]
    assert [(c.start, c.open, c.samples, c.complete) for c in weeks] == [
        (monday - timedelta(days=7), Decimal("1.5"), 1, False),
        (monday, Decimal("2.5"), 168, True),
        (monday + timedelta(days=7), Decimal("170.5"), 168, True),
    ]
    weeks = (await check(pool, schedules, monday + timedelta(days=14, microseconds=-1)))[CandleInterval.ONE_WEEK]
    assert [c.complete for c in weeks] == [False, True, False]


async def test_writers_at_once_lose_nothing_of_one_anothers(pool: Pool) -> None:
    """Many transactions that add to the same minutes, and to the same hour by way of different minutes."""
    chance = random.Random(1)
    stamps = [NOON + MINUTE * (n % 3) + timedelta(microseconds=n) for n in range(240)]
    prices = [random_price(chance, stamp) for stamp in stamps]
    await insert_prices(pool, prices[::8])
    late = [example_price(p.timestamp, "3", ticker=p.ticker) for p in prices]
    batches = [prices[n : n + chance.choice([1, 1, 9])] for n in range(240)] + [
        late[n : n + 2] for n in range(0, 240, 3)
    ]
    chance.shuffle(batches)
    deletes = [fetch(pool, "delete from prices where timestamp = $1", stamp) for stamp in stamps[::10]]
    await asyncio.gather(*deletes, *(insert_prices(pool, batch) for batch in batches))
    found = await check(pool, [])
    assert sum(c.samples for c in found[CandleInterval.ONE_MINUTE]) > 80


async def test_a_rolled_back_price_is_in_no_candle(pool: Pool, settings: Settings) -> None:
    await insert_prices(pool, [example_price()])
    connection = await asyncpg.connect(settings.database_url)
    try:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("update prices set price = 1")
        await connection.execute("delete from prices")
        await transaction.rollback()
    finally:
        await connection.close()
    [candle] = (await check(pool, []))[CandleInterval.ONE_DAY]
    assert (candle.open, candle.samples) == (Decimal("91234.56"), 1)


async def test_emptied_prices_leave_no_candles(pool: Pool) -> None:
    await insert_prices(pool, [example_price()])
    await fetch(pool, "truncate prices")
    assert await fetch(pool, "select start from candle_minutes union all select start from candle_hours") == []


async def test_the_migration_makes_the_candles_of_the_prices_that_are_there(settings: Settings) -> None:
    chance = random.Random(2)
    name = f"candles_{uuid.uuid4().hex}"
    dsn = urlunsplit(urlsplit(settings.database_url)._replace(path=f"/{name}"))
    connection = await asyncpg.connect(settings.database_url)
    try:
        await connection.execute(f"create database {name}")
        # Whatever zone a database is set to, candles are UTC's.
        await connection.execute(f"alter database {name} set timezone = 'Asia/Kathmandu'")
        await migrate(dsn, read_migrations()[:2])
        async with create_pool(settings.model_copy(update={"database_url": dsn}), name="tests", size=2) as pool:
            rows = {(p.ticker, p.timestamp): p for _ in range(9) for p in random_prices(chance, 300)}.values()
            for p in rows:
                await fetch(
                    pool,
                    "insert into prices (ticker, price, timestamp, observed_at, source, testnet) "
                    "values ($1, $2, $3, $4, $5::text::price_source, $6)",
                    *(p.ticker, p.price, p.timestamp, p.observed_at),
                    *("BACKFILLED" if p.source is PriceSource.RECOVERED else p.source.value, p.testnet),
                )
            await migrate(dsn)
            assert await check(pool, []) != {interval: [] for interval in CandleInterval}
        await connection.execute(f"drop database {name} with (force)")
    finally:
        await connection.close()
