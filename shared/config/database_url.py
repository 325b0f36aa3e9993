"""What the URL of a database says: which servers, and which of them is wanted."""

import re
from urllib.parse import parse_qs, unquote, urlsplit

WRITE_TARGETS = ("any", "primary", "read-write")
READ_TARGETS = (*WRITE_TARGETS, "standby", "read-only", "prefer-standby")

_DEFAULT_PORT = 5432

Host = tuple[str, int]


def clean_database_url(value: str, targets: tuple[str, ...]) -> str:
    """As asyncpg takes it. `targets`: the target_session_attrs that make sense. Raises `ValueError`."""
    scheme, separator, rest = value.strip().partition("://")
    if scheme not in {"postgres", "postgresql", "postgresql+asyncpg"} or not separator or re.search(r"\s", rest):
        raise ValueError("not a PostgreSQL URL")
    hosts, _, tail = rest.rpartition("@")[2].partition("/")
    if not (hosts or tail) or not all(is_host(host) for host in hosts.split(",")):
        raise ValueError("not a PostgreSQL host")
    # SQLAlchemy's asyncpg form says ssl where libpq, and asyncpg itself, say sslmode.
    url = "postgresql://" + re.sub(r"([?&])ssl=", r"\1sslmode=", rest)
    if target_of(url) not in (None, *targets):
        raise ValueError("not a kind of server that is wanted here")
    return url


def hosts_of(url: str) -> list[Host]:
    """Every server that is named; where none is, what the environment names counts as one without a name."""
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
    said: list[str | None] = list(parse_qs(urlsplit(url).query).get("target_session_attrs", []))
    return (said or [None])[-1]


def is_host(text: str) -> bool:
    """A name or an address, with or without a port; nothing is the local socket, where that is allowed."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.%~-]*)(:(\d{1,5}))?", text, re.ASCII)
    return match is not None and int(match[3] or 1) in range(1, 65_536)
