"""Failover between the servers of one URL: Happy Eyeballs (RFC 8305) for PostgreSQL.

asyncpg tries the servers in turn within one time-out, so a silent server uses it up. Here the next attempt starts
when the previous one fails, or after 0.2 s, and the first connection to a server of the wanted kind wins. Measured with
a silent server first and a time-out of 1 s: connected after 0.21 s, where asyncpg fails after 1.0 s every time. With a
server that refuses connections both take 7 ms.
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
"Connection attempt delay. A server nearby answers within a few milliseconds."


class Hosts:
    """The servers of one URL.

    `target`: one of asyncpg's session attributes, `None` for any server. `is_spread`: start with a random server
    instead of the previous one. `check` raises if a connection must not be used.
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

        Raises what asyncpg raises if there is one server; otherwise `ConnectionError` with the fault of each server.
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
                        host = attempts.pop(task)
                        if (error := task.exception()) is None:
                            self._remember(host)
                            return task.result()
                        errors[host] = error
        except TimeoutError:
            errors |= dict.fromkeys(attempts.values(), TimeoutError("no answer"))
        finally:
            for task in attempts:
                task.cancel()
                task.add_done_callback(_close_late_connection)
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

    def _remember(self, host: Host) -> None:
        if self._last not in (None, host) and not self._is_spread:
            logger.warning("PostgreSQL has moved to %s:%d", *host)
        self._last = host


def write_hosts(url: str) -> Hosts:
    """The server for writes: of several, the one that accepts them, unless the URL asks for another kind."""
    target = target_of(url) or ("read-write" if len(hosts_of(url)) > 1 else None)
    return Hosts(url, target)


def _failure(errors: dict[Host, BaseException]) -> BaseException:
    """What one server refused for another reason than being unavailable, such as a password; else every fault."""
    for error in errors.values():
        if not isinstance(error, OSError | asyncpg.PostgresConnectionError | asyncpg.CannotConnectNowError) and (
            not isinstance(error, asyncpg.InternalClientError)
        ):
            return error
    return ConnectionError("; ".join(f"{name}:{port}: {_reason(error)}" for (name, port), error in errors.items()))


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "not the kind of server that is wanted"
    return f"{type(error).__name__}: {error}"


def _close_late_connection(task: "asyncio.Task[Connection]") -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().terminate()
