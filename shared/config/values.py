"""Parsers of single settings. Each raises `ValueError`; the operator reads the field's description instead."""

import ipaddress
import re
from datetime import UTC, datetime, time
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from shared.config.database_url import is_host
from shared.config.redis_url import clean_redis_url
from shared.config.sentinel_url import is_sentinel_url, parse_sentinel_url

_TICKER = re.compile(r"[a-z0-9-]+_[a-z0-9]+")
_MAX_TICKER_LENGTH = 64


def parse_redis_url(value: str) -> str:
    value = value.strip()
    if is_sentinel_url(value):
        parse_sentinel_url(value)
        return value
    return clean_redis_url(value)


def parse_http_url(value: str) -> str:
    value = value.strip()
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("not an HTTP URL")
    return value


def parse_exchange_url(value: str) -> str:
    """Without `/public` and the final slash."""
    parts = urlsplit(parse_http_url(value))
    if not is_host(parts.netloc.rpartition("@")[2]):
        raise ValueError("not an HTTP host")
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/").removesuffix("/public"), "", ""))


def parse_stream_url(value: str) -> str:
    value = value.strip()
    parts = urlsplit(value)
    if parts.scheme not in {"ws", "wss"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("not a WebSocket URL")
    if not is_host(parts.netloc.rpartition("@")[2]):
        raise ValueError("not a host")
    return value


def parse_past(value: Any) -> Any:
    """A date, which is its midnight in UTC, or an instant with an offset; before now."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value.strip())
        if value.time() == time.min and value.tzinfo is None:
            value = value.replace(tzinfo=UTC)
    if not isinstance(value, datetime) or value.tzinfo is None or value > datetime.now(UTC):
        raise ValueError("not an instant of the past")
    return value.astimezone(UTC)


def parse_tickers(value: Any) -> Any:
    tickers = split(value.lower() if isinstance(value, str) else value)
    if not tickers or any(not _TICKER.fullmatch(t) or len(t) > _MAX_TICKER_LENGTH for t in tickers):
        raise ValueError("not index names")
    return tickers


def parse_origins(value: Any) -> Any:
    origins = split(value)
    if any(not re.fullmatch(r"\*|https?://[^/\s]+", origin) for origin in origins):
        raise ValueError("not an origin")
    return origins


def parse_hosts(value: Any) -> Any:
    hosts = tuple(host.lower().removesuffix(".") for host in split(value))
    if any(not re.fullmatch(r"\*|[a-z0-9_-]+(\.[a-z0-9_-]+)*", host) for host in hosts):
        raise ValueError("not a host name")
    return hosts


def parse_networks(value: Any) -> Any:
    networks = split(value)
    for network in set(networks) - {"*"}:
        ipaddress.ip_network(network)
    return networks


def parse_interval(seconds: int) -> int:
    if seconds < 1 or not (60 % seconds == 0 or (seconds % 60 == 0 and 3600 % seconds == 0)):
        raise ValueError("not on the grid")
    return seconds


def is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def split(value: Any) -> Any:
    """Comma-separated text as a tuple, in order, without empty and repeated items."""
    if not isinstance(value, str):
        return value
    return tuple(dict.fromkeys(item.strip() for item in value.split(",") if item.strip()))
