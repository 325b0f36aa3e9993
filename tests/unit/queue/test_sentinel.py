"""Which sentinels are asked and believed, and what a connection then sends. The servers are stand-ins."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
import uvloop
from arq.connections import ArqRedis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from shared.config.settings import load_settings
from shared.errors import QueueUnavailable
from shared.queue.client import DEADLINE_SECONDS, open_redis, within_deadline
from shared.queue.fetches import enqueue_fetch_prices
from shared.queue.replication import Unconfirmed, execute_confirmed, execute_confirmed_if_possible
from shared.queue.sentinel import MasterConnection, MasterPool, MasterTLSConnection


@dataclass
class StandIn:
    """A server or a sentinel with fixed answers; silent if `answers` is None."""

    answers: dict[str, bytes] | None
    heard: list[str] = field(default_factory=list)
    port: int = 0
    connections: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        try:
            while line := await reader.readline():
                parts = []
                for _ in range(int(line[1:])):
                    length = int((await reader.readline())[1:])
                    parts.append((await reader.readexactly(length + 2)).decode().strip())
                command = " ".join(parts)
                self.heard.append(command)
                if self.answers is not None:
                    names = [name for name in self.answers if command.startswith(name)]
                    writer.write(self.answers[names[0]] if names else b"+OK\r\n")
        finally:
            self.connections.discard(writer)
            writer.close()

    def drop(self) -> None:
        for writer in self.connections:
            writer.transport.abort()


@asynccontextmanager
async def standing_in(*stand_ins: StandIn) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for one in stand_ins:
            server = await asyncio.start_server(one.serve, "127.0.0.1")
            one.port = server.sockets[0].getsockname()[1]
            stack.callback(server.close)
        yield
        for one in stand_ins:
            one.drop()
        await asyncio.sleep(0)


def a_server(role: str = "master", **answers: bytes) -> StandIn:
    text = f"# Replication\r\nrole:{role}\r\n"
    return StandIn({"INFO": f"${len(text)}\r\n{text}\r\n".encode(), "PING": b"+PONG\r\n"} | answers)


def answer_of(server: StandIn, epoch: int = 0, flags: str = "master") -> dict[str, bytes]:
    """A sentinel's answer: the master is `server`."""
    state = {
        "name": "m",
        "ip": "127.0.0.1",
        "port": str(server.port),
        "flags": flags,
        "config-epoch": str(epoch),
    }
    words = [word for pair in state.items() for word in pair]
    body = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    return {"SENTINEL MASTER m": f"*{len(words)}\r\n{body}".encode()}


@asynccontextmanager
async def redis_of(
    sentinels: Sequence[StandIn], *, retries: int = 0, timeout: float = DEADLINE_SECONDS
) -> AsyncIterator[ArqRedis]:
    hosts = ",".join(f"127.0.0.1:{one.port}" for one in sentinels)
    url = f"redis+sentinel://:s%40rv@{hosts}/m/3?sentinel_password=w%40tch"
    settings = load_settings(database_url="postgresql://localhost/prices", redis_url=url)
    async with open_redis(settings, retries=retries, timeout=timeout) as redis:
        yield redis


async def where(redis: ArqRedis) -> int:
    """The port of the server that gets the commands."""
    await redis.set("k", "v")
    [connection] = redis.connection_pool._available_connections
    assert isinstance(connection, MasterConnection)
    return connection.port


async def test_passwords_database_and_time_limits_are_used() -> None:
    server, sentinel = a_server(), StandIn({})
    async with standing_in(server, sentinel):
        sentinel.answers = answer_of(server)
        async with redis_of([sentinel]) as redis:
            assert await where(redis) == server.port
            [connection] = redis.connection_pool._available_connections
            assert (connection.socket_connect_timeout, connection.socket_timeout) == (1, DEADLINE_SECONDS)
            assert (connection.health_check_interval, connection.retry._retries) == (15, 0)
        assert [said for said in server.heard if not said.startswith("CLIENT")] == [
            "AUTH s@rv",
            "SELECT 3",
            "INFO replication",
            "SET k v",
        ]
        assert sentinel.heard[0] == "AUTH w@tch"
        assert not any("s@rv" in said for said in sentinel.heard)


@pytest.mark.parametrize(
    ("scheme", "connection_class"),
    [("redis+sentinel", MasterConnection), ("rediss+sentinel", MasterTLSConnection)],
)
async def test_the_pool_is_one_that_arq_takes(scheme: str, connection_class: type[MasterConnection]) -> None:
    settings = load_settings(database_url="postgresql://localhost/prices", redis_url=f"{scheme}://127.0.0.1:1/m")
    async with open_redis(settings, retries=0) as redis:
        assert isinstance(redis, ArqRedis)
        assert isinstance(redis.connection_pool, MasterPool)
        assert redis.connection_pool.connection_class is connection_class


async def test_a_plain_url_gets_a_plain_pool() -> None:
    settings = load_settings(database_url="postgresql://localhost/prices", redis_url="redis://localhost/2")
    async with open_redis(settings, retries=0) as redis:
        assert not isinstance(redis.connection_pool, MasterPool)
        assert redis.connection_pool.connection_kwargs["db"] == 2


async def test_a_majority_is_enough_while_one_sentinel_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.queue.sentinel.SENTINEL_SECONDS", 60)
    server, silent, first, second = a_server(), StandIn(None), StandIn({}), StandIn({})
    async with standing_in(server, silent, first, second):
        first.answers = second.answers = answer_of(server)
        async with redis_of([silent, first, second], retries=5) as redis, asyncio.timeout(20):
            assert await where(redis) == server.port


async def test_one_sentinel_that_answers_is_enough() -> None:
    server, silent, last = a_server(), StandIn(None), StandIn({})
    async with standing_in(server, silent, last):
        last.answers = answer_of(server)
        async with redis_of([silent, StandIn(None, port=1), last], retries=5) as redis:
            assert await where(redis) == server.port


async def test_the_highest_epoch_wins() -> None:
    old, new, stale, fresh = a_server(), a_server(), StandIn({}), StandIn({})
    async with standing_in(old, new, stale, fresh):
        stale.answers, fresh.answers = answer_of(old, epoch=1), answer_of(new, epoch=2)
        for order in ([stale, fresh], [fresh, stale]):
            async with redis_of(order) as redis:
                assert await where(redis) == new.port
        assert old.heard == []


@pytest.mark.parametrize("flags", ["master,s_down", "master,s_down,o_down"])
async def test_a_master_that_is_down_is_not_connected_to(flags: str) -> None:
    server, sentinel = a_server(), StandIn({})
    async with standing_in(server, sentinel):
        sentinel.answers = answer_of(server, flags=flags)
        async with redis_of([sentinel]) as redis:
            with pytest.raises(RedisConnectionError, match="the master of m is down"):
                await redis.get("k")
        assert server.heard == []


async def test_the_fault_of_each_sentinel_is_named_without_passwords() -> None:
    strict = StandIn({"AUTH": b"-WRONGPASS invalid username-password pair\r\n"})
    unknown = StandIn({"SENTINEL": b"-ERR No such master with that name\r\n"})
    async with standing_in(strict, unknown), redis_of([strict, unknown, StandIn(None, port=1)]) as redis:
        with pytest.raises(RedisConnectionError) as caught:
            await redis.get("k")
    told = str(caught.value)
    assert told.startswith("no sentinel answers (")
    for expected in (f"127.0.0.1:{strict.port}: AuthenticationError: invalid", "No such master", "127.0.0.1:1: "):
        assert expected in told
    assert "tch" not in told
    assert "s@rv" not in told


async def test_a_replica_is_left_and_the_sentinels_are_asked_again() -> None:
    replica, master, sentinel = a_server("slave"), a_server(), StandIn({})
    async with standing_in(replica, master, sentinel):
        sentinel.answers = answer_of(replica)
        async with redis_of([sentinel]) as redis:
            with pytest.raises(RedisError, match="is not the master"):
                await redis.set("k", "v")
        async with redis_of([sentinel], retries=5) as redis:
            asking = asyncio.ensure_future(where(redis))
            while "INFO replication" not in replica.heard[-1:]:
                await asyncio.sleep(0.01)
            sentinel.answers = answer_of(master, epoch=1)
            assert await asking == master.port
        assert not any(said.startswith("SET") for said in replica.heard)


async def test_a_master_that_has_become_a_replica_is_left() -> None:
    old, new, sentinel = a_server(), a_server(), StandIn({})
    async with standing_in(old, new, sentinel):
        sentinel.answers = answer_of(old)
        async with redis_of([sentinel], retries=1) as redis:
            assert await where(redis) == old.port
            sentinel.answers = answer_of(new, epoch=1)
            assert old.answers is not None
            old.answers["SET"] = b"-READONLY You can't write against a read only replica.\r\n"
            assert await where(redis) == new.port


async def test_a_command_that_waits_for_a_paused_master_goes_to_the_new_one() -> None:
    """At the next look at the sentinels, not after the time limit of an answer."""
    paused, new, sentinel = a_server(), a_server(), StandIn({})
    async with standing_in(paused, new, sentinel):
        sentinel.answers = answer_of(paused)
        async with redis_of([sentinel], retries=1, timeout=60) as redis, asyncio.timeout(20):
            assert await where(redis) == paused.port
            paused.answers = None
            await asyncio.sleep(0)
            asking = asyncio.ensure_future(redis.set("waits", "v"))
            while "SET waits v" not in paused.heard:
                await asyncio.sleep(0.01)
            sentinel.answers = answer_of(new, epoch=1)
            await asking
            assert new.heard[-1] == "SET waits v"
            assert await where(redis) == new.port


def test_writing_to_an_aborted_connection_is_a_connection_error() -> None:
    """With uvloop, which raises a RuntimeError."""

    async def run() -> None:
        server, sentinel = a_server(), StandIn({})
        async with standing_in(server, sentinel):
            sentinel.answers = answer_of(server)
            async with redis_of([sentinel]) as redis:
                connection = await redis.connection_pool.get_connection()
                connection.abort()
                with pytest.raises(RedisConnectionError):
                    await connection.send_command("SET", "k", "v")
                await redis.connection_pool.release(connection)

    uvloop.run(run())


async def test_a_write_without_a_replica_is_unconfirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.queue.replication._CONFIRM_AGAIN_SECONDS", (0.01, 0.01))
    server, sentinel = a_server(INCR=b":1\r\n", WAIT=b":0\r\n"), StandIn({})
    async with standing_in(server, sentinel):
        sentinel.answers = answer_of(server)
        async with redis_of([sentinel]) as redis:
            with pytest.raises(Unconfirmed):
                await execute_confirmed(redis, ("SET", "k", "v"))
            assert server.heard[-3:] == ["SET k v", "INCR confirmations", "WAIT 1 500"]
            with pytest.raises(QueueUnavailable):
                await within_deadline(enqueue_fetch_prices(redis, ["btc_usd"]))
            await execute_confirmed_if_possible(redis, ("SET", "k", "v"))
            assert server.heard.count("SET k v") == 4
            assert server.answers is not None
            server.answers["WAIT"] = b":1\r\n"
            assert await execute_confirmed(redis, ("SET", "k", "v"), ("SET", "l", "w")) == [True, True]


async def test_a_refused_command_raises_the_servers_error() -> None:
    server, sentinel = a_server(EVAL=b"-ERR no such thing\r\n", INCR=b":1\r\n", WAIT=b":1\r\n"), StandIn({})
    async with standing_in(server, sentinel):
        sentinel.answers = answer_of(server)
        async with redis_of([sentinel]) as redis:
            with pytest.raises(RedisError, match=r"^no such thing$"):
                await execute_confirmed(redis, ("EVAL", "secret", 0))


async def test_an_unreadable_answer_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the process would notice every later master late."""
    monkeypatch.setattr("shared.queue.sentinel.WATCH_SECONDS", 0.05)
    before, after, sentinel = a_server(), a_server(), StandIn({})
    async with standing_in(before, after, sentinel):
        sentinel.answers = {"SENTINEL MASTER m": b"*2\r\n$4\r\nname\r\n$1\r\nm\r\n"}
        async with redis_of([sentinel]) as redis:
            await asyncio.sleep(0.2)
            sentinel.answers = answer_of(before)
            assert await where(redis) == before.port
            pool = redis.connection_pool
            assert isinstance(pool, MasterPool)
            sentinel.answers = answer_of(after, 1)
            async with asyncio.timeout(5):
                while pool.master_address != ("127.0.0.1", after.port):
                    await asyncio.sleep(0.01)
