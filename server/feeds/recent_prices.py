"""The newest prices in the order of storing: one log for all subscribers, each of which has an index into it.

A place counts from the first price ever logged. A position is a price's place in the database's order of storing.
"""

from bisect import bisect_right
from collections.abc import Sequence

from shared.cursor import BEGINNING, Position
from shared.storage.price_log import Stored

BATCH = 20
"Prices for one subscriber before it yields to the others."


class TooSlow(Exception):
    """The log no longer holds the subscriber's next price."""


class RecentPrices:
    """`limit`: how many prices are kept at least, once there have been as many.

    After a restore, or a failover that lost prices, positions come again. Then the log restarts: a new generation,
    whose positions are in order again. Subscribers go on at their places, so they see what was stored since.
    """

    def __init__(self, limit: int, page: int) -> None:
        """`page`: how many more than `limit` there may be, so that prices are removed many at a time."""
        self._limit = limit
        self._page = page
        self._stored: list[Stored] = []
        self._removed = 0
        self._restart = 0
        "The place at which the present generation began."
        self.begin = BEGINNING
        "The log holds every price of the present generation that was stored after this position."
        self.end = BEGINNING
        self.generation = 0
        self.restarted_at = BEGINNING
        "The position at which the present generation began."

    @property
    def next_place(self) -> int:
        return self._removed + len(self._stored)

    def add(self, stored: Sequence[Stored]) -> None:
        self._stored += stored
        self.end = stored[-1].position
        if len(self._stored) > self._limit + self._page:
            surplus = len(self._stored) - self._limit
            last_removed = self._stored[surplus - 1].position
            del self._stored[:surplus]
            self._removed += surplus
            if self._removed > self._restart:
                self.begin = last_removed

    def restart(self, position: Position) -> None:
        """The prices behind this position are no longer in the database, or were stored anew."""
        self.generation += 1
        self._restart = self.next_place
        self.begin = self.end = self.restarted_at = position

    def positions(self) -> list[Position]:
        """Of the present generation."""
        return [stored.position for stored in self._stored[self._first() :]]

    def place_after(self, position: Position) -> int | None:
        """The place of the first price that was stored after this position; `None` if the log does not reach it."""
        if not self.begin <= position <= self.end:
            return None
        first = self._first()
        return self._removed + bisect_right(self._stored, position, lo=first, key=lambda stored: stored.position)

    def has(self, position: Position) -> bool:
        place = self.place_after(position)
        index = 0 if place is None else place - self._removed
        return index > self._first() and self._stored[index - 1].position == position

    def batch(self, place: int) -> Sequence[Stored]:
        """The next prices, none at the end of the log. Raises `TooSlow`.

        It never splits a timestamp: a client that reconnects with it as `since` would miss the rest.
        """
        start = place - self._removed
        if start < 0:
            raise TooSlow
        log = self._stored
        end = min(start + BATCH, len(log))
        while 0 < end < len(log) and log[end].price.timestamp == log[end - 1].price.timestamp:
            end += 1
        return log[start:end]

    def _first(self) -> int:
        return max(self._restart - self._removed, 0)
