"""A ticker that the exchange does not have is a fault of the configuration: logged once, and reported to the API."""

from typing import Any

import pytest

from shared.queue.worker_registry import report_worker, select_unknown_indices
from tests.integration.examples import select_all_missed_slots, select_all_prices
from tests.integration.jobs.test_slots import arguments_of, running_slot
from worker.context import Worker
from worker.exchange.errors import DeribitError
from worker.exchange.index_check import check_tickers
from worker.jobs.healing import heal_gaps
from worker.jobs.slots import fetch_slot
from worker.simulator.app import Simulator

TICKERS = ("btc_usd", "bct_usd")
LINE = "index bct_usd does not exist at the exchange"
NEAR = "; near ones: btc_usd, bch_usd, btc_usdt"


@pytest.fixture(autouse=True)
def _misspelt(worker: Worker) -> None:
    worker.settings = worker.settings.model_copy(update={"tickers": TICKERS})


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "bct_usd" in record.getMessage()]


async def test_an_unknown_index_is_logged_once_and_its_slots_keep_their_reason(
    worker: Worker, ctx: dict[str, Any], simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    await check_tickers(worker)
    slot = await running_slot(worker, seconds_left=4)
    await fetch_slot(ctx, *arguments_of(ctx, slot))
    await fetch_slot(ctx, *arguments_of(ctx, slot))
    await heal_gaps(ctx)
    assert said(caplog) == [LINE + NEAR]
    assert simulator.requests["get_index_price_names", ""] == 1
    assert {price.ticker for price in await select_all_prices(worker.pool)} == {"btc_usd"}
    [missed] = await select_all_missed_slots(worker.pool)
    assert (missed.ticker, missed.slot, missed.detail) == ("bct_usd", slot, "RPC_-32602: Invalid params invalid index")

    await report_worker(worker.redis, worker.name, worker.unknown_indices)
    assert await select_unknown_indices(worker.redis, TICKERS) == {"bct_usd": ["btc_usd", "bch_usd", "btc_usdt"]}


async def test_an_unknown_index_is_found_by_its_error_if_the_start_could_not_ask(
    worker: Worker, ctx: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    slot = await running_slot(worker, seconds_left=4)
    await fetch_slot(ctx, *arguments_of(ctx, slot))
    assert said(caplog) == [LINE + NEAR]


async def test_without_the_list_of_names_only_the_near_ones_are_missing(
    worker: Worker, ctx: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: object) -> list[str]:
        raise DeribitError("HTTP_502", "reply is not a JSON-RPC envelope")

    monkeypatch.setattr("worker.exchange.index_check.get_index_names", fail)
    await check_tickers(worker)
    assert said(caplog) == []
    slot = await running_slot(worker, seconds_left=4)
    await fetch_slot(ctx, *arguments_of(ctx, slot))
    await fetch_slot(ctx, *arguments_of(ctx, slot))
    assert said(caplog) == [LINE]
    assert {price.ticker for price in await select_all_prices(worker.pool)} == {"btc_usd"}


async def test_an_index_that_has_a_price_is_known(worker: Worker, ctx: dict[str, Any]) -> None:
    worker.unknown_indices["btc_usd"] = []
    await fetch_slot(ctx, *arguments_of(ctx, await running_slot(worker, seconds_left=4)))
    assert list(worker.unknown_indices) == ["bct_usd"]
