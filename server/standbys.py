"""Which server the API reads from: the hot standbys of DATABASE_READ_URL, or the primary.

A standby shows what it has replayed, so it may be behind. Subscriptions read from the primary, because they must not
miss a price. A fetch job carries its prices itself.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from shared.config.database_url import hosts_of, target_of
from shared.config.settings import Settings
from shared.errors import describe
from shared.migrate import read_migrations
from shared.storage.database import Pool, connection_options
from shared.storage.failover import Hosts, write_hosts
from shared.storage.pool import Connection

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 0.6
"To a standby; the rest of the deadline is left for the primary."

_CHECK_SECONDS = 5.0
_UNAVAILABLE = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class NotMigrated(ConnectionError):
    """The standby has not replayed the schema that this release needs."""


class StandbyPool(Pool):
    """Connections to standbys; to the primary while no standby is usable, unless the URL demands standbys."""

    def __init__(self, settings: Settings, url: str, *, size: int, statement_seconds: float) -> None:
        super().__init__(self._connect_to_any, size, only_reads=True)
        target = target_of(url) or "prefer-standby"
        self._target = "standby" if target == "prefer-standby" else target
        self._options = connection_options(settings, "server, reading", statement_seconds)
        self._standbys = Hosts(url, self._target, is_spread=True, check=self._check)
        self._primary = None if target in ("standby", "read-only") else write_hosts(settings.database_url)
        self._wanted = len(read_migrations())
        self.fault: str | None = None
        "Why reads go to the primary; `None` while they go to standbys."

    async def _connect_to_any(self) -> Connection:
        if self._primary is None:
            return await self._standbys.connect(**self._options)
        if self.fault is None:
            try:
                return await self._standbys.connect(_CONNECT_SECONDS, **self._options)
            except _UNAVAILABLE as error:
                self._fall_back(error)
        return await self._primary.connect(**self._options)

    async def _check(self, connection: Connection) -> None:
        try:
            version = await connection.fetchval("select max(version) from schema_migrations")
        except asyncpg.UndefinedTableError:
            version = None
        if (version or 0) < self._wanted:
            raise NotMigrated(f"its schema is at {version or 0:04}, this release needs {self._wanted:04}")

    def _fall_back(self, error: BaseException) -> None:
        if self.fault is None:
            self.fault = describe(error)
            logger.warning("no standby is usable, all reads go to the primary: %s", self.fault)

    async def watch(self) -> None:
        """Return to the standbys once one is usable, and leave one that was promoted. Runs until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            if self.fault is None and not self._is_promoted():
                continue
            try:
                connection = await self._standbys.connect(**self._options)
            except _UNAVAILABLE as error:
                if self._primary is None:
                    self.renew()
                else:
                    self._fall_back(error)
                continue
            except Exception:
                logger.exception("checking the standbys failed")
                continue
            connection.terminate()
            if self.fault is not None:
                logger.warning("reads go to the standbys again")
            self.fault = None
            self.renew()

    def _is_promoted(self) -> bool:
        """PostgreSQL reports `in_hot_standby` to open connections when a standby is promoted."""
        return self._target == "standby" and any(
            getattr(connection.get_settings(), "in_hot_standby", None) == "off" for connection in self.connections()
        )


@asynccontextmanager
async def open_reading(
    settings: Settings, primary: Pool, *, size: int, statement_seconds: float
) -> AsyncIterator[Pool]:
    """A pool for reads: one of at most `size` connections to standbys, or the primary's own."""
    url = settings.database_read_url
    if url is None or (url == settings.database_url and len(hosts_of(url)) == 1):
        yield primary
        return
    pool = StandbyPool(settings, url, size=size, statement_seconds=statement_seconds)
    async with pool:
        watching = asyncio.create_task(pool.watch())
        try:
            yield pool
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
