"""What the supervisor keeps running: one `Child` per process, started again when it ends."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Never

from shared.local.child import spawn
from shared.local.servers import PORT_ATTEMPTS, START_TIMEOUT, EmbeddedError, PortTakenError, Server, free_port

POLL = 0.02
FIRST_DELAY, LAST_DELAY = 0.5, 30.0
SETTLED_AFTER = 60.0
_LONGEST_LINE = 65536


def say(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone; that is no reason to stop collecting
        print(line, flush=True)


class Child:
    stop_signal = signal.SIGTERM

    def __init__(self, name: str) -> None:
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Also a second time. Sets `process` as soon as there is one, so that `stop` finds it."""
        raise NotImplementedError

    async def keep_running(self) -> Never:
        """Start it again, ever later, each time it ends; from the beginning once it has lived for a while."""
        delay = FIRST_DELAY
        while True:
            since = time.monotonic()
            with contextlib.suppress(EmbeddedError):  # told below
                await self.wait()
            if time.monotonic() - since > SETTLED_AFTER:
                delay = FIRST_DELAY
            say(f"{self.name} ended ({self._ending()}); starting it again in {delay:g} s")
            await asyncio.sleep(delay)
            delay = min(delay * 2, LAST_DELAY)
            try:
                await self.start()
            except (EmbeddedError, OSError, subprocess.SubprocessError) as error:
                say(str(error))

    async def wait(self) -> None:
        while self.process is not None and self.process.poll() is None:  # noqa: ASYNC110 - a process is no event
            await asyncio.sleep(POLL * 2)

    async def stop(self, timeout: float) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
        try:
            async with asyncio.timeout(timeout):
                await self.wait()
        except TimeoutError:
            say(f"{self.name} did not end within {timeout:g} s and is killed")
            self.kill()
            await self.wait()

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()

    def _ending(self) -> str:
        code = None if self.process is None else self.process.returncode
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"


class Program(Child):
    """`python -m module`, each of its lines behind its name."""

    def __init__(self, name: str, module: str, *arguments: str, env: Mapping[str, str]) -> None:
        super().__init__(name)
        self._command = [sys.executable, "-m", module, *arguments]
        self._env = {**os.environ, **env, "PYTHONUNBUFFERED": "1"}
        self._relay: asyncio.Task[None] | None = None

    async def start(self) -> None:
        # If we are killed the databases go at once, and waiting for them there would be nothing left to finish.
        self.process = spawn(self._command, death_signal=signal.SIGKILL, env=self._env, stdout=subprocess.PIPE)
        self._relay = asyncio.create_task(self._relay_lines(self.process))

    async def finish(self) -> int:
        """Wait for its end and its last line."""
        await self.wait()
        if self._relay is not None:
            await self._relay
        return -1 if self.process is None else self.process.returncode

    async def stop(self, timeout: float) -> None:
        await super().stop(timeout)
        if self._relay is not None:
            await asyncio.wait({self._relay}, timeout=1)

    async def _relay_lines(self, process: subprocess.Popen[bytes]) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), process.stdout)
        with contextlib.closing(transport):
            rest = b""
            while chunk := await reader.read(_LONGEST_LINE):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > _LONGEST_LINE:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self._say(line)
            if rest:
                self._say(rest)

    def _say(self, line: bytes) -> None:
        say(f"{self.name:<7}| {line.decode(errors='replace').rstrip()}")


class EmbeddedServer(Child):
    """Keeps its port when it is started again, so that the others find it by themselves."""

    def __init__(self, name: str, spawn_on: Callable[[int], Server]) -> None:
        super().__init__(name)
        self._spawn_on = spawn_on
        self._server: Server | None = None
        self._port: int | None = None

    @property
    def url(self) -> str:
        if self._server is None:
            raise RuntimeError(f"{self.name} has not been started")
        return self._server.url

    def launch(self) -> None:
        """The first half of `start`, so that it comes up while others are started."""
        self._server = self._spawn_on(free_port() if self._port is None else self._port)
        self.process, self.stop_signal = self._server.process, self._server.stop_signal

    async def start(self) -> None:
        self.launch()
        await self.until_ready()

    async def until_ready(self) -> None:
        attempts = PORT_ATTEMPTS if self._port is None else 1
        while True:
            attempts -= 1
            try:
                self._port = await self._port_when_ready()
                return
            except PortTakenError:  # someone was faster; choose again unless the others know the port already
                if not attempts:
                    raise
            self.launch()

    async def _port_when_ready(self) -> int:
        if self._server is None:
            raise RuntimeError(f"{self.name} has not been started")
        deadline = time.monotonic() + START_TIMEOUT
        while not self._server.is_ready():
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{self.name} did not answer within {START_TIMEOUT:g} s (log: {self._server.log})")
            await asyncio.sleep(POLL)
        return self._server.port
