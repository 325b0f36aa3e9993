"""The API over HTTP, on a port of its own."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from arq.connections import ArqRedis

from server.app import create_app
from shared.config.settings import Settings
from shared.local.servers import free_port
from shared.storage.database import Pool


class Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ctrl-C must end the test run, not this server."""
        yield


class Api:
    """A client that accepts no answer with a traceback or a status 500 in it."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        response = await self.http.request(method, path, **options)
        assert response.status_code != 500, response.text
        assert "Traceback" not in response.text
        assert "site-packages" not in response.text
        return response

    async def execute(self, query: str, variables: dict[str, Any] | None = None, **headers: str) -> Any:
        """The answer's body to a POST of a query."""
        body = {"query": query, "variables": variables or {}}
        response = await self.send("POST", "/graphql", json=body, headers=headers)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/json; charset=utf-8"
        return response.json()

    async def error(self, query: str, variables: dict[str, Any] | None = None, **headers: str) -> tuple[str, str]:
        """(code, message) of the one error in the answer."""
        answer = await self.execute(query, variables, **headers)
        [error] = answer["errors"]
        return error["extensions"]["code"], error["message"]


@asynccontextmanager
async def serve(settings: Settings) -> AsyncIterator[Api]:
    port = free_port()
    # A connection that the server closes while idle would fail the test that uses it next.
    config = uvicorn.Config(
        create_app(settings), host="127.0.0.1", port=port, log_config=None, ws="none", timeout_keep_alive=60
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            assert not serving.done(), "the server did not start"
            await asyncio.sleep(0.01)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as http:
            yield Api(http)
    finally:
        server.should_exit = True
        await serving


@pytest.fixture(scope="session")
async def _api(settings: Settings, _migrated: None) -> AsyncIterator[Api]:
    async with serve(settings) as api:
        yield api


@pytest.fixture
def api(_api: Api, pool: Pool, redis: ArqRedis) -> Api:
    """One API for the whole run. Its tables and queue are emptied after each test."""
    return _api
