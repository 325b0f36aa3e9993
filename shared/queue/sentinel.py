"""Redis behind sentinels: connections to the present master.

Built on redis-py's classes, with three differences. All sentinels are asked at once and the newest answer of a majority
wins; redis-py asks them in turn and believes the first, so a silent one costs a time-out, and one that was cut off may
name an old master. A connection asks again after each attempt; redis-py repeats its attempts at a dead master. The
pool leaves an old master at once, because one that was cut off still accepts writes, which are then lost.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from shared.config.sentinel_url import Address, SentinelURL, is_sentinel_url, parse_sentinel_url
from shared.errors import describe

logger = logging.getLogger(__name__)

SENTINEL_SECONDS = 0.5
"For all sentinels together: a third of what a client's request may take."

WATCH_SECONDS = 1.0

State = dict[str, Any]


@asynccontextmanager
async def open_pool(url: str, **options: Any) -> AsyncIterator[ConnectionPool]:
    """Connections to the server of the URL, or to the master that its sentinels name. The caller closes them."""
    if not is_sentinel_url(url):
        yield ConnectionPool.from_url(url, **options)
        return
    pool = MasterPool(parse_sentinel_url(url), **options)
    watching = asyncio.create_task(pool.watch())
    try:
        yield pool
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        for client in pool.sentinel_manager.sentinels:
            await client.aclose()


class MajoritySentinel(Sentinel):
    def __init__(self, url: SentinelURL) -> None:
        timeouts = {"socket_connect_timeout": SENTINEL_SECONDS, "socket_timeout": SENTINEL_SECONDS}
        super().__init__(  # type: ignore[no-untyped-call]
            url.sentinels, sentinel_kwargs={"ssl": url.is_tls, **timeouts, **url.sentinel}
        )

    async def discover_master(self, service_name: str) -> Address:
        """The master by the newest of the first answers, which are from a majority if that many answer in time.

        Raises `MasterNotFoundError`, a `ConnectionError` of redis-py, if none answers or the master is down.
        """
        asked = {asyncio.ensure_future(client.sentinel_master(service_name)): client for client in self.sentinels}
        states: list[State] = []
        try:
            for answer in asyncio.as_completed(asked, timeout=SENTINEL_SECONDS):
                with contextlib.suppress(RedisError, OSError):
                    states.append(await answer)
                if len(states) > len(asked) // 2:
                    break
        finally:
            for task in asked:
                task.add_done_callback(lambda done: done.cancelled() or done.exception())  # mark as retrieved
                task.cancel()
        if not states:
            raise MasterNotFoundError(f"no sentinel answers ({'; '.join(_faults(asked))})")
        # A sentinel that was cut off or paused may name an old master. Each failover increases the epoch.
        newest = max(state["config-epoch"] for state in states)
        for state in states:
            if state["config-epoch"] == newest and not (state["is_sdown"] or state["is_odown"]):
                return str(state["ip"]), int(state["port"])
        raise MasterNotFoundError(f"the sentinels say that the master of {service_name} is down")


def _faults(asked: dict["asyncio.Future[State]", Redis]) -> Iterator[str]:
    for task, client in asked.items():
        options = client.connection_pool.connection_kwargs
        error = task.exception() if task.done() and not task.cancelled() else None
        yield f"{options['host']}:{options['port']}: {describe(error) if error else 'no answer in time'}"


class MasterConnection(SentinelManagedConnection):
    async def connect(self) -> None:
        await Connection.connect(self)  # it retries `_connect`, where redis-py's would retry each attempt once more

    async def _connect(self) -> None:
        """Ask for the master and connect, the handshake included: a dying master may accept a connection in silence."""
        try:
            async with asyncio.timeout(self.socket_connect_timeout):
                address = self.host, self.port = await self.connection_pool.get_master_address()
                await super()._connect()  # type: ignore[no-untyped-call]
                self.next_health_check = asyncio.get_running_loop().time() + self.health_check_interval
                await super().on_connect()
                await self.send_command("INFO", "replication")
                is_master = b"role:master" in await self.read_response()
            if not is_master or address != self.connection_pool.master_address:
                raise RedisConnectionError(f"{self.host}:{self.port} is not the master")
        except BaseException:
            self._close()  # type: ignore[no-untyped-call]
            raise

    async def on_connect(self) -> None:
        """Done in `_connect`."""

    async def _send_packed_command(self, command: Iterable[bytes]) -> None:
        try:
            await super()._send_packed_command(command)
        except RuntimeError as error:  # uvloop's error for an aborted connection, which redis-py does not expect
            raise ConnectionResetError(str(error)) from error

    def abort(self) -> None:
        """Close it at once. A command that is waiting on it fails as on a lost connection."""
        if self._writer is not None:
            self._writer.transport.abort()


class MasterTLSConnection(MasterConnection, SSLConnection):
    pass


class MasterPool(SentinelConnectionPool):
    def __init__(self, url: SentinelURL, **options: Any) -> None:
        connection_class = MasterTLSConnection if url.is_tls else MasterConnection
        super().__init__(  # type: ignore[no-untyped-call]
            url.name, MajoritySentinel(url), connection_class=connection_class, **url.server, **options
        )

    async def get_master_address(self) -> Address:
        """Aborts all connections to another server when the master has changed."""
        address: Address = await self.sentinel_manager.discover_master(self.service_name)
        if address != self.master_address:
            if self.master_address is not None:
                logger.warning("the queue's master moved from %s:%d to %s:%d", *self.master_address, *address)
            self.master_address = address
            for connection in (*self._available_connections, *self._in_use_connections):
                if isinstance(connection, MasterConnection):
                    connection.abort()
        return address

    async def watch(self) -> None:
        """Notice a new master, until cancelled. A connection that waits for an answer would notice it late."""
        while True:
            try:
                with contextlib.suppress(RedisError, OSError):
                    await self.get_master_address()
            except Exception:  # a fault of ours or of redis-py must not end the watch
                logger.exception("fault while asking the sentinels")
            await asyncio.sleep(WATCH_SECONDS)
