"""`heal_gaps` with the simulator's trades and its chart: which source answers, and what replaces what."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import arq
import httpx
import pytest

from shared.grid import slot_of
from shared.queue.spacing import hold_requests, lock
from shared.storage.prices import Price, PriceSource, insert_prices
from tests.integration.examples import MINUTE, example_price, select_all_prices
from tests.integration.jobs.test_healing import HOUR, averaged, charts_asked_for, collect
from tests.reads import select_coverage, select_gaps
from tests.unit.replies import reply
from worker.context import Worker
from worker.exchange.background import HEALING
from worker.exchange.chart import NO_POINT
from worker.exchange.errors import DeribitError
from worker.exchange.http import create_http, get_result
from worker.exchange.trades import NO_TRADE
from worker.jobs import healing
from worker.jobs.healing import heal_gaps
from worker.simulator.app import Simulator
from worker.simulator.faults import Fault
from worker.simulator.trades import perpetual_of, trades_between

TRADES = "get_last_trades_by_instrument_and_time"
CHART = "get_index_chart_data"


def traded(slot: datetime, interval: timedelta = MINUTE, ticker: str = "btc_usd") -> Price | None:
    """The slot's price by the first of the simulator's trades in it."""
    start, end = (round(at.timestamp() * 1000) for at in (slot, slot + interval))
    instrument = perpetual_of(ticker)
    assert instrument is not None
    first = next(trades_between(instrument, start, end - 1, 1), None)
    if first is None:
        return None
    at = slot + timedelta(milliseconds=first["timestamp"] - start)
    return Price(ticker, first["index_price"], slot, at, PriceSource.RECOVERED, testnet=True)


def busy_minutes(now: datetime, count: int, ticker: str = "btc_usd") -> list[datetime]:
    """Minutes of the last half hour that have trades; now and then one has none."""
    minutes = [now - MINUTE * n for n in range(3, 30)]
    return [minute for minute in minutes if traded(minute, ticker=ticker)][:count]


async def test_an_outage_is_healed_in_one_run_by_observed_prices_also_without_the_chart(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    simulator.faults.put("*", Fault("bad_gateway", None, 0, (CHART,)))
    now = slot_of(datetime.now(UTC), MINUTE)
    missing = {ticker: busy_minutes(now, 3, ticker) for ticker in ("btc_usd", "eth_usd")}
    observed = [await collect(worker, ticker, now - HOUR, slots) for ticker, slots in missing.items()]

    await heal_gaps(ctx)

    healed = [traded(slot, ticker=ticker) for ticker, slots in missing.items() for slot in slots]
    expected = [*observed[0], *observed[1], *(price for price in healed if price)]
    assert len(healed) == 6
    assert await select_all_prices(worker.pool) == sorted(expected, key=lambda p: (p.ticker, p.timestamp))
    assert charts_asked_for(simulator) == {}


async def test_what_no_trade_answers_is_asked_of_the_chart_and_the_rest_has_both_reasons(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    """On a grid of seconds the chart, with a point every 6 s, is too coarse."""
    second = timedelta(seconds=1)
    worker.settings = worker.settings.model_copy(update={"fetch_interval_seconds": 1, "tickers": ("btc_usd",)})
    [gap] = busy_minutes(slot_of(datetime.now(UTC), MINUTE), 1)
    missing = [gap + second * n for n in range(60)]
    await collect(worker, "btc_usd", gap - MINUTE, missing)

    await heal_gaps(ctx)

    found = [price for slot in missing if (price := traded(slot, second))]
    stored = [price for price in await select_all_prices(worker.pool) if price.source is not PriceSource.SCHEDULED]
    assert stored == found
    assert 5 < len(found) < 55
    gaps = await select_gaps(worker.pool, "btc_usd", gap, gap + MINUTE, gap + MINUTE, 100)
    assert sum(one.missing for one in gaps) == len(missing) - len(found)
    assert {one.detail for one in gaps} == {f"{NO_TRADE}; {NO_POINT}"}
    asked = dict(simulator.requests)

    await heal_gaps(ctx)
    assert dict(simulator.requests) == asked


async def test_while_trades_cannot_be_read_the_chart_heals(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    simulator.faults.put("*", Fault("bad_gateway", None, 0, (TRADES,)))
    now = slot_of(datetime.now(UTC), MINUTE)
    missing = [now - MINUTE * n for n in (7, 8)]
    await collect(worker, "btc_usd", now - HOUR, missing)
    await heal_gaps(ctx)
    stored = [price for price in await select_all_prices(worker.pool) if price.source is PriceSource.BACKFILLED]
    assert stored == [averaged(slot, 6) for slot in sorted(missing)]


async def test_averages_of_an_outage_of_trades_are_replaced_when_trades_answer_again(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    now = slot_of(datetime.now(UTC), MINUTE)
    quiet = next(now - MINUTE * n for n in range(30, 1200) if not traded(now - MINUTE * n))
    missing = sorted([*busy_minutes(now, 3), quiet])
    await collect(worker, "btc_usd", quiet - MINUTE, missing)
    simulator.faults.put("*", Fault("bad_gateway", None, 0, (TRADES,)))
    await heal_gaps(ctx)
    covered = await select_coverage(worker.pool, "btc_usd", quiet, now, now)
    assert (covered.expected - covered.present, covered.averaged) == (0, 4)

    simulator.faults.remove("*")
    await hold_requests(worker.redis, 0)
    await heal_gaps(ctx)
    stored = {price.timestamp: price for price in await select_all_prices(worker.pool)}
    assert [stored[slot] for slot in missing if slot != quiet] == [traded(slot) for slot in missing if slot != quiet]
    assert stored[quiet].source is PriceSource.BACKFILLED
    assert await select_coverage(worker.pool, "btc_usd", quiet, now, now) == replace(covered, averaged=1)

    asked = simulator.requests[TRADES, "btc_usd"]
    await heal_gaps(ctx)
    assert simulator.requests[TRADES, "btc_usd"] == asked, "trades have nothing for the quiet minute, and never will"


async def test_a_better_source_replaces_a_worse_one_and_never_the_other_way(worker: Worker) -> None:
    """In one statement, in every order."""
    slot = slot_of(datetime.now(UTC), MINUTE) - HOUR
    rank = {PriceSource.SCHEDULED: 0, PriceSource.REQUESTED: 0, PriceSource.RECOVERED: 1, PriceSource.BACKFILLED: 2}
    number = 0
    for stored in PriceSource:
        for fresh in PriceSource:
            number += 1
            at = slot - number * MINUTE
            old, new = (
                example_price(at, digits, source=source) for digits, source in (("1.5", stored), ("2.5", fresh))
            )
            await insert_prices(worker.pool, [old])
            replaced = await insert_prices(worker.pool, [new])
            is_better = rank[fresh] < rank[stored]
            assert replaced == ([new] if is_better else []), (stored, fresh)
            [kept] = [price for price in await select_all_prices(worker.pool) if price.timestamp == at]
            assert kept == (new if is_better else old)
            # In one batch the best source wins, and of equals the first observation.
            both = [example_price(at - timedelta(days=1), p.price.to_eng_string(), source=p.source) for p in (old, new)]
            assert await insert_prices(worker.pool, both) == [both[1] if is_better else both[0]]


async def test_at_most_five_requests_a_second_reach_the_exchange_and_none_during_a_live_one(worker: Worker) -> None:
    """Over all workers, and also when several wait for the same live request to end."""
    loop = asyncio.get_running_loop()
    sent: list[float] = []
    live: list[bool] = [False]

    def answer(request: httpx.Request) -> httpx.Response:
        assert not live[0]
        sent.append(loop.time())
        return httpx.Response(200, content=reply('{"trades":[],"has_more":false}'))

    async def ask(one: Worker) -> None:
        for _ in range(4):
            async with one.background.request(TRADES):
                await get_result(one.http, TRADES, {})

    async with create_http(worker.settings, httpx.MockTransport(answer)) as http:
        workers = [replace(worker, http=http, name=f"tests:{number}") for number in (1, 2)]
        asking = asyncio.gather(*(ask(one) for one in workers * 2))
        while not asking.done():
            with workers[0].background.live(), workers[1].background.live():
                live[0] = True
                await asyncio.sleep(0.15)
                live[0] = False
            await asyncio.sleep(0.25)
        await asking
    assert len(sent) == 16
    assert max(sum(at <= other < at + 1 for other in sent) for at in sent) <= 5


async def test_a_refusal_holds_back_the_requests_of_all_workers(worker: Worker) -> None:
    loop = asyncio.get_running_loop()
    second = Worker(worker.settings, worker.pool, worker.redis, worker.http, name="tests:2")
    with pytest.raises(DeribitError):
        async with worker.background.request(TRADES):
            raise DeribitError("RPC_10028", "too_many_requests")
    refused = loop.time()
    async with second.background.request(TRADES):
        assert 0.9 < loop.time() - refused < 3


async def test_a_run_out_of_time_goes_on_in_the_next_try(
    worker: Worker, ctx: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healing, "BUDGET_SECONDS", 0.0)
    now = slot_of(datetime.now(UTC), MINUTE)
    [missing] = busy_minutes(now, 1)
    await collect(worker, "btc_usd", now - HOUR, [missing])
    with pytest.raises(arq.Retry):
        await heal_gaps(ctx)
    monkeypatch.setattr(healing, "BUDGET_SECONDS", 5.0)
    await heal_gaps(ctx)
    assert traded(missing) in await select_all_prices(worker.pool)


async def test_healing_leaves_a_run_of_another_worker_alone(
    worker: Worker, simulator: Simulator, ctx: dict[str, Any]
) -> None:
    now = slot_of(datetime.now(UTC), MINUTE)
    observed = await collect(worker, "btc_usd", now - HOUR, [now - 5 * MINUTE])
    assert await lock(worker.redis, HEALING, "another")
    await heal_gaps(ctx)
    assert await select_all_prices(worker.pool) == observed
    assert dict(simulator.requests) == {}
