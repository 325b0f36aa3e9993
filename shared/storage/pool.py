"""A process's connections to PostgreSQL: few, opened when first needed, the one used last used next.

asyncpg has a pool of its own, and takes 30 µs to hand a connection out and take it back: a task that is shielded, a
proxy, a reset. No statement here changes its session, so a list does; that is a third of what the smallest query costs.
Nor has a statement a timer: deadlines are looked at twenty times a second, all at once.
"""

import asyncio
import contextlib
import contextvars
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

import asyncpg

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
else:  # the real one takes no parameters
    Connection = asyncpg.Connection

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 0.05
_CLOSE_SECONDS = 1.0
_IDLE_SECONDS = 300.0
"What lies idle for longer may have been dropped on the way, by something that does not say so."

_HEARD_SECONDS = 1.0
"Who has answered within the last second is there."

_CLOSED = "the pool is closed"


class Pool:
    """`size` is the most connections it opens; who comes when all are in use waits, in order.

    A deadline is a time of `time.monotonic`. A connection that has not come back by then is closed, under whoever has
    it. `only_reads`: nothing is changed through it, so that a statement whose server is lost may be run again.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], size: int, *, only_reads: bool = False) -> None:
        self.only_reads = only_reads
        self._connect = connect
        self._size = size
        self._open = 0
        self._idle: list[tuple[Connection, float]] = []
        self._lent: dict[Connection, float] = {}
        self._outdated: set[Connection] = set()
        self._waiting: deque[tuple[asyncio.Future[Connection | None], float, float]] = deque()
        "With the deadline, and since when."
        self.waited = 0.0
        "Seconds that the first in line has waited, as of the last look at the deadlines."
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._overdue: dict[Connection, float] = {}
        self._settling: set[asyncio.Task[None]] = set()
        self.waits = 0
        "How often a connection had to be waited for."
        self.waits_in_vain = 0
        "Until the deadline."
        self.cut_off = 0
        "Connections that did not come back by their deadline."
        # Kept, for to ask for the running loop is a system call.
        self._loop: asyncio.AbstractEventLoop

    @property
    def size(self) -> int:
        return self._size

    @property
    def open(self) -> int:
        """Those that are being opened, too."""
        return self._open

    @property
    def in_use(self) -> int:
        return len(self._lent)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Those in use are closed when they are given back."""
        self._size = 0
        idle, self._idle = self._idle, []
        for future, _, _ in self._waiting:
            if not future.done():
                future.set_exception(asyncpg.InterfaceError(_CLOSED))
        self._open -= len(idle)
        # At once, for a pooler may keep each of them waiting until its time is over.
        await asyncio.gather(*(_close(connection) for connection, _ in idle))

    def take_idle(self, deadline: float) -> Connection | None:
        """The connection used last, unless none is idle. It must come back with `give_back`."""
        while self._idle:
            connection, since = self._idle.pop()
            if not connection.is_closed() and time.monotonic() - since < _IDLE_SECONDS:
                self._lend(connection, deadline)
                return connection
            connection.terminate()
            self._open -= 1
        return None

    async def take(self, deadline: float) -> Connection:
        """As `take_idle`; opens one, or waits for one. Raises `TimeoutError`, and what connecting raises."""
        if not self._size:
            raise asyncpg.InterfaceError(_CLOSED)
        if not self._open:
            self._loop = asyncio.get_running_loop()
        while True:
            connection = self.take_idle(deadline)
            if connection is None and self._open < self._size:
                async with asyncio.timeout(deadline - time.monotonic()):
                    connection = await self._open_one()
                self._lend(connection, deadline)
            connection = connection or await self._wait(deadline)
            if connection is not None:
                return connection

    def give_back(self, connection: Connection) -> None:
        del self._lent[connection]
        if connection.is_closed() or not self._size or (self._outdated and connection in self._outdated):
            self._outdated.discard(connection)
            self._open -= 1
            connection.terminate()
            self._wake(None)
        elif not self._wake(connection):
            self._idle.append((connection, time.monotonic()))

    def give_back_settled(self, connection: Connection) -> None:
        """Once the statement that was cancelled on it has ended; at its deadline in any case."""
        task = self._loop.create_task(self._settle(connection))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    def renew(self) -> None:
        """Use none of the connections again that there are now: they lead to a server that is not the right one."""
        self._drop_idle(time.monotonic())
        self._outdated.update(self._lent)

    def connections(self) -> list[Connection]:
        return [*(connection for connection, _ in self._idle), *self._lent]

    def _drop_idle(self, since: float) -> None:
        """Those that have not been used after `since`."""
        for connection, used in self._idle:
            if used <= since:
                connection.terminate()
                self._open -= 1
        self._idle = [(connection, used) for connection, used in self._idle if used > since]

    async def _settle(self, connection: Connection) -> None:
        try:
            await connection.fetch("select")  # asyncpg waits for the confirmation first
        except (OSError, asyncpg.InterfaceError, asyncpg.PostgresError):
            connection.terminate()
        finally:
            self.give_back(connection)

    async def _open_one(self) -> Connection:
        self._open += 1
        try:
            return await self._connect()
        except BaseException:
            self._open -= 1
            self._wake(None)
            raise

    async def _wait(self, deadline: float) -> Connection | None:
        """The next connection that is given back; `None` when there may be room for a new one."""
        future: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiting.append((future, deadline, time.monotonic()))
        self.waits += 1
        self._watch()
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled() and not future.exception():  # it was given something, too late
                connection = future.result()
                if connection is None:
                    self._wake(None)
                else:
                    self.give_back(connection)
            raise

    def _wake(self, connection: Connection | None) -> bool:
        """Answers whether somebody was waiting."""
        while self._waiting:
            future, deadline, _ = self._waiting.popleft()
            if not future.done():
                if connection is not None:
                    self._lend(connection, deadline)
                future.set_result(connection)
                return True
        return False

    def _lend(self, connection: Connection, deadline: float) -> None:
        self._lent[connection] = deadline
        self._watch()

    def _watch(self) -> None:
        if self._sweep_timer is None:
            # For all statements: its lines are not those of the request that came first.
            self._sweep_timer = self._loop.call_later(SWEEP_SECONDS, self._sweep, context=contextvars.Context())

    def _sweep(self) -> None:
        now = time.monotonic()
        overdue = {connection: deadline for connection, deadline in self._lent.items() if deadline <= now}
        # Where it is the loop that comes late, PostgreSQL's answer may be here and unread: until the next look.
        silent = [connection for connection, deadline in overdue.items() if self._overdue.get(connection) == deadline]
        self._overdue = overdue
        for connection in silent:
            logger.warning("PostgreSQL did not answer in time, a connection is closed")
            connection.terminate()
            self._lent[connection] = math.inf
            self.cut_off += 1
        if silent:
            # The whole server may have gone without a word. Then each of these would cost somebody a deadline.
            self._drop_idle(now - _HEARD_SECONDS)
        for future, deadline, _ in self._waiting:
            if deadline <= now and not future.done():
                future.set_exception(TimeoutError())
                self.waits_in_vain += 1
        self._waiting = deque(waiting for waiting in self._waiting if not waiting[0].done())
        self.waited = now - self._waiting[0][2] if self._waiting else 0.0
        self._sweep_timer = None
        if self._lent or self._waiting:
            self._watch()


async def _close(connection: Connection) -> None:
    with contextlib.suppress(OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresError):
        await connection.close(timeout=_CLOSE_SECONDS)
