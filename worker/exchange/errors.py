"""The errors of requests to the exchange, and whether a retry can help."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

import httpx

from shared.storage.missed_slots import GapReason


class Retry(Enum):
    NEVER = "never"
    "Not by this job: a retry within seconds cannot succeed. The retry at half-slot asks once more."
    BACKOFF = "backoff"
    "After a pause of seconds."


class DeribitError(Exception):
    """`code` names the fault (`RPC_10028`, `HTTP_502`, `TIMEOUT`, …), `detail` is the same for every fault of its kind.

    Equal details let the history show an outage of an hour as one gap.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        retry: Retry = Retry.NEVER,
        reason: GapReason = GapReason.EXCHANGE_ERROR,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.retry = retry
        self.reason = reason

    @property
    def is_invalid_index(self) -> bool:
        """Whether the exchange does not have the index that was asked for."""
        return self.code == "RPC_-32602" and "invalid index" in self.detail


# Documented codes after which the same request can succeed within seconds.
_PASSING = {
    10028,  # too_many_requests
    10040,  # retry
    10041,  # settlement_in_progress
    10047,  # engine queue full
    10066,  # too_many_concurrent_requests
    11094,  # internal_server_error
    13028,  # temporarily_unavailable
    13503,  # unavailable
    13888,  # timed_out
}
# 10029 is left out on purpose: it is not_owner_of_order, not a rate limit. So are the codes of a maintenance: it lasts.

_LARGEST_CODE = 99_999


def rpc_error(error: object) -> DeribitError:
    """The envelope's `error` as an exception. A bare number, as API v1 sent, is an error too."""
    if not isinstance(error, Mapping):
        return DeribitError("BAD_REPLY", "error is not an object", retry=Retry.BACKOFF)
    code, message = error.get("code"), error.get("message")
    if not isinstance(code, int) or isinstance(code, bool) or abs(code) > _LARGEST_CODE:
        return DeribitError("BAD_REPLY", "error without a code", retry=Retry.BACKOFF)
    detail = " ".join(part for part in (printable(message), printable(_reason(error.get("data")))) if part)
    retry = Retry.BACKOFF if code in _PASSING else Retry.NEVER
    return DeribitError(f"RPC_{code}", detail, retry=retry)


def status_error(response: httpx.Response) -> DeribitError:
    """The error of a reply without a JSON envelope, by its status."""
    status = response.status_code
    code = "BAD_REPLY" if status == httpx.codes.OK else f"HTTP_{status}"
    can_pass = status in (httpx.codes.OK, httpx.codes.TOO_MANY_REQUESTS) or status >= 500
    return DeribitError(code, "reply is not a JSON-RPC envelope", retry=Retry.BACKOFF if can_pass else Retry.NEVER)


def _reason(data: Any) -> Any:
    return data.get("reason") if isinstance(data, Mapping) else None


def printable(value: object) -> str:
    """Foreign text, made printable and short enough for a line of a log or a cell of a table."""
    return "".join(c for c in value if c.isprintable())[:100].strip() if isinstance(value, str) else ""
