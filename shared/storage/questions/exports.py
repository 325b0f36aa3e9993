"""Rows of a statement as CSV, streamed by COPY on a connection of their own."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from shared.errors import StorageUnavailable, describe
from shared.storage.database import DEADLINE_SECONDS, UNAVAILABLE, Pool, Statement

logger = logging.getLogger(__name__)

EXPORT_SECONDS = 3600
"After that, PostgreSQL ends an export, because its snapshot keeps vacuum from removing dead rows."

EVERY_ROW = 2**31 - 1
"A limit that no export reaches."

_BEGIN = f"begin read only; set local statement_timeout = '{EXPORT_SECONDS} s'"
_CLOSE_SECONDS = 1.0


async def copy_csv(pool: Pool, statement: Statement, write: Callable[[bytes], Coroutine[Any, Any, None]]) -> None:
    """Write the rows as CSV with a header, piece by piece. Reads the next piece when `write` has returned.

    Raises `StorageUnavailable`, perhaps after some pieces.
    """
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            connection = await pool.connect()
        try:
            async with asyncio.timeout(EXPORT_SECONDS):
                await connection.execute(_BEGIN)
                await connection.copy_from_query(
                    statement.sql, *statement.parameters, output=write, format="csv", header=True
                )
                await connection.execute("commit")
            await connection.close(timeout=_CLOSE_SECONDS)
        finally:
            connection.terminate()
    except UNAVAILABLE as error:
        logger.warning("storage is unavailable: %s", describe(error))
        raise StorageUnavailable from error
