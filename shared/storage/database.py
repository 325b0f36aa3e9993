"""How every statement runs: on a pool, within a deadline, with a coded error when PostgreSQL is unavailable."""

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
"Clients get an answer within 2 s even if PostgreSQL is unavailable or hangs; the rest is reserve for a busy process."

STATEMENT_SECONDS = 6
"Just over the longest deadline of any statement."

WRITE_SECONDS = 5.0
LOCK_SECONDS = 2

NOT_MIGRATED = "The database is not migrated; run python -m shared.migrate"

UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,  # the connection was lost during a statement
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shutting down, starting up, statement cancelled
    asyncpg.InsufficientResourcesError,  # disk full, too many connections
    asyncpg.ReadOnlySQLTransactionError,  # a standby that is not promoted yet
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.LockNotAvailableError,
    asyncpg.UndefinedTableError,  # not migrated yet
    asyncpg.PostgresSystemError,
    asyncpg.TransactionRollbackError,  # a standby's recovery conflict; a deadlock
)

_LOST = (
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TransactionRollbackError,
    ConnectionError,
)
"Errors that a retry on another connection may avoid."


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
    """A pool that connects when first used, so that a process can start without PostgreSQL.

    `name` is shown in `pg_stat_activity`. `statement_seconds`: just over the longest deadline of its statements.
    `size`, `only_reads`: see `Pool`.
    """
    hosts = write_hosts(settings.database_url)
    options = connection_options(settings, name, statement_seconds)
    return Pool(lambda: hosts.connect(**options), size, only_reads=only_reads)


def connection_options(settings: Settings, name: str, statement_seconds: float) -> dict[str, Any]:
    """For asyncpg. A pooler in transaction mode keeps no prepared statements and takes few settings."""
    session = {"application_name": name, "timezone": "UTC", "datestyle": "ISO"}
    if settings.database_pooler:
        return {"statement_cache_size": 0, "server_settings": session}
    return {
        # `coverage` with `gaps` has 8,000 characters. Bounded, because a cached plan takes 30 KiB for each field on
        # each connection, and clients choose the fields.
        "statement_cache_size": 60,
        "max_cacheable_statement_size": 12_288,
        "server_settings": {
            **session,
            # With a LIMIT as a parameter, PostgreSQL would otherwise plan the statement again on every call.
            "plan_cache_mode": "force_generic_plan",
            "jit": "off",
            # Ends a statement whose connection is gone: PostgreSQL does not notice that while it runs.
            "statement_timeout": str(int(statement_seconds * 1000)),
            "lock_timeout": str(LOCK_SECONDS * 1000),
        },
    }


async def fetch(
    pool: Pool, sql: str, *arguments: object, timeout: float = DEADLINE_SECONDS, is_retry: bool = False
) -> list[asyncpg.Record]:
    """Run one statement, return its rows. Raises `StorageUnavailable` after `timeout` seconds or without PostgreSQL.

    `is_retry`: already the retry; do not retry again.
    """
    try:
        deadline = time.monotonic() + timeout
        connection = pool.take_idle(deadline) or await pool.take(deadline)
        try:
            rows = await connection.fetch(sql, *arguments)
        except asyncio.CancelledError:
            # The server may still run the statement, so the connection is not free yet.
            pool.give_back_cancelled(connection)
            raise
        except BaseException as error:
            if isinstance(error, asyncpg.InternalClientError) or (
                isinstance(error, AttributeError) and connection.is_closed()
            ):
                # asyncpg's errors if PostgreSQL closed the connection before the statement, or if the connection was
                # closed between two messages of it.
                connection.terminate()
                error = ConnectionResetError(describe(error))
            if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
                connection.terminate()
                pool.renew()  # the primary was demoted; a new connection finds its successor
            pool.give_back(connection)
            seconds_left = deadline - time.monotonic()
            if is_retry or not pool.only_reads or not _is_lost(error) or seconds_left <= 0:
                raise error
            return await fetch(pool, sql, *arguments, timeout=seconds_left, is_retry=True)
        pool.give_back(connection)
        return rows
    except UNAVAILABLE as error:
        if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
            raise  # an argument does not fit its parameter: our fault, not the storage's
        if isinstance(error, asyncpg.UndefinedTableError):
            logger.error("%s (%s)", NOT_MIGRATED, error)
            raise StorageUnavailable(NOT_MIGRATED, is_answered=True) from error
        logger.warning("storage is unavailable: %s", describe(error))
        raise StorageUnavailable(
            is_answered=isinstance(error, asyncpg.PostgresError)
            and not isinstance(error, asyncpg.PostgresConnectionError),
        ) from error


async def write(pool: Pool, sql: str, *arguments: object, timeout: float) -> list[asyncpg.Record]:
    """As `fetch`. An error about the values is raised as it is; every other one is `StorageUnavailable`."""
    try:
        return await fetch(pool, sql, *arguments, timeout=timeout)
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError):
        raise
    except asyncpg.PostgresError as error:  # a missing privilege, a failing trigger, a corrupt index …
        logger.exception("PostgreSQL cannot store")
        raise StorageUnavailable("The price storage does not accept prices.", is_answered=True) from error


def _is_lost(error: BaseException) -> bool:
    return isinstance(error, _LOST) and not isinstance(error, ValueError)


async def fetch_row(
    pool: Pool, sql: str, *arguments: object, timeout: float = DEADLINE_SECONDS
) -> asyncpg.Record | None:
    """As `fetch`, the first row or `None`."""
    rows = await fetch(pool, sql, *arguments, timeout=timeout)
    return rows[0] if rows else None


def columns(rows: Iterable[tuple[Any, ...]], width: int) -> list[list[Any]]:
    """Rows transposed into `width` columns, the arguments of `unnest`."""
    transposed = [list(column) for column in zip(*rows, strict=True)]
    return transposed or [[] for _ in range(width)]
