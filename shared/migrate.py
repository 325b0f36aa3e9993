"""`python -m shared.migrate`: apply the numbered SQL files that the database does not have yet.

Each file runs once, in a transaction of its own, and is recorded with its checksum. Safe to run twice, and from two
places at once. It is an error if a file was changed after it was applied, or if a lock is not free in time.
"""

import asyncio
import hashlib
import re
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from shared.config.database_url import hosts_of
from shared.config.settings import SettingsError, load_settings
from shared.errors import describe
from shared.storage.database import Pool, fetch_row
from shared.storage.failover import write_hosts
from shared.telemetry.logs import configure_logging

DIRECTORY = Path(__file__).parent / "storage" / "migrations"

_LOCK = 0x64657269  # the advisory lock's number: "deri"
_WAIT_FOR_DATABASE_SECONDS = 60

COMPOSE_NAMES = (
    "`postgres` and `redis` are names inside docker compose; elsewhere set DATABASE_URL and REDIS_URL to hosts that "
    "this machine knows, or leave both out so that `make run` starts its own servers"
)


class MigrationError(Exception):
    """The database is unchanged; the message says what to do."""


@dataclass(frozen=True)
class Migration:
    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def read_migrations(directory: Path = DIRECTORY) -> list[Migration]:
    """Every `NNNN_name.sql` in order. Raises `MigrationError` unless the numbers are 1, 2, 3 …"""
    migrations: list[Migration] = []
    for path in sorted(directory.glob("*.sql")):
        match = re.fullmatch(r"(\d{4})_[a-z0-9_]+", path.stem)
        if not match or int(match[1]) != len(migrations) + 1:
            raise MigrationError(f"{path.name} is not the next migration after {len(migrations):04}")
        migrations.append(Migration(int(match[1]), path.stem, path.read_text(encoding="utf-8")))
    return migrations


async def migrate(dsn: str, migrations: Sequence[Migration] | None = None) -> list[str]:
    """Bring the database up to date. Returns the names of the migrations that were applied now."""
    migrations = read_migrations() if migrations is None else migrations
    # No state outlives a transaction, so this works behind a pooler too.
    connection = await write_hosts(dsn).connect(
        5, statement_cache_size=0, server_settings={"application_name": "migrate"}
    )
    try:
        async with connection.transaction():
            await connection.execute("set local statement_timeout = 0; set local lock_timeout = '60s'")
            await connection.execute("select pg_advisory_xact_lock($1::bigint)", _LOCK)
            await connection.execute("""
                create table if not exists schema_migrations (
                    version integer primary key,
                    name text not null,
                    checksum text not null,
                    applied_at timestamptz not null default now()
                )
            """)
        return [m.name for m in migrations if await _apply(connection, m)]
    except asyncpg.LockNotAvailableError as error:
        raise MigrationError(f"another session holds a lock that the migration needs ({error}); try again") from error
    finally:
        await connection.close(timeout=5)


async def select_version(pool: Pool) -> int:
    """The newest migration that the database has, 0 for none. Raises `StorageUnavailable`."""
    exists = await fetch_row(pool, "select to_regclass('schema_migrations') is not null as exists")
    if exists is None or not exists["exists"]:
        return 0
    row = await fetch_row(pool, "select coalesce(max(version), 0) as version from schema_migrations")
    return row["version"] if row else 0


async def _apply(connection: "asyncpg.Connection[asyncpg.Record]", migration: Migration) -> bool:
    """Apply one migration unless it is recorded."""
    async with connection.transaction():
        # Overrides the database's own limit, because building an index takes long.
        await connection.execute("set local statement_timeout = 0; set local lock_timeout = '60s'")
        await connection.execute("select pg_advisory_xact_lock($1::bigint)", _LOCK)
        applied = await connection.fetchval(
            "select checksum from schema_migrations where version = $1", migration.version
        )
        if applied == migration.checksum:
            return False
        if applied is not None:
            raise MigrationError(
                f"{migration.name}.sql was changed after it was applied; restore it and write a new migration"
            )
        # While it waits for a table lock, every later reader waits behind it: give up early, the service stays up.
        await connection.execute("set local lock_timeout = '5s'")
        await connection.execute(migration.sql)
        await connection.execute(
            "insert into schema_migrations (version, name, checksum) values ($1, $2, $3)",
            migration.version,
            migration.name,
            migration.checksum,
        )
        return True


async def migrate_when_reachable(dsn: str) -> list[str]:
    """As `migrate`, but waits for a server that is still starting."""
    deadline = time.monotonic() + _WAIT_FOR_DATABASE_SECONDS
    is_reported = False
    while True:
        try:
            return await migrate(dsn)
        except (OSError, TimeoutError, asyncpg.CannotConnectNowError) as error:
            reason = explain_unreachable(error, dsn)
            if not is_reported:
                print(f"migrate: waiting up to {_WAIT_FOR_DATABASE_SECONDS} s for PostgreSQL: {reason}", flush=True)
                is_reported = True
            if time.monotonic() > deadline:
                raise MigrationError(f"PostgreSQL cannot be reached: {reason}") from error
            await asyncio.sleep(0.2)


def explain_unreachable(error: BaseException, url: str) -> str:
    """A name that cannot be resolved is named here, because the error itself does not name it."""
    if not isinstance(error, socket.gaierror):
        return describe(error)
    hosts = ", ".join(name for name, _ in hosts_of(url))
    return f"the host name {hosts} cannot be resolved ({error.strerror}). {COMPOSE_NAMES}"


def main() -> int:
    try:
        settings = load_settings(redis_url="redis://localhost")  # not used here, so it need not be set
        configure_logging(settings)
        applied = asyncio.run(migrate_when_reachable(settings.database_url))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except (MigrationError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        print(f"migrate: {error}", file=sys.stderr)
        return 1
    print("migrate: " + (f"applied {', '.join(applied)}" if applied else "up to date"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
