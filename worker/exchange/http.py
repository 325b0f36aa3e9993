"""The exchange's public API over HTTP: prices, charts and names of indices. Prices are exact decimals.

The body decides before the status, because an RPC error comes with HTTP 400 or 503 and its code says more. Source of
the shapes and codes: Deribit's API 2.1.1 and recorded replies.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import httpx

from shared.config.outbound import client_options
from shared.config.settings import Settings
from shared.grid import from_microseconds
from shared.storage.missed_slots import GapReason
from shared.storage.prices import Price, PriceSource
from shared.telemetry.traces import span
from shared.version import VERSION
from worker.exchange.errors import DeribitError, Retry
from worker.exchange.rpc import ATTEMPT_SECONDS, call

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 2.0
MAX_CONNECTIONS = 16
"The exchange refuses the 33rd connection from an address; half of 32 leaves room for a second worker."

CONCURRENCY = MAX_CONNECTIONS - 2
"Requests for prices at once. Healing has the other two connections, so that neither waits in httpx's pool."

# No price is beyond these magnitudes. PostgreSQL would store it, but a chart could not show it.
_SMALLEST_EXPONENT, _LARGEST_EXPONENT = -18, 18
_MAX_DIGITS = 60

_MAX_LIST_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Observation:
    """`observed_at` is the exchange's clock (`usOut`, µs), or ours if the envelope has none."""

    ticker: str
    price: Decimal
    observed_at: datetime
    testnet: bool

    def as_price(self, timestamp: datetime, source: PriceSource) -> Price:
        return Price(self.ticker, self.price, timestamp, self.observed_at, source, self.testnet)


@dataclass(frozen=True, slots=True)
class ChartPoint:
    """`price` is the average over one spacing of the chart; `timestamp` is the chart's own (ms)."""

    timestamp: datetime
    price: Decimal
    testnet: bool


def create_http(settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """The one client of a process. Its base URL may change once; see `_follow`.

    Raises `SettingsError` if a proxy or the certificates that the environment names cannot be used.
    """
    options = client_options(settings.deribit_base_url) if transport is None else {"transport": transport}
    return httpx.AsyncClient(
        base_url=settings.deribit_base_url,
        **options,
        timeout=httpx.Timeout(ATTEMPT_SECONDS, connect=CONNECT_SECONDS),
        limits=httpx.Limits(
            max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS, keepalive_expiry=300
        ),
        headers={
            "User-Agent": f"deribit-price-collector/{VERSION}",
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
        },
        follow_redirects=False,
    )


def _own_clock() -> datetime:
    return datetime.now(UTC)


async def get_index_price(
    http: httpx.AsyncClient, ticker: str, now: Callable[[], datetime] = _own_clock
) -> Observation:
    """One attempt. `now`: our clock, for an envelope without the exchange's. Raises `DeribitError`."""
    with span("get_index_price", "client", server__address=http.base_url.host):
        envelope = await call(http, "public/get_index_price", {"index_name": ticker})
    observed_at = _clock(envelope, now)
    result = envelope["result"]
    if not isinstance(result, dict) or "index_price" not in result:
        raise DeribitError("BAD_REPLY", "result without index_price", retry=Retry.BACKOFF)
    # Never estimated_delivery_price, because before an expiry it is a running average.
    return Observation(ticker, parse_price(result["index_price"]), observed_at, _is_testnet(http, envelope))


async def get_index_chart(http: httpx.AsyncClient, ticker: str, chart_range: str) -> list[ChartPoint]:
    """The chart, oldest point first, without the newest one, which still changes. Raises `DeribitError`."""
    with span("get_index_chart_data", "client", server__address=http.base_url.host):
        envelope = await call(
            http, "public/get_index_chart_data", {"index_name": ticker, "range": chart_range}, _MAX_LIST_BYTES
        )
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


async def get_index_names(http: httpx.AsyncClient) -> list[str]:
    """Every index of the exchange. The documentation has objects, recorded replies strings. Raises `DeribitError`."""
    result = (await call(http, "public/get_index_price_names", {}, _MAX_LIST_BYTES))["result"]
    entries = result if isinstance(result, list) else []
    names = [entry.get("name") if isinstance(entry, dict) else entry for entry in entries]
    return [name for name in names if isinstance(name, str)]


def _point(entry: object, testnet: bool) -> ChartPoint:
    match entry:
        case [int(milliseconds), price] if not isinstance(milliseconds, bool):
            return ChartPoint(parse_instant(milliseconds * 1000), parse_price(price), testnet)
    raise DeribitError("BAD_REPLY", "chart point is not [ms, price]", retry=Retry.BACKOFF)


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
    return DeribitError(code, detail, reason=GapReason.REJECTED_VALUE)


def _clock(envelope: Mapping[str, Any], now: Callable[[], datetime]) -> datetime:
    for name in ("usOut", "usIn"):
        if name in envelope:
            microseconds = envelope[name]
            if not isinstance(microseconds, int) or isinstance(microseconds, bool):
                raise DeribitError("BAD_REPLY", f"{name} is not an integer", retry=Retry.BACKOFF)
            return parse_instant(microseconds)
    return now()


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
