"""What the exchange says of itself (`platform_state`): an index is locked, or there is a maintenance."""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from worker.exchange.errors import printable

LASTS = timedelta(seconds=5)
"A price so long after a state ends it, because the message of its end may be lost. An earlier one was on its way."

_ALL = ""
"In the place of an index."


class PlatformStates:
    """`now`: our clock."""

    def __init__(self, tickers: Collection[str], now: Callable[[], datetime]) -> None:
        self._tickers = tickers
        self._now = now
        self._states: dict[str, tuple[str, datetime]] = {}
        "Of an index or of all, and since when."

    def note(self, state: Mapping[str, Any]) -> None:
        match state:
            case {"maintenance": True}:
                self._states[_ALL] = "MAINTENANCE: the exchange announced a maintenance", self._now()
            case {"maintenance": False}:
                self._states.pop(_ALL, None)
            case {"price_index": str(ticker), "locked": True} if ticker in self._tickers:
                reasons = state.get("reasons")
                told = ", ".join(filter(None, map(printable, reasons[:3] if isinstance(reasons, list) else [])))
                told = f"INDEX_LOCKED: the exchange has locked this index{told and ': '}{told}"
                self._states[ticker] = told, self._now()
            case {"price_index": str(ticker), "locked": False} if ticker in self._tickers:
                self._states.pop(ticker, None)

    def note_price(self, ticker: str) -> None:
        """A price of the index has come."""
        for name in (_ALL, ticker):
            if name in self._states and self._now() - self._states[name][1] > LASTS:
                del self._states[name]

    def of(self, ticker: str) -> str | None:
        """Why the index has no prices, if the exchange said so."""
        state = self._states.get(_ALL) or self._states.get(ticker)
        return state[0] if state else None
