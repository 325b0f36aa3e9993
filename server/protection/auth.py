"""Tokens: mutations need one if any is configured; with REQUIRE_TOKEN_FOR_READS queries need one, too."""

import hmac
import ipaddress
import logging
import os
import time
from hashlib import sha256

from starlette.types import Scope

from shared.config.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"How often API_TOKEN_FILE is checked for a change, at most."

UNKNOWN_CLIENT = "unknown"
_IPV6_NETWORK = 64
"A customer usually has a whole /64, so its addresses count as one client."


class Access:
    """The accepted tokens, of which only digests are kept.

    API_TOKEN_FILE is read again when it has changed. If it cannot be used then, an error is logged and the tokens that
    were read before stay valid.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises `SettingsError`."""
        self._settings = settings
        self._file_state = self._stat_file()
        self._digests = _digests(settings)
        self._check_at = time.monotonic() + CHECK_SECONDS

    def accepts(self, authorization: str) -> bool:
        """Whether an Authorization header's value carries one of the tokens."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return False
        if self._file_state is not None and time.monotonic() >= self._check_at:
            self._reload_if_changed()
        digest = sha256(token.strip().encode(errors="surrogatepass")).digest()
        # Compare with every token, each in constant time, so that timing does not reveal which one matched.
        return any([hmac.compare_digest(digest, known) for known in self._digests])  # noqa: C419  all

    def _reload_if_changed(self) -> None:
        self._check_at = time.monotonic() + CHECK_SECONDS
        state = self._stat_file()
        if state == self._file_state:
            return
        self._file_state = state
        try:
            self._digests = _digests(self._settings)
        except SettingsError as error:
            logger.error("%s; the tokens that were read before stay valid", error)
        else:
            logger.info("API_TOKEN_FILE has changed: %d tokens are valid", len(self._digests))

    def _stat_file(self) -> tuple[int, ...] | None:
        """Changes if the file is written or replaced; `None` if no file is configured."""
        if self._settings.api_token_file is None:
            return None
        try:
            status = os.stat(self._settings.api_token_file)
        except OSError:
            return ()
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def is_authenticated(scope: Scope) -> bool:
    """Whether the request or the socket's handshake carries a valid token. False if no token is configured."""
    state = scope["state"]
    if not state["settings"].has_token:
        return False
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    return len(values) == 1 and state["access"].accepts(values[0].decode("latin-1"))


def client_of(scope: Scope) -> str:
    """What the limits count as one client: an IPv4 address or an IPv6 network."""
    try:
        address = ipaddress.ip_address(scope["client"][0])
    except (ValueError, TypeError):  # hidden by a proxy, or a Unix socket
        return UNKNOWN_CLIENT
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), _IPV6_NETWORK), strict=False))


def _digests(settings: Settings) -> list[bytes]:
    return [sha256(token.encode()).digest() for token in settings.read_tokens()]
