"""What a connection holds of its client's traffic: unread answers and incomplete requests."""

import contextlib
import logging
from typing import Any

from server.protection.auth import UNKNOWN_CLIENT, client_of
from server.protection.holdings import Holding
from shared.errors import RateLimited


class Budgeted:
    """For a protocol of uvicorn's, before which it stands in the list of base classes."""

    app_state: dict[str, Any]
    client: tuple[str, int] | None
    transport: Any
    _held: Holding | None = None

    def hold(self, size: int) -> bool:
        """In place of what the connection held before. False if the budget does not allow it."""
        self.release()
        with contextlib.suppress(RateLimited):
            self._held = self.app_state["traffic"].hold(client_of({"client": self.client}), size)
        return self._held is not None

    def pause_writing(self) -> None:
        """The client does not read as fast as we write: what is left counts towards its budget."""
        super().pause_writing()  # type: ignore[misc]  # the protocol's
        if not self.hold(self.transport.get_write_buffer_size()):
            self.transport.abort()

    def resume_writing(self) -> None:
        """The client has read nearly all of what was written."""
        super().resume_writing()  # type: ignore[misc]
        self.release()

    def release(self) -> None:
        if self._held is not None:
            self._held.release()
            self._held = None


class AddressLogger(logging.LoggerAdapter[logging.Logger]):
    """Its lines say which client they are about."""

    def __init__(self, logger: logging.Logger, client: tuple[str, int] | None) -> None:
        super().__init__(logger, {"client": client[0] if client else UNKNOWN_CLIENT})

    @property
    def level(self) -> int:
        return self.logger.level
