"""`heal_gaps` with the simulator's chart alone: what it fills, what it leaves open, and which charts it requests."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import arq
import httpx
import pytest

from shared.grid import slot_of
from shared.queue.deferred import defer
from shared.queue.spacing import hold_requests, is_locked
from shared.storage.database import fetch
from shared.storage.gaps import select_missing_runs
from shared.storage.missed_slots import GapReason, MissedSlot, MissingRun, insert_missed_slots
from shared.storage.prices import Price, PriceSource, insert_prices
from tests.integration.examples import (
    MINUTE,
    example_price,
    insert_schedule_rows,
    select_all_missed_slots,
    select_all_prices,
    select_unanswered,
)
from tests.reads import select_gaps
from tests.unit.replies import reply
from worker.context import Worker
from worker.exchange.background import HEALING
from worker.exchange.chart import NO_POINT
from worker.exchange.http import create_http
from worker.exchange.trades import NO_PERPETUAL
from worker.jobs import healing
from worker.jobs.healing import heal_gaps
from worker.runner import create_worker
from worker.simulator.app import Simulator
from worker.simulator.faults import Fault
from worker.simulator.prices import chart_price

HOUR = timedelta(hours=1)
TICKERS = ("btc_usd", "eth_usd")
RECENT, OLDER = 6, 60
"The chart's spacing in seconds: in the last hour, and before."


@pytest.fixture(autouse=True)
def _no_perpetuals(simulator: Simulator) -> None:
    """Nothing but the chart knows the past."""
    simulator.has_perpetuals = False


def averaged(slot: datetime, spacing: int, ticker: str = "btc_usd") -> Price:
    """The chart's price for a slot at which one of its points begins."""
    price = chart_price(ticker, slot, spacing)
    return Price(ticker, price, slot, slot, PriceSource.BACKFILLED, testnet=True)


async def collect(worker: Worker, ticker: str, since: datetime, missing: Sequence[datetime]) -> list[Price]:
    """A history of observations from `since` until after the test's end, without the missing slots."""
    count = int((datetime.now(UTC) + 2 * MINUTE - since) / worker.interval)
    slots = [since + worker.interval * n for n in range(count)]
    prices = [example_price(slot, ticker=ticker) for slot in slots if slot not in missing]
    await insert_schedule_rows(worker.pool, [(ticker, since, int(worker.interval.total_seconds()))])
    await insert_prices(worker.pool, prices)
    return prices


def charts_asked_for(simulator: Simulator) -> dict[str, int]:
    return {ticker: count for (method, ticker), count in simulator.requests.items() if method == "get_index_chart_data"}


async def test_gaps_are_filled_from_the_chart_with_one_request_per_ticker_and_range(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    now = slot_of(datetime.now(UTC), MINUTE)
    recent = [now - MINUTE * n for n in (5, 6, 9, 20)]
    older = [now - MINUTE * n for n in (70, 90, 91, 110)]
    observed = await collect(worker, "btc_usd", now - 2 * HOUR, recent + older)
    others = await collect(worker, "eth_usd", now - 2 * HOUR, recent)
    # A recorded reason does not prevent healing.
    await insert_missed_slots(worker.pool, [MissedSlot("btc_usd", recent[0], GapReason.EXCHANGE_ERROR, "HTTP_502: x")])

    await heal_gaps(ctx)

    healed = [averaged(slot, RECENT) for slot in recent] + [averaged(slot, OLDER) for slot in older]
    healed += [averaged(slot, RECENT, "eth_usd") for slot in recent]
    expected = sorted(observed + others + healed, key=lambda price: (price.ticker, price.timestamp))
    assert await select_all_prices(worker.pool) == expected
    assert dict(simulator.requests) == {
        ("get_instruments", ""): 1,
        ("get_index_chart_data", "btc_usd"): 2,
        ("get_index_chart_data", "eth_usd"): 1,
    }
    for ticker in TICKERS:
        assert await select_gaps(worker.pool, ticker, now - 2 * HOUR, now, now, 10) == []

    await heal_gaps(ctx)
    assert charts_asked_for(simulator) == {"btc_usd": 2, "eth_usd": 1}


async def test_a_chart_coarser_than_the_grid_fills_nothing_and_is_not_requested_again(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    step = timedelta(seconds=10)
    worker.settings = worker.settings.model_copy(update={"fetch_interval_seconds": 10, "tickers": ("btc_usd",)})
    gap = slot_of(datetime.now(UTC), MINUTE) - MINUTE * 90
    missing = [gap + step * n for n in range(18)]
    known = MissedSlot("btc_usd", missing[1], GapReason.EXCHANGE_ERROR, "HTTP_502: bad")
    observed = await collect(worker, "btc_usd", gap - MINUTE, missing)
    await insert_missed_slots(worker.pool, [known])

    await heal_gaps(ctx)

    assert await select_all_prices(worker.pool) == observed
    assert await select_all_missed_slots(worker.pool) == [known]
    assert await select_unanswered(worker.pool) == [(gap, missing[-1] + step)]
    why = f"{NO_PERPETUAL}; {NO_POINT}"
    gaps = await select_gaps(worker.pool, "btc_usd", gap, missing[-1] + step, datetime.now(UTC), 10)
    assert [(one.from_dt, one.missing, one.reason, one.detail) for one in gaps] == [
        (gap, 1, GapReason.NOT_COLLECTED, why),
        (known.slot, 1, known.reason, known.detail),
        (missing[2], 16, GapReason.NOT_COLLECTED, why),
    ]
    assert charts_asked_for(simulator) == {"btc_usd": 1}
    for name, count in {"healed": 0, "recovered": 0, "unanswered": 18}.items():
        metric = f"deribit_collector_slots_{name}_total"
        assert worker.metrics.registry.get_sample_value(metric, {"ticker": "btc_usd"}) == count

    await heal_gaps(ctx)
    assert charts_asked_for(simulator) == {"btc_usd": 1}


def charts(**points: Sequence[datetime]) -> tuple[httpx.MockTransport, list[str]]:
    """An exchange without perpetuals whose chart of a range has these points, and the ranges that were requested."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if "range" not in request.url.params:
            return httpx.Response(200, content=reply("[]"))
        asked.append(request.url.params["range"])
        times = points.get("_" + asked[-1], [])
        entries = ",".join(f"[{round(at.timestamp() * 1000)},91000.5]" for at in times)
        return httpx.Response(200, content=reply(f"[{entries}]"))

    return httpx.MockTransport(answer), asked


async def test_a_slot_is_unanswered_when_no_chart_around_it_has_a_point(worker: Worker, ctx: dict[str, Any]) -> None:
    worker.settings = worker.settings.model_copy(update={"tickers": ("btc_usd",)})
    now = slot_of(datetime.now(UTC), MINUTE)
    missing = [now - MINUTE * n for n in (50, 40, 30, 20)]
    observed = await collect(worker, "btc_usd", now - HOUR, missing)
    minutes = [now - MINUTE * n for n in range(59, -1, -1)]
    hour = [at for at in minutes if at not in missing[:3]]
    day = [at - 23 * HOUR for at in minutes] + [at for at in minutes[:25] if at != missing[0]]  # ends 35 minutes ago
    transport, asked = charts(_1h=hour, _1d=day)
    async with create_http(worker.settings, transport) as http:
        ctx["worker"] = replace(worker, http=http)
        await heal_gaps(ctx)
        assert asked == ["1h", "1d", "2d"], "the hour's holes are looked for in the next charts"
        healed = {missing[1], missing[3]}
        assert {p.timestamp for p in await select_all_prices(worker.pool)} == {p.timestamp for p in observed} | healed
        # An empty chart, or one that ends before the slot, is no answer.
        assert await select_unanswered(worker.pool) == []


async def test_a_slot_that_every_fine_chart_left_open_is_unanswered(worker: Worker, ctx: dict[str, Any]) -> None:
    worker.settings = worker.settings.model_copy(update={"tickers": ("btc_usd",)})
    now = slot_of(datetime.now(UTC), MINUTE)
    missing = [now - MINUTE * 40, now - MINUTE * 39]
    await collect(worker, "btc_usd", now - HOUR, missing)
    minutes = [now - MINUTE * n for n in range(59, -1, -1) if now - MINUTE * n not in missing]
    coarse = [now - HOUR * n for n in range(47, -1, -1)]
    transport, asked = charts(_1h=minutes, _1d=minutes, _2d=coarse)
    async with create_http(worker.settings, transport) as http:
        ctx["worker"] = replace(worker, http=http)
        await heal_gaps(ctx)
        assert asked == ["1h", "1d", "2d"]
        assert await select_unanswered(worker.pool) == [(missing[0], missing[1] + MINUTE)]
        await heal_gaps(ctx)
        assert asked == ["1h", "1d", "2d"]


async def test_a_day_of_missed_seconds_costs_the_event_loop_no_more_than_an_hour(
    worker: Worker, ctx: dict[str, Any]
) -> None:
    """86,400 slots, each with a reason of its own, are one run."""
    worker.settings = worker.settings.model_copy(
        update={"fetch_interval_seconds": 1, "heal_lookback_hours": 23, "tickers": ("btc_usd",)}
    )
    now = slot_of(datetime.now(UTC), timedelta(seconds=1))
    since = now - 30 * HOUR
    await insert_schedule_rows(worker.pool, [("btc_usd", since, 1)])
    await fetch(
        worker.pool,
        """
        insert into missed_slots (ticker, slot, reason, detail)
        select 'btc_usd', slot, 'EXCHANGE_ERROR', 'HTTP_502: ' || extract(second from slot)::int % 2
        from generate_series($1::timestamptz, $2, '1 second') as slot
        """,
        now - 24 * HOUR,
        now,
        timeout=30,
    )
    [run] = await select_missing_runs(worker.pool, "btc_usd", now - 24 * HOUR, now, now)
    assert run == MissingRun(now - 24 * HOUR, now, timedelta(seconds=1))

    day = [now - MINUTE * n for n in range(1439, -1, -1)]
    transport, asked = charts(_1h=day[-60:], _1d=day)
    async with create_http(worker.settings, transport) as http:
        ctx["worker"] = replace(worker, http=http)
        cpu = time.process_time()
        await heal_gaps(ctx)
        assert time.process_time() - cpu < 0.5
        assert asked == ["1h", "1d"]
        assert len(await select_unanswered(worker.pool)) == 5, "six hours at a time, the newest of them in two charts"
        assert await select_all_prices(worker.pool) == []


async def test_a_pass_heals_the_newest_runs_and_the_next_pass_the_others(worker: Worker) -> None:
    now = slot_of(datetime.now(UTC), MINUTE)
    await collect(worker, "btc_usd", now - HOUR, [now - MINUTE * n for n in (10, 20, 21, 30)])
    period = (now - HOUR, now, now)
    assert await select_missing_runs(worker.pool, "btc_usd", *period, limit=2) == [
        MissingRun(now - MINUTE * 10, now - MINUTE * 9, MINUTE),
        MissingRun(now - MINUTE * 21, now - MINUTE * 19, MINUTE),
    ]


@pytest.mark.parametrize("kind", ["bad_gateway", "maintenance", "wrong_shape", "nan", "half_json"])
async def test_a_chart_that_cannot_be_read_is_read_in_the_next_run(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any], kind: str
) -> None:
    now = slot_of(datetime.now(UTC), MINUTE)
    missing = [now - MINUTE * n for n in (8, 7, 3)]
    observed = [await collect(worker, ticker, now - MINUTE * 10, missing) for ticker in TICKERS]
    simulator.faults.put("btc_usd", Fault(kind, None, 0))

    await heal_gaps(ctx)
    others = [averaged(slot, RECENT, "eth_usd") for slot in missing]
    half = sorted(observed[0] + observed[1] + others, key=lambda price: (price.ticker, price.timestamp))
    assert await select_all_prices(worker.pool) == half
    assert await select_all_missed_slots(worker.pool) == []
    assert charts_asked_for(simulator) == {"btc_usd": 1, "eth_usd": 1}

    simulator.faults.remove("btc_usd")
    await heal_gaps(ctx)
    healed = [averaged(slot, RECENT) for slot in missing]
    assert await select_all_prices(worker.pool) == sorted(half + healed, key=lambda p: (p.ticker, p.timestamp))
    assert charts_asked_for(simulator) == {"btc_usd": 2, "eth_usd": 1}


async def test_healing_waits_for_deferred_prices_and_leaves_them_to_their_job(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    now = slot_of(datetime.now(UTC), MINUTE)
    await collect(worker, "btc_usd", now - HOUR, [now - MINUTE * 5])
    late = example_price(now - MINUTE * 5)
    await defer(worker.redis, [late], [])
    before = await select_all_prices(worker.pool)

    await heal_gaps(ctx)
    assert (await select_all_prices(worker.pool), charts_asked_for(simulator)) == (before, {})
    assert await create_worker(worker, burst=True, handle_signals=False).run_check() == 1
    assert late in await select_all_prices(worker.pool)
    await heal_gaps(ctx)
    assert late in await select_all_prices(worker.pool)


async def test_two_workers_that_heal_at_once_leave_one_row_for_each_slot(worker: Worker, ctx: dict[str, Any]) -> None:
    now = slot_of(datetime.now(UTC), MINUTE)
    missing = [now - MINUTE * n for n in range(40, 1, -1)]
    observed = await collect(worker, "btc_usd", now - HOUR, missing)
    others = await collect(worker, "eth_usd", now - HOUR, missing)
    second = replace(worker, name="tests:2", requests=asyncio.Semaphore(4))

    await asyncio.gather(heal_gaps(ctx), heal_gaps(ctx | {"worker": second}), heal_gaps(ctx))

    healed = [averaged(slot, RECENT, ticker) for ticker in TICKERS for slot in missing]
    expected = sorted(observed + others + healed, key=lambda price: (price.ticker, price.timestamp))
    assert await select_all_prices(worker.pool) == expected


async def test_a_piece_that_the_exchange_holds_up_is_left_to_the_next_run(
    worker: Worker, ctx: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healing, "LONGEST_SECONDS", 0.3)
    now = slot_of(datetime.now(UTC), MINUTE)
    await collect(worker, "btc_usd", now - HOUR, [now - 5 * MINUTE])
    await hold_requests(worker.redis, 30)  # the exchange refused, so nothing may be asked
    with pytest.raises(arq.Retry):
        await heal_gaps(ctx)
    assert not await is_locked(worker.redis, HEALING)
