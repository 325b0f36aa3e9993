"""Failover between servers that refuse or are silent; real servers are in tests/integration."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any, cast

import asyncpg
import pytest

from shared.config.database_url import hosts_of, target_of
from shared.storage import failover as hosts
from shared.storage.failover import Hosts, write_hosts
from shared.storage.pool import Connection


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("postgresql://u:p@h/db", [("h", 5432)]),
        ("postgresql://u:p@one:5433,two/db", [("one", 5433), ("two", 5432)]),
        ("postgresql://u:p%40@[::1]:5433/db", [("::1", 5433)]),
        ("postgresql:///db?host=/run/a,/run/b&port=1,2", [("/run/a", 1), ("/run/b", 2)]),
        ("postgresql:///db?host=one,two&port=6000", [("one", 6000), ("two", 6000)]),
        ("postgresql://%2Frun%2Fa,two/db", [("/run/a", 5432), ("two", 5432)]),
        ("postgresql:///db", [("", 5432)]),
    ],
)
def test_the_servers_of_a_url(url: str, named: list[tuple[str, int]]) -> None:
    assert hosts_of(url) == named


def test_the_target_session_attrs_of_a_url() -> None:
    assert target_of("postgresql://h/db?sslmode=require&target_session_attrs=standby") == "standby"
    assert target_of("postgresql://h/db") is None


class Server:
    """One server as asyncpg sees it: how long a connection takes, and its outcome."""

    def __init__(self, outcome: Any, seconds: float = 0.0) -> None:
        self.outcome = outcome
        self.seconds = seconds
        self.asked = 0

    async def answer(self) -> Any:
        self.asked += 1
        await asyncio.sleep(self.seconds)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


class Open:
    is_open = True

    def terminate(self) -> None:
        self.is_open = False


Servers = dict[str, Server]


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    """By name; asyncpg.connect is replaced."""
    named: Servers = {}

    async def connect(url: str, *, host: str, port: int, target_session_attrs: str, **options: Any) -> Connection:
        assert (target_session_attrs, options) == ("read-write", {"statement_cache_size": 0})
        return cast(Connection, await named[host].answer())

    monkeypatch.setattr(asyncpg, "connect", connect)
    return named


REFUSED = ConnectionRefusedError(111, "refused")
STANDBY = asyncpg.TargetServerAttributeNotMatched("no")


def of(*names: str) -> Hosts:
    return write_hosts(f"postgresql://{','.join(names)}/db")


async def connect(hosts: Hosts) -> Any:
    return await hosts.connect(statement_cache_size=0)


async def test_the_server_that_accepts_writes_is_found_and_tried_first_next_time(servers: Servers) -> None:
    primary = Open()
    servers |= {"gone": Server(REFUSED), "standby": Server(STANDBY), "primary": Server(primary)}
    known = of("gone", "standby", "primary")
    assert [await connect(known) for _ in range(3)] == [primary] * 3
    assert [server.asked for server in servers.values()] == [1, 1, 3]


async def test_a_silent_server_delays_a_connection_by_the_head_start_only(servers: Servers) -> None:
    primary = Open()
    servers |= {"silent": Server(REFUSED, 60), "other": Server(STANDBY, 60), "primary": Server(primary)}
    known, began = of("silent", "other", "primary"), time.monotonic()
    assert await connect(known) is primary
    assert time.monotonic() - began < hosts.CONNECT_SECONDS
    assert await connect(known) is primary
    assert [server.asked for server in servers.values()] == [1, 1, 2]


async def test_a_late_connection_is_closed(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "HEAD_START_SECONDS", 0.01)
    late, primary = Open(), Open()

    class Late(Server):
        async def answer(self) -> Any:
            """It was made when the attempt was cancelled."""
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            return late

    servers |= {"late": Late(late), "primary": Server(primary)}
    assert await connect(of("late", "primary")) is primary
    while late.is_open:
        await asyncio.sleep(0)
    assert primary.is_open


async def test_the_error_names_the_fault_of_each_server(servers: Servers) -> None:
    servers |= {"gone": Server(REFUSED), "standby": Server(STANDBY)}
    with pytest.raises(ConnectionError) as caught:
        await connect(of("gone", "standby"))
    assert str(caught.value) == (
        "gone:5432: ConnectionRefusedError: [Errno 111] refused; standby:5432: not the kind of server that is wanted"
    )


async def test_a_refused_password_is_raised_as_it_is(servers: Servers) -> None:
    wrong = asyncpg.InvalidPasswordError("no such password")
    servers |= {"gone": Server(REFUSED), "primary": Server(wrong)}
    with pytest.raises(asyncpg.InvalidPasswordError):
        await connect(of("gone", "primary"))


@pytest.fixture
def silent_port() -> Iterator[int]:
    """The kernel accepts the connection and nothing answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("names", ["127.0.0.1:{0}", "127.0.0.1:{0},localhost:{0}"])
async def test_connecting_to_silent_servers_ends_in_time(silent_port: int, names: str) -> None:
    began = time.monotonic()
    with pytest.raises((TimeoutError, ConnectionError)):
        await write_hosts(f"postgresql://u:p@{names.format(silent_port)}/db").connect()
    assert time.monotonic() - began < 20  # asyncpg's own would be 60
