"""Errors a client may see, each with the stable code of the public contract.

ServiceError
├── BadUserInput        the message names the argument and what is accepted
├── UnknownTicker       not among the tickers collected here
├── PriceStale          older than the caller allows
├── QueryTooComplex     more rows than one request may ask for
├── PersistedQueryNotFound  the client sends the document again
├── Unauthenticated     the token is missing or wrong
├── RateLimited         too many requests in a minute, or at the same time
├── StorageUnavailable  PostgreSQL is unavailable
└── QueueUnavailable    Redis is unavailable

graphql-core copies `extensions` into the answer, so this module needs no GraphQL. Every other exception
is a fault of ours; its detail stays in the log.
"""

from typing import Any, ClassVar


class ServiceError(Exception):
    code: ClassVar[str]
    is_ours: ClassVar[bool] = False
    "True if the operator, not the client, must act."

    @property
    def extensions(self) -> dict[str, Any]:
        return {"code": self.code}


class BadUserInput(ServiceError):
    code = "BAD_USER_INPUT"


class UnknownTicker(ServiceError):
    code = "UNKNOWN_TICKER"


class PriceStale(ServiceError):
    code = "PRICE_STALE"


class QueryTooComplex(ServiceError):
    code = "QUERY_TOO_COMPLEX"


class PersistedQueryNotFound(ServiceError):
    code = "PERSISTED_QUERY_NOT_FOUND"


class Unauthenticated(ServiceError):
    code = "UNAUTHENTICATED"


class RateLimited(ServiceError):
    code = "RATE_LIMITED"

    def __init__(self, message: str, retry_after: int) -> None:
        """`retry_after`: seconds, at least one."""
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def extensions(self) -> dict[str, Any]:
        return {"code": self.code, "retryAfter": self.retry_after}


class StorageUnavailable(ServiceError):
    code = "STORAGE_UNAVAILABLE"
    is_ours = True

    def __init__(
        self, message: str = "The price storage is unavailable; try again shortly.", *, is_answered: bool = False
    ) -> None:
        """`is_answered`: PostgreSQL is reachable and answered with an error."""
        super().__init__(message)
        self.is_answered = is_answered


class QueueUnavailable(ServiceError):
    code = "QUEUE_UNAVAILABLE"
    is_ours = True


def describe(error: BaseException) -> str:
    """Its type and its text, if it has one: a time-out has none."""
    return ": ".join(filter(None, (type(error).__name__, str(error))))
