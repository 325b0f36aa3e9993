"""How to reach a server over HTTP or WebSocket: through the proxy and with the certificates that the environment names.

Not httpx's own reading of these variables: it asks the proxy for loopback too, and fails on networks and IPv6 addresses
in NO_PROXY. Variables in small letters win, as with curl.
"""

import contextlib
import ipaddress
import os
import re
import ssl
from typing import Any
from urllib.parse import urlsplit

import certifi
import httpx

from shared.config.database_url import is_host
from shared.config.messages import masked
from shared.config.settings import SettingsError
from shared.config.values import is_loopback

PROXY_RULE = "http://, https://, socks5:// or socks5h:// and [user:password@]host:port"


def client_options(url: str, name: str = "DERIBIT_BASE_URL") -> dict[str, Any]:
    """For a client of httpx whose only server is that of `url`, the value of the variable `name`.

    Raises `SettingsError`, which names the variable that cannot be used.
    """
    try:
        httpx.URL(url)
    except httpx.InvalidURL as error:
        raise SettingsError(f"{name}={masked(name, url)} is refused: {error}") from None
    if is_local(url) and url.startswith("http:"):
        return {"trust_env": False, "verify": False}
    return {"trust_env": False, "verify": _certificates(), "proxy": proxy_for(url)}


def socket_options(url: str) -> dict[str, Any]:
    """For a client of `websockets` whose only server is that of `url`. Raises `SettingsError`, as `client_options`."""
    proxy = proxy_for(url)
    if proxy is not None:  # the proxy resolves the name, as with httpx
        proxy = proxy.replace("socks5:", "socks5h:", 1)
    options: dict[str, Any] = {"proxy": proxy}
    if url.startswith("wss:"):
        options["ssl"] = _certificates()
    if proxy is not None and proxy.startswith("https:"):
        options["proxy_ssl"] = _certificates()
    return options


def proxy_for(url: str) -> str | None:
    """The proxy's URL, `None` for a direct connection. Raises `SettingsError` if httpx could not use it."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (80 if parts.scheme in {"http", "ws"} else 443)
    if is_local(url) or _is_excluded(host, port, _variable("NO_PROXY")[1]):
        return None
    for variable in (f"HTTP{'' if parts.scheme in {'http', 'ws'} else 'S'}_PROXY", "ALL_PROXY"):
        name, value = _variable(variable)
        if value:
            return _parse_proxy(name, value)
    return None


def is_local(url: str) -> bool:
    """Whether the server is on this machine: never through a proxy."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    return is_loopback(host) or host == "localhost" or host.endswith(".localhost")


def _variable(name: str) -> tuple[str, str]:
    """Its name as it is set, and its value; empty without."""
    for spelling in (name.lower(), name):
        if value := os.environ.get(spelling, "").strip():
            return spelling, value
    return name, ""


def _parse_proxy(name: str, value: str) -> str:
    url = value if "://" in value else f"http://{value}"  # curl takes host:port, too
    host = url.partition("://")[2].partition("/")[0].rpartition("@")[2]
    with contextlib.suppress(ValueError, httpx.InvalidURL):
        if httpx.Proxy(url).url.host and is_host(host):
            return url
    raise SettingsError(f"{name}={masked(name, value)} is refused; accepted: {PROXY_RULE}")


def _is_excluded(host: str, port: int, exceptions: str) -> bool:
    """NO_PROXY: names with their subdomains, addresses, networks, each with or without a port; or * for all."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    for entry in re.split(r"[,\s]+", exceptions.lower()):
        match = re.fullmatch(r"(\[[^\]]*\]|[^:]*):(\d+)", entry)
        if match and int(match[2]) != port:
            continue
        name = (match[1] if match else entry).replace("[", "").replace("]", "")
        if name == "*":
            return True
        if address is not None:
            try:
                if address in ipaddress.ip_network(name, strict=False):
                    return True
            except ValueError:
                continue
        elif (domain := name.removeprefix("*").removeprefix(".")) and f".{host}".endswith(f".{domain}"):
            return True
    return False


def _certificates() -> ssl.SSLContext:
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    name = "SSL_CERT_FILE" if file else "SSL_CERT_DIR"
    try:
        if not file and folder and not os.path.isdir(folder):
            raise FileNotFoundError(2, os.strerror(2))  # OpenSSL would find no certificate in it, and not say why
        return ssl.create_default_context(
            cafile=file or (None if folder else certifi.where()), capath=None if file else folder or None
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        value = os.environ.get(name, "")
        raise SettingsError(f"{name}={value} is refused: {reason}; accepted: PEM certificates to trust") from None
