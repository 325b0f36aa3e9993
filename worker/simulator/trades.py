"""The simulator's trades: a pure function of seed, perpetual and second, like its prices.

Each trade carries the index price of its second. About 1.2 a second, in bursts: most seconds are quiet, some have forty
trades that share a few milliseconds, and now and then a whole minute has none. Pages have what clients stumble over at
the real exchange: rows that are not in order, and a row from outside the range.
"""

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from worker.simulator.prices import EPOCH, KNOWN_TICKERS, spot_price

CREATED_MS: Final = 1_534_204_800_000
"2018-08-14, as recorded for BTC-PERPETUAL."

MAX_COUNT: Final = 1_000
_TRADES_BELOW: Final = ((150, 0), (200, 1), (232, 2), (248, 4), (254, 8), (256, 40))
"A second's hashed byte below … -> how many trades it has: 1.2 on average."
_QUIET_MINUTE: Final = 512
_SEQUENCES_PER_SECOND: Final = 64

_WITHOUT_PERPETUAL: Final = frozenset({"btcdvol_usdc", "ethdvol_usdc"})


def perpetual_of(ticker: str) -> str | None:
    """`BTC-PERPETUAL` for `btc_usd`, `SOL_USDC-PERPETUAL` for `sol_usdc`; not every index has one."""
    base, _, quote = ticker.rpartition("_")
    if quote not in {"usd", "usdc"} or ticker in _WITHOUT_PERPETUAL or (quote == "usd" and base not in {"btc", "eth"}):
        return f"{base.upper()}-PERPETUAL" if base.startswith("sim") else None
    return f"{base.upper()}-PERPETUAL" if quote == "usd" else f"{base.upper()}_USDC-PERPETUAL"


def ticker_of(instrument: str) -> str | None:
    """The index of a perpetual, or `None` for an instrument that does not exist."""
    name = instrument.removesuffix("-PERPETUAL").lower()
    ticker = name if name.endswith("_usdc") else f"{name}_usd"
    return ticker if perpetual_of(ticker) == instrument else None


def instruments() -> list[dict[str, Any]]:
    """Futures of every index that has them: the perpetual, one that is no longer active, and one that expires."""
    found = []
    for ticker in (*KNOWN_TICKERS, *(f"sim{number}_usd" for number in range(20))):
        name = perpetual_of(ticker)
        if name is None:
            continue
        for suffix, period, is_active in (("-OLD", "perpetual", False), ("-25DEC26", "month", True), ("", "", True)):
            found.append(
                {
                    "instrument_name": name.removesuffix("-PERPETUAL") + suffix if suffix else name,
                    "kind": "future",
                    "price_index": ticker,
                    "settlement_period": period or "perpetual",
                    "is_active": is_active,
                    "creation_timestamp": CREATED_MS,
                    "tick_size": Decimal("0.5"),
                }
            )
    return found


def trades_between(instrument: str, start_ms: int, end_ms: int, seed: int) -> Iterator[dict[str, Any]]:
    """Every trade in [start, end], in order."""
    ticker = ticker_of(instrument) or ""
    for second in range(max(start_ms, CREATED_MS) // 1000, end_ms // 1000 + 1):
        for trade in _second_trades(instrument, ticker, second, seed):
            if start_ms <= trade["timestamp"] <= end_ms:
                yield trade


def page(
    instrument: str, start_ms: int, end_ms: int, count: int, seed: int, *, has_traps: bool
) -> tuple[list[dict[str, Any]], bool]:
    """The earliest `count` trades of the range, and whether it has more."""
    rows: list[dict[str, Any]] = []
    has_more = False
    for trade in trades_between(instrument, start_ms, end_ms, seed):
        if len(rows) == count:
            has_more = True
            break
        rows.append(trade)
    if has_traps and rows:
        rows.sort(key=lambda trade: blake2b(trade["trade_id"].encode(), digest_size=4).digest())
        if stray := next(trades_between(instrument, end_ms + 1, end_ms + 60_000, seed), None):
            rows.insert(len(rows) // 2, stray)
    return rows, has_more


@lru_cache(maxsize=16_384)
def _minute_bytes(instrument: str, minute: int, seed: int) -> bytes:
    """A byte for each second of the minute, which says how many trades it has; of a quiet minute all are zero."""
    first = blake2b(f"{seed} {instrument} trades {minute}".encode(), digest_size=64).digest()
    return bytes(60) if int.from_bytes(first[60:62]) % _QUIET_MINUTE == 0 else first[:60]


@lru_cache(maxsize=65_536)
def _second_trades(instrument: str, ticker: str, second: int, seed: int) -> tuple[dict[str, Any], ...]:
    byte = _minute_bytes(instrument, second // 60, seed)[second % 60]
    count = next(trades for below, trades in _TRADES_BELOW if byte < below)
    if not count:
        return ()
    marks = blake2b(f"{seed} {instrument} second {second}".encode(), digest_size=16).digest()
    price = spot_price(ticker, EPOCH + timedelta(seconds=second), seed)
    # A burst falls on a few milliseconds; single trades are spread.
    offsets = sorted((marks[number % 4] if count > 4 else marks[number % 16]) * 1000 // 256 for number in range(count))
    return tuple(
        {
            "trade_seq": second * _SEQUENCES_PER_SECOND + number,
            "trade_id": f"{second * _SEQUENCES_PER_SECOND + number}",
            "timestamp": second * 1000 + offset,
            "price": price + Decimal(number % 3 - 1) / 2,
            "mark_price": price,
            "index_price": price,
            "instrument_name": instrument,
            "direction": "buy" if number % 2 else "sell",
            "amount": Decimal(10 * (number + 1)),
        }
        for number, offset in enumerate(offsets)
    )
