"""What jobs know of the exchange: sources that observe a ticker now, and sources that know past slots.

`http.py` observes; `trades.py` and `chart.py` know the past. Nothing else asks the exchange for prices.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from shared.storage.missed_slots import MissingRun
from shared.storage.prices import Price
from worker.exchange.http import Observation as Observation


@dataclass(frozen=True, slots=True)
class Known:
    """What one reply tells of the slots asked for. A slot that is in neither list may still get an answer later.

    `empty`: the source has nothing for these slots and never will; `why` says so in words. It ascends.
    """

    prices: list[Price]
    empty: list[MissingRun]
    why: str = ""


class Live(Protocol):
    async def observe(self, ticker: str) -> Observation:
        """The price now, one attempt. Raises `DeribitError`."""
        ...


class Past(Protocol):
    name: str

    async def known_from(self, ticker: str) -> datetime | None:
        """The instant from which it may know every slot, on any grid; `None` for never. Raises `DeribitError`."""
        ...

    def recall(self, ticker: str, runs: Sequence[MissingRun]) -> AsyncIterator[Known]:
        """What is known of these slots, which ascend, reply by reply. Raises `DeribitError`."""
        ...
