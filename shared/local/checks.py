"""What `make run` checks and prints: hosts, port and exchange, and the URLs when the API is ready."""

import asyncio
import contextlib
import errno
import json
import shlex
import socket
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

import httpx

from shared.config.database_url import hosts_of
from shared.config.outbound import client_options
from shared.config.settings import Settings
from shared.errors import describe
from shared.local.child import EmbeddedError
from shared.local.supervisor import POLL, say

EXCHANGE_TIMEOUT = 3.0
LISTENING_TIMEOUT = 10.0
SLOW_AFTER = 15.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not listened on


def check_port(host: str, port: int, command: str) -> None:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()  # with SO_REUSEADDR on both sides, bind succeeds and only this fails
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            other = port + 1 if port < 65535 else port - 1
            raise EmbeddedError(
                f"Port {port} on {host} is taken; stop what uses it, or choose another: PORT={other} {command}"
            ) from None
        raise EmbeddedError(f"Nothing can listen on HOST={host} PORT={port}: {error.strerror}") from None


async def check_hosts(urls: Mapping[str, str]) -> None:
    """Raises `EmbeddedError` if no host of a URL can be resolved. `urls` by the name of their setting."""
    loop = asyncio.get_running_loop()
    faults, names = [], []
    for name, url in urls.items():
        hosts = [host for host, _ in hosts_of(url)]
        if any(host[:1] in ("", "/") for host in hosts):  # a local socket
            continue
        found = await asyncio.gather(*(loop.getaddrinfo(host, None) for host in hosts), return_exceptions=True)
        if all(isinstance(outcome, socket.gaierror) for outcome in found):
            faults.append(f"{name}: the host {' or '.join(hosts)} cannot be resolved")
            names.append(name)
    if faults:
        unset = " and ".join(names)
        raise EmbeddedError(
            "; ".join(faults) + ".\n`postgres` and `redis` are names inside compose (docker compose up). To use the "
            f"embedded servers instead, remove {unset} from .env and the environment."
        )


async def until_listening(port: int) -> None:
    """Wait for a listener on 127.0.0.1. Gives up silently, because the next connection reports the fault."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LISTENING_TIMEOUT):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    return
                await asyncio.sleep(POLL)


async def announce_when_ready(settings: Settings, began: float) -> None:
    host = _ANY_ADDRESS.get(settings.host, settings.host)
    url = f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
    has_warned = False
    async with httpx.AsyncClient(base_url=url, timeout=2, trust_env=False) as http:
        while (problem := await _problem(http)) is not None:
            if not has_warned and time.monotonic() - began > SLOW_AFTER:
                has_warned = True
                say(f"The API is not ready after {SLOW_AFTER:g} s: {url}/readyz {problem}")
            await asyncio.sleep(POLL)
        has_pages = (await http.get("/")).is_success
    query = f'{{ latestPrice(ticker: "{settings.tickers[0]}") {{ ticker price timestamp observedAt testnet }} }}'
    body = shlex.quote(json.dumps({"query": query}))
    pages = f"Dashboard: {url}/  GraphiQL: {url}/graphql"
    if not has_pages:
        pages = f"GraphQL: {url}/graphql\nThe dashboard and GraphiQL are not built; to build them: make pages"
    say(
        f"\nReady after {time.monotonic() - began:.1f} s. {pages}\n"
        f"For example:\n\n  curl -s {url}/graphql -H 'content-type: application/json' -d {body}\n"
    )


async def warn_if_unreachable(base_url: str) -> None:
    """One request, beside the start. The worker has its own retries."""
    try:
        options = client_options(base_url)
        async with httpx.AsyncClient(timeout=EXCHANGE_TIMEOUT, **options) as http, asyncio.timeout(EXCHANGE_TIMEOUT):
            reply = await http.get(f"{base_url}/public/get_time")
            reply.raise_for_status()
            if "result" in reply.json():
                return
            reason = "the answer is not its own"
    except (httpx.HTTPError, TimeoutError, ValueError, TypeError) as error:
        reason = describe(error)
    say(
        f"The exchange ({urlsplit(base_url).hostname}) cannot be reached: {reason}. The worker keeps trying, and there "
        "are no new prices until it answers. For simulated prices: make demo"
    )


async def _problem(http: httpx.AsyncClient) -> str | None:
    try:
        reply = await http.get("/readyz")
    except httpx.HTTPError:
        return "does not answer"
    return None if reply.status_code == 200 else f"says {reply.text.strip()[:500]}"
