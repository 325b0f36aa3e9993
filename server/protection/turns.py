"""Cooperative scheduling: work in Python that many tasks have at once is spread over iterations of the event loop.

All of it shares one time slice an iteration. What does not fit waits in one FIFO queue, and other work of the loop is
done in between.
"""

import asyncio
from collections import deque
from time import monotonic

SLICE_SECONDS = 0.005
"After this much time in an iteration of the event loop, tasks wait for the next one."

MAX_RELEASED = 32
"Tasks that are woken in one iteration. Those that find its slice used up wait again, before all others."

Future = asyncio.Future[None]


class Turns:
    """One for each kind of work in a process. Use it on the event loop only."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Future, float]] = deque()
        self._woken: deque[tuple[Future, float]] = deque()
        self._began: float | None = None
        "When the first task of this iteration began."
        self._is_scheduled = False

    async def take(self) -> None:
        """Before each piece of work. Returns at once if the iteration has time left and no other task waits."""
        if self._waiting or self._woken or self._is_over():
            turn = asyncio.get_running_loop().create_future()
            self.queue([turn])
            await self.wait(turn)

    def are_due(self) -> bool:
        """Whether work that begins now must `take` a turn. If not, the work counts towards the slice."""
        return bool(self._woken or self._waiting) or self._is_over()

    @property
    def waited(self) -> float:
        """Seconds for which the task that is next has waited."""
        queue = self._woken or self._waiting
        return monotonic() - queue[0][1] if queue else 0.0

    def queue(self, turns: list[Future]) -> None:
        """Results are set when it is their turn."""
        now = monotonic()
        self._waiting.extend((turn, now) for turn in turns)
        self._schedule()

    async def wait(self, turn: Future) -> None:
        """`turn`: given to `queue`, or to be given."""
        arrived = monotonic()
        await turn
        while self._is_over():
            turn = asyncio.get_running_loop().create_future()
            self._woken.append((turn, arrived))
            await turn

    def _is_over(self) -> bool:
        """Whether the slice of this iteration is used up."""
        now = monotonic()
        if self._began is None:
            self._began = now
            self._schedule()
            return False
        return now - self._began > SLICE_SECONDS

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._end_iteration)

    def _end_iteration(self) -> None:
        self._began, self._is_scheduled = None, False
        released = 0
        while released < MAX_RELEASED and (queue := self._woken or self._waiting):
            turn, _ = queue.popleft()
            if not turn.done():  # its task was cancelled
                turn.set_result(None)
                released += 1
        if released:
            self._schedule()  # behind the tasks that were woken


class Signal:
    """Wakes all tasks that wait for it, in turns: thousands of followers have work at the same event."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._waiting: dict[Future, None] = {}

    def set(self) -> None:
        """For those that wait now, and no later ones."""
        waiting, self._waiting = list(self._waiting), {}
        if waiting:
            self._turns.queue(waiting)

    async def wait(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        try:
            await self._turns.wait(turn)
        finally:
            self._waiting.pop(turn, None)
