"""Child processes that are started again when they end: programs of ours and embedded servers."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Never

from shared.local.child import EmbeddedError, spawn
from shared.local.servers import PORT_ATTEMPTS, START_TIMEOUT, PortTakenError, Server, free_port

POLL = 0.02
FIRST_DELAY, LAST_DELAY = 0.5, 30.0
SETTLED_AFTER = 60.0
_MAX_LINE_BYTES = 65536


def say(line: str) -> None:
    with contextlib.suppress(OSError):  # a closed terminal must not stop the collecting
        print(line, flush=True)


class Child:
    stop_signal = signal.SIGTERM

    def __init__(self, name: str) -> None:
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, or start it again. Sets `process` at once, so that `stop` finds it."""
        raise NotImplementedError

    async def keep_running(self) -> Never:
        """Start it again each time it ends, with exponential backoff; `SETTLED_AFTER` seconds of life reset it."""
        delay = FIRST_DELAY
        while True:
            since = time.monotonic()
            with contextlib.suppress(EmbeddedError):  # reported below
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
    """`python -m module`. Its name stands before each line it prints."""

    def __init__(self, name: str, module: str, *arguments: str, env: Mapping[str, str]) -> None:
        super().__init__(name)
        self._command = [sys.executable, "-m", module, *arguments]
        self._env = {**os.environ, **env, "PYTHONUNBUFFERED": "1"}
        self._relay: asyncio.Task[None] | None = None

    async def start(self) -> None:
        # SIGKILL, because if we are killed, the databases end too and the program could not finish anything.
        self.process = spawn(self._command, death_signal=signal.SIGKILL, env=self._env, stdout=subprocess.PIPE)
        self._relay = asyncio.create_task(self._relay_lines(self.process))

    async def finish(self) -> int:
        """Wait for its end and its last line. Returns the exit code."""
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
            while chunk := await reader.read(_MAX_LINE_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > _MAX_LINE_BYTES:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self._say(line)
            if rest:
                self._say(rest)

    def _say(self, line: bytes) -> None:
        say(f"{self.name:<9}| {line.decode(errors='replace').rstrip()}")


class EmbeddedServer(Child):
    """Starts at once, so that several can start at the same time; `until_ready` waits for it.

    It keeps its port when it is started again, so that the programs find it again.
    """

    def __init__(self, name: str, spawn_on: Callable[[int], Server]) -> None:
        super().__init__(name)
        self._spawn_on = spawn_on
        self._port: int | None = None
        self._launch()

    def _launch(self) -> None:
        self.server = self._spawn_on(self._port or free_port())
        self.process, self.stop_signal = self.server.process, self.server.stop_signal

    async def start(self) -> None:
        self._launch()
        await self.until_ready()

    async def until_ready(self) -> None:
        attempts = PORT_ATTEMPTS if self._port is None else 1
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                if self.server.is_ready():
                    self._port = self.server.port
                    return
            except (
                PortTakenError
            ):  # another program was faster; choose again, unless the programs know the port already
                attempts -= 1
                if not attempts:
                    raise
                self._launch()
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{self.name} did not answer within {START_TIMEOUT:g} s (log: {self.server.log})")
            await asyncio.sleep(POLL)
