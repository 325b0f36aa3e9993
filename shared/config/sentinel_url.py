"""REDIS_URL where sentinels say which server is the master:

    redis+sentinel://[[user]:[password]@]host[:26379][,host…]/name[/database][?parameter=value&…]

`name` is what the sentinels call the master. User, password and database are the servers'; the sentinels' own are the
parameters sentinel_username and sentinel_password. With rediss+sentinel:// both are spoken to over TLS, for which the
ssl_* parameters are redis-py's. Everything may be %-escaped.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

Address = tuple[str, int]

SENTINEL_URL_RULE = "redis+sentinel://[:password@]host:26379,host:26379/name/0 or rediss+sentinel://…"

SENTINEL_PORT = 26379
_SCHEMES = {"redis+sentinel", "rediss+sentinel"}
_REST = re.compile(
    r"(?:(?P<user>[^/?#]*)@)?(?P<hosts>[^/?#]+)/(?P<name>[\w.%-]+)(?:/(?P<database>\d*))?(?:\?(?P<query>[^#]*))?",
    re.ASCII,
)
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+))(?::(\d{1,5}))?", re.ASCII)
_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}
_TLS_FILES = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
_CERTIFICATES = {"none", "optional", "required"}


@dataclass(frozen=True)
class SentinelURL:
    sentinels: tuple[Address, ...]
    name: str
    is_tls: bool
    server: Mapping[str, Any] = field(repr=False)
    sentinel: Mapping[str, Any] = field(repr=False)
    "What redis-py's connections take, to the servers and to the sentinels; without host and port."


def is_sentinel_url(url: str) -> bool:
    return url.partition("://")[0].lower() in _SCHEMES


def parse_sentinel_url(url: str) -> SentinelURL:
    """Raises `ValueError`, which repeats nothing of the URL."""
    scheme, _, rest = url.partition("://")
    match = _REST.fullmatch(rest)
    if scheme.lower() not in _SCHEMES or match is None:
        raise ValueError("not a URL of sentinels")
    name = unquote(match["name"])
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise ValueError("not a master's name")
    user, _, password = (match["user"] or "").partition(":")
    parameters = _parameters(match["query"] or "")
    is_tls = scheme.lower().startswith("rediss")
    sentinel = _given(
        username=parameters.pop("sentinel_username", ""), password=parameters.pop("sentinel_password", "")
    )
    tls = _tls(parameters)
    if tls and not is_tls:
        raise ValueError("ssl_ parameters without TLS")
    return SentinelURL(
        sentinels=tuple(_address(host) for host in match["hosts"].split(",")),
        name=name,
        is_tls=is_tls,
        server={"db": int(match["database"] or 0)} | _given(username=unquote(user), password=unquote(password)) | tls,
        sentinel=sentinel | tls,
    )


def _address(text: str) -> Address:
    match = _HOST.fullmatch(text)
    port = int(match[3] or SENTINEL_PORT) if match else 0
    if match is None or port not in range(1, 65_536):
        raise ValueError("not a sentinel's host")
    return match[1] or match[2], port


def _parameters(query: str) -> dict[str, str]:
    # Not parse_qsl: it takes the plus of a password for a blank.
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    return {name: unquote(value) for name, _, value in pairs}


def _tls(parameters: Mapping[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in parameters.items():
        if (name in _TLS_FILES and value) or (name == "ssl_cert_reqs" and value in _CERTIFICATES):
            options[name] = value
        elif name == "ssl_check_hostname" and value.lower() in _BOOLEANS:
            options[name] = _BOOLEANS[value.lower()]
        else:
            raise ValueError("a parameter that is not known")
    return options


def _given(**options: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value}
