"""What `make run` says about hosts that cannot be resolved, and which URLs it names when the API is ready."""

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shared.local.checks import announce_when_ready, check_hosts
from shared.local.child import EmbeddedError
from tests.unit.replies import settings_for

BRIEF = {
    "DATABASE_URL": "postgresql://postgres:postgres@postgres.invalid:5432/deribit",
    "REDIS_URL": "redis://redis.invalid:6379/0",
}


async def test_hosts_that_cannot_be_resolved_are_named_with_what_to_do() -> None:
    began = time.monotonic()
    with pytest.raises(EmbeddedError) as caught:
        await check_hosts(BRIEF)
    assert str(caught.value).splitlines() == [
        "DATABASE_URL: the host postgres.invalid cannot be resolved; "
        "REDIS_URL: the host redis.invalid cannot be resolved.",
        "`postgres` and `redis` are names inside compose (docker compose up). To use the embedded servers instead, "
        "remove DATABASE_URL and REDIS_URL from .env and the environment.",
    ]
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p@127.0.0.1:5432/db",
        "postgresql://u:p@[::1]/db",
        "postgresql://u:p@nowhere.invalid,localhost/db",
        "postgresql:///db?host=/var/run/postgresql",
        "redis://:p%40@localhost:6379/0",
        "redis+sentinel://:p@localhost:26379,nowhere.invalid:26379/mymaster/0",
    ],
)
async def test_a_url_with_a_host_that_resolves_passes(url: str) -> None:
    await check_hosts({"DATABASE_URL": url})


@contextmanager
def serving(page_status: int) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/readyz" else page_status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    ("page_status", "named"),
    [
        (200, "Dashboard: {url}/  GraphiQL: {url}/graphql"),
        (503, "GraphQL: {url}/graphql\nThe dashboard and GraphiQL are not built; to build them: make pages"),
    ],
)
async def test_ready_names_the_dashboard_only_if_it_is_built(
    page_status: int, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(page_status) as port:
        await announce_when_ready(settings_for(port=port), time.monotonic())
        ready = capsys.readouterr().out.partition("For example")[0]
    assert ready.partition(" s. ")[2].strip() == named.format(url=f"http://127.0.0.1:{port}")
