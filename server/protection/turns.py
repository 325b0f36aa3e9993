"""Cooperative scheduling: work in Python that many tasks have at once is spread over iterations of the event loop.

All of it shares one time slice an iteration: the events of all subscriptions, the messages of all sockets, and the rows
of answers that are not compiled. What does not fit waits in one FIFO queue, and requests are answered in between.
"""

import asyncio
from collections import deque
from time import monotonic

SLICE_SECONDS = 0.005
"After this much time in an iteration of the event loop, tasks wait for the next one."

MAX_RELEASED = 64
"Tasks that are woken in one iteration. Those that find its slice used up wait again, before all others."


class Turns:
    """One for each process. Use it on the event loop only."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[asyncio.Future[None], float]] = deque()
        self._woken: deque[tuple[asyncio.Future[None], float]] = deque()
        self._began: float | None = None

    async def take(self) -> None:
        """Before each piece of work. Returns at once if the iteration has time left and no other task waits."""
        arrived = monotonic()
        queue = self._waiting
        while True:
            if self._began is None:
                self._begin(monotonic())
                return
            if (not self._waiting or queue is self._woken) and monotonic() - self._began <= SLICE_SECONDS:
                return
            turn = asyncio.get_running_loop().create_future()
            queue.append((turn, arrived))
            queue = self._woken
            await turn

    def are_due(self) -> bool:
        """Whether work that begins now must `take` a turn. If not, the work counts towards the slice."""
        if self._began is None:
            self._begin(monotonic())
        return bool(self._woken or self._waiting) or monotonic() - self._began > SLICE_SECONDS  # type: ignore[operator]

    @property
    def waited(self) -> float:
        """Seconds for which the task that is next has waited."""
        queue = self._woken or self._waiting
        return monotonic() - queue[0][1] if queue else 0.0

    def _begin(self, now: float) -> None:
        self._began = now
        asyncio.get_running_loop().call_soon(self._end_iteration)

    def _end_iteration(self) -> None:
        self._began = None
        if not self._woken and not self._waiting:
            return
        self._begin(monotonic())
        for _ in range(MAX_RELEASED):
            queue = self._woken or self._waiting
            if not queue:
                return
            turn, _ = queue.popleft()
            if not turn.done():  # its task was cancelled
                turn.set_result(None)
