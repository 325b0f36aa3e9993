"""Single flight: the same statement asked for by many at once runs once for all of them.

A caller that comes while the statement runs waits for the next run, together with all that come meanwhile. That run
begins after the last of them has come, so each of them sees what was committed before it came.
"""

import asyncio
import contextvars
import time

import asyncpg

from shared.storage.database import DEADLINE_SECONDS, Pool, fetch

JOIN_SECONDS = 0.05
"""A run that takes longer is slow, or hangs on a connection. A caller that comes later begins a run of its own, and
the next run begins for the callers that wait."""


class _Run:
    __slots__ = ("began", "overdue", "waiting")

    def __init__(self, began: float) -> None:
        self.began = began
        self.waiting: list[asyncio.Future[asyncpg.Record]] = []
        self.overdue: asyncio.TimerHandle | None = None


class SingleFlight:
    """A statement with its parameters. It answers one row."""

    def __init__(self, sql: str, parameters: list[object]) -> None:
        self.length = len(sql)
        self._sql = sql
        self._parameters = parameters
        self._newest: _Run | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()  # kept, because asking for it is a system call

    async def row(self, pool: Pool, seconds: float = DEADLINE_SECONDS) -> asyncpg.Record:
        """Raises what `fetch` does, after `seconds` at most."""
        now = time.monotonic()
        newest = self._newest
        if newest is not None and now - newest.began < JOIN_SECONDS:
            future: asyncio.Future[asyncpg.Record] = self._loop.create_future()
            newest.waiting.append(future)
            if newest.overdue is None:
                due = self._loop.time() + newest.began + JOIN_SECONDS - now
                newest.overdue = self._loop.call_at(due, self._end, newest, pool, seconds)
            return await future
        run = self._newest = _Run(now)
        try:
            return await self._fetch(pool, seconds)
        finally:
            self._end(run, pool, seconds)

    async def _fetch(self, pool: Pool, seconds: float) -> asyncpg.Record:
        [row] = await fetch(pool, self._sql, *self._parameters, timeout=seconds)
        return row

    def _end(self, run: _Run, pool: Pool, seconds: float) -> None:
        """Begin the next run for those that wait, as a task: a client that leaves must not end it for the others."""
        if self._newest is run:
            self._newest = None
        if run.overdue is not None:
            run.overdue.cancel()
        asked, run.waiting = [future for future in run.waiting if not future.done()], []
        if asked:
            # An empty context: the log lines are not about the request that came first.
            task = self._loop.create_task(
                self._answer_all(asked, run.began + seconds, pool, seconds), context=contextvars.Context()
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer_all(
        self, asked: list["asyncio.Future[asyncpg.Record]"], deadline: float, pool: Pool, seconds: float
    ) -> None:
        """`deadline`: of the first of them."""
        now = time.monotonic()
        run = _Run(now)
        if self._newest is None:
            self._newest = run
        try:
            row = await self._fetch(pool, deadline - now)
        except Exception as error:
            for future in asked:
                if not future.done():
                    future.set_exception(error)
        else:
            for future in asked:
                if not future.done():
                    future.set_result(row)
        finally:
            self._end(run, pool, seconds)
