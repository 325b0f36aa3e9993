"""The progress of fetches: one Redis subscription per process receives the changes for all subscribers."""

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncGenerator
from dataclasses import replace

from arq.connections import ArqRedis
from redis.exceptions import RedisError

from server.protection.turns import Signal, Turns
from shared.errors import QueueUnavailable, describe
from shared.queue.client import within_deadline
from shared.queue.fetches import CHANGES, FetchJob, FetchStatus, select_fetch_job

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
"The delay of a change without a message: the connection was lost, or the fetch was abandoned."

_RECONNECT_SECONDS = 1.0


class _FollowedJob:
    """The states of a fetch so far, and the task that reads the next one for all subscribers."""

    def __init__(self, first: FetchJob, turns: Turns) -> None:
        self.states = [first]
        self.is_gone = False
        self.followers = 0
        self.notified = asyncio.Event()
        self.changed = Signal(turns)
        self.task: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        return self.is_gone or self.states[-1].finished_at is not None

    def add(self, job: FetchJob | None) -> None:
        last = self.states[-1]
        if job is None:
            self.is_gone = True
        elif job.status is not last.status:
            if last.status is FetchStatus.QUEUED and job.finished_at and job.started_at:
                # It started and ended between two reads: subscribers get both states.
                self.states.append(replace(job, status=FetchStatus.RUNNING, finished_at=None, prices=[], failures=[]))
            self.states.append(job)
        else:
            return
        self.changed.set()


class JobFeed:
    def __init__(self, redis: ArqRedis, turns: Turns) -> None:
        self._redis = redis
        self._turns = turns
        self._followed: dict[str, _FollowedJob] = {}

    async def run(self) -> None:
        """Receive messages until cancelled. An outage of Redis loses no change, because the jobs are also polled."""
        is_unavailable = False
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(CHANGES)
                    while True:
                        message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=_POLL_SECONDS)
                        is_unavailable = False
                        if message and (followed := self._followed.get(message["data"].decode())):
                            followed.notified.set()
            except (RedisError, OSError, TimeoutError) as error:
                if not is_unavailable:
                    logger.warning("the queue is unavailable: %s", describe(error))
                is_unavailable = True
            except Exception:
                logger.exception("following fetches failed")
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def progress(self, first: FetchJob) -> AsyncGenerator[FetchJob]:
        """Its state now, then each change, until it ends or expires."""
        if first.finished_at:
            yield first
            return
        followed = self._followed.setdefault(first.id, _FollowedJob(first, self._turns))
        followed.followers += 1
        if followed.task is None:
            polling = self._poll(first.id, followed)
            # An empty context: the task serves all subscribers, so its log lines must not carry the first one's id.
            followed.task = asyncio.create_task(polling, context=contextvars.Context())
        place = len(followed.states) - 1
        try:
            while True:
                while place < len(followed.states):
                    yield followed.states[place]
                    place += 1
                if followed.is_over:
                    return
                await followed.changed.wait()
        finally:
            followed.followers -= 1
            if not followed.followers:
                followed.task.cancel()
                if self._followed.get(first.id) is followed:
                    del self._followed[first.id]

    async def _poll(self, job_id: str, followed: _FollowedJob) -> None:
        while not followed.is_over:
            followed.notified.clear()
            try:
                followed.add(await within_deadline(select_fetch_job(self._redis, job_id)))
            except QueueUnavailable:
                pass  # `run` logs the outage
            except Exception:
                logger.exception("following a fetch failed")
            if not followed.is_over:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS):
                        await followed.notified.wait()
