"""What can go wrong with the exchange, and whether asking again can help."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

import httpx

from shared.storage.missed_slots import GapReason


class Retry(Enum):
    NEVER = "never"
    "Asking again cannot succeed."
    LATER = "later"
    "Not within seconds, but once more later in the slot."
    BACKOFF = "backoff"
    "After a pause of seconds."


class DeribitError(Exception):
    """`code` names the fault (`RPC_10028`, `HTTP_502`, `TIMEOUT`, …), `detail` is the same for every fault of its kind.

    The same text for the same fault lets a history show an outage of an hour as one gap.
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
# 10029 is not among them, on purpose: it is not_owner_of_order, no rate limit.

_LASTING = {
    11051,  # system_maintenance
    11056,  # unauthenticated_public_requests_temporarily_disabled
}

_TOO_MANY_REQUESTS = 429
_LARGEST_CODE = 99_999


def rpc_error(error: object) -> DeribitError:
    """The envelope's `error` as an exception. A bare number, as API v1 sent, is an error too."""
    if not isinstance(error, Mapping):
        return DeribitError("BAD_REPLY", "error is not an object", retry=Retry.BACKOFF)
    code, message = error.get("code"), error.get("message")
    if not isinstance(code, int) or isinstance(code, bool) or abs(code) > _LARGEST_CODE:
        return DeribitError("BAD_REPLY", "error without a code", retry=Retry.BACKOFF)
    detail = " ".join(part for part in (_text(message), _text(_reason(error.get("data")))) if part)
    retry = Retry.BACKOFF if code in _PASSING else Retry.LATER if code in _LASTING else Retry.NEVER
    return DeribitError(f"RPC_{code}", detail, retry=retry)


def status_error(response: httpx.Response) -> DeribitError:
    """A reply that is no JSON envelope: only its status is left to go by."""
    status = response.status_code
    if status == httpx.codes.OK:
        return DeribitError("BAD_REPLY", "reply is not a JSON-RPC envelope", retry=Retry.BACKOFF)
    is_passing = status == _TOO_MANY_REQUESTS or status >= httpx.codes.INTERNAL_SERVER_ERROR
    return DeribitError(
        f"HTTP_{status}",
        "reply is not a JSON-RPC envelope",
        retry=Retry.BACKOFF if is_passing else Retry.NEVER,
    )


def _reason(data: Any) -> Any:
    return data.get("reason") if isinstance(data, Mapping) else None


def _text(value: object) -> str:
    """Text from outside, fit for one line of a log and a cell of a table."""
    return "".join(c for c in value if c.isprintable())[:100].strip() if isinstance(value, str) else ""
