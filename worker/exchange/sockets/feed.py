"""The messages of one index, and which of them answers a slot.

The index is recomputed about once a second, at any moment within the second. So in a slot of a second the message may
come late, and HTTP is not asked while it is still due. When it is due, the gaps between the last messages tell.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from operator import sub

from worker.exchange.http import Observation

PERIOD = timedelta(seconds=1)
"From one message to the next, until enough have come."
MAX_SKEW = timedelta(seconds=2)
"Between our clock and a message's. A message that differs by more is not used."

_MAX_MESSAGES = 64
"A slot's job asks up to a minute after the slot has begun."
_LONGEST_WAIT = timedelta(seconds=5)
"For the first message of a long slot: HTTP needs the rest of the job's time."
_LATE = timedelta(seconds=0.2)
"How much later than it is due a message may arrive."
_GAPS, _OUTAGE = 16, 1.5 * PERIOD
"How many gaps between messages tell when the next is due. A longer one is an outage, and does not count."
_EDGE = timedelta(seconds=0.005)
"A message that is due closer than this to the slot's end may as well belong to the next slot."
_NEVER = datetime.min.replace(tzinfo=UTC)


class Feed:
    def __init__(self, ticker: str) -> None:
        self.ticker = ticker
        self.arrived_at = _NEVER
        "When the newest message arrived, by our clock."
        self._messages: list[Observation] = []
        "Ascending by the exchange's clock, each instant once."
        self._changed = asyncio.Event()

    def add(self, observation: Observation, arrived_at: datetime) -> bool:
        """Returns false for a repeat, as from the second socket."""
        instant = observation.observed_at
        place = bisect_left(self._messages, instant, key=_instant)
        if place < len(self._messages) and self._messages[place].observed_at == instant:
            return False
        self._messages.insert(place, observation)
        del self._messages[:-_MAX_MESSAGES]
        if self._messages[-1] is observation:
            self.arrived_at = arrived_at
        self.wake()
        return True

    @property
    def has_messages(self) -> bool:
        return bool(self._messages)

    def wake(self) -> None:
        """Let `first_in` look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def first_in(
        self,
        slot: datetime,
        interval: timedelta,
        now: Callable[[], datetime],
        is_open: Callable[[], bool],
        until: datetime | None = None,
    ) -> Observation | None:
        """The first message of [slot, slot + interval), awaited while it is due, or `until`; `None`: ask over HTTP.

        `is_open`: whether a socket has this index. If it closes, call `wake`.
        """
        while (found := self.find(slot, interval)) is None and is_open():
            seconds = ((until or self.wait_until(slot, interval)) - now()).total_seconds()
            if seconds <= 0 or self.newest >= slot + interval:
                return None
            try:
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
            except TimeoutError:
                return self.find(slot, interval)
        return found

    def find(self, slot: datetime, interval: timedelta) -> Observation | None:
        place = bisect_left(self._messages, slot, key=_instant)
        if place < len(self._messages) and self._messages[place].observed_at < slot + interval:
            return self._messages[place]
        return None

    def wait_until(self, slot: datetime, interval: timedelta) -> datetime:
        """Until half the slot. Longer, if the next message is due later and still in the slot."""
        half = slot + min(interval / 2, _LONGEST_WAIT)
        gap = self._longest_gap()
        due, end = self.arrived_at + gap + _LATE, slot + interval
        is_in_slot = self.newest + gap < end - _EDGE
        return due if is_in_slot and half < due <= end + _LATE * 2 else half

    def _longest_gap(self) -> timedelta:
        """Of the last messages. The longest, because a message awaited in vain is a slot lost, and HTTP a request."""
        last = [message.observed_at for message in self._messages[-_GAPS - 1 :]]
        gaps = [gap for gap in map(sub, last[1:], last) if gap < _OUTAGE]
        return max(gaps) if len(gaps) > _GAPS / 2 else PERIOD

    @property
    def newest(self) -> datetime:
        """By the exchange's clock."""
        return self._messages[-1].observed_at if self._messages else _NEVER


def _instant(observation: Observation) -> datetime:
    return observation.observed_at
