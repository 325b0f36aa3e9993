"""The PostgreSQL pool, and the one way statements run: within a deadline, with a coded error when storage is away."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import asyncpg

from shared.config.settings import Settings
from shared.errors import ServiceError, StorageUnavailable, describe
from shared.storage.failover import write_hosts
from shared.storage.pool import Pool as Pool

logger = logging.getLogger(__name__)

DEADLINE_SECONDS = 1.4
"A client is promised an answer within 2 s when PostgreSQL is away or hangs; the rest is for a process that is busy."

STATEMENT_SECONDS = 6
"Just over the longest deadline that any statement is given."

WRITE_SECONDS = 5.0
LOCK_SECONDS = 2

_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,  # the connection was lost while a statement was under way
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shutting down, starting up, statement cancelled
    asyncpg.InsufficientResourcesError,  # disk full, too many connections
    asyncpg.ReadOnlySQLTransactionError,  # a standby that was not promoted yet
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.LockNotAvailableError,
    asyncpg.UndefinedTableError,  # not migrated yet
    asyncpg.PostgresSystemError,
    asyncpg.TransactionRollbackError,  # a standby that had to replay what the statement was in the way of; a deadlock
)

_LOST = (
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TransactionRollbackError,
    ConnectionError,
)
"What has befallen a statement and need not befall it again on another connection."


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL statement and its parameters, `$1` first.

    `expires`: a row has a column `expires_at`, the instant at which passing time alone changes the answer, or null.
    `refuse`: a row has a column `is_refused`; if that is true, the answer is the error that `refuse` makes of the row.
    """

    sql: str
    parameters: tuple[object, ...]
    expires: bool = False
    refuse: Callable[[asyncpg.Record], ServiceError] | None = None


def create_pool(
    settings: Settings,
    *,
    name: str,
    size: int = 10,
    statement_seconds: float = STATEMENT_SECONDS,
    only_reads: bool = False,
) -> Pool:
    """A pool that connects when first used, so that a process starts, and recovers, without PostgreSQL.

    `name` is shown in `pg_stat_activity`; `size` is the most connections it opens. `statement_seconds`: just over the
    longest deadline that any of its statements is given. `only_reads`: see `Pool`.
    """
    hosts = write_hosts(settings.database_url)
    options = connection_options(settings, name, statement_seconds)
    return Pool(lambda: hosts.connect(**options), size, only_reads=only_reads)


def connection_options(settings: Settings, name: str, statement_seconds: float) -> dict[str, Any]:
    """For asyncpg. A pooler in transaction mode keeps no statement and refuses to set what it does not track itself."""
    session = {"application_name": name, "timezone": "UTC", "datestyle": "ISO"}
    if settings.database_pooler:
        return {"statement_cache_size": 0, "server_settings": session}
    return {
        # A plan that is kept takes 30 KiB for each field it reads, on each connection, and anyone may ask for more.
        "statement_cache_size": 100,
        "max_cacheable_statement_size": 4096,
        "server_settings": {
            **session,
            # A LIMIT that is a parameter would otherwise be planned anew on every call.
            "plan_cache_mode": "force_generic_plan",
            "jit": "off",
            # What a client has stopped waiting for must not run on: cancelled here, PostgreSQL would never know.
            "statement_timeout": str(int(statement_seconds * 1000)),
            "lock_timeout": str(LOCK_SECONDS * 1000),
        },
    }


async def fetch(
    pool: Pool, sql: str, *arguments: object, timeout: float = DEADLINE_SECONDS, is_second: bool = False
) -> list[asyncpg.Record]:
    """Run one statement, answer its rows. Raises `StorageUnavailable` after `timeout` seconds or without PostgreSQL.

    `is_second`: it is not run again, where it only reads and its server is lost.
    """
    try:
        deadline = time.monotonic() + timeout
        connection = pool.take_idle(deadline) or await pool.take(deadline)
        try:
            rows = await connection.fetch(sql, *arguments)
        except asyncio.CancelledError:
            # The server is still at it: its place in the pool is free when it has confirmed that it is not any more.
            pool.give_back_settled(connection)
            raise
        except BaseException as error:
            if isinstance(error, asyncpg.InternalClientError) or (
                isinstance(error, AttributeError) and connection.is_closed()
            ):
                # asyncpg does not see that PostgreSQL said goodbye before it was asked, or that a connection was closed
                # between two messages of one statement.
                connection.terminate()
                error = ConnectionResetError(describe(error))
            if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
                connection.terminate()
                pool.renew()  # the primary was demoted; who connects anew finds the one that took its place
            pool.give_back(connection)
            seconds_left = deadline - time.monotonic()
            if is_second or not pool.only_reads or not _is_lost(error) or seconds_left <= 0:
                raise error
            return await fetch(pool, sql, *arguments, timeout=seconds_left, is_second=True)
        pool.give_back(connection)
        return rows
    except _AWAY as error:
        if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
            raise  # an argument that does not fit its parameter is our fault, not the storage's
        logger.warning("storage is away: %s", describe(error))
        raise StorageUnavailable(
            is_answered=isinstance(error, asyncpg.PostgresError)
            and not isinstance(error, asyncpg.PostgresConnectionError),
        ) from error


async def write(pool: Pool, sql: str, *arguments: object, timeout: float) -> list[asyncpg.Record]:
    """As `fetch`. Only what PostgreSQL has against the values themselves is an error of theirs; else it is away."""
    try:
        return await fetch(pool, sql, *arguments, timeout=timeout)
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError):
        raise
    except asyncpg.PostgresError as error:  # a right that was taken away, a trigger that fails, a broken index …
        logger.exception("PostgreSQL cannot store")
        raise StorageUnavailable("The price storage does not take prices.", is_answered=True) from error


def _is_lost(error: BaseException) -> bool:
    return isinstance(error, _LOST) and not isinstance(error, ValueError)


async def fetch_row(
    pool: Pool, sql: str, *arguments: object, timeout: float = DEADLINE_SECONDS
) -> asyncpg.Record | None:
    """As `fetch`, the first row or `None`."""
    rows = await fetch(pool, sql, *arguments, timeout=timeout)
    return rows[0] if rows else None


def columns(rows: Iterable[tuple[Any, ...]], width: int) -> list[list[Any]]:
    """Rows turned into `width` columns, the shape `unnest` takes."""
    turned = [list(column) for column in zip(*rows, strict=True)]
    return turned or [[] for _ in range(width)]
