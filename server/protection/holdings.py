"""Budgets, in bytes, for what clients make the process keep. Beyond its budget, the newest asker is refused.

Followers (sockets, event streams and their subscriptions) and traffic (answers that wait for their reader, and requests
that are not complete) have budgets of their own, so that a client with many followers can still ask.
"""

from collections import Counter
from types import TracebackType
from typing import Self

from shared.errors import RateLimited

KIB, MIB = 1024, 1024 * 1024

SOCKET_BYTES = 24 * KIB
"A socket or an event stream, with its buffers and tasks; without its subscriptions."

SUBSCRIPTION_BYTES = 6 * KIB
RETRY_SECONDS = 5


class Holdings:
    """One of a kind for each process."""

    def __init__(self, process_bytes: int, client_bytes: int) -> None:
        self.total = 0
        self._process_bytes = process_bytes
        self._client_bytes = client_bytes
        self._clients: Counter[str] = Counter()

    def hold(self, client: str, size: int) -> "Holding":
        """`client`: see `client_of`. Raises `RateLimited`. The holding ends with its `with` block, or by `release`."""
        if self._clients[client] + size > self._client_bytes:
            raise RateLimited(
                f"One client may hold {self._client_bytes / MIB:g} MiB of this server's memory with its sockets and "
                "subscriptions; close some.",
                RETRY_SECONDS,
            )
        if self.total + size > self._process_bytes:
            raise RateLimited("The server has no memory left for more clients; try again later.", RETRY_SECONDS)
        self._clients[client] += size
        self.total += size
        return Holding(self, client, size)

    def _release(self, client: str, size: int) -> None:
        self.total -= size
        self._clients[client] -= size
        if self._clients[client] <= 0:
            del self._clients[client]


class Holding:
    def __init__(self, holdings: Holdings, client: str, size: int) -> None:
        self._holdings = holdings
        self._client = client
        self._size = size

    def release(self) -> None:
        """May be called again."""
        self._holdings._release(self._client, self._size)
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()


def followers(sockets: int) -> Holdings:
    """For that many sockets, with a subscription each, of which one client may have two fifths."""
    size = sockets * (SOCKET_BYTES + SUBSCRIPTION_BYTES)
    return Holdings(size, max(size * 2 // 5, SOCKET_BYTES + SUBSCRIPTION_BYTES))


def traffic() -> Holdings:
    return Holdings(process_bytes=48 * MIB, client_bytes=24 * MIB)
