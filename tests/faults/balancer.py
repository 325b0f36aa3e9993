"""A small load balancer: it sends connections to the API processes that are ready."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import httpx

CHECK_SECONDS = 0.1


class Balancer:
    """Its only HTTP is /readyz. It retries nothing: a request that a process does not answer is lost and counted."""

    def __init__(self, ports: Iterable[int]) -> None:
        self.ports = tuple(ports)
        self.ready: set[int] = set()
        self.port = 0
        self.process_of: dict[int, int] = {}
        "The port of the process that a connection went to, by the client's own port."
        self._turns = itertools.count()
        self._connections: set[asyncio.Task[None]] = set()

    async def check(self, port: int) -> None:
        async with httpx.AsyncClient(timeout=2, trust_env=False) as http:
            while True:
                try:
                    is_ready = (await http.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
                except httpx.TransportError:
                    is_ready = False
                (self.ready.add if is_ready else self.ready.discard)(port)
                await asyncio.sleep(CHECK_SECONDS)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            if not (ready := sorted(self.ready)):
                return
            port = ready[next(self._turns) % len(ready)]
            self.process_of[writer.get_extra_info("peername")[1]] = port
            there, back = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(_pass_on(reader, back), _pass_on(there, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def close(self) -> None:
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()


@asynccontextmanager
async def open_balancer(ports: Iterable[int]) -> AsyncIterator[Balancer]:
    """Returns when all of them are ready."""
    balancer = Balancer(ports)
    checks = [asyncio.create_task(balancer.check(port)) for port in balancer.ports]
    server = await asyncio.start_server(balancer.connect, "127.0.0.1", 0)
    balancer.port = server.sockets[0].getsockname()[1]
    try:
        async with asyncio.timeout(30):
            while len(balancer.ready) < len(balancer.ports):
                await asyncio.sleep(0.02)
        yield balancer
    finally:
        server.close()
        for check in checks:
            check.cancel()
        await asyncio.gather(*checks, return_exceptions=True)
        await balancer.close()
