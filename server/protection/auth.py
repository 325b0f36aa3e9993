"""Who may do what: mutations need a token where one is set; with REQUIRE_TOKEN_FOR_READS, so does every question."""

import hmac
import ipaddress
import logging
import os
import time
from hashlib import sha256

from starlette.types import Scope

from shared.config.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"How long a change of API_TOKEN_FILE may go unnoticed while requests come."

UNKNOWN_CLIENT = "unknown"
_IPV6_NETWORK = 64
"One customer's, mostly: each of its addresses would be another client."


class Access:
    """The tokens that let somebody in, known by their digests alone.

    API_TOKEN_FILE is read again when it has changed. One that cannot be used then is told in the log, and the tokens
    read before stay in force.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises `SettingsError`."""
        self._settings = settings
        self._seen = self._state_of_file()
        self._digests = _digests(settings)
        self._look_at = time.monotonic() + LOOK_SECONDS

    def accepts(self, authorization: str) -> bool:
        """Whether an Authorization header's value carries one of the tokens."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return False
        if self._seen is not None and time.monotonic() >= self._look_at:
            self._look()
        digest = sha256(token.strip().encode(errors="surrogatepass")).digest()
        # All of them, each in constant time: how much of a guess was right must not show, nor which token it was.
        return any([hmac.compare_digest(digest, known) for known in self._digests])  # noqa: C419  all

    def _look(self) -> None:
        self._look_at = time.monotonic() + LOOK_SECONDS
        state = self._state_of_file()
        if state == self._seen:
            return
        self._seen = state
        try:
            self._digests = _digests(self._settings)
        except SettingsError as error:
            logger.error("%s; the tokens that were read before stay in force", error)
        else:
            logger.info("API_TOKEN_FILE was read again, its tokens are in force: %d", len(self._digests))

    def _state_of_file(self) -> tuple[int, ...] | None:
        """What differs when the file was written, or another put in its place; `None` where none is set."""
        if self._settings.api_token_file is None:
            return None
        try:
            status = os.stat(self._settings.api_token_file)
        except OSError:
            return ()
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def is_authenticated(scope: Scope) -> bool:
    """Whether the request, or the socket's handshake, carries a token; where none is set nobody is asked."""
    state = scope["state"]
    if not state["settings"].has_token:
        return False
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    return len(values) == 1 and state["access"].accepts(values[0].decode("latin-1"))


def client_of(scope: Scope) -> str:
    """Whom the limits count as one: an IPv4 address, or an IPv6 network."""
    try:
        address = ipaddress.ip_address(scope["client"][0])
    except (ValueError, TypeError):  # a proxy that hides it, or a local socket
        return UNKNOWN_CLIENT
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), _IPV6_NETWORK), strict=False))


def _digests(settings: Settings) -> list[bytes]:
    return [sha256(token.encode()).digest() for token in settings.read_tokens()]
