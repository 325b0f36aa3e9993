"""`make run` and `make demo`: PostgreSQL, Valkey, API and worker on this machine, started and ended together.

API and worker are the same `python -m …` processes as in production. `demo` runs them against the built-in exchange
simulator, in a data folder of its own, so that simulated prices never mix with real ones.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from pydantic_settings import BaseSettings

from shared.config.settings import Settings, load_settings
from shared.local.checks import announce_when_ready, check_port, tell_when_unreachable, until_listening
from shared.local.servers import EmbeddedError, free_port, lock_data_folder, spawn_postgres, spawn_valkey
from shared.local.supervisor import Child, EmbeddedServer, Program, say

PROGRAM_STOP_TIMEOUT = 25.0  # longer than a job may take
SERVER_STOP_TIMEOUT = 20.0  # PostgreSQL writes its checkpoint
HURRY_AFTER = 1.0  # make and `timeout` may pass on a signal that we got ourselves


class _Given(BaseSettings):
    """What the environment or `.env` says where an embedded server or the simulator would take its place."""

    model_config = Settings.model_config
    database_url: str = ""
    redis_url: str = ""
    deribit_base_url: str = ""


class Stack:
    def __init__(self, *, is_demo: bool) -> None:
        """Raises `SettingsError`."""
        given = _Given()
        self._is_demo = is_demo
        self._simulator_port = free_port()
        ours = {}
        if is_demo or not given.database_url:
            ours["database_url"] = "postgresql://embedded"  # the real ones are known once the servers run
        if is_demo or not given.redis_url:
            ours["redis_url"] = "redis://embedded"
        if is_demo:
            ours["deribit_base_url"] = f"http://127.0.0.1:{self._simulator_port}/api/v2"
        self._settings = load_settings(**ours)
        self._settings.require_guarded_mutations()  # the API would refuse, and be started again and again
        self._ignored = [name.upper() for name in ours if is_demo and getattr(given, name)]
        self._env = {name.upper(): value for name, value in ours.items()}
        self._env["DRAIN_SECONDS"] = "0"  # there is no other API that could be asked meanwhile
        self._folder = Path(self._settings.data_dir) / ("demo" if is_demo else "live")

        self._simulator: Program | None = None
        self._servers: dict[str, EmbeddedServer] = {}
        self._programs: list[Program] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.is_stopping = False

    async def serve(self) -> None:
        """Keep everything running until cancelled. Raises `EmbeddedError` when it cannot be started."""
        began = time.monotonic()
        with contextlib.ExitStack() as locked:
            if "DATABASE_URL" in self._env or "REDIS_URL" in self._env:
                locked.enter_context(lock_data_folder(self._folder))
            check_port(self._settings.host, self._settings.port, "make demo" if self._is_demo else "make run")
            if self._ignored:
                say(f"The demo has servers and prices of its own and ignores {', '.join(self._ignored)}")
            try:
                await self._start_servers()
                await self._migrate()
                await self._start_programs()
                self._tasks.append(asyncio.create_task(announce_when_ready(self._settings, began)))
                if not self._is_demo:
                    self._tasks.append(asyncio.create_task(tell_when_unreachable(self._settings.deribit_base_url)))
                await asyncio.gather(*self._tasks)
            finally:
                await self._stop()

    async def _start_servers(self) -> None:
        if self._is_demo:
            port = str(self._simulator_port)
            self._simulator = Program("market", "worker.simulator", "--host", "127.0.0.1", "--port", port, env={})
            await self._simulator.start()
        # PostgreSQL last: its first launch makes the data folder while the others come up.
        if "REDIS_URL" in self._env:
            self._servers["REDIS_URL"] = EmbeddedServer("Valkey", lambda p: spawn_valkey(self._folder / "valkey", p))
        if "DATABASE_URL" in self._env:
            directory = self._folder / "postgres"
            self._servers["DATABASE_URL"] = EmbeddedServer("PostgreSQL", lambda p: spawn_postgres(directory, p))
        for server in self._servers.values():
            server.launch()
        for name, server in self._servers.items():
            await server.until_ready()
            self._env[name] = server.url
            if name == "DATABASE_URL":  # what is said of another database is not about this one
                self._env |= {"DATABASE_READ_URL": server.url, "DATABASE_POOLER": "0"}
            self._keep_running(server)

    async def _migrate(self) -> None:
        migration = Program("schema", "shared.migrate", env=self._env)
        self._programs.append(migration)
        await migration.start()
        if await migration.finish() != 0:
            hint = "" if "DATABASE_URL" in self._env else "; without DATABASE_URL an embedded PostgreSQL is used"
            raise EmbeddedError(f"The database could not be migrated, see the lines above{hint}")
        self._programs.remove(migration)

    async def _start_programs(self) -> None:
        for name, module in (("api", "server"), ("worker", "worker")):
            if name == "worker" and self._simulator is not None:
                self._keep_running(self._simulator)
                await until_listening(self._simulator_port)  # the worker asks for prices as soon as it is up
            program = Program(name, module, env=self._env)
            self._programs.append(program)
            await program.start()
            self._keep_running(program)

    def _keep_running(self, child: Child) -> None:
        self._tasks.append(asyncio.create_task(child.keep_running()))

    async def _stop(self) -> None:
        """First those that finish their work, then what they work with."""
        self.is_stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await _stop_all(self._programs, PROGRAM_STOP_TIMEOUT)
        if self._simulator is not None:
            await self._simulator.stop(SERVER_STOP_TIMEOUT)
        await _stop_all(self._servers.values(), SERVER_STOP_TIMEOUT)

    def kill(self) -> None:
        for child in (*self._programs, *self._servers.values(), *([self._simulator] if self._simulator else [])):
            child.kill()


async def _stop_all(children: Iterable[Child], timeout: float) -> None:
    await asyncio.gather(*(child.stop(timeout) for child in children))


async def serve_until_signalled(stack: Stack) -> None:
    serving = asyncio.create_task(stack.serve())
    first: float | None = None

    def stop() -> None:
        nonlocal first
        now = time.monotonic()
        if first is None and not stack.is_stopping:
            first = now
            say("Stopping; once more to kill what still runs")
            serving.cancel()
        elif first is None or now - first > HURRY_AFTER:
            say("Killing what still runs")
            stack.kill()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        await serving
    except asyncio.CancelledError:
        if first is None:
            raise
