"""The same question asked by many at once is put to PostgreSQL once.

Who asks while a statement is on its way waits for the next run of it, together with all who asked meanwhile. That run
begins after the last of them has asked, so each answer holds whatever was committed before its request came: nothing is
kept, and nothing is older than if everyone had a statement of their own.
"""

import asyncio
import time

from shared.db import DEADLINE_SECONDS, Pool, fetch

JOIN_SECONDS = 0.05
"A statement that takes longer than this may be stuck on its connection: whoever comes then begins one of their own."


class _Run:
    __slots__ = ("began", "waiting")

    def __init__(self, began: float) -> None:
        self.began = began
        self.waiting: list[asyncio.Future[bytes]] = []


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
        run.waiting = [future for future in run.waiting if not future.done()]
        if run.waiting:
            task = self._loop.create_task(self._answer_all(run, pool))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer_all(self, asked: _Run, pool: Pool) -> None:
        now = time.monotonic()
        run = _Run(now)
        if self._newest is None:
            self._newest = run
        try:
            # The first of them came after the run they waited for began.
            answer = await self._fetch(pool, asked.began + DEADLINE_SECONDS - now)
        except Exception as error:
            for future in asked.waiting:
                if not future.done():
                    future.set_exception(error)
        else:
            for future in asked.waiting:
                if not future.done():
                    future.set_result(answer)
        finally:
            self._end(run, pool)
