"""The exchange's public API over HTTP: prices, charts and names of indices. Prices are exact decimals.

The body decides before the status, because an RPC error comes with HTTP 400 or 503 and its code says more. Source of
the shapes and codes: Deribit's API 2.1.1 and recorded replies.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import httpx

from shared.config.settings import Settings
from shared.grid import from_microseconds
from shared.storage.missed_slots import GapReason
from shared.storage.prices import Price, PriceSource
from shared.telemetry.traces import span
from shared.version import VERSION
from worker.exchange.errors import DeribitError, Retry, rpc_error, status_error

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 2.0
ATTEMPT_SECONDS = 5.0
"A warm request takes 0.15 s. The 30 s that the exchange advises would leave no second attempt within a minute."

CONCURRENCY = 16
"The exchange refuses the 33rd connection from an address; half of 32 leaves room for a second worker."

# No price is beyond these magnitudes. PostgreSQL would store it, but a chart could not show it.
_SMALLEST_EXPONENT, _LARGEST_EXPONENT = -18, 18
_MAX_DIGITS = 60

_MAX_BODY_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Observation:
    """`observed_at` is the exchange's clock (`usOut`, µs), or ours if the envelope has none."""

    ticker: str
    price: Decimal
    observed_at: datetime
    testnet: bool

    def skew(self) -> timedelta:
        """How far our clock runs ahead of the exchange's, including the time the reply took."""
        return datetime.now(UTC) - self.observed_at

    def as_price(self, timestamp: datetime, source: PriceSource) -> Price:
        return Price(self.ticker, self.price, timestamp, self.observed_at, source, self.testnet)


@dataclass(frozen=True, slots=True)
class ChartPoint:
    """`price` is the average over one spacing of the chart; `timestamp` is the chart's own (ms)."""

    timestamp: datetime
    price: Decimal
    testnet: bool


def create_http(settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """The one client of a process. Its base URL may change once; see `_follow`."""
    return httpx.AsyncClient(
        base_url=settings.deribit_base_url,
        transport=transport,
        timeout=httpx.Timeout(ATTEMPT_SECONDS, connect=CONNECT_SECONDS),
        limits=httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY, keepalive_expiry=300),
        headers={"User-Agent": f"deribit-price-collector/{VERSION}", "Accept": "application/json"},
        follow_redirects=False,
    )


class HttpPrices:
    """A source of the price now: one request for each."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def observe(self, ticker: str) -> Observation:
        return await get_index_price(self._http, ticker)


async def get_index_price(http: httpx.AsyncClient, ticker: str) -> Observation:
    """One attempt. Raises `DeribitError`."""
    with span("get_index_price", "client", server__address=http.base_url.host):
        envelope = await _call(http, "public/get_index_price", {"index_name": ticker})
    observed_at = _clock(envelope)
    result = envelope["result"]
    if not isinstance(result, dict) or "index_price" not in result:
        raise DeribitError("BAD_REPLY", "result without index_price", retry=Retry.BACKOFF)
    # Never estimated_delivery_price, because before an expiry it is a running average.
    return Observation(ticker, parse_price(result["index_price"]), observed_at, _is_testnet(http, envelope))


async def get_index_chart(http: httpx.AsyncClient, ticker: str, chart_range: str) -> list[ChartPoint]:
    """The chart, oldest point first, without the newest one, which still changes. Raises `DeribitError`."""
    with span("get_index_chart_data", "client", server__address=http.base_url.host):
        envelope = await _call(http, "public/get_index_chart_data", {"index_name": ticker, "range": chart_range})
    testnet = _is_testnet(http, envelope)
    result = envelope["result"]
    if not isinstance(result, list):
        raise DeribitError("BAD_REPLY", "chart is not a list", retry=Retry.BACKOFF)
    points = []
    for entry in result:
        # One bad point must not make the others useless.
        with contextlib.suppress(DeribitError):
            points.append(_point(entry, testnet))
    if result and not points:
        raise DeribitError("BAD_REPLY", "chart without a valid point", retry=Retry.BACKOFF)
    points.sort(key=lambda point: point.timestamp)
    return points[:-1]


async def get_result(
    http: httpx.AsyncClient, method: str, parameters: Mapping[str, str], base_url: str = ""
) -> tuple[Any, bool]:
    """The result of any method, and whether it is a test network's. `base_url`: another host. Raises `DeribitError`."""
    host = urlsplit(base_url).hostname or http.base_url.host
    with span(method, "client", server__address=host):
        envelope = await _call(http, f"public/{method}", parameters, base_url)
    return envelope["result"], _is_testnet(http, envelope)


def _point(entry: object, testnet: bool) -> ChartPoint:
    match entry:
        case [int(milliseconds), price] if not isinstance(milliseconds, bool):
            return ChartPoint(parse_instant(milliseconds * 1000), parse_price(price), testnet)
    raise DeribitError("BAD_REPLY", "chart point is not [ms, price]", retry=Retry.BACKOFF)


async def _call(
    http: httpx.AsyncClient, method: str, parameters: Mapping[str, str], base_url: str = ""
) -> dict[str, Any]:
    """GET one method and return its envelope, which has a `result`. Raises `DeribitError`."""
    for is_last in (False, True):
        opened: list[str] = []

        async def trace(event: str, _: object, opened: list[str] = opened) -> None:
            if event == "connection.connect_tcp.started":
                opened.append(event)

        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                response = await http.get(f"{base_url}/{method}", params=parameters, extensions={"trace": trace})
                if response.is_redirect:
                    response = await _follow(http, response)
            break
        except (TimeoutError, httpx.TimeoutException) as error:
            raise DeribitError("TIMEOUT", "no answer in time", retry=Retry.BACKOFF) from error
        except httpx.RemoteProtocolError as error:
            # The exchange had closed a kept-alive connection and did not read the request: repeat it at once.
            if is_last or opened:
                raise DeribitError(
                    "DISCONNECTED", "connection closed without an answer", retry=Retry.BACKOFF
                ) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise DeribitError("UNREACHABLE", type(error).__name__, retry=Retry.BACKOFF) from error
    return _envelope(response)


async def _follow(http: httpx.AsyncClient, response: httpx.Response) -> httpx.Response:
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
    logger.info("the exchange moved us to %s", http.base_url)
    return await http.get(location)


def _envelope(response: httpx.Response) -> dict[str, Any]:
    try:
        if len(response.content) > _MAX_BODY_BYTES:
            raise ValueError("too large")
        # Decimals from the text, because a float loses digits. `parse_price` refuses NaN and infinity.
        body = json.loads(response.content, parse_float=Decimal, parse_constant=Decimal)
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


def parse_price(value: object) -> Decimal:
    """A positive finite decimal. Anything else raises `DeribitError` and is REJECTED_VALUE in the history."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise _rejected("BAD_PRICE", "price is not a number")
    price = Decimal(value)
    if not price.is_finite():
        raise _rejected("BAD_PRICE", "price is not finite")
    if price <= 0:
        raise _rejected("BAD_PRICE", "price is not positive")
    exponent, digits = price.adjusted(), len(price.as_tuple().digits)
    if not _SMALLEST_EXPONENT <= exponent <= _LARGEST_EXPONENT or digits > _MAX_DIGITS:
        raise _rejected("BAD_PRICE", "price is out of any plausible range")
    return price


def _rejected(code: str, detail: str) -> DeribitError:
    return DeribitError(code, detail, retry=Retry.LATER, reason=GapReason.REJECTED_VALUE)


def _clock(envelope: Mapping[str, Any]) -> datetime:
    for name in ("usOut", "usIn"):
        if name in envelope:
            microseconds = envelope[name]
            if not isinstance(microseconds, int) or isinstance(microseconds, bool):
                raise DeribitError("BAD_REPLY", f"{name} is not an integer", retry=Retry.BACKOFF)
            return parse_instant(microseconds)
    return datetime.now(UTC)


def parse_instant(microseconds: int) -> datetime:
    try:
        return from_microseconds(microseconds)
    except OverflowError:
        raise _rejected("BAD_REPLY", "clock out of range") from None


def _is_testnet(http: httpx.AsyncClient, envelope: Mapping[str, Any]) -> bool:
    testnet = envelope.get("testnet", str(urlsplit(str(http.base_url)).hostname).startswith("test."))
    if not isinstance(testnet, bool):
        raise DeribitError("BAD_REPLY", "testnet is not a boolean", retry=Retry.BACKOFF)
    return testnet
