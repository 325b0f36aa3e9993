"""Fetches as they go on: one connection to Redis hears that one has changed, for all who follow it."""

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncGenerator
from dataclasses import replace

from arq.connections import ArqRedis
from redis.exceptions import RedisError

from shared.errors import QueueUnavailable, describe
from shared.queue.client import within_deadline
from shared.queue.fetches import CHANGES, FetchJob, FetchStatus, select_fetch_job

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"How long a change waits that nobody told of: one that was lost with the connection, a fetch that was given up."

_RECONNECT_SECONDS = 1.0


class _Followed:
    """One fetch that somebody follows: its states so far, and the task that looks for the next one."""

    def __init__(self, first: FetchJob) -> None:
        self.states = [first]
        self.is_gone = False
        self.followers = 0
        self.told = asyncio.Event()
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        return self.is_gone or self.states[-1].finished_at is not None

    def note(self, job: FetchJob | None) -> None:
        last = self.states[-1]
        if job is None:
            self.is_gone = True
        elif job.status is not last.status:
            if last.status is FetchStatus.QUEUED and job.finished_at and job.started_at:
                # It started and ended between two looks: both are told.
                self.states.append(replace(job, status=FetchStatus.RUNNING, finished_at=None, prices=[], failures=[]))
            self.states.append(job)
        else:
            return
        self.changed.set()
        self.changed = asyncio.Event()


class JobFeed:
    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis
        self._followed: dict[str, _Followed] = {}

    async def run(self) -> None:
        """Hear of changes, until cancelled. Losing Redis loses none: whoever follows a fetch also looks by itself."""
        is_away = False
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(CHANGES)
                    while True:
                        message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=_LOOK_SECONDS)
                        is_away = False
                        if message and (followed := self._followed.get(message["data"].decode())):
                            followed.told.set()
            except (RedisError, OSError, TimeoutError) as error:
                if not is_away:
                    logger.warning("queue is away: %s", describe(error))
                is_away = True
            except Exception:
                logger.exception("fault in following fetches")
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def progress(self, first: FetchJob) -> AsyncGenerator[FetchJob]:
        """Its state now, then each that follows, until it has ended or is forgotten."""
        if first.finished_at:
            yield first
            return
        followed = self._followed.setdefault(first.id, _Followed(first))
        followed.followers += 1
        if followed.task is None:
            looking = self._look(first.id, followed)
            # For all who follow it: its lines are not those of the request that came first.
            followed.task = asyncio.create_task(looking, context=contextvars.Context())
        place = len(followed.states) - 1
        try:
            while True:
                changed = followed.changed
                while place < len(followed.states):
                    yield followed.states[place]
                    place += 1
                if followed.is_over:
                    return
                await changed.wait()
        finally:
            followed.followers -= 1
            if not followed.followers:
                followed.task.cancel()
                if self._followed.get(first.id) is followed:
                    del self._followed[first.id]

    async def _look(self, job_id: str, followed: _Followed) -> None:
        while not followed.is_over:
            followed.told.clear()
            try:
                followed.note(await within_deadline(select_fetch_job(self._redis, job_id)))
            except QueueUnavailable:
                pass  # told in the log
            except Exception:
                logger.exception("fault in following a fetch")
            if not followed.is_over:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await followed.told.wait()
