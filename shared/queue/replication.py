"""Writes that survive a failover: a command counts when a replica has confirmed it (WAIT)."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any

from arq.connections import ArqRedis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from shared.queue.sentinel import MasterPool

logger = logging.getLogger(__name__)

CONFIRM_SECONDS = 0.5
"How long a replica may take to confirm a write."

_CONFIRM_AGAIN_SECONDS = (1.0, 2.0)


class Unconfirmed(RedisConnectionError):
    """Written, but not by a replica: a failover now would lose it."""


async def execute_confirmed(redis: ArqRedis, *commands: Sequence[Any]) -> list[Any]:
    """Run commands in order, return their answers. Behind sentinels, waits until a replica has what they wrote.

    A retry may run them twice. Raises `Unconfirmed`; the commands have run then too.
    """
    is_replicated = isinstance(redis.connection_pool, MasterPool)
    async with redis.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        if is_replicated:
            # WAIT covers the writes of its own connection; a repeated command may write nothing, INCR always does.
            pipe.execute_command("INCR", "confirmations")
            pipe.execute_command("WAIT", 1, round(CONFIRM_SECONDS * 1000))
        answers = await pipe.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, ResponseError):
            raise answer
    if is_replicated and not answers[-1]:
        raise Unconfirmed("no replica has confirmed what was written")
    return answers[: len(commands)]


async def execute_confirmed_if_possible(redis: ArqRedis, *commands: Sequence[Any]) -> None:
    """As `execute_confirmed`, with retries. Accepts an unconfirmed write in the end: better on one server than none."""
    for pause in _CONFIRM_AGAIN_SECONDS:
        try:
            await execute_confirmed(redis, *commands)
            return
        except Unconfirmed as error:
            logger.warning("%s", error)
        await asyncio.sleep(pause)  # by then the sentinels may name another master
    with contextlib.suppress(Unconfirmed):
        await execute_confirmed(redis, *commands)
