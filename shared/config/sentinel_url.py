"""REDIS_URL with sentinels, which say which server is the master:

    redis+sentinel://[[user]:[password]@]host[:26379][,host…]/name[/database][?parameter=value&…]

`name` is the master's name in the sentinels' configuration. User, password and database are the servers'; the
sentinels' own are the parameters sentinel_username and sentinel_password. With rediss+sentinel:// both are reached over
TLS, for which the ssl_* parameters are redis-py's. Everything may be %-escaped.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from redis.asyncio.connection import parse_url

from shared.config.database_url import is_host
from shared.config.messages import Refusal
from shared.config.redis_url import TLS_PARAMETERS, parse_parameters, tls_options

Address = tuple[str, int]

SENTINEL_URL_RULE = "redis+sentinel://[:password@]host:26379,host:26379/name/0 or rediss+sentinel://…"

SENTINEL_PORT = 26379
_SCHEMES = {"redis+sentinel", "rediss+sentinel"}
_REST = re.compile(
    r"(?P<user>[^/?#]*@)?(?P<hosts>[^/?#]+)/(?P<name>[\w.%-]+)(?:/(?P<database>\d*))?(?:\?(?P<query>[^#]*))?", re.ASCII
)


@dataclass(frozen=True)
class SentinelURL:
    """`server`, `sentinel`: options of redis-py's connections to either, without host and port."""

    sentinels: tuple[Address, ...]
    name: str
    is_tls: bool
    server: Mapping[str, Any] = field(repr=False)
    sentinel: Mapping[str, Any] = field(repr=False)


def is_sentinel_url(url: str) -> bool:
    return url.partition("://")[0].lower() in _SCHEMES


def parse_sentinel_url(url: str) -> SentinelURL:
    """Raises `ValueError`."""
    scheme, _, rest = url.partition("://")
    match = _REST.fullmatch(rest)
    if (
        scheme.lower() not in _SCHEMES
        or match is None
        or not re.fullmatch(r"[\w.-]+", unquote(match["name"]), re.ASCII)
    ):
        raise ValueError("not a URL of sentinels")
    query = parse_parameters(match["query"] or "", {"sentinel_username", "sentinel_password", *TLS_PARAMETERS})
    login = {name: query.pop(f"sentinel_{name}", "") for name in ("username", "password")}
    is_tls = scheme.lower() == "rediss+sentinel"
    if query and not is_tls:
        raise Refusal(f"{', '.join(sorted(query))}: only with rediss+sentinel://")
    tls = tls_options(query)
    # redis-py parses the URL of one server; the name of that one is not used.
    server = parse_url(f"redis://{match['user'] or ''}server/{match['database'] or 0}")
    return SentinelURL(
        sentinels=tuple(map(_parse_address, match["hosts"].split(","))),
        name=unquote(match["name"]),
        is_tls=is_tls,
        server={name: value for name, value in server.items() if name != "host"} | tls,
        sentinel={name: value for name, value in login.items() if value} | tls,
    )


def _parse_address(text: str) -> Address:
    address = parse_url(f"redis://{text}") if is_host(text) else {}
    if "host" not in address:
        raise ValueError("not a sentinel's host")
    return address["host"], address.get("port", SENTINEL_PORT)
