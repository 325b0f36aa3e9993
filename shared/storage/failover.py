"""Which PostgreSQL server a connection is made to, where a URL names several.

asyncpg would ask one after the other within one time-out, so a silent one is all that is ever asked. Here the next one
is asked when the last has failed, or has been silent for a moment; the first of the wanted kind is taken.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from shared.config.database_url import Host, hosts_of, target_of
from shared.storage.pool import Connection

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 1.0
HEAD_START_SECONDS = 0.2
"Before the next server is asked too. One that is near answers in a few milliseconds."


class Hosts:
    """The servers of one URL.

    `target` is one of asyncpg's session attributes, or `None` to take what comes. `is_spread`: each connection begins
    with another server, not with the one that was taken last. `check` raises where a connection is not to be used.
    """

    def __init__(
        self,
        url: str,
        target: str | None,
        *,
        is_spread: bool = False,
        check: Callable[[Connection], Awaitable[None]] | None = None,
    ) -> None:
        self._url = url
        self._target = target
        self._is_spread = is_spread
        self._check = check
        self._hosts = hosts_of(url)
        self._last: Host | None = None

    async def connect(self, seconds: float = CONNECT_SECONDS, **options: Any) -> Connection:
        """Ends within `seconds`. `options` are asyncpg's.

        Raises what asyncpg raises for one server; `ConnectionError`, with a word on each, for several or one of a kind.
        """
        if len(self._hosts) < 2 and self._target is None and self._check is None:
            connection: Connection = await asyncpg.connect(self._url, timeout=seconds, **options)
            return connection
        untried = random.sample(self._hosts, len(self._hosts))
        if not self._is_spread:
            untried = sorted(self._hosts, key=lambda host: host != self._last)
        attempts: dict[asyncio.Task[Connection], Host] = {}
        errors: dict[Host, BaseException] = {}
        try:
            async with asyncio.timeout(seconds):
                while untried or attempts:
                    if untried:
                        host = untried.pop(0)
                        attempts[asyncio.create_task(self._connect_to(host, options))] = host
                    head_start = HEAD_START_SECONDS if untried else None
                    done, _ = await asyncio.wait(attempts, timeout=head_start, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        host = attempts[task]
                        error = task.exception()
                        if error is None:
                            del attempts[task]
                            self._note(host)
                            return task.result()
                        del attempts[task]
                        errors[host] = error
        except TimeoutError:
            errors |= dict.fromkeys(attempts.values(), TimeoutError("no answer"))
        finally:
            for task in attempts:
                task.cancel()
                task.add_done_callback(_let_go)
        raise _failure(errors)

    async def _connect_to(self, host: Host, options: dict[str, Any]) -> Connection:
        name, port = host
        target: dict[str, Any] = {} if self._target is None else {"target_session_attrs": self._target}
        connection: Connection = await asyncpg.connect(self._url, host=name, port=port, **target, **options)
        try:
            if self._check is not None:
                await self._check(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _note(self, host: Host) -> None:
        if self._last not in (None, host) and not self._is_spread:
            logger.warning("PostgreSQL is at %s:%d now", *host)
        self._last = host


def write_hosts(url: str) -> Hosts:
    """Where prices are written: of several servers the one that takes writes, unless the URL says otherwise."""
    target = target_of(url) or ("read-write" if len(hosts_of(url)) > 1 else None)
    return Hosts(url, target)


def _failure(errors: dict[Host, BaseException]) -> BaseException:
    """One for all: what a server said itself about who asks, or else what each of them did."""
    for error in errors.values():
        if not isinstance(error, OSError | asyncpg.PostgresConnectionError | asyncpg.CannotConnectNowError) and (
            not isinstance(error, asyncpg.InternalClientError)
        ):
            return error
    return ConnectionError("; ".join(f"{name}:{port}: {_word(error)}" for (name, port), error in errors.items()))


def _word(error: BaseException) -> str:
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "not of the kind that is wanted"
    return f"{type(error).__name__}: {error}"


def _let_go(task: "asyncio.Task[Connection]") -> None:
    """An attempt that lost: its connection, where it came to one after all."""
    if not task.cancelled() and task.exception() is None:
        task.result().terminate()
