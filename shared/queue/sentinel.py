"""Redis behind sentinels: connections to whichever server is the master now.

Neither arq's pool, which has no timeouts and no passwords for sentinels, nor redis-py's: that one asks sentinel after
sentinel, so that a silent one takes a timeout each time, believes the first, and tries a dead master many times over
before it asks again.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError

from shared.config.sentinel_url import Address, SentinelURL, is_sentinel_url, parse_sentinel_url
from shared.errors import describe

logger = logging.getLogger(__name__)

SENTINEL_SECONDS = 0.5
"For all sentinels together, asked at once: a third of what a client's request may take."

WATCH_SECONDS = 1.0


@asynccontextmanager
async def open_pool(url: str, **options: Any) -> AsyncIterator[ConnectionPool]:
    """Connections to the server of the URL, or to the master that its sentinels name. Whoever uses them closes them."""
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
        await pool.sentinels.aclose()


class Sentinels:
    def __init__(self, url: SentinelURL) -> None:
        self._name = url.name
        connection_class = SSLConnection if url.is_tls else Connection
        self._clients = {
            f"{host}:{port}": Redis(
                connection_pool=ConnectionPool(
                    connection_class=connection_class,
                    host=host,
                    port=port,
                    socket_connect_timeout=SENTINEL_SECONDS,
                    socket_timeout=SENTINEL_SECONDS,
                    **url.sentinel,
                )
            )
            for host, port in url.sentinels
        }
        self._asked: set[asyncio.Task[dict[str, Any]]] = set()

    async def master(self) -> Address:
        """Where it is by the newest word of those that answer first, a majority of all if that many do.

        Raises redis-py's `ConnectionError` when none answers, or those who know best say that it is down.
        """
        names = {asyncio.ensure_future(self._ask(client)): name for name, client in self._clients.items()}
        self._asked |= names.keys()
        for task in names:
            task.add_done_callback(self._forget)
        pending = set(names)
        states: list[dict[str, Any]] = []
        troubles: list[str] = []
        deadline = asyncio.get_running_loop().time() + SENTINEL_SECONDS
        try:
            while pending and len(states) <= len(names) // 2:
                left = deadline - asyncio.get_running_loop().time()
                done, pending = await asyncio.wait(pending, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    troubles += [f"{names[task]}: no answer in time" for task in pending]
                    break
                for task in done:
                    try:
                        states.append(task.result())
                    except (RedisError, OSError) as error:
                        troubles.append(f"{names[task]}: {describe(error)}")
        finally:
            for task in pending:
                task.cancel()
        if not states:
            raise RedisConnectionError(f"no sentinel answers ({'; '.join(troubles)})")
        # One that was cut off or paused may name a master that is none any more: each fail-over has its number.
        newest = max(state["config-epoch"] for state in states)
        for state in states:
            if state["config-epoch"] == newest and not (state["is_sdown"] or state["is_odown"]):
                return str(state["ip"]), int(state["port"])
        raise RedisConnectionError(f"the sentinels say that the master of {self._name} is down")

    async def _ask(self, client: Redis) -> dict[str, Any]:
        state: dict[str, Any] = await client.sentinel_master(self._name)
        return state

    def _forget(self, task: asyncio.Task[dict[str, Any]]) -> None:
        self._asked.discard(task)
        if not task.cancelled():
            task.exception()  # what nobody waited for is no news

    async def aclose(self) -> None:
        if self._asked:
            await asyncio.wait(self._asked, timeout=SENTINEL_SECONDS)
        for client in self._clients.values():
            await client.aclose(close_connection_pool=True)


class MasterConnection(Connection):
    """Asks where the master is each time it connects."""

    def __init__(self, *, find_master: Callable[[], Awaitable[Address]], **options: Any) -> None:
        super().__init__(**options)
        self._find_master = find_master

    @property
    def address(self) -> Address:
        return self.host, self.port

    async def _connect(self) -> None:
        # The handshake too, here where redis-py tries again: a master that has just died, or has just become a replica,
        # may well take a connection and say no more.
        try:
            async with asyncio.timeout(self.socket_connect_timeout):
                self.host, self.port = await self._find_master()
                await super()._connect()  # type: ignore[no-untyped-call]
                self.next_health_check = asyncio.get_running_loop().time() + self.health_check_interval
                await super().on_connect()
                await self.send_command("INFO", "replication")
                if b"role:master" not in await self.read_response():
                    raise RedisConnectionError(f"{self.host}:{self.port} is not the master")
        except BaseException:
            self._close()  # type: ignore[no-untyped-call]
            raise

    async def on_connect(self) -> None:
        """Done already."""

    async def _send_packed_command(self, command: Iterable[bytes]) -> None:
        try:
            await super()._send_packed_command(command)
        except RuntimeError as error:  # uvloop's word for a connection that was aborted, which redis-py does not know
            raise ConnectionResetError(str(error)) from error

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*arguments, **options)
        except ReadOnlyError as error:
            await self.disconnect(nowait=True)
            raise RedisConnectionError(f"{self.host}:{self.port} has become a replica") from error

    def abort(self) -> None:
        """Whoever uses it sees a connection that was lost."""
        if self._writer is not None:
            self._writer.transport.abort()


class MasterTLSConnection(MasterConnection, SSLConnection):
    pass


class MasterPool(ConnectionPool):
    """Leaves a master as soon as the sentinels name another: one that was cut off does not know yet, and would lose
    what it is told.
    """

    def __init__(self, url: SentinelURL, **options: Any) -> None:
        self.sentinels = Sentinels(url)
        self._master: Address | None = None
        super().__init__(
            connection_class=MasterTLSConnection if url.is_tls else MasterConnection,
            find_master=self.find_master,
            **url.server,
            **options,
        )

    async def find_master(self) -> Address:
        master = await self.sentinels.master()
        if master != self._master:
            if self._master is not None:
                logger.warning("the master of the queue is %s:%d now, no longer %s:%d", *master, *self._master)
            self._master = master
            for connection in self._in_use_connections:
                if isinstance(connection, MasterConnection) and connection.address != master:
                    connection.abort()
        return master

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        if isinstance(connection, MasterConnection) and connection.is_connected and connection.address != self._master:
            await connection.disconnect(nowait=True)
        await super().ensure_connection(connection)

    async def watch(self) -> None:
        """Until cancelled. A connection that waits for an answer, or for nothing, would find out late."""
        while True:
            try:
                with contextlib.suppress(RedisError, OSError):
                    await self.find_master()
            except Exception:  # of ours, or of a driver; it must not be the last look
                logger.exception("fault in asking the sentinels")
            await asyncio.sleep(WATCH_SECONDS)
