"""`make run` and `make demo`: PostgreSQL, Valkey, API and worker on this machine, started and stopped together.

API and worker are the same `python -m …` processes as in production. `demo` runs them against the built-in exchange
simulator, in its own data folder, so that simulated prices never mix with real ones.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from pydantic_settings import BaseSettings

from shared.config.outbound import client_options, socket_options
from shared.config.settings import Settings, load_settings
from shared.local.checks import announce_when_ready, check_hosts, check_port, until_listening, warn_if_unreachable
from shared.local.child import EmbeddedError
from shared.local.data_folder import lock_data_folder
from shared.local.servers import free_port, spawn_postgres, spawn_valkey
from shared.local.supervisor import Child, EmbeddedServer, Program, say

PROGRAM_STOP_TIMEOUT = 25.0  # longer than a job may take
SERVER_STOP_TIMEOUT = 20.0  # PostgreSQL writes its checkpoint
SECOND_SIGNAL_AFTER = 1.0  # make and `timeout` may forward a signal that we have already received


DEMO_HISTORY = timedelta(days=21)


class _Given(BaseSettings):
    """The settings that an embedded server or the simulator replaces, as the environment and `.env` have them."""

    model_config = Settings.model_config | {"env_ignore_empty": False}
    database_url: str = ""
    redis_url: str = ""
    deribit_base_url: str = ""
    deribit_stream_url: str = ""
    deribit_history_url: str = ""
    history_from: str | None = None
    retention_days: str = ""


class Stack:
    def __init__(self, *, is_demo: bool) -> None:
        """Raises `SettingsError`."""
        given = _Given()
        self._is_demo = is_demo
        self._simulator_port = free_port()
        ours = {}
        if is_demo or not given.database_url:
            _forget_libpq_variables()
            ours["database_url"] = "postgresql://embedded"  # replaced when the server runs
        if is_demo or not given.redis_url:
            ours["redis_url"] = "redis://embedded"
        if is_demo:
            ours["deribit_base_url"] = f"http://127.0.0.1:{self._simulator_port}/api/v2"
            ours["deribit_stream_url"] = f"ws://127.0.0.1:{self._simulator_port}/ws/api/v2"
            ours["deribit_history_url"] = ours["deribit_base_url"]
            if given.history_from is None and not given.retention_days:  # empty is off
                ours["history_from"] = (datetime.now(UTC) - DEMO_HISTORY).date().isoformat()
        self._settings = load_settings(**ours)
        # Otherwise the API or the worker would refuse and be restarted forever.
        self._settings.require_guarded_mutations()
        client_options(self._settings.deribit_base_url)
        if self._settings.streams:
            socket_options(self._settings.stream_url)
        self._ignored = [name.upper() for name in ours if is_demo and getattr(given, name)]
        self._env = {name.upper(): value for name, value in ours.items()}
        self._env["DRAIN_SECONDS"] = "0"  # no other API takes over meanwhile
        self._folder = Path(self._settings.data_dir) / ("demo" if is_demo else "live")

        self._servers: list[Child] = []
        self._programs: list[Program] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.is_stopping = False

    async def serve(self) -> None:
        """Keep everything running until cancelled. Raises `EmbeddedError` when it cannot be started."""
        began = time.monotonic()
        with contextlib.ExitStack() as locked:
            if "DATABASE_URL" in self._env or "REDIS_URL" in self._env:
                locked.enter_context(lock_data_folder(self._folder))
            urls = {"DATABASE_URL": self._settings.database_url, "REDIS_URL": self._settings.redis_url}
            await check_hosts({name: url for name, url in urls.items() if name not in self._env})
            check_port(self._settings.host, self._settings.port, "make demo" if self._is_demo else "make run")
            if self._ignored:
                say(f"The demo has its own servers and prices and ignores {', '.join(self._ignored)}")
            try:
                await self._start_servers()
                await self._migrate()
                await self._start_programs()
                self._tasks.append(asyncio.create_task(announce_when_ready(self._settings, began)))
                if not self._is_demo:
                    self._tasks.append(asyncio.create_task(warn_if_unreachable(self._settings.deribit_base_url)))
                await asyncio.gather(*self._tasks)
            finally:
                await self._stop()

    async def _start_servers(self) -> None:
        if self._is_demo:
            port = str(self._simulator_port)
            simulator = Program("simulator", "worker.simulator", "--host", "127.0.0.1", "--port", port, env={})
            self._servers.append(simulator)
            await simulator.start()
            self._keep_running(simulator)
        embedded: dict[str, EmbeddedServer] = {}
        # PostgreSQL last: its first launch makes the data folder while the others come up.
        for setting, name, spawn in (
            ("REDIS_URL", "Valkey", partial(spawn_valkey, self._folder / "valkey")),
            ("DATABASE_URL", "PostgreSQL", partial(spawn_postgres, self._folder / "postgres")),
        ):
            if setting in self._env:
                embedded[setting] = EmbeddedServer(name, spawn)
                self._servers.append(embedded[setting])
        for setting, server in embedded.items():
            await server.until_ready()
            self._env[setting] = url = server.server.url
            if setting == "DATABASE_URL":  # settings of another database do not apply to this one
                self._env |= {"DATABASE_READ_URL": url, "DATABASE_POOLER": "0"}
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
            if name == "worker" and self._is_demo:
                await until_listening(self._simulator_port)  # the worker asks for prices as soon as it is up
            program = Program(name, module, env=self._env)
            self._programs.append(program)
            await program.start()
            self._keep_running(program)

    def _keep_running(self, child: Child) -> None:
        self._tasks.append(asyncio.create_task(child.keep_running()))

    async def _stop(self) -> None:
        """Stop the programs first, so that they can finish their work, then the servers."""
        self.is_stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await _stop_all(self._programs, PROGRAM_STOP_TIMEOUT)
        await _stop_all(self._servers, SERVER_STOP_TIMEOUT)

    def kill(self) -> None:
        for child in (*self._programs, *self._servers):
            child.kill()


def _forget_libpq_variables() -> None:
    """They describe another server than the embedded one. Our children inherit the environment."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


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
            say("Stopping; press Ctrl-C again to kill what still runs")
            serving.cancel()
        elif first is None or now - first > SECOND_SIGNAL_AFTER:
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
