"""PostgreSQL and Valkey for a benchmark alone, on the cores that are theirs."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.data import POSTGRES_OPTIONS
from tests.bench.machine import Cores, pin
from tests.embedded import Server, start_postgres, start_valkey


@contextmanager
def started_servers(
    folder: Path, cores: Cores, options: Mapping[str, str] = POSTGRES_OPTIONS
) -> Iterator[tuple[Server, Server]]:
    """`options`: of PostgreSQL."""
    folder.chmod(0o755)
    with ExitStack() as stack:
        postgres = start_postgres(folder / "postgres", options=options)
        stack.callback(postgres.stop)
        valkey = start_valkey(folder / "valkey")
        stack.callback(valkey.stop)
        pin(postgres.process.pid, *cores.postgres)
        pin(valkey.process.pid, *cores.postgres)
        yield postgres, valkey
