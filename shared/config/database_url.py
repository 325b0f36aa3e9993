"""A PostgreSQL URL: its hosts, its target_session_attrs, and its parameters.

What asyncpg would refuse at the first connection is refused at the start. asyncpg sends every parameter that it does
not know to the server as a setting, so libpq's other parameters are checked here.
"""

import ipaddress
import os
import re
import ssl
from collections.abc import Mapping
from urllib.parse import parse_qs, quote, unquote, urlsplit

import certifi
from asyncpg.connect_utils import _parse_connect_dsn_and_args  # type: ignore[attr-defined]  # private

from shared.config.messages import Refusal

WRITE_TARGETS = ("any", "primary", "read-write")
READ_TARGETS = (*WRITE_TARGETS, "standby", "read-only", "prefer-standby")

_DEFAULT_PORT = 5432

_SCHEMES = {"postgres", "postgresql", "postgresql+asyncpg"}
_URL = re.compile(
    r"(?:(?P<user>[^\s:@/?#]*)(?::(?P<password>[^\s@/?#]*))?(?P<at>@))?(?P<hosts>[^\s@/?#]*)"
    r"(?:/(?P<database>[^\s@?#]*))?(?:\?(?P<query>[^\s#]*))?"
)
_UNESCAPED = "the user, the password or the database has one of @ : / ? # or a space that is not %-escaped"

_PARAMETERS = {
    *("host", "port", "user", "password", "passfile", "dbname", "database", "service", "target_session_attrs"),
    *("sslmode", "sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl", "sslnegotiation"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "gsslib", "options"),
}
"Those of libpq's that asyncpg, or the server, understands."

_ALREADY_SO = {
    "application_name": ".*",  # each process has its own
    "fallback_application_name": ".*",
    "channel_binding": "prefer|disable",
    "client_encoding": "auto|utf-?8",
    "connect_timeout": r"-?\d+",  # ours is a second, and libpq's shortest is one
    "gssencmode": "prefer|disable",
    "load_balance_hosts": "disable|random",
    "sslcertmode": "allow",
    "sslcompression": "0",
    "sslsni": "1",
}
"Parameters of libpq, with the values that ask for what happens anyway."

_ADVICE = {
    "channel_binding": "asyncpg has no channel binding; sslmode=verify-full with sslrootcert=system checks the server",
    "pgbouncer": "set DATABASE_POOLER=1 instead",
    "schema": "use options=-csearch_path%3D… instead",
}
_SSL_MODES = {**dict.fromkeys(("true", "1", "on"), "require"), **dict.fromkeys(("false", "0", "off"), "disable")}

Host = tuple[str, int]


def clean_database_url(value: str, targets: tuple[str, ...]) -> str:
    """The URL as asyncpg accepts it. `targets`: the target_session_attrs that are allowed. Raises `ValueError`."""
    scheme, separator, rest = value.strip().partition("://")
    if scheme.lower() not in _SCHEMES or not separator:
        raise ValueError("not a PostgreSQL URL")
    parts = _URL.fullmatch(rest)
    if parts is None:
        raise Refusal(_UNESCAPED)
    parameters = _parse_parameters(parts["query"] or "", is_secret_safe="@" not in (parts["query"] or ""))
    hosts = parts["hosts"] or parameters.get("host", "")
    if not hosts and not parameters.get("service") and not os.environ.get("PGHOST"):
        if parts["at"] or not parts["database"]:  # with the database alone: this machine's socket
            raise Refusal("it names no host")
    elif not all(
        host[:1] == "/" or (host[:1] not in {"", ":"} and is_host(host)) for host in hosts.split(",") if hosts
    ):
        raise Refusal("its host or port is not valid, or the password is not %-escaped")
    target = parameters.get("target_session_attrs") or os.environ.get("PGTARGETSESSIONATTRS")
    if target is not None:
        if target not in targets:
            name = "target_session_attrs" if "target_session_attrs" in parameters else "PGTARGETSESSIONATTRS"
            raise Refusal(f"{name} is not one of {', '.join(targets)}")
        parameters["target_session_attrs"] = target
    url = f"postgresql://{_login(parts)}{parts['hosts']}"
    if parts["database"] is not None:
        url += f"/{_requote(parts['database'])}"
    if parameters:
        url += "?" + "&".join(f"{name}={quote(text, safe='/,:[]')}" for name, text in parameters.items())
    _check_with_asyncpg(url, parameters)
    return url


def hosts_of(url: str) -> list[Host]:
    """Every server of the URL. Without one: a single host with an empty name, for asyncpg's own defaults."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    specs = (parts.netloc.rpartition("@")[2] or query.get("host", [""])[-1]).split(",")
    ports = query.get("port", [""])[-1].split(",")
    hosts = []
    for position, spec in enumerate(specs):
        match = re.fullmatch(r"\[(.*)\](?::(\d+))?|([^:]*)(?::(\d+))?", spec)
        if match is None:
            raise ValueError("not a PostgreSQL host")
        port = match[2] or match[4] or (ports[position] if len(ports) == len(specs) else ports[0])
        hosts.append((unquote(match[1] or match[3] or ""), int(port or _DEFAULT_PORT)))
    return hosts


def target_of(url: str) -> str | None:
    """Its target_session_attrs."""
    values = parse_qs(urlsplit(url).query).get("target_session_attrs")
    return values[-1] if values else None


def is_host(text: str) -> bool:
    """A name or an address, with or without a port. Empty counts too: it is the local socket of a database URL."""
    match = re.fullmatch(r"(\[(?P<v6>[0-9a-fA-F:.]+)\]|[\w.%~-]*)(:(?P<port>\d{1,5}))?", text, re.ASCII)
    if match is None or int(match["port"] or 1) not in range(1, 65_536):
        return False
    try:
        return match["v6"] is None or bool(ipaddress.IPv6Address(match["v6"]))
    except ValueError:
        return False


def _login(parts: "re.Match[str]") -> str:
    if parts["at"] is None:
        return ""
    password = "" if parts["password"] is None else f":{_requote(parts['password'])}"
    return f"{_requote(parts['user'])}{password}@"


def _requote(text: str) -> str:
    """Escaped in full: asyncpg's parser takes [ and ] for those of an IPv6 address, wherever they stand."""
    return quote(_unquote(text), safe="")


def _unquote(text: str) -> str:
    plain = unquote(text, errors="strict")  # libpq would send other bytes than UTF-8 as they are, asyncpg cannot
    if "\0" in plain:
        raise Refusal("it has a zero byte")
    return plain


def _parse_parameters(query: str, *, is_secret_safe: bool) -> dict[str, str]:
    """Without those that ask for what happens anyway. `is_secret_safe`: the names cannot be parts of a password."""
    parameters = {}
    for pair in query.split("&") if query else ():
        name, separator, text = pair.partition("=")  # not parse_qs, which reads a plus as a space
        name, text = _unquote(name), _unquote(text)
        if not separator:
            raise Refusal("a parameter has no value")
        if name == "ssl":  # SQLAlchemy's and JDBC's; libpq reads ssl=true as sslmode=require, too
            name, text = "sslmode", _SSL_MODES.get(text.lower(), text)
        if name in _PARAMETERS:
            if text:
                parameters[name] = text
        elif name not in _ALREADY_SO or not re.fullmatch(_ALREADY_SO[name], text, re.IGNORECASE):
            if not is_secret_safe or not re.fullmatch(r"\w{1,40}", name, re.ASCII):
                raise Refusal(f"a parameter is unknown, or {_UNESCAPED}")
            advice = f" ({_ADVICE[name]})" if name in _ADVICE else ""
            what = f"the value of {name} cannot be honoured" if name in _ALREADY_SO else f"{name} is not supported"
            raise Refusal(what + advice)
    if parameters.get("sslrootcert") == "system":  # as libpq: the system's certificates, and the name must match
        if parameters.setdefault("sslmode", "verify-full") != "verify-full":
            raise Refusal("sslrootcert=system needs sslmode=verify-full")
        parameters["sslrootcert"] = ssl.get_default_verify_paths().cafile or certifi.where()
    return parameters


def _check_with_asyncpg(url: str, parameters: Mapping[str, str]) -> None:
    """The parser that asyncpg runs at every connection. It reads libpq's variables and the certificates, too."""
    names = "host port user password passfile database ssl service servicefile direct_tls server_settings"
    unset = dict.fromkeys((*names.split(), "target_session_attrs", "krbsrvname", "gsslib"))
    try:
        _parse_connect_dsn_and_args(dsn=url, **unset)
    except Exception as error:  # an error of any type, which every connection would raise
        variables = sorted(name for name in os.environ if name.startswith("PG") and name != "PGPASSWORD")
        causes = [name for name in parameters if name not in {"user", "password", "target_session_attrs"}] + variables
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Refusal(f"{reason} (from {', '.join(causes) or 'its user, host or database'})") from None
