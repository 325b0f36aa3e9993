"""Retention: raw prices are dropped; candles, coverage and gaps stay as they were."""

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from arq.connections import ArqRedis

from shared.config.settings import Settings
from shared.errors import StorageUnavailable
from shared.grid import slot_of
from shared.queue.deferred import defer, store_oldest_deferred
from shared.queue.jobs import DROP_OLD_PRICES, enqueue_once
from shared.storage.candles import CandleInterval
from shared.storage.coverage import Coverage
from shared.storage.database import Pool, fetch
from shared.storage.gaps import select_missing_runs
from shared.storage.missed_slots import GapReason, MissedSlot, MissingRun, insert_missed_slots
from shared.storage.prices import Price, PriceSource, insert_prices
from shared.storage.retention import drop_oldest_prices, move_kept_from, select_kept_from, select_to_drop
from tests.integration.conftest import Api
from tests.integration.examples import MINUTE, NOON, example_price, insert_schedule_rows, select_all_prices
from tests.integration.storage.test_candles import FROM, SECOND, TICKERS, TO, Schedules, change, random_prices, recount
from tests.reads import Candle, Gap, select_candles, select_coverage, select_first_timestamps, select_gaps
from worker.context import Worker
from worker.jobs import retention
from worker.jobs.healing import heal_gaps
from worker.jobs.retention import drop_old_prices
from worker.runner import create_worker
from worker.simulator.app import Simulator

DAY = timedelta(days=1)
MIDNIGHT = NOON - DAY / 2


async def read_candles(pool: Pool) -> dict[tuple[str, CandleInterval], list[Candle]]:
    return {
        (ticker, interval): await select_candles(pool, ticker, interval, FROM, TO, 10_000, TO)
        for ticker in TICKERS
        for interval in CandleInterval
    }


async def drop(pool: Pool, limit: int = 1000) -> dict[str, int]:
    """All that is to go; answers how many went of each."""
    dropped = dict.fromkeys(await select_to_drop(pool), 0)
    for ticker in dropped:
        while count := await drop_oldest_prices(pool, ticker, limit):
            dropped[ticker] += count
    return dropped


async def select_dropped(pool: Pool) -> dict[str, datetime]:
    """From when on prices are kept, by ticker."""
    return {
        row["ticker"]: row["kept_from"] for row in await fetch(pool, "select ticker, kept_from from dropped_prices")
    }


async def is_waiting_for_writers(pool: Pool) -> bool:
    return bool(await fetch(pool, "select from pg_locks where locktype = 'advisory' and not granted"))


async def until_waiting_for_writers(pool: Pool) -> None:
    async with asyncio.timeout(20):
        while not await is_waiting_for_writers(pool):
            await asyncio.sleep(0.01)


def periods(chance: random.Random, prices: Sequence[Price]) -> list[tuple[datetime, datetime, datetime]]:
    """All the time, a day, and from about some price to about another: mostly in the middle of a minute."""
    found = [(FROM, TO, TO), (MIDNIGHT, MIDNIGHT + DAY, TO)]
    for _ in range(8):
        near = chance.choice(prices).timestamp, chance.choice(prices).timestamp
        from_dt, to_dt = sorted(stamp + SECOND * chance.uniform(-40, 40) for stamp in near)
        found.append((from_dt, to_dt, chance.choice([TO, from_dt + (to_dt - from_dt) / 2])))
    return found


Told = list[tuple[Coverage, list[Gap], list[MissingRun]]]


def merged(runs: Sequence[MissingRun]) -> list[MissingRun]:
    """Oldest first, those that follow one another as one."""
    found: list[MissingRun] = []
    for run in sorted(runs, key=lambda run: run.first):
        if found and (found[-1].end, found[-1].interval) == (run.first, run.interval):
            found[-1] = replace(found[-1], end=run.end)
        else:
            found.append(run)
    return found


async def read_coverage(
    pool: Pool, asked: Sequence[tuple[datetime, datetime, datetime]], until: dict[str, datetime] | None
) -> Told:
    """Of every ticker and period; with `until`, of what is before that instant, nothing where there is none."""
    told: Told = []
    for ticker in TICKERS:
        for from_dt, to_dt, now in asked:
            end = to_dt if until is None else min(to_dt, until.get(ticker, from_dt))
            period = (from_dt, end, now)
            coverage = await select_coverage(pool, ticker, *period)
            gaps = await select_gaps(pool, ticker, *period, 10_000)
            told.append((coverage, gaps, merged(await select_missing_runs(pool, ticker, *period))))
    return told


@pytest.mark.parametrize("seed", range(6))
async def test_candles_and_coverage_are_what_they_were(pool: Pool, seed: int) -> None:
    chance = random.Random(seed)
    seconds = chance.choice([1, 5, 60, 60, 300, 3600])
    schedules: list[tuple[str, datetime, int]] = [
        (ticker, NOON - SECOND * chance.randrange(200_000), seconds) for ticker in TICKERS
    ]
    schedules.append((TICKERS[0], schedules[0][1] + SECOND * chance.randrange(1, 90_000), chance.choice([15, 60, 900])))
    await insert_schedule_rows(pool, schedules)
    for _ in range(8):
        await insert_prices(pool, random_prices(chance, seconds))
    missed = [slot_of(NOON + SECOND * chance.randrange(-99_999, 99_999), MINUTE) for _ in range(50)]
    await insert_missed_slots(pool, [MissedSlot(TICKERS[0], slot, GapReason.EXCHANGE_ERROR, "gone") for slot in missed])
    age = timedelta(hours=chance.randrange(1, 60))
    before = await select_all_prices(pool)
    edges = {ticker: slot_of(max(p.timestamp for p in before if p.ticker == ticker) - age, DAY) for ticker in TICKERS}
    edges = {ticker: at for ticker, at in edges.items() if any(p.ticker == ticker and p.timestamp < at for p in before)}
    asked = periods(chance, before)
    candles, told = await read_candles(pool), await read_coverage(pool, asked, None)
    past = await read_coverage(pool, asked, edges)

    kept_from = await move_kept_from(pool, TO, age)
    assert kept_from == edges
    for ticker in kept_from:  # some are gone, some are not
        await drop_oldest_prices(pool, ticker, 20)
    for state in ("half gone", "gone"):
        if state == "gone":
            await drop(pool, limit=chance.choice([50, 1000]))
        assert await read_candles(pool) == candles, state
        expected = [
            (replace(coverage, dropped=of_past.present), gaps, runs)
            for (coverage, gaps, runs), (of_past, _, _) in zip(told, past, strict=True)
        ]
        assert await read_coverage(pool, asked, None) == expected, state
    stay = [p for p in before if p.timestamp >= kept_from.get(p.ticker, FROM)]
    assert await select_all_prices(pool) == stay
    assert await select_dropped(pool) == kept_from

    # Whatever is done afterwards: the past stays, and the rest follows the prices as ever.
    for _ in range(4):
        await change(pool, chance, seconds)
    await check_beside_the_past(pool, schedules, candles, kept_from)


async def check_beside_the_past(
    pool: Pool,
    schedules: Schedules,
    candles: dict[tuple[str, CandleInterval], list[Candle]],
    kept_from: dict[str, datetime],
) -> None:
    prices = await select_all_prices(pool)
    found = await read_candles(pool)
    for (ticker, interval), then in candles.items():
        if interval is CandleInterval.ONE_WEEK:  # the edge is a midnight, which may be in the middle of a week
            continue
        edge = kept_from.get(ticker, FROM)
        recent = recount((p for p in prices if p.timestamp >= edge), schedules, ticker, interval, TO)
        assert found[ticker, interval] == [candle for candle in then if candle.start < edge] + recent


async def test_queries_over_a_dropped_day(pool: Pool) -> None:
    await insert_schedule_rows(pool, [("btc_usd", MIDNIGHT, 60)])
    slots = [MIDNIGHT + MINUTE * n for n in range(3 * 1440) if n % 1440 != 700]
    await insert_prices(pool, [example_price(slot) for slot in slots])
    requested = MIDNIGHT + timedelta(seconds=90.5)
    await insert_prices(pool, [example_price(requested, source=PriceSource.REQUESTED)])
    assert await move_kept_from(pool, TO, DAY) == {"btc_usd": MIDNIGHT + DAY}
    assert await select_to_drop(pool) == {"btc_usd": MIDNIGHT + DAY}
    assert await select_first_timestamps(pool, TICKERS) == {"btc_usd": MIDNIGHT + DAY}, "whatever is still there"
    assert await drop(pool) == {"btc_usd": 1440}
    assert await select_to_drop(pool) == {}
    assert await select_kept_from(pool, TICKERS) == {"btc_usd": MIDNIGHT + DAY}
    assert await select_first_timestamps(pool, TICKERS) == {"btc_usd": MIDNIGHT + DAY}

    until = MIDNIGHT + 2 * DAY
    assert await select_coverage(pool, "btc_usd", MIDNIGHT, until, TO) == Coverage(2880, 2878, dropped=1439)
    missing = [MIDNIGHT + MINUTE * 700, MIDNIGHT + DAY + MINUTE * 700]
    assert await select_gaps(pool, "btc_usd", MIDNIGHT, until, TO, 100) == [
        Gap(slot, slot + MINUTE, 1, GapReason.NOT_COLLECTED, None) for slot in missing
    ]
    assert await move_kept_from(pool, TO, DAY) == {}, "nothing is older"
    assert await move_kept_from(pool, TO, 9 * DAY) == {}, "never back"


async def test_a_gap_across_the_instant_is_one(pool: Pool) -> None:
    await insert_schedule_rows(pool, [("btc_usd", MIDNIGHT, 60)])
    await insert_prices(pool, [example_price(MIDNIGHT), example_price(MIDNIGHT + 3 * DAY)])
    period = (MIDNIGHT, MIDNIGHT + 3 * DAY, TO)
    gaps = await select_gaps(pool, "btc_usd", *period, 100)
    assert await move_kept_from(pool, TO, DAY) == {"btc_usd": MIDNIGHT + 2 * DAY}
    assert await drop(pool) == {"btc_usd": 1}
    assert await select_gaps(pool, "btc_usd", *period, 100) == gaps
    assert len(gaps) == 1


async def test_age_is_counted_back_from_the_newest_price_and_the_clock(pool: Pool) -> None:
    """A ticker that is no longer collected keeps its prices, and a wrong clock drops none."""
    await insert_schedule_rows(pool, [(ticker, MIDNIGHT, 60) for ticker in TICKERS])
    stored = [example_price(MIDNIGHT + DAY * n, ticker="btc_usd") for n in range(4)]
    await insert_prices(pool, [*stored, example_price(MIDNIGHT, ticker="eth_usd")])
    assert await move_kept_from(pool, NOON + timedelta(days=9999), 2 * DAY) == {"btc_usd": MIDNIGHT + DAY}
    assert await move_kept_from(pool, MIDNIGHT, DAY) == {}


async def dropped_day(pool: Pool) -> dict[tuple[str, CandleInterval], list[Candle]]:
    """Two tickers, of one of which the first of two days has been dropped; the candles."""
    await insert_schedule_rows(pool, [("btc_usd", MIDNIGHT, 3600)])
    slots = [MIDNIGHT + MINUTE * 60 * n for n in range(49)]
    await insert_prices(pool, [example_price(slot, ticker=ticker) for slot in slots for ticker in TICKERS])
    candles = await read_candles(pool)
    assert await move_kept_from(pool, TO, DAY) == {"btc_usd": MIDNIGHT + DAY}
    await drop(pool)
    return candles


async def test_a_price_that_comes_late_for_a_dropped_day_is_refused(pool: Pool, redis: ArqRedis) -> None:
    candles = await dropped_day(pool)
    stored = await select_all_prices(pool)
    late = example_price(MIDNIGHT + MINUTE, "7")
    assert await insert_prices(pool, [late]) == []
    await defer(redis, [late], [])
    assert await store_oldest_deferred(redis, pool) == 1
    assert await store_oldest_deferred(redis, pool) == 0
    assert (await select_all_prices(pool), await read_candles(pool)) == (stored, candles)
    assert await select_dropped(pool) == {"btc_usd": MIDNIGHT + DAY}

    others = [replace(late, ticker="eth_usd"), replace(late, timestamp=MIDNIGHT + DAY + MINUTE)]
    assert await insert_prices(pool, [late, *others]) == others


async def test_dropped_rows_that_are_not_deleted_yet_change_no_candle(pool: Pool) -> None:
    await insert_schedule_rows(pool, [("btc_usd", MIDNIGHT, 60)])
    average = example_price(MIDNIGHT, source=PriceSource.BACKFILLED)
    stored = [average, example_price(MIDNIGHT + MINUTE), example_price(MIDNIGHT + 2 * DAY)]
    await insert_prices(pool, stored)
    candles = await read_candles(pool)
    await move_kept_from(pool, TO, DAY)
    assert await insert_prices(pool, [example_price(MIDNIGHT, "5")]) == [], "not in the place of an average either"
    await fetch(pool, "update prices set price = 3 where timestamp = $1", MIDNIGHT)
    await fetch(pool, "delete from prices where timestamp = $1", MIDNIGHT + MINUTE)
    assert await read_candles(pool) == candles


async def test_dropping_waits_for_an_open_write(pool: Pool, settings: Settings) -> None:
    """Otherwise its price would never be deleted, or its candle would consist of this price alone."""
    await insert_schedule_rows(pool, [("btc_usd", MIDNIGHT, 60)])
    await insert_prices(pool, [example_price(MIDNIGHT), example_price(MIDNIGHT + 2 * DAY)])
    writer = await asyncpg.connect(settings.database_url)
    try:
        transaction = writer.transaction()
        await transaction.start()
        await writer.execute(
            "insert into prices (ticker, price, timestamp, observed_at, source, testnet) "
            "values ('btc_usd', 9, $1, $1, 'REQUESTED', true)",
            MIDNIGHT + SECOND,
        )
        moving = asyncio.create_task(move_kept_from(pool, TO, DAY))
        await until_waiting_for_writers(pool)
        assert await select_kept_from(pool, TICKERS) == {}
        await transaction.commit()
        assert await moving == {"btc_usd": MIDNIGHT + DAY}
    finally:
        await writer.close()
    assert await drop(pool) == {"btc_usd": 2}
    [candle] = await select_candles(pool, "btc_usd", CandleInterval.ONE_MINUTE, MIDNIGHT, MIDNIGHT, 9, TO)
    assert (candle.samples, str(candle.close)) == (2, "9")


async def test_the_next_worker_continues_after_a_kill(pool: Pool, settings: Settings) -> None:
    candles = await dropped_day(pool)
    await move_kept_from(pool, TO, timedelta(hours=1))
    await fetch(pool, "update dropped_prices set kept_from = $1", MIDNIGHT + 2 * DAY)
    stored, recorded = await select_all_prices(pool), await select_dropped(pool)
    writer = await asyncpg.connect(settings.database_url)
    try:
        async with writer.transaction():
            await writer.execute("lock table dropped_prices in share row exclusive mode")
            dropping = asyncio.create_task(drop_oldest_prices(pool, "btc_usd", 10))
            killed: list[Any] = []
            async with asyncio.timeout(20):
                while not killed:
                    killed = await fetch(
                        pool,
                        """
                        select pg_terminate_backend(pid)
                        from pg_stat_activity
                        where wait_event_type = 'Lock'
                          and query like '%delete from prices%'
                          and datname = current_database()
                        """,
                    )
                    await asyncio.sleep(0.01)
            with pytest.raises(StorageUnavailable):
                await dropping
    finally:
        await writer.close()
    assert (await select_all_prices(pool), await select_dropped(pool)) == (stored, recorded)
    assert await drop(pool, limit=10) == {"btc_usd": 24}
    assert await select_dropped(pool) == {"btc_usd": MIDNIGHT + 2 * DAY}
    assert await read_candles(pool) == candles


async def test_truncating_the_table_resets_retention(pool: Pool) -> None:
    await dropped_day(pool)
    await fetch(pool, "truncate prices")
    assert await select_dropped(pool) == {}
    assert await insert_prices(pool, [example_price(MIDNIGHT)]) == [example_price(MIDNIGHT)]


async def collect(worker: Worker, days: int) -> list[Price]:
    """A price every ten minutes until now, whole; the worker's grid is of minutes, so nine of ten are missing."""
    now = slot_of(datetime.now(UTC), MINUTE)
    slots = [now - MINUTE * 10 * n for n in range(days * 144)]
    prices = [example_price(slot, ticker=ticker) for slot in slots for ticker in TICKERS]
    await insert_schedule_rows(worker.pool, [(ticker, min(slots), 60) for ticker in TICKERS])
    await insert_prices(worker.pool, prices)
    return sorted(prices, key=lambda price: (price.ticker, price.timestamp))


def keeping(worker: Worker, days: int | None, **others: Any) -> dict[str, Any]:
    settings = worker.settings.model_copy(update={"retention_days": days, **others})
    return {"worker": replace(worker, settings=settings), "job_try": 1}


async def test_the_job_drops_and_says_so(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retention, "BATCH", 100)
    monkeypatch.setattr(retention, "PAUSE_SECONDS", 0)
    stored = await collect(worker, days=4)

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == retention.__name__]

    with caplog.at_level(logging.INFO):
        await drop_old_prices(keeping(worker, None))
        assert (await select_all_prices(worker.pool), said()) == (stored, [])
        await drop_old_prices(keeping(worker, 2))
    edge = slot_of(stored[-1].timestamp - 2 * DAY, DAY)
    stay = [price for price in stored if price.timestamp >= edge]
    gone = (len(stored) - len(stay)) // 2
    assert await select_all_prices(worker.pool) == stay
    assert said() == [
        f"{ticker}: {line}"
        for line in (
            f"prices before {edge.isoformat()} are dropped, RETENTION_DAYS is 2; their candles stay",
            f"{gone} prices from before {edge.isoformat()} dropped",
        )
        for ticker in TICKERS
    ]
    caplog.clear()
    await drop_old_prices(keeping(worker, 2))
    await drop_old_prices(keeping(worker, 3))
    assert (await select_all_prices(worker.pool), said()) == (stay, [])


async def test_a_worker_runs_the_job_when_its_time_has_come(worker: Worker) -> None:
    stored = await collect(worker, days=3)
    keeping_worker: Worker = keeping(worker, 1)["worker"]
    await enqueue_once(worker.redis, DROP_OLD_PRICES, [], "drop_old_prices:1", 60)
    await create_worker(keeping_worker, burst=True, handle_signals=False).run_check(max_burst_jobs=1)
    edge = slot_of(stored[-1].timestamp - DAY, DAY)
    assert await select_all_prices(worker.pool) == [price for price in stored if price.timestamp >= edge]


async def test_workers_at_once_and_one_that_runs_out_of_time_drop_each_price_once(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 20)
    monkeypatch.setattr(retention, "PAUSE_SECONDS", 0.001)
    stored = await collect(worker, days=4)
    candles = await read_candles(worker.pool)
    monkeypatch.setattr(retention, "BUDGET_SECONDS", 0.0001)
    await drop_old_prices(keeping(worker, 1))
    left = await select_all_prices(worker.pool)
    edge = slot_of(stored[-1].timestamp - DAY, DAY)
    assert left != stored
    assert min(price.timestamp for price in left) < edge
    monkeypatch.setattr(retention, "BUDGET_SECONDS", 10)
    new = [example_price(stored[-1].timestamp + SECOND * n, ticker=TICKERS[0]) for n in range(1, 20)]
    await asyncio.gather(
        *(drop_old_prices(keeping(worker, 1)) for _ in range(3)),
        *(insert_prices(worker.pool, [price]) for price in new),
    )
    await drop_old_prices(keeping(worker, 1))
    stay = [price for price in stored if price.timestamp >= edge]
    assert await select_all_prices(worker.pool) == sorted([*stay, *new], key=lambda p: (p.ticker, p.timestamp))
    assert await select_dropped(worker.pool) == dict.fromkeys(TICKERS, edge)
    found = await read_candles(worker.pool)
    for key, then in candles.items():
        assert [c for c in found[key] if c.start < edge] == [c for c in then if c.start < edge]


async def test_healing_leaves_what_was_dropped_alone(worker: Worker, simulator: Simulator) -> None:
    """Even if the look-back is longer than when they were dropped."""
    simulator.has_perpetuals = False
    await collect(worker, days=3)
    await drop_old_prices(keeping(worker, 1))
    edge = (await select_kept_from(worker.pool, TICKERS))["btc_usd"]
    await heal_gaps(keeping(worker, 9, heal_lookback_hours=9 * 24))
    prices = await select_all_prices(worker.pool)
    assert min(price.timestamp for price in prices) >= edge
    assert any(price.source is PriceSource.BACKFILLED for price in prices)
    assert await fetch(worker.pool, "select from unanswered_runs where first < $1", edge) == []


async def test_the_api_tells_what_was_dropped(api: Api, pool: Pool) -> None:
    await dropped_day(pool)
    answer = await api.execute(
        """
        query ($from: DateTime!, $to: DateTime!) {
          tickers { name firstTimestamp keptFrom }
          coverage(ticker: "btc_usd", fromDt: $from, toDt: $to) {
            expected present dropped ratio complete gaps { missing }
          }
          pricesInPeriod(ticker: "btc_usd", fromDt: $from, toDt: $from) { price }
          candles(ticker: "btc_usd", interval: ONE_DAY, fromDt: $from, toDt: $from) { samples complete }
        }
        """,
        {"from": MIDNIGHT.isoformat(), "to": (MIDNIGHT + 2 * DAY).isoformat()},
    )
    assert answer == {
        "data": {
            "tickers": [
                {
                    "name": "btc_usd",
                    "firstTimestamp": "2026-02-01T00:00:00.000000Z",
                    "keptFrom": "2026-02-01T00:00:00.000000Z",
                },
                {"name": "eth_usd", "firstTimestamp": "2026-01-31T00:00:00.000000Z", "keptFrom": None},
            ],
            "coverage": {
                "expected": 48,
                "present": 48,
                "dropped": 24,
                "ratio": 1.0,
                "complete": True,
                "gaps": [],
            },
            "pricesInPeriod": [],
            "candles": [{"samples": 24, "complete": True}],
        }
    }
