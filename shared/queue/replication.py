"""Writes that survive a failover: a command counts once a replica has confirmed it (WAIT)."""

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
"How long a replica has to confirm what a master that can be replaced was told."


_CONFIRM_AGAIN_SECONDS = (1.0, 2.0)


class Unconfirmed(RedisConnectionError):
    """Written, but by no replica: should the master be replaced now, it would be lost."""


async def execute_confirmed(redis: ArqRedis, *commands: Sequence[Any]) -> list[Any]:
    """Run commands one after the other; their answers. Behind sentinels, not before a replica has what they wrote.

    They may be run twice. Raises `Unconfirmed`, and then they have been run all the same.
    """
    is_replicated = isinstance(redis.connection_pool, MasterPool)
    async with redis.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        if is_replicated:
            # WAIT is about what its own connection wrote; the commands may have found all written before.
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
    """As `execute_confirmed`, more than once, for what is better kept by one server than by none."""
    for pause in _CONFIRM_AGAIN_SECONDS:
        try:
            await execute_confirmed(redis, *commands)
            return
        except Unconfirmed as error:
            logger.warning("%s", error)
        await asyncio.sleep(pause)  # by then the sentinels may name another master
    with contextlib.suppress(Unconfirmed):
        await execute_confirmed(redis, *commands)
