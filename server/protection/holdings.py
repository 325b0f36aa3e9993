"""One budget, in bytes, for everything that clients make the process keep: sockets, streams, subscriptions, bodies of
requests that wait, and answers that are being sent. Beyond it, the newest asker is refused.
"""

from collections import Counter
from types import TracebackType
from typing import Self

from shared.errors import RateLimited

MIB = 1024 * 1024
PROCESS_BYTES = 100 * MIB
"The 5,000 sockets of one process, with a subscription each."

CLIENT_BYTES = 48 * MIB
"So that one client leaves half of the sockets to the others."

SOCKET_BYTES = 16 * 1024
"A connection that is kept, with its buffers and tasks; without its operations."

SUBSCRIPTION_BYTES = 4 * 1024
"Besides the names that its events repeat."

RETRY_SECONDS = 5


class Holdings:
    """One for each process."""

    def __init__(self, process_bytes: int = PROCESS_BYTES, client_bytes: int = CLIENT_BYTES) -> None:
        self.total = 0
        self.refused = 0
        self._process_bytes = process_bytes
        self._client_bytes = client_bytes
        self._clients: Counter[str] = Counter()

    def hold(self, client: str, size: int) -> "Holding":
        """`client`: see `client_of`. Raises `RateLimited`. The holding ends with its `with` block, or by `release`."""
        if self._clients[client] + size > self._client_bytes:
            self.refused += 1
            raise RateLimited(
                f"One client may hold {self._client_bytes // MIB} MiB of this server's memory, with all its sockets, "
                "subscriptions and answers together; close some.",
                RETRY_SECONDS,
            )
        if self.total + size > self._process_bytes:
            self.refused += 1
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
