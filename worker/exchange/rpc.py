"""One call of a method of the exchange: the request, its one known redirect, and the reply's body within a bound."""

import asyncio
import contextlib
import json
import logging
import zlib
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, cast

import httpx

from worker.exchange.errors import DeribitError, Retry, rpc_error, status_error

logger = logging.getLogger(__name__)

ATTEMPT_SECONDS = 5.0
"A warm request takes 0.15 s. The 30 s that the exchange advises would leave no second attempt within a minute."

_MAX_BODY_BYTES = 64 * 1024


async def call(
    http: httpx.AsyncClient, method: str, parameters: Mapping[str, str], max_bytes: int = _MAX_BODY_BYTES
) -> dict[str, Any]:
    """GET one method and return its envelope, which has a `result`. Raises `DeribitError`."""
    for is_last in (False, True):
        opened: list[str] = []

        async def trace(event: str, _: object, opened: list[str] = opened) -> None:
            if event == "connection.connect_tcp.started":
                opened.append(event)

        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                request = http.build_request("GET", f"/{method}", params=parameters, extensions={"trace": trace})
                response, body = await _read(http, request, max_bytes)
                if response.is_redirect:
                    response, body = await _read(http, _follow(http, response), max_bytes)
            break
        except (TimeoutError, httpx.TimeoutException) as error:
            raise DeribitError("TIMEOUT", "no answer in time", retry=Retry.BACKOFF) from error
        except httpx.RemoteProtocolError as error:
            # The exchange had closed a kept-alive connection and did not read the request: repeat it at once.
            if is_last or opened:
                raise DeribitError(
                    "DISCONNECTED", "connection closed without an answer", retry=Retry.BACKOFF
                ) from error
        except httpx.TransportError as error:
            raise DeribitError("UNREACHABLE", type(error).__name__, retry=Retry.BACKOFF) from error
    return _envelope(response, body)


async def _read(http: httpx.AsyncClient, request: httpx.Request, max_bytes: int) -> tuple[httpx.Response, bytes]:
    """Send a request and read its reply. Raises `DeribitError` if the body is longer than `max_bytes`, also unpacked.

    httpx would unpack a chunk of any size, and an encoding within an encoding.
    """
    response = await http.send(request, stream=True)
    try:
        body = bytearray()
        async for chunk in cast(httpx.AsyncByteStream, response.stream):
            body += chunk
            if len(body) > max_bytes:
                raise status_error(response)
    finally:
        await response.aclose()
    match response.headers.get("Content-Encoding", "identity").strip().lower():
        case "identity":
            return response, bytes(body)
        case "gzip":
            with contextlib.suppress(zlib.error):
                unpacked = zlib.decompressobj(wbits=31).decompress(body, max_bytes + 1)
                if len(unpacked) <= max_bytes:
                    return response, unpacked
    raise status_error(response)


def _follow(http: httpx.AsyncClient, response: httpx.Response) -> httpx.Request:
    """Follow the one known redirect, from deribit.com to www.deribit.com, and stay there.

    Any other redirect could lead to foreign prices.
    """
    asked, location = response.request.url, response.next_request.url if response.next_request else None
    if (
        location is None
        or asked.host != "deribit.com"
        or location.host != "www.deribit.com"
        or location.scheme != "https"
        or location.port is not None
        or location.raw_path != asked.raw_path
    ):
        raise DeribitError("REDIRECT", f"redirect to another place refused (HTTP {response.status_code})")
    http.base_url = http.base_url.copy_with(scheme="https", host="www.deribit.com", port=None)
    logger.info("the exchange moved us to %s", http.base_url.host)
    return http.build_request("GET", location)


def _envelope(response: httpx.Response, content: bytes) -> dict[str, Any]:
    try:
        # Decimals from the text, because a float loses digits. `parse_price` refuses NaN and infinity.
        body = json.loads(content, parse_float=Decimal, parse_constant=Decimal)
    except (ValueError, ArithmeticError, RecursionError):
        raise status_error(response) from None
    if not isinstance(body, dict):
        raise status_error(response)
    if body.get("error") is not None:
        raise rpc_error(body["error"])
    if response.status_code != httpx.codes.OK or "result" not in body:
        raise status_error(response)
    if body.get("id") is not None:  # a GET sends none, so this is the answer to another request
        raise DeribitError("WRONG_ID", "reply carries an id that was not sent", retry=Retry.BACKOFF)
    return body
