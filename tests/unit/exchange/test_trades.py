"""The exchange's trades as a source of past slots, against a stand-in that has every oddity of the real one."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.storage.missed_slots import MissingRun
from shared.storage.prices import Price, PriceSource
from tests.unit.replies import settings_for, unspaced
from worker.exchange.errors import DeribitError
from worker.exchange.http import create_http
from worker.exchange.runs import count, without
from worker.exchange.source import Known
from worker.exchange.trades import NO_PERPETUAL, NO_TRADE, NOT_TRADED_YET, RECENT, Trades

START = datetime(2026, 1, 31, tzinfo=UTC)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
START_MS = int(START.timestamp() * 1000)
CREATED_MS = START_MS - 3_600_000

Row = tuple[int, int, str]
"Milliseconds after `START`, sequence, index price."


@dataclass
class Exchange:
    """Trades of one perpetual, in pages that are shuffled and hold rows of other times."""

    rows: list[Row]
    page: int = 1000
    strays: int = 0
    seed: int = 1
    asked: list[httpx.Request] = field(default_factory=list)

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        method = request.url.path.rpartition("/")[2]
        result = self.instruments() if method == "get_instruments" else self.trades(dict(request.url.params))
        return httpx.Response(200, content=f'{{"jsonrpc":"2.0","result":{result},"testnet":true}}')

    def instruments(self) -> str:
        common = {"kind": "future", "price_index": "btc_usd", "is_active": True, "creation_timestamp": CREATED_MS}
        perpetual = common | {"instrument_name": "BTC-PERPETUAL", "settlement_period": "perpetual"}
        others = [
            common | {"instrument_name": "BTC-26DEC25", "settlement_period": "month"},
            perpetual | {"instrument_name": "BTC-OLD", "is_active": False, "creation_timestamp": 1},
            perpetual | {"instrument_name": "ETH-PERPETUAL", "price_index": "eth_usd"},
            perpetual | {"instrument_name": "BTC2-PERPETUAL", "creation_timestamp": CREATED_MS + 1},
            {"instrument_name": "broken"},
            None,
        ]
        return json.dumps([*others, perpetual])

    def trades(self, params: dict[str, str]) -> str:
        assert params["instrument_name"] == "BTC-PERPETUAL"
        assert params["sorting"] == "asc"
        start, end = (int(params[f"{bound}_timestamp"]) - START_MS for bound in ("start", "end"))
        assert start <= end
        inside = sorted((row for row in self.rows if start <= row[0] <= end), key=lambda row: row[0])
        size = min(self.page, int(params["count"]))
        given = inside[:size]
        outside = [row for row in self.rows if not start <= row[0] <= end][: self.strays]
        mixed = [*given, *outside]
        random.Random(self.seed).shuffle(mixed)
        rows = ",".join(
            f'{{"timestamp":{START_MS + ms},"trade_seq":{sequence},"index_price":{price},"price":1.5}}'
            for ms, sequence, price in mixed
        )
        return f'{{"trades":[{rows}],"has_more":{json.dumps(len(inside) > size)}}}'


async def recall(exchange: Exchange, *runs: MissingRun, ticker: str = "btc_usd") -> list[Known]:
    async with create_http(settings_for(), httpx.MockTransport(exchange.answer)) as http:
        trades = Trades(http, "https://history.deribit.com/api/v2", unspaced(http))
        return [known async for known in trades.recall(ticker, runs)]


def run(first: int, slots: int, interval: timedelta = MINUTE) -> MissingRun:
    """`first`: seconds after `START`."""
    at = START + timedelta(seconds=first)
    return MissingRun(at, at + slots * interval, interval)


def slots_of(run: MissingRun) -> Iterator[datetime]:
    slot = run.first
    while slot < run.end:
        yield slot
        slot += run.interval


def recovered(slot: datetime, row: Row) -> Price:
    at = START + timedelta(milliseconds=row[0])
    return Price("btc_usd", Decimal(row[2]), slot, at, PriceSource.RECOVERED, testnet=True)


def expected(rows: list[Row], runs: list[MissingRun]) -> tuple[list[Price], list[datetime]]:
    """By a search over every trade."""
    prices, empty = [], []
    for slot, interval in [(slot, run.interval) for run in runs for slot in slots_of(run)]:
        low = (slot - START) / timedelta(milliseconds=1)
        inside = [row for row in rows if low <= row[0] < low + interval / timedelta(milliseconds=1)]
        if inside:
            prices.append(recovered(slot, min(inside)))
        else:
            empty.append(slot)
    return prices, empty


rows_of_trades = st.lists(st.integers(-30_000, 400_000), max_size=60).map(
    lambda times: [(ms, number, f"9{number:04}.5") for number, ms in enumerate(times)]
)


@given(
    rows_of_trades,
    st.sets(st.integers(0, 40), min_size=1),
    st.sampled_from((1, 5, 60)),
    st.integers(1, 12),
    st.integers(0, 3),
    st.integers(0, 9),
)
@settings(max_examples=200, deadline=None)
async def test_each_price_is_the_first_trade_of_its_slot(
    rows: list[Row], wanted: set[int], seconds: int, page: int, strays: int, seed: int
) -> None:
    interval = timedelta(seconds=seconds)
    whole = run(0, 41, interval)
    runs = without([whole], [whole.first + n * interval for n in range(41) if n not in wanted])
    exchange = Exchange(rows, page, strays, seed)

    known = await recall(exchange, *runs)

    prices = [price for one in known for price in one.prices]
    empty = [slot for one in known for empty_run in one.empty for slot in slots_of(empty_run)]
    assert (prices, empty) == expected(rows, runs)
    assert len(exchange.asked) <= 1 + len(wanted), "each request decides at least one slot"


async def test_a_page_that_is_one_millisecond_does_not_stop_the_reading() -> None:
    burst = [(5_000, number, f"{number + 1}") for number in range(40)]
    exchange = Exchange([*burst, (61_000, 99, "7.25")], page=10)
    known = await recall(exchange, run(0, 2))
    assert [price for one in known for price in one.prices] == [
        recovered(START, burst[0]),
        recovered(START + MINUTE, (61_000, 99, "7.25")),
    ]


async def test_a_slot_whose_trades_begin_in_the_last_millisecond_of_a_page_is_asked_for_again() -> None:
    """The first of them may be in the next page, because only their milliseconds are in order."""
    early = [(1_000 * n, n, "1.5") for n in range(8)]
    shared = [(60_000, 30 - n, f"{n + 2}") for n in range(4)]
    exchange = Exchange([*early, *shared], page=10)
    known = await recall(exchange, run(0, 2))
    assert [price for one in known for price in one.prices] == [
        recovered(START, early[0]),
        recovered(START + MINUTE, shared[-1]),
    ]


async def test_a_fine_grid_is_read_page_by_page() -> None:
    rows = [(ms, ms, "2.5") for ms in range(0, 3_600_000, 1_000)]
    exchange = Exchange(rows)
    known = await recall(exchange, run(0, 60))
    assert sum(len(one.prices) for one in known) == 60
    assert len(exchange.asked) == 1 + 4


async def test_a_coarse_grid_is_read_slot_by_slot_with_small_pages() -> None:
    rows = [(ms, ms, "2.5") for ms in range(0, 4 * 3_600_000, 1_000) if not 3_600_000 <= ms < 7_200_000]
    exchange = Exchange(rows)
    known = await recall(exchange, run(0, 4, timedelta(hours=1)))
    assert [price.timestamp.hour for one in known for price in one.prices] == [0, 2, 3]
    assert [one.empty for one in known if one.empty] == [[run(3600, 1, timedelta(hours=1))]]
    counts = [request.url.params["count"] for request in exchange.asked[1:]]
    assert counts == ["1000", "10", "1000", "10"]


async def test_nothing_is_asked_from_before_the_perpetual() -> None:
    exchange = Exchange([])
    early = run(-7200, 60)
    known = await recall(exchange, early)
    assert known == [Known([], [early], NOT_TRADED_YET)]
    assert len(exchange.asked) == 1


async def test_an_index_without_a_perpetual_has_no_trades() -> None:
    assert await recall(Exchange([]), run(0, 3), ticker="sol_usd") == [Known([], [run(0, 3)], NO_PERPETUAL)]


async def test_recent_trades_are_asked_of_the_normal_host_and_old_ones_of_the_history_host() -> None:
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    runs = [MissingRun(at, at + MINUTE, MINUTE) for at in (now - RECENT - MINUTE, now - 10 * MINUTE)]
    exchange = Exchange([])
    for one in runs:
        assert await recall(exchange, one) == [Known([], [one], NO_TRADE)]
    hosts = [request.url.host for request in exchange.asked]
    assert hosts == ["www.deribit.com", "history.deribit.com", "www.deribit.com", "www.deribit.com"]
    assert str(exchange.asked[1].url).startswith("https://history.deribit.com/api/v2/public/get_last_trades_by_")


async def test_a_slot_that_has_just_ended_may_still_get_a_trade() -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    recent = MissingRun(now - 20 * SECOND, now, SECOND)
    [known] = await recall(Exchange([]), recent)
    assert 9 <= count(known.empty) <= 11
    assert known.empty[0].first == recent.first


@pytest.mark.parametrize(
    "result",
    [
        "[]",
        '{"trades":[]}',
        '{"trades":[],"has_more":"no"}',
        '{"trades":[],"has_more":true}',
        '{"trades":[{"timestamp":1,"index_price":2.5}],"has_more":true}',
        f'{{"trades":[{{"timestamp":{START_MS},"index_price":NaN}}],"has_more":false}}',
        f'{{"trades":[{{"timestamp":{START_MS}}}],"has_more":false}}',
    ],
)
async def test_a_page_that_makes_no_sense_is_an_error(result: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = Exchange([])
    monkeypatch.setattr(exchange, "trades", lambda _: result)
    with pytest.raises(DeribitError, match="BAD_REPLY"):
        await recall(exchange, run(0, 1))


async def test_one_bad_row_does_not_make_the_others_useless(monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = Exchange([])
    rows: list[Any] = [None, {"timestamp": START_MS, "index_price": 0}, {"timestamp": START_MS + 5, "index_price": 3}]
    other = {"timestamp": START_MS + 1, "index_price": 9, "instrument_name": "ETH-PERPETUAL"}
    monkeypatch.setattr(
        exchange, "trades", lambda _: json.dumps({"trades": [*rows, other], "has_more": False}, allow_nan=True)
    )
    [known] = await recall(exchange, run(0, 1))
    assert known.prices == [recovered(START, (5, 0, "3"))]


async def test_the_list_of_instruments_is_asked_for_daily_and_kept_if_it_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exchange = Exchange([])
    clock = [1000.0]
    monkeypatch.setattr("worker.exchange.trades.time", SimpleNamespace(monotonic=lambda: clock[0]))
    is_broken = False

    def answer(request: httpx.Request) -> httpx.Response:
        reply = exchange.answer(request)
        return httpx.Response(502) if is_broken else reply

    async with create_http(settings_for(), httpx.MockTransport(answer)) as http:
        trades = Trades(http, "https://history.test", unspaced(http))
        found = await trades.perpetual("btc_usd")
        assert found is not None
        assert (found.name, found.created) == ("BTC-PERPETUAL", START - timedelta(hours=1))
        clock[0] += 86_000
        assert await trades.perpetual("btc_usd") == found
        assert len(exchange.asked) == 1
        is_broken = True
        clock[0] += 1_000
        assert await trades.perpetual("btc_usd") == found
        assert len(exchange.asked) == 2
