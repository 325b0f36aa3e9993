"""Which pages of other sites are refused: cross-site WebSocket hijacking and DNS rebinding."""

import ipaddress
import re
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from strawberry.http.websocket_origin import is_same_origin

from shared.config.settings import Settings

MAX_HOST_LENGTH = 300
"A name has at most 253 characters."

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]*)?")


def is_allowed_origin(headers: Headers, settings: Settings, scheme: str) -> bool:
    """A page may open a socket (of `scheme`) if it comes from this server or from one of CORS_ORIGINS."""
    origin = headers.get("origin")
    if origin is None or origin in settings.cors_origins or "*" in settings.cors_origins:
        return True
    # Behind a proxy whose headers are not trusted, the socket of an https page seems to be `ws`.
    is_secure_enough = origin.lower().startswith(("https://", "http://") if scheme == "ws" else "https://")
    return is_secure_enough and is_same_origin(origin, headers.get("host"))


def allowed_hosts(settings: Settings) -> frozenset[str] | None:
    """The names that the operator allows; `None` for any name, because mutations need a token or `*` allows all."""
    if settings.has_token or "*" in settings.allowed_hosts or "*" in settings.cors_origins:
        return None
    origins = {urlsplit(origin).hostname or "" for origin in settings.cors_origins}
    return frozenset(origins | set(settings.allowed_hosts))


@lru_cache(maxsize=64)
def is_allowed_host(host: bytes, named: frozenset[str]) -> bool:
    """Whether a request's `Host` is one that no site on the internet can have, or one of `named`."""
    found = _HOST.fullmatch(host.decode("latin-1").lower()) if len(host) <= MAX_HOST_LENGTH else None
    if found is None:
        return False
    name = found[1].removesuffix(".")
    if "." not in name or name.endswith(".localhost"):
        return name != ""
    return name in named or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
