"""Which schedule is in force, when a ticker's schedule ends, and rows that a wrong clock wrote."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from shared.grid import slot_of
from shared.storage.coverage import Coverage
from shared.storage.database import Pool, fetch
from shared.storage.prices import insert_prices
from shared.storage.schedules import UNREPORTED, end_schedules, insert_schedules, report_collected
from tests.integration.examples import MINUTE, NOON, example_price, insert_schedule_rows
from tests.reads import select_coverage
from worker.context import Worker
from worker.jobs.healing import heal_gaps

TICKER = "btc_usd"
SECOND = timedelta(seconds=1)
HOUR = MINUTE * 60


async def select_schedules(pool: Pool) -> list[tuple[datetime, int]]:
    rows = await fetch(pool, "select since, interval_seconds from schedules where ticker = $1 order by since", TICKER)
    return [(row["since"], row["interval_seconds"]) for row in rows]


async def test_a_schedule_is_noted_once_and_again_when_its_interval_changes(pool: Pool) -> None:
    for since, interval in [(NOON, MINUTE), (NOON + MINUTE, MINUTE), (NOON + MINUTE * 2, SECOND)]:
        await insert_schedules(pool, [TICKER, "eth_usd"], since, interval)
    assert await select_schedules(pool) == [(NOON, 60), (NOON + MINUTE * 2, 1)]


@pytest.mark.parametrize("since", [NOON + MINUTE * 21, NOON + MINUTE * 60], ids=["earlier", "same"])
async def test_an_interval_changed_before_the_last_change_took_effect_is_the_one_that_counts(
    pool: Pool, since: datetime
) -> None:
    """An hourly schedule begins with the next hour; the operator goes back to minutes before that."""
    await insert_schedules(pool, [TICKER], NOON, MINUTE)
    await insert_schedules(pool, [TICKER], NOON + MINUTE * 60, MINUTE * 60)
    await insert_schedules(pool, [TICKER], since, MINUTE)
    two_to_three = (NOON + MINUTE * 120, NOON + MINUTE * 180, NOON + MINUTE * 300)
    assert await select_coverage(pool, TICKER, *two_to_three) == Coverage(60, 0)


@pytest.mark.parametrize("interval", [MINUTE, SECOND], ids=["same interval", "another interval"])
async def test_a_row_that_a_clock_from_the_future_wrote_gives_way(pool: Pool, interval: timedelta) -> None:
    await insert_schedules(pool, [TICKER], NOON + timedelta(days=400), interval)
    await insert_schedules(pool, [TICKER], NOON, MINUTE)
    assert await select_schedules(pool) == [(NOON, 60)]


async def test_a_row_of_the_future_does_not_hide_the_schedule_in_force(pool: Pool) -> None:
    await insert_schedules(pool, [TICKER], NOON, MINUTE)
    await insert_schedules(pool, [TICKER], NOON + timedelta(days=400), SECOND)
    await insert_schedules(pool, [TICKER], NOON + HOUR, MINUTE)
    assert await select_schedules(pool) == [(NOON, 60)]


async def test_workers_that_note_many_tickers_at_once_in_any_order_do_not_deadlock(pool: Pool) -> None:
    tickers = [f"t{n}_usd" for n in range(60)]
    for turn in range(5):
        since, interval = NOON + HOUR * turn, [MINUTE, SECOND][turn % 2]
        await asyncio.gather(
            *(insert_schedules(pool, tickers[::order], since, interval) for order in (1, -1, 1, -1, 1, -1))
        )
    rows = await fetch(pool, "select count(*) from schedules")
    assert rows[0][0] == 5 * len(tickers)


async def select_ends(pool: Pool) -> dict[str, datetime | None]:
    rows = await fetch(pool, "select distinct on (ticker) ticker, until from schedules order by ticker, since desc")
    return {row["ticker"]: row["until"] for row in rows}


async def let_reports_age(pool: Pool, age: timedelta) -> None:
    await fetch(pool, "update collected_tickers set reported_at = reported_at - $1::interval", age)


async def test_a_ticker_that_no_worker_reports_ends_after_its_last_report_and_price(pool: Pool) -> None:
    now = slot_of(datetime.now(UTC), MINUTE)
    names = ["btc_usd", "eth_usd", "sol_usd"]
    await insert_schedule_rows(pool, [(name, now - 2 * HOUR, 60) for name in names])
    assert await report_collected(pool, names) == []
    await let_reports_age(pool, HOUR)
    await insert_prices(pool, [example_price(now - MINUTE * 30, ticker="eth_usd")])
    await insert_prices(pool, [example_price(now - MINUTE, ticker="sol_usd")])  # by a worker that sends no reports
    ends = await end_schedules(pool)
    assert set(ends) == {"btc_usd", "eth_usd"}
    assert now - HOUR <= ends["btc_usd"] <= now - HOUR + 2 * MINUTE
    assert ends["eth_usd"] == now - MINUTE * 29
    assert await select_ends(pool) == {**ends, "sol_usd": None}
    assert await end_schedules(pool) == {}


async def test_what_a_worker_reports_has_no_end(pool: Pool) -> None:
    now = slot_of(datetime.now(UTC), MINUTE)
    await insert_schedule_rows(pool, [(TICKER, now - 2 * HOUR, 60)])
    await report_collected(pool, [TICKER])
    await let_reports_age(pool, UNREPORTED - MINUTE)
    assert await end_schedules(pool) == {}
    await let_reports_age(pool, HOUR)
    await report_collected(pool, [TICKER])
    assert await end_schedules(pool) == {}


async def test_a_ticker_that_comes_back_has_no_gap_where_it_was_not_collected(pool: Pool) -> None:
    end, back = NOON + HOUR, NOON + 3 * HOUR
    await insert_schedules(pool, [TICKER], NOON, MINUTE)
    await fetch(pool, "update schedules set until = $1", end)
    await insert_schedules(pool, [TICKER], back, MINUTE)
    await insert_schedules(pool, [TICKER], back + MINUTE, MINUTE)
    assert await select_schedules(pool) == [(NOON, 60), (back, 60)]
    until = back + HOUR
    assert await select_coverage(pool, TICKER, NOON, until, until) == Coverage(120, 0)
    assert await select_coverage(pool, TICKER, end, back, until) == Coverage(0, 0)
    [row] = await fetch(pool, "select first_fill_done from schedules where since = $1", back)
    assert row["first_fill_done"], "the time between is not filled"


async def test_an_end_that_was_noted_while_a_worker_could_not_report_is_taken_back(pool: Pool) -> None:
    """The worker collects the ticker since before the end: nothing that it should have collected is forgotten."""
    await insert_schedules(pool, [TICKER], NOON, MINUTE)
    await fetch(pool, "update schedules set until = $1", NOON + HOUR)
    assert await report_collected(pool, [TICKER]) == [TICKER]
    await insert_schedules(pool, [TICKER], NOON + MINUTE * 30, MINUTE)
    until = NOON + 2 * HOUR
    assert await select_coverage(pool, TICKER, NOON, until, until) == Coverage(120, 0)
    assert await report_collected(pool, [TICKER]) == []


async def test_a_worker_ends_what_is_not_collected_only_after_others_had_time_to_report(worker: Worker) -> None:
    now = slot_of(datetime.now(UTC), MINUTE)
    await insert_schedule_rows(worker.pool, [("doge_usd", now - 5 * HOUR, 60)])
    await heal_gaps({"worker": worker, "job_try": 1})
    assert (await select_ends(worker.pool))["doge_usd"] is None
    worker.clock._started -= UNREPORTED.total_seconds() + 1
    await heal_gaps({"worker": worker, "job_try": 1})
    ends = await select_ends(worker.pool)
    assert ends == {**dict.fromkeys(worker.settings.tickers), "doge_usd": ends["doge_usd"]}
    assert ends["doge_usd"] is not None
