"""The invariants of a history after any fault, computed here and not by the code under test."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from shared.grid import from_microseconds
from tests.faults.stack import Stack, slots
from worker.simulator.prices import chart_price
from worker.simulator.trades import perpetual_of, trades_between

CHART_SPACINGS = (6, 60, 3600)


@dataclass(frozen=True)
class History:
    """Slots that have ended since the schedule began, over all tickers."""

    expected: int
    observed: int
    healed: int
    missing: int
    reasons: frozenset[tuple[str, str | None]]


async def check_history(stack: Stack, end: datetime | None = None) -> History:
    """Compare every stored row with what the exchange sent, and the API's coverage with a recount."""
    start, end = await stack.since(), end or stack.current_slot()
    interval = timedelta(seconds=stack.interval)
    totals: Counter[str] = Counter()
    reasons: set[tuple[str, str | None]] = set()
    for ticker in stack.tickers:
        rows = await stack.rows(
            "select timestamp, price, observed_at, source::text, testnet from prices where ticker = $1", ticker
        )
        assert len(rows) == len({row["timestamp"] for row in rows})
        given = {(from_microseconds(g["usOut"]), Decimal(g["price"])) for g in await stack.given(ticker)}
        present = set()
        for row in rows:
            slot, observed_at = row["timestamp"], row["observed_at"]
            assert row["testnet"] is True
            if row["source"] == "BACKFILLED":
                assert abs(observed_at - slot) <= interval / 2
                charted = {
                    chart_price(ticker, observed_at, s) for s in CHART_SPACINGS if observed_at.timestamp() % s == 0
                }
                assert row["price"] in charted, row
            elif row["source"] == "RECOVERED":
                first, last = (round(at.timestamp() * 1000) for at in (slot, slot + interval))
                trade = next(trades_between(perpetual_of(ticker) or "", first, last - 1, seed=1))
                assert row["price"] == trade["index_price"], row
                assert observed_at == from_microseconds(trade["timestamp"] * 1000), row
            else:
                assert (observed_at, row["price"]) in given, row
            if row["source"] == "SCHEDULED":
                assert slot <= observed_at < slot + interval, row
            if start <= slot < end and (slot - start) % interval == timedelta(0):
                present.add(slot)
                totals[row["source"]] += 1
        expected = slots(start, end, stack.interval)
        missing = sorted(set(expected) - present)
        coverage = await stack.coverage(ticker, start, end)
        assert (coverage["expected"], coverage["present"]) == (len(expected), len(present)), stack.logs()
        assert coverage["complete"] is (not missing)
        told = [
            slot
            for gap in coverage["gaps"]
            for slot in slots(
                datetime.fromisoformat(gap["fromDt"]), datetime.fromisoformat(gap["toDt"]), stack.interval
            )
        ]
        assert told == missing
        assert sum(gap["missing"] for gap in coverage["gaps"]) == len(missing)
        reasons |= {(gap["reason"], gap["detail"]) for gap in coverage["gaps"]}
        totals["expected"] += len(expected)
        totals["missing"] += len(missing)
    return History(
        expected=totals["expected"],
        observed=totals["SCHEDULED"] + totals["REQUESTED"],
        healed=totals["BACKFILLED"] + totals["RECOVERED"],
        missing=totals["missing"],
        reasons=frozenset(reasons),
    )
