"""`python -m server` as a subprocess, with its log."""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from shared.config.settings import Settings
from shared.local.servers import free_port

ROOT = Path(__file__).parents[2]


class ApiProcess:
    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self._log = log
        self.final_log = ""
        "All of it, once the process has ended."
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False)

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def execute(self, query: str, **headers: str) -> Any:
        response = await self.http.post("/graphql", json={"query": query}, headers=headers)
        return response.json()


@asynccontextmanager
async def run_api(settings: Settings, host: str = "127.0.0.1", **variables: str) -> AsyncIterator[ApiProcess]:
    """`variables`: environment variables besides the servers' URLs and the port."""
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "HOST": host,
        "PORT": str(free_port()),
        "DRAIN_SECONDS": "0",
        **variables,
    }
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen([sys.executable, "-m", "server"], env=env, cwd=folder, stderr=output)
        api = ApiProcess(process, int(env["PORT"]), log)
        try:
            async with asyncio.timeout(20):
                while not re.search("running on", api.log):
                    assert process.poll() is None, api.log
                    await asyncio.sleep(0.02)
            async with api.http:
                yield api
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            finally:
                api.final_log = api.log
