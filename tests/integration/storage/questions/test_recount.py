"""`pricesAt` and `statistics`, held against a recount in plain Python of the rows that are stored."""

import random
from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from shared.config.settings import Settings
from shared.grid import slot_of
from shared.storage.database import Pool
from shared.storage.missed_slots import GapReason, MissedSlot, insert_missed_slots
from shared.storage.prices import FIELDS, Price, insert_prices, price_of
from shared.storage.questions.prices_at import prices_at
from shared.storage.questions.statistics import statistics
from tests.integration.examples import NOON, example_price, insert_schedule_rows, select_all_prices
from tests.integration.storage.questions import recount
from tests.reads import Gap, rows_of, select_coverage, select_gaps

MICROSECOND = timedelta(microseconds=1)
SECOND = timedelta(seconds=1)
FIRST, LAST = datetime(1, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def nested(row: Any, prefix: str) -> Price | None:
    return None if row[f"{prefix}_ticker"] is None else price_of(row[f"{prefix}_{name}"] for name in FIELDS)


async def select_statistics(pool: Pool, from_dt: datetime, to_dt: datetime, now: datetime) -> recount.Statistics:
    [row] = await rows_of(pool, statistics("btc_usd", from_dt, to_dt, now))
    counted = await select_coverage(pool, "btc_usd", from_dt, to_dt, now)
    assert (row["coverage_expected"], row["coverage_present"]) == (counted.expected, counted.present)
    assert (row["is_refused"], row["is_running"]) == (False, to_dt > now)
    values: dict[str, Any] = {name: nested(row, name) for name in ("open", "close", "high", "low")}
    values |= {field.name: row[field.name] for field in fields(recount.Statistics) if field.name not in values}
    return recount.Statistics(**values)


async def check_statistics(pool: Pool, from_dt: datetime, to_dt: datetime, now: datetime) -> recount.Statistics:
    prices = [price for price in await select_all_prices(pool) if price.ticker == "btc_usd"]
    found = await select_statistics(pool, from_dt, to_dt, now)
    wanted = recount.statistics(prices, from_dt, to_dt, now)
    exact = ("open", "close", "high", "low", "change", "samples")
    assert [getattr(found, name) for name in exact] == [getattr(wanted, name) for name in exact]
    for name in ("change_percent", "twap", "realized_volatility"):
        value, expected = getattr(found, name), getattr(wanted, name)
        if expected is None or value is None:
            assert value is expected
        elif isinstance(expected, float):
            assert value == pytest.approx(expected, rel=1e-7)
        else:
            assert abs(value - expected) <= abs(expected) * Decimal("1e-15"), name
    return found


async def check_prices_at(
    pool: Pool, schedules: recount.Schedules, instants: list[datetime], seconds: int | None, now: datetime
) -> list[recount.PriceAt]:
    prices = [price for price in await select_all_prices(pool) if price.ticker == "btc_usd"]
    gaps = await select_gaps(pool, "btc_usd", FIRST, LAST, now, 10_000)
    rows = await rows_of(pool, prices_at("btc_usd", instants, seconds, 60, now))
    found = []
    for row in rows:
        gap = None
        if row["gap_from_dt"] is not None:
            values = [row[f"gap_{name}"] for name in ("from_dt", "to_dt", "missing", "reason", "detail")]
            gap = Gap(values[0], values[1], values[2], GapReason(values[3]), values[4])
        price = nested(row, "price")
        assert row["age_seconds"] == (None if price is None else (row["at"] - price.timestamp).total_seconds())
        found.append(recount.PriceAt(row["at"], price, gap))
    assert found == [recount.price_at(prices, schedules, gaps, at, seconds, now) for at in instants]
    return found


async def test_instants_mean_the_same_in_any_session(pool: Pool, settings: Settings) -> None:
    """They are sent as text."""
    nepal, marquesas = timezone(timedelta(hours=5, minutes=45)), timezone(-timedelta(hours=9, minutes=30))
    instants = [FIRST, LAST, datetime(987, 6, 5, 4, 3, 2, 1, UTC), datetime(2026, 2, 3, 4, 5, 6, 700, marquesas)]
    instants += [datetime(2026, 3, 2, tzinfo=nepal), NOON - MICROSECOND, NOON, NOON]
    statement = prices_at("btc_usd", instants, None, 60)
    for style, zone in (("ISO, YMD", "UTC"), ("SQL, DMY", "Asia/Kathmandu"), ("German", "America/New_York")):
        session = {"datestyle": style, "timezone": zone}
        connection = await asyncpg.connect(settings.database_url, server_settings=session)
        rows = await connection.fetch(statement.sql, *statement.parameters)
        await connection.close()
        assert [row["at"] for row in rows] == instants


@pytest.mark.parametrize("seed", range(24))
async def test_answers_are_those_of_the_prices(pool: Pool, seed: int) -> None:
    chance = random.Random(seed)
    grid = chance.choice([1, 15, 60, 60, 120, 3600])
    step = timedelta(seconds=grid)
    since = slot_of(NOON, step)
    schedules = [(since, grid)] if chance.random() < 0.9 else []
    if schedules and chance.random() < 0.5:
        schedules.append(
            (
                slot_of(since + step * chance.randrange(1, 60), timedelta(hours=1)) + timedelta(hours=1),
                chance.choice([5, 60, 300]),
            )
        )
    await insert_schedule_rows(pool, [("btc_usd", *row) for row in schedules])
    chosen = [slot for slot in (since + step * n for n in range(-5, 80)) if chance.random() < chance.choice([0.3, 0.9])]
    chosen += [since + MICROSECOND * chance.randrange(int(step / MICROSECOND) * 60) for _ in range(6)]
    digits = ["91234.56", "2722.40", "0.00001583", "7", "123456789012345678.123456789012345678", "91234.56"]
    prices = [example_price(at, chance.choice(digits), ticker=t) for at in chosen for t in ("btc_usd", "eth_usd")]
    await insert_prices(pool, prices)
    reasons = [GapReason.EXCHANGE_ERROR, GapReason.REJECTED_VALUE]
    missed = [since + step * n for n in range(90) if chance.random() < 0.3]
    await insert_missed_slots(
        pool, [MissedSlot("btc_usd", slot, chance.choice(reasons), chance.choice([None, "why"])) for slot in missed]
    )
    reach = int(step / MICROSECOND) * 120

    def an_instant() -> datetime:
        match chance.randrange(4):
            case 0:
                return chance.choice(chosen) + MICROSECOND * chance.choice([-1, 0, 1])
            case 1:
                return since + step * chance.randrange(-20, 100)
            case 2:
                return NOON + timedelta(days=chance.choice([-4000, 4000]))
            case _:
                return since + MICROSECOND * chance.randrange(-reach // 4, reach)

    for _ in range(6):
        now = since + MICROSECOND * chance.randrange(0, reach)
        instants = [an_instant() for _ in range(30)]
        await check_prices_at(pool, schedules, instants, chance.choice([None, None, 0, 1, 60, 10_000]), now)
        from_dt, to_dt = sorted((an_instant(), an_instant()))
        await check_statistics(pool, from_dt, to_dt, now)
