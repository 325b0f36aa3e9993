"""Where the API reads: from hot standbys where DATABASE_READ_URL names some, else where prices are written.

A standby shows what it has replayed, which may be a moment old, or more. What must not be is read from the primary: all
that a subscription shows. A fetch carries its prices itself.
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

_STANDBY_SECONDS = 0.6
"To connect to a standby; the rest of a deadline is for the primary."

_LOOK_SECONDS = 5.0
_AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class NotMigrated(ConnectionError):
    """The standby has not replayed the schema that this release needs."""


class StandbyPool(Pool):
    """Connections to standbys. While none can be read from, to the primary, unless the URL wants standbys alone."""

    def __init__(self, settings: Settings, url: str, *, size: int, statement_seconds: float) -> None:
        super().__init__(self._connect_somewhere, size, only_reads=True)
        target = target_of(url) or "prefer-standby"
        self._target = "standby" if target == "prefer-standby" else target
        self._options = connection_options(settings, "server, reading", statement_seconds)
        self._standbys = Hosts(url, self._target, is_spread=True, check=self._check)
        self._primary = None if target in ("standby", "read-only") else write_hosts(settings.database_url)
        self._wanted = len(read_migrations())
        self.fault: str | None = None
        "Why it is the primary that is read from now."

    async def _connect_somewhere(self) -> Connection:
        if self._primary is None:
            return await self._standbys.connect(**self._options)
        if self.fault is None:
            try:
                return await self._standbys.connect(_STANDBY_SECONDS, **self._options)
            except _AWAY as error:
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
            logger.warning("no standby can be read from, all reads go to the primary: %s", self.fault)

    async def watch(self) -> None:
        """Back to the standbys once one can be read from, and away from one that was promoted; until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self.fault is None and not self._is_promoted():
                continue
            try:
                connection = await self._standbys.connect(**self._options)
            except _AWAY as error:
                if self._primary is None:
                    self.renew()
                else:
                    self._fall_back(error)
                continue
            except Exception:
                logger.exception("fault in looking for standbys")
                continue
            connection.terminate()
            if self.fault is not None:
                logger.warning("reads go to the standbys again")
            self.fault = None
            self.renew()

    def _is_promoted(self) -> bool:
        """PostgreSQL tells each connection when the standby that it leads to has become a primary."""
        return self._target == "standby" and any(
            getattr(connection.get_settings(), "in_hot_standby", None) == "off" for connection in self.connections()
        )


@asynccontextmanager
async def open_reading(
    settings: Settings, primary: Pool, *, size: int, statement_seconds: float
) -> AsyncIterator[Pool]:
    """A pool for reads: one of its own, of at most `size` connections, or that of the primary."""
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
