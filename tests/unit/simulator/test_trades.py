"""The simulator's trades: they agree with its prices, and their pages have the oddities of the real exchange's."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx

from tests.unit.simulator.test_simulator import SEED, exchange, read_exactly
from worker.simulator.prices import spot_price
from worker.simulator.trades import CREATED_MS, trades_between

__all__ = ["exchange"]

NAME = "BTC-PERPETUAL"
HOUR_MS = 3_600_000
NOON_MS = round(datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp() * 1000)


async def ask(http: httpx.AsyncClient, start: int, end: int, count: int, host: str = "") -> tuple[list[Any], bool]:
    query = f"instrument_name={NAME}&start_timestamp={start}&end_timestamp={end}&count={count}&sorting=asc"
    reply = await http.get(f"{host}/api/v2/public/get_last_trades_by_instrument_and_time?{query}")
    result = read_exactly(reply)["result"]
    return result["trades"], result["has_more"]


def test_each_trade_has_the_index_price_of_its_second_and_they_come_in_bursts() -> None:
    trades = list(trades_between(NAME, NOON_MS, NOON_MS + 6 * HOUR_MS - 1, SEED))
    for trade in trades[::50]:
        second = datetime.fromtimestamp(trade["timestamp"] // 1000, UTC)
        assert trade["index_price"] == spot_price("btc_usd", second, SEED)
    assert 1.0 < len(trades) / (6 * 3600) < 1.5
    assert [t["trade_seq"] for t in trades] == sorted({t["trade_seq"] for t in trades})
    assert [t["timestamp"] for t in trades] == sorted(t["timestamp"] for t in trades)
    assert len({t["timestamp"] // 1000 for t in trades}) < 0.6 * 6 * 3600, "many seconds have none"
    assert Counter(t["timestamp"] for t in trades).most_common(1)[0][1] >= 10, "trades share a millisecond"


async def test_pages_are_out_of_order_with_a_stray_row_and_together_have_every_trade(
    exchange: httpx.AsyncClient,
) -> None:
    end = NOON_MS + HOUR_MS // 4
    found: dict[Decimal, Any] = {}
    start, has_more, is_disordered, strays = NOON_MS, True, False, 0
    while has_more:
        rows, has_more = await ask(exchange, start, end, 200)
        inside = [row for row in rows if start <= row["timestamp"] <= end]
        strays += len(rows) - len(inside)
        is_disordered |= inside != sorted(inside, key=lambda row: row["timestamp"])
        found |= {row["trade_seq"]: row for row in inside}
        # From the last millisecond on, inclusive: some of its trades may be in the next page.
        start = int(max(row["timestamp"] for row in inside))
    assert is_disordered
    assert strays > 0
    every = {Decimal(trade["trade_seq"]) for trade in trades_between(NAME, NOON_MS, end, SEED)}
    assert found.keys() == every


async def test_the_normal_host_has_recent_trades_only(exchange: httpx.AsyncClient) -> None:
    await exchange.put("/simulator/trades", json={"recent_hours": 24, "traps": False})
    old = round((datetime.now(UTC) - timedelta(days=3)).timestamp() * 1000)
    assert await ask(exchange, old, old + HOUR_MS, 10) == ([], False)
    rows, has_more = await ask(exchange, old, old + HOUR_MS, 10, "/history")
    assert (len(rows), has_more) == (10, True)


async def test_an_index_has_one_active_perpetual_among_other_instruments(exchange: httpx.AsyncClient) -> None:
    reply = await exchange.get("/api/v2/public/get_instruments?currency=any&kind=future")
    of_btc = [one for one in reply.json()["result"] if one["price_index"] == "btc_usd"]
    assert {(one["settlement_period"], one["is_active"]) for one in of_btc} == {
        ("perpetual", True),
        ("perpetual", False),
        ("month", True),
    }
    [name] = [o["instrument_name"] for o in of_btc if o["settlement_period"] == "perpetual" and o["is_active"]]
    assert (name, of_btc[0]["creation_timestamp"]) == (NAME, CREATED_MS)
