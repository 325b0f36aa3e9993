"""What `make run` tells its user: a port that is taken, an exchange out of reach, and where the API is."""

import asyncio
import contextlib
import errno
import json
import shlex
import socket
import time
from urllib.parse import urlsplit

import httpx

from shared.config.settings import Settings
from shared.local.servers import EmbeddedError
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
            probe.listen()  # only this fails beside a listener that allows its address to be reused
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            other = port + 1 if port < 65535 else port - 1
            raise EmbeddedError(
                f"Port {port} on {host} is taken; stop what uses it, or choose another: PORT={other} {command}"
            ) from None
        raise EmbeddedError(f"Nothing can listen on HOST={host} PORT={port}: {error.strerror}") from None


async def until_listening(port: int) -> None:
    """Gives up silently: whoever connects next says so."""
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
    is_told = False
    async with httpx.AsyncClient(base_url=url, timeout=2, trust_env=False) as http:
        while (problem := await _problem(http)) is not None:
            if not is_told and time.monotonic() - began > SLOW_AFTER:
                is_told = True
                say(f"The API is not ready after {SLOW_AFTER:g} s: {url}/readyz {problem}")
            await asyncio.sleep(POLL)
    query = f'{{ latestPrice(ticker: "{settings.tickers[0]}") {{ ticker price timestamp observedAt testnet }} }}'
    body = shlex.quote(json.dumps({"query": query}))
    say(
        f"\nReady after {time.monotonic() - began:.1f} s. Dashboard: {url}/  GraphiQL: {url}/graphql\n"
        f"For example:\n\n  curl -s {url}/graphql -H 'content-type: application/json' -d {body}\n"
    )


async def tell_when_unreachable(base_url: str) -> None:
    """One look, beside the start: the worker has its own retries."""
    try:
        async with httpx.AsyncClient(timeout=EXCHANGE_TIMEOUT) as http, asyncio.timeout(EXCHANGE_TIMEOUT):
            reply = await http.get(f"{base_url}/public/get_time")
            reply.raise_for_status()
            if "result" in reply.json():
                return
            reason = "not its answer"
    except TimeoutError:
        reason = "no answer"
    except httpx.HTTPStatusError as error:
        reason = f"HTTP {error.response.status_code}"
    except (httpx.HTTPError, ValueError, TypeError) as error:
        reason = type(error).__name__
    say(
        f"The exchange ({urlsplit(base_url).hostname}) cannot be reached: {reason}. It is tried again and again and "
        "there are no new prices until it answers; simulated ones are in a demo of its own: make demo"
    )


async def _problem(http: httpx.AsyncClient) -> str | None:
    try:
        reply = await http.get("/readyz")
    except httpx.HTTPError:
        return "does not answer"
    return None if reply.status_code == 200 else f"says {reply.text.strip()[:500]}"
