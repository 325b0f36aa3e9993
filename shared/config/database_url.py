"""A PostgreSQL URL: its hosts and its target_session_attrs."""

import re
from urllib.parse import parse_qs, unquote, urlsplit

WRITE_TARGETS = ("any", "primary", "read-write")
READ_TARGETS = (*WRITE_TARGETS, "standby", "read-only", "prefer-standby")

_DEFAULT_PORT = 5432

Host = tuple[str, int]


def clean_database_url(value: str, targets: tuple[str, ...]) -> str:
    """The URL as asyncpg accepts it. `targets`: the target_session_attrs that are allowed. Raises `ValueError`."""
    scheme, separator, rest = value.strip().partition("://")
    if scheme not in {"postgres", "postgresql", "postgresql+asyncpg"} or not separator or re.search(r"\s", rest):
        raise ValueError("not a PostgreSQL URL")
    hosts, _, tail = rest.rpartition("@")[2].partition("/")
    if not (hosts or tail) or not all(is_host(host) for host in hosts.split(",")):
        raise ValueError("not a PostgreSQL host")
    # SQLAlchemy's asyncpg URLs say ssl; libpq and asyncpg say sslmode.
    url = "postgresql://" + re.sub(r"([?&])ssl=", r"\1sslmode=", rest)
    if target_of(url) not in (None, *targets):
        raise ValueError("a target_session_attrs that is not allowed here")
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
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.%~-]*)(:(\d{1,5}))?", text, re.ASCII)
    return match is not None and int(match[3] or 1) in range(1, 65_536)
