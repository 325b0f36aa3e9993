"""The same question asked by many at once is put to PostgreSQL once.

Who asks while a statement is on its way waits for the next run of it, together with all who asked meanwhile. That run
begins after the last of them has asked, so each answer holds whatever was committed before its request came: nothing is
kept, and nothing is older than if everyone had a statement of their own. Nor does anybody wait long for the others'.
"""

import asyncio
import contextvars
import time

from shared.storage.database import DEADLINE_SECONDS, Pool, fetch

JOIN_SECONDS = 0.05
"""A statement that takes longer than this is slow, or waits for a connection, or is stuck on one: who comes then begins
one of their own, and for those who wait for it the next one begins."""


class _Run:
    __slots__ = ("began", "overdue", "waiting")

    def __init__(self, began: float) -> None:
        self.began = began
        self.waiting: list[asyncio.Future[bytes]] = []
        self.overdue: asyncio.TimerHandle | None = None


class SharedStatement:
    """A statement with its parameters, whose one row has the answer in its one column."""

    def __init__(self, sql: str, parameters: list[object]) -> None:
        self._sql = sql
        self._parameters = parameters
        self._newest: _Run | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()  # kept, for to ask for it is a system call

    async def answer(self, pool: Pool) -> bytes:
        """Raises what `shared.db.fetch` does, within the same time, whoever is waited for."""
        now = time.monotonic()
        newest = self._newest
        if newest is not None and now - newest.began < JOIN_SECONDS:
            future: asyncio.Future[bytes] = self._loop.create_future()
            newest.waiting.append(future)
            if newest.overdue is None:
                newest.overdue = self._loop.call_at(
                    self._loop.time() + newest.began + JOIN_SECONDS - now, self._end, newest, pool
                )
            return await future
        run = self._newest = _Run(now)
        try:
            return await self._fetch(pool, DEADLINE_SECONDS)
        finally:
            self._end(run, pool)

    async def _fetch(self, pool: Pool, seconds: float) -> bytes:
        rows = await fetch(pool, self._sql, *self._parameters, timeout=seconds)
        answer: bytes = rows[0][0]
        return answer

    def _end(self, run: _Run, pool: Pool) -> None:
        """Begin for those who wait; as a task, for none of them is to end the others when its client goes."""
        if self._newest is run:
            self._newest = None
        if run.overdue is not None:
            run.overdue.cancel()
        asked, run.waiting = [future for future in run.waiting if not future.done()], []
        if asked:
            # For all of them: its lines are not those of the request that came first.
            task = self._loop.create_task(self._answer_all(asked, run.began, pool), context=contextvars.Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer_all(self, asked: list[asyncio.Future[bytes]], since: float, pool: Pool) -> None:
        """`since`: none of them came before it."""
        now = time.monotonic()
        run = _Run(now)
        if self._newest is None:
            self._newest = run
        try:
            answer = await self._fetch(pool, since + DEADLINE_SECONDS - now)
        except Exception as error:
            for future in asked:
                if not future.done():
                    future.set_exception(error)
        else:
            for future in asked:
                if not future.done():
                    future.set_result(answer)
        finally:
            self._end(run, pool)
