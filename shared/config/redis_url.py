"""REDIS_URL: what redis-py would refuse at the first connection is refused at the start.

redis-py passes every parameter on to its connections, which raise `TypeError` for one that they do not know.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, unquote

from redis.asyncio import Connection, SSLConnection
from redis.asyncio.connection import URL_QUERY_ARGUMENT_PARSERS, parse_url
from redis.exceptions import RedisError

from shared.config.database_url import is_host
from shared.config.messages import Refusal

_URL = re.compile(
    r"(?P<scheme>rediss?)://(?P<login>[^\s/?#]*@)?(?P<host>[^\s@/?#]*)"
    r"(?:/(?P<database>\d*))?(?:\?(?P<query>[^\s#]*))?",
    re.ASCII | re.IGNORECASE,
)

_TEXTS = {"username", "password", "client_name", "protocol"}
_NUMBERS = {"db", "socket_timeout", "socket_connect_timeout", "health_check_interval", "max_connections"}
_SWITCHES = {"socket_keepalive", "retry_on_timeout"}
TLS_PARAMETERS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}

_ADVICE = {"ssl": "use rediss:// instead", "tls": "use rediss:// instead"}


def clean_redis_url(value: str) -> str:
    """The URL of one server as redis-py accepts it. Raises `ValueError`."""
    value = value.strip()
    parts = _URL.fullmatch(value)
    if parts is None:
        raise ValueError("not a Redis URL")
    if parts["host"][:1] in {"", ":"}:
        raise Refusal("it names no host")
    if not is_host(parts["host"]):
        raise Refusal("its host or port is not valid, or the password is not %-escaped")
    query = parts["query"] or ""
    parameters = parse_parameters(query, _TEXTS | _NUMBERS | _SWITCHES | TLS_PARAMETERS)
    tls = {name: parameters[name] for name in TLS_PARAMETERS & parameters.keys()}
    if tls and parts["scheme"].lower() == "redis":
        raise Refusal(f"{', '.join(sorted(tls))}: only with rediss://")
    tls_options(tls)
    for name in _NUMBERS & parameters.keys():
        least = 0.0 if name in {"db", "health_check_interval"} else math.ulp(0)
        if not re.fullmatch(r"\d{1,6}(\.\d+)?", parameters[name]) or float(parameters[name]) < least:
            raise Refusal(f"the value of {name} is not a number that is accepted")
    if query:
        # redis-py unescapes the value of a parameter twice.
        escaped = (f"{name}={quote(quote(text, safe='/'), safe='/')}" for name, text in parameters.items())
        value = value.partition("?")[0] + ("?" if parameters else "") + "&".join(escaped)
    _check_with_redis(value, ", ".join(parameters))
    return value


def parse_parameters(query: str, known: set[str]) -> dict[str, str]:
    """Raises `Refusal`, which names an unknown parameter unless it may be a part of a password."""
    parameters = {}
    for pair in query.split("&") if query else ():
        name, separator, text = pair.partition("=")  # not parse_qs, which reads a plus as a space
        text = unquote(text, errors="strict")
        if name == "family" and text == "0":  # either family, as always
            continue
        if name not in known:
            if "@" in query or not separator or not re.fullmatch(r"\w{1,40}", name, re.ASCII):
                raise Refusal("a parameter is unknown, or the password is not %-escaped")
            raise Refusal(f"{name} is not supported" + (f" ({_ADVICE[name]})" if name in _ADVICE else ""))
        if not text:
            raise Refusal(f"{name} is empty")
        if name == "ssl_cert_reqs":  # also as Python's ssl spells it, which Celery takes
            text = text.lower().removeprefix("cert_")
        parameters[name] = text
    return parameters


def tls_options(parameters: Mapping[str, str]) -> dict[str, Any]:
    """The parameters as options of `SSLConnection`. Raises `Refusal`."""
    parsers: Mapping[str, Callable[[str], Any]] = URL_QUERY_ARGUMENT_PARSERS
    options: dict[str, Any] = {name: parsers.get(name, str)(value) for name, value in parameters.items()}
    try:
        if options:
            SSLConnection(**options).ssl_context.get()
    except (RedisError, OSError, ValueError) as error:
        raise Refusal(f"{' '.join(str(error).split())} (from {', '.join(sorted(parameters))})") from None
    return options


def _check_with_redis(url: str, names: str) -> None:
    """What redis-py does when it opens a connection."""
    try:
        options: dict[str, Any] = dict(parse_url(url))
        for pool_option in ("connection_class", "max_connections"):
            options.pop(pool_option, None)
        Connection(**{name: option for name, option in options.items() if name not in TLS_PARAMETERS})
    except Exception:  # an error of any type, which every connection would raise; its text may hold the password
        raise Refusal(f"redis-py does not take {names or 'its user or password; %-escape them'}") from None
