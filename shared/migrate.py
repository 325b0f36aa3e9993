"""`python -m shared.migrate`: apply the numbered SQL files that the database does not have yet.

Each file runs once, in a transaction of its own, and is recorded with its checksum. Safe to run twice and from two
places at once. A file that was changed after it was applied is an error, and so is a lock that cannot be had.
"""

import asyncio
import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from shared.config.settings import SettingsError, load_settings
from shared.errors import describe
from shared.storage.database import Pool, fetch_row
from shared.storage.failover import write_hosts
from shared.telemetry.logs import configure_logging

DIRECTORY = Path(__file__).parent / "storage" / "migrations"

_LOCK = 0x64657269  # "deri": any number that no other program on this database uses
_WAIT_FOR_DATABASE_SECONDS = 60


class MigrationError(Exception):
    """The database was left as it was; the message says what to do."""


@dataclass(frozen=True)
class Migration:
    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def read_migrations(directory: Path = DIRECTORY) -> list[Migration]:
    """Every `NNNN_name.sql` in order; the numbers have to be 1, 2, 3 …"""
    migrations: list[Migration] = []
    for path in sorted(directory.glob("*.sql")):
        match = re.fullmatch(r"(\d{4})_[a-z0-9_]+", path.stem)
        if not match or int(match[1]) != len(migrations) + 1:
            raise MigrationError(f"{path.name} is not the next migration after {len(migrations):04}")
        migrations.append(Migration(int(match[1]), path.stem, path.read_text(encoding="utf-8")))
    return migrations


async def migrate(dsn: str, migrations: Sequence[Migration] | None = None) -> list[str]:
    """Bring the database up to date; answers the names that were applied now."""
    migrations = read_migrations() if migrations is None else migrations
    # Nothing is kept or set beyond a transaction: that works behind a pooler too.
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
    """The newest migration the database has, 0 for none. Raises `StorageUnavailable`."""
    exists = await fetch_row(pool, "select to_regclass('schema_migrations') is not null as exists")
    if exists is None or not exists["exists"]:
        return 0
    row = await fetch_row(pool, "select coalesce(max(version), 0) as version from schema_migrations")
    return row["version"] if row else 0


async def _apply(connection: "asyncpg.Connection[asyncpg.Record]", migration: Migration) -> bool:
    """Apply one migration unless it is recorded."""
    async with connection.transaction():
        # Whatever the database gives everyone: an index takes its time.
        await connection.execute("set local statement_timeout = 0; set local lock_timeout = '60s'")
        await connection.execute("select pg_advisory_xact_lock($1::bigint)", _LOCK)
        applied = await connection.fetchval(
            "select checksum from schema_migrations where version = $1", migration.version
        )
        if applied == migration.checksum:
            return False
        if applied is not None:
            raise MigrationError(
                f"{migration.name}.sql was changed after it had been applied; restore it and write a new migration"
            )
        # A table lock that is waited for blocks every reader behind it: give up early and leave the service running.
        await connection.execute("set local lock_timeout = '5s'")
        await connection.execute(migration.sql)
        await connection.execute(
            "insert into schema_migrations (version, name, checksum) values ($1, $2, $3)",
            migration.version,
            migration.name,
            migration.checksum,
        )
        return True


async def _migrate_when_reachable(dsn: str) -> list[str]:
    """As `migrate`, but waits for a server that is still starting."""
    deadline = asyncio.get_running_loop().time() + _WAIT_FOR_DATABASE_SECONDS
    is_told = False
    while True:
        try:
            return await migrate(dsn)
        except (OSError, TimeoutError, asyncpg.CannotConnectNowError) as error:
            if asyncio.get_running_loop().time() > deadline:
                raise MigrationError(f"PostgreSQL cannot be reached: {describe(error)}") from error
            if not is_told:
                print(
                    f"migrate: waiting up to {_WAIT_FOR_DATABASE_SECONDS} s for PostgreSQL: {describe(error)}",
                    flush=True,
                )
                is_told = True
            await asyncio.sleep(0.2)


def main() -> int:
    try:
        settings = load_settings(redis_url="redis://localhost")  # not used here, so it need not be set
        configure_logging(settings)
        applied = asyncio.run(_migrate_when_reachable(settings.database_url))
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
