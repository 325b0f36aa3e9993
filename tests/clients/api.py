"""The API as a process of its own, for clients that are processes too."""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from shared.config.settings import Settings
from shared.local.servers import free_port

_ROOT = Path(__file__).parents[2]
_START_SECONDS = 20


@asynccontextmanager
async def serve_process(settings: Settings, port: int | None = None) -> AsyncIterator[str]:
    """Its host and port. It ends with the context."""
    port = port or free_port()
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(_ROOT),
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "PORT": str(port),
        "DRAIN_SECONDS": "0",
    }
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "server", env=env, cwd=_ROOT / "tests", stderr=log
        )
        try:
            if not await _is_answering(f"http://127.0.0.1:{port}/livez", process):
                log.seek(0)
                raise AssertionError(f"the API did not start: {log.read().decode()}")
            yield f"127.0.0.1:{port}"
        finally:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.wait(), 20)


async def _is_answering(url: str, process: asyncio.subprocess.Process) -> bool:
    until = time.monotonic() + _START_SECONDS
    async with httpx.AsyncClient(trust_env=False) as http:
        while process.returncode is None and time.monotonic() < until:
            try:
                return (await http.get(url)).status_code == 200
            except httpx.TransportError:
                await asyncio.sleep(0.05)
    return False
