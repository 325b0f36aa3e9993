"""Tokens over every transport, tokens for reads, clients behind proxies, and what an answer reveals of the server."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from arq.connections import ArqRedis
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from shared.config.settings import Settings
from shared.local.servers import free_port
from shared.storage.database import Pool
from tests.integration.api_process import ROOT, run_api
from tests.integration.live import LiveApi, serve_live

TOKEN, OTHER = "correct-horse-battery", "staple-of-another-client"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PLANNED = "{ latestPrices { price } }"
UNPLANNED = "{ tickers { name } latestPrices { price } }"
INTROSPECTION = "{ __schema { queryType { name } } }"
FETCH = "mutation { fetchPrices { status } }"
FOLLOW = "subscription { priceUpdates { price } }"
REFUSAL = {
    "errors": [
        {
            "message": "This needs the header `Authorization: Bearer <API_TOKEN>`.",
            "extensions": {"code": "UNAUTHENTICATED"},
        }
    ]
}
TICKERS = [f"{letter}_usd" for letter in "abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture(scope="module")
async def _closed(settings: Settings, _migrated: None) -> AsyncIterator[LiveApi]:
    closed = {"api_token": f"{OTHER},{TOKEN}", "require_token_for_reads": True, "cors_origins": ("https://a.example",)}
    async with serve_live(settings.model_copy(update=closed)) as api:
        yield api


@pytest.fixture
def closed(_closed: LiveApi, pool: Pool, redis: ArqRedis) -> LiveApi:
    return _closed


def ways(query: str) -> list[dict[str, Any]]:
    """Each way to send a query over HTTP."""
    asked: list[dict[str, Any]] = []
    for accept in ("application/json", "application/graphql-response+json", "text/event-stream", "*/*"):
        asked.append({"method": "POST", "json": {"query": query}, "headers": {"accept": accept}})
        asked.append({"method": "GET", "params": {"query": query}, "headers": {"accept": accept}})
    return asked


@pytest.mark.parametrize("query", [PLANNED, UNPLANNED, INTROSPECTION, FETCH, FOLLOW, "{ nonsense", ""])
@pytest.mark.parametrize("authorization", [None, "Bearer wrong-token-here", TOKEN, f"Basic {TOKEN}"])
async def test_with_token_for_reads_nothing_is_answered_without_a_token(
    closed: LiveApi, query: str, authorization: str | None
) -> None:
    for way in ways(query):
        if authorization is not None:
            way["headers"]["authorization"] = authorization
        response = await closed.http.request(url="/graphql", **way)
        assert (response.status_code, response.json()) == (401, REFUSAL)
        assert response.headers["www-authenticate"] == "Bearer"


async def test_with_token_for_reads_each_token_may_read(closed: LiveApi) -> None:
    for token in (TOKEN, OTHER):
        for way in ways(PLANNED):
            way["headers"]["authorization"] = f"Bearer {token}"
            response = await closed.http.request(url="/graphql", **way)
            assert (response.status_code, '{"data":{"latestPrices":[]}}' in response.text) == (200, True)
    answer = await closed.http.post("/graphql", json={"query": FETCH}, headers=BEARER)
    assert answer.json() == {"data": {"fetchPrices": {"status": "QUEUED"}}}


async def test_pages_of_cors_origins_can_read_a_refusal(closed: LiveApi) -> None:
    response = await closed.http.post("/graphql", json={"query": PLANNED}, headers={"origin": "https://a.example"})
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (401, "https://a.example")
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert (await closed.http.options("/graphql", headers=asked)).status_code == 200


async def test_paths_without_prices_need_no_token(closed: LiveApi) -> None:
    html = {"accept": "text/html"}
    for path, headers in (("/", html), ("/graphql", html), ("/livez", {}), ("/schema.graphql", {}), ("/readyz", {})):
        response = await closed.http.get(path, headers=headers)
        assert response.status_code in {200, 503}, path  # not ready, or the pages not built
        assert "UNAUTHENTICATED" not in response.text
    assert (await closed.http.options("/graphql")).status_code == 204


async def test_with_token_for_reads_a_socket_without_a_token_is_closed(closed: LiveApi) -> None:
    for payload in (None, {}, {"authorization": "Bearer wrong-token-here"}, {"token": TOKEN}):
        async with closed.open() as socket:
            await socket.send(type="connection_init", **({} if payload is None else {"payload": payload}))
            assert await socket.closed() == (4403, "Forbidden")
    async with closed.open() as socket:
        await socket.subscribe(PLANNED)
        assert await socket.closed() == (4401, "Unauthorized")


@pytest.mark.parametrize("options", [{"payload": BEARER}, {"additional_headers": BEARER}])
async def test_with_token_for_reads_a_socket_may_send_its_token_in_either_way(
    closed: LiveApi, options: dict[str, Any]
) -> None:
    async with closed.socket(**options) as socket:
        await socket.subscribe(PLANNED)
        assert await socket.answer() == {"data": {"latestPrices": []}}


async def test_a_wrong_token_in_the_payload_is_refused_despite_a_valid_one_in_the_handshake(closed: LiveApi) -> None:
    async with closed.open(additional_headers=BEARER) as socket:
        await socket.send(type="connection_init", payload={"Authorization": "Bearer wrong-token-here"})
        assert await socket.closed() == (4403, "Forbidden")


async def test_tokens_are_changed_without_a_restart(settings: Settings, redis: ArqRedis, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)

    async with run_api(settings, API_TOKEN_FILE=str(file)) as api:

        async def accepted() -> list[bool]:
            answers = [await api.execute(FETCH, Authorization=f"Bearer {token}") for token in (TOKEN, OTHER)]
            return ["errors" not in answer for answer in answers]

        async def until(wanted: list[bool]) -> None:
            async with asyncio.timeout(20):
                while await accepted() != wanted:
                    await asyncio.sleep(0.1)

        assert await accepted() == [True, False]
        file.write_text(f"{TOKEN}\n{OTHER}\n")
        await until([True, True])
        file.write_text(OTHER)
        await until([False, True])
        file.unlink()
        async with asyncio.timeout(20):
            while "No such file or directory" not in api.log:
                assert await accepted() == [False, True]
                await asyncio.sleep(0.1)
        assert await accepted() == [False, True]
        assert TOKEN not in api.log
        assert OTHER not in api.log


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"API_TOKEN": TOKEN, "API_TOKEN_FILE": "/dev/null"}, "API_TOKEN and API_TOKEN_FILE are both set"),
        ({"REQUIRE_TOKEN_FOR_READS": "1"}, "REQUIRE_TOKEN_FOR_READS=1 needs a token"),
        ({"API_TOKEN_FILE": "/nowhere/token"}, "API_TOKEN_FILE=/nowhere/token is refused; No such file"),
        ({"API_TOKEN_FILE": "/dev/null", "HOST": "0.0.0.0"}, "API_TOKEN_FILE=/dev/null is refused; accepted: a file"),
    ],
)
def test_a_start_with_contradictory_or_unusable_token_settings_is_refused(
    settings: Settings, tmp_path: Path, variables: dict[str, str], message: str
) -> None:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PORT": str(free_port()), **variables}
    env |= {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}
    command = [sys.executable, "-m", "server"]
    ended = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=20)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert ended.stderr.startswith(message)
    assert TOKEN not in ended.stderr


class Fetches:
    """Requests fetches from several loopback addresses, each of another ticker, so that none joins another."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._tickers = iter(TICKERS)

    async def codes(self, peer: str, forwarded: Sequence[str | None]) -> list[str | None]:
        """The error code for each `X-Forwarded-For`, `None` if the fetch was started."""
        transport = httpx.AsyncHTTPTransport(local_address=peer)
        codes = []
        async with httpx.AsyncClient(transport=transport, base_url=f"http://127.0.0.1:{self._port}") as http:
            for value in forwarded:
                body = {"query": f'mutation {{ fetchPrices(tickers: ["{next(self._tickers)}"]) {{ id }} }}'}
                headers = {} if value is None else {"x-forwarded-for": value}
                answer = (await http.post("/graphql", json=body, headers=headers)).json()
                codes.append(answer["errors"][0]["extensions"]["code"] if "errors" in answer else None)
        return codes

    async def code_of_socket(self, forwarded: str) -> str | None:
        url, headers = f"ws://127.0.0.1:{self._port}/graphql", {"x-forwarded-for": forwarded}
        protocols = [Subprotocol("graphql-transport-ws")]
        async with connect(url, subprotocols=protocols, additional_headers=headers, proxy=None) as socket:
            await socket.send('{"type": "connection_init"}')
            await socket.recv()
            query = f'mutation {{ fetchPrices(tickers: ["{next(self._tickers)}"]) {{ id }} }}'
            await socket.send(json.dumps({"type": "subscribe", "id": "1", "payload": {"query": query}}))
            payload = json.loads(await socket.recv())["payload"]
        code: str | None = payload["errors"][0]["extensions"]["code"] if "errors" in payload else None
        return code


async def test_a_client_behind_a_proxy_is_the_one_that_trusted_hops_name(settings: Settings, redis: ArqRedis) -> None:
    limits = {"TICKERS": ",".join(TICKERS), "FETCH_LIMIT_PER_CLIENT": "1"}
    limited = "RATE_LIMITED"
    async with run_api(settings, **limits, FORWARDED_ALLOW_IPS="127.0.0.1,192.0.2.0/24") as api:
        fetches = Fetches(api.port)
        # The header of an untrusted peer counts for nothing: the peer is one client.
        assert await fetches.codes("127.0.0.2", ["198.51.100.1", "198.51.100.2", None]) == [None, limited, limited]
        # A trusted proxy's clients are counted separately. What a client itself wrote, to the left, is ignored.
        assert await fetches.codes("127.0.0.1", ["198.51.100.1", "198.51.100.1, 198.51.100.2"]) == [None, None]
        forged = ["9.9.9.9, 198.51.100.1", "8.8.8.8,198.51.100.1, 192.0.2.9", "127.0.0.1, 198.51.100.1"]
        assert await fetches.codes("127.0.0.1", forged) == [limited] * 3
        # A customer's IPv6 network is one client.
        assert await fetches.codes("127.0.0.1", ["2001:db8::1", "2001:db8::2:2", "2001:db8:0:1::1"]) == (
            [None, limited, None]
        )
        # Anything but an address is one client together, and the proxy itself is another.
        assert await fetches.codes("127.0.0.1", ["unknown", "_hidden", None, None]) == [None, limited, None, limited]
        assert await fetches.code_of_socket("9.9.9.9, 198.51.100.1") == limited
        assert await fetches.code_of_socket("198.51.100.3") is None
        assert await fetches.codes("127.0.0.1", ["198.51.100.3"]) == [limited]


async def test_only_loopback_is_a_trusted_hop_by_default(settings: Settings, redis: ArqRedis) -> None:
    async with run_api(settings, TICKERS=",".join(TICKERS), FETCH_LIMIT_PER_CLIENT="1") as api:
        fetches = Fetches(api.port)
        assert await fetches.codes("127.0.0.3", ["198.51.100.1", "198.51.100.2"]) == [None, "RATE_LIMITED"]
        assert await fetches.codes("127.0.0.1", ["198.51.100.1", "198.51.100.2"]) == [None, None]


async def test_secrets_appear_nowhere(settings: Settings, pool: Pool, redis: ArqRedis) -> None:
    """In answers, in the debug log, and in the output of `ps`, also while PostgreSQL and Redis are unavailable."""
    password = "hunter2hunter2"
    away = settings.model_copy(
        update={
            "database_url": f"postgresql://u:{password}@127.0.0.1:{free_port()}/db",
            "redis_url": f"redis://:{password}@127.0.0.1:{free_port()}/0",
        }
    )
    secrets = [TOKEN, OTHER, password, settings.redis_url.partition("@")[0].rpartition(":")[2]]
    secrets.append(settings.database_url.partition("@")[0].rpartition(":")[2])
    assert all(len(secret) >= 8 for secret in secrets)
    for servers in (settings, away):
        async with run_api(
            servers, LOG_LEVEL="debug", API_TOKEN=f"{TOKEN},{OTHER}", REQUIRE_TOKEN_FOR_READS="1"
        ) as api:
            said = [(await api.http.get("/readyz")).text]
            for authorization in (f"Bearer {TOKEN}", f"Bearer {OTHER}x", f"Basic {TOKEN}", TOKEN):
                queries = (PLANNED, FETCH, UNPLANNED, "{ nonsense")
                asked = (api.execute(query, Authorization=authorization) for query in queries)
                said += [json.dumps(answer) for answer in await asyncio.gather(*asked)]
            async with connect(
                f"ws://127.0.0.1:{api.port}/graphql", subprotocols=[Subprotocol("graphql-transport-ws")], proxy=None
            ) as socket:
                await socket.send(
                    json.dumps({"type": "connection_init", "payload": {"authorization": f"Bearer {OTHER}x"}})
                )
                await socket.wait_closed()
                said.append(str(socket.close_reason))
            said += [Path(f"/proc/{api.process.pid}/{name}").read_text() for name in ("cmdline", "comm")]
        said.append(api.final_log)
        assert "running on" in api.final_log
        assert [secret for secret in secrets if secret in "\n".join(said)] == []


async def test_every_answer_forbids_sniffing_and_does_not_name_the_server(closed: LiveApi) -> None:
    unknown = {"query": PLANNED, "variables": []}
    answers = [
        await closed.http.post("/graphql", json={"query": PLANNED}, headers=BEARER),
        await closed.http.post("/graphql", json={"query": UNPLANNED}, headers=BEARER),
        await closed.http.post("/graphql", json={"query": PLANNED}),
        await closed.http.post("/graphql", json=unknown, headers=BEARER),
        await closed.http.get("/graphql", params={"query": PLANNED}, headers=BEARER | {"accept": "text/event-stream"}),
        await closed.http.get("/graphql", headers={"accept": "text/html"}),
        await closed.http.put("/graphql", headers=BEARER),
        *[
            await closed.http.get(path)
            for path in ("/", "/livez", "/readyz", "/metrics", "/schema.graphql", "/none", "/assets/x")
        ],
    ]
    for answer in answers:
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"], answer.url
        told = {"server", "x-powered-by", "via"} & set(answer.headers)
        assert (told, "uvicorn" in str(answer.headers).lower()) == (set(), False)
