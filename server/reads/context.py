"""The context of a resolver: the process's pool and Redis, the settings, and the limits of this one request."""

from dataclasses import dataclass, field
from functools import cached_property

import strawberry
from arq.connections import ArqRedis

from server.feeds.background import Feeds
from server.protection.auth import UNKNOWN_CLIENT
from server.protection.request_budget import RequestBudget
from shared.config.settings import Settings
from shared.errors import BadUserInput, QueryTooComplex, Unauthenticated, UnknownTicker
from shared.storage.database import Pool

MAX_LIMIT = 10_000
MAX_ROWS = 20_000
"For all fields of one request together."

MAX_VALUES = 200_000
"For all rows of one request together."

MAX_TICKERS = 1000
_TOKEN_NEEDED = "This needs the header `Authorization: Bearer <API_TOKEN>`."  # noqa: S105  not a token


@dataclass
class Context:
    pool: Pool
    redis: ArqRedis
    settings: Settings
    is_authenticated: bool = False
    feeds: Feeds | None = None
    "For subscriptions; `None` if the transport has none."
    client: str = UNKNOWN_CLIENT
    "For the limit of fetches."
    rows_asked_for: int = field(default=0, init=False)
    values_asked_for: int = field(default=0, init=False)

    def ticker(self, name: str) -> str:
        """The index name as it is stored. Raises `UnknownTicker`."""
        ticker = name.strip().lower()
        if ticker not in self.settings.tickers:
            raise UnknownTicker(f"{name[:80]!r} is not collected here; these are: {', '.join(self.settings.tickers)}.")
        return ticker

    def tickers(self, names: list[str] | None) -> list[str]:
        """Several index names; all tickers for `None`. Raises `UnknownTicker`, `BadUserInput`."""
        if names is not None and len(names) > MAX_TICKERS:
            raise BadUserInput(f"tickers has {len(names)} names; accepted are {MAX_TICKERS}, or null for all.")
        return list(dict.fromkeys(map(self.ticker, self.settings.tickers if names is None else names)))

    def limit(self, limit: int) -> int:
        """Raises `BadUserInput`."""
        if not 1 <= limit <= MAX_LIMIT:
            raise BadUserInput(f"limit is {limit}; accepted are 1 to {MAX_LIMIT}.")
        return limit

    def count_rows(self, count: int, width: int) -> None:
        """Count rows towards the request's total. `width`: fields of a row. Raises `QueryTooComplex`."""
        self.rows_asked_for += count
        if self.rows_asked_for > MAX_ROWS:
            raise QueryTooComplex(f"All fields of one request may ask for at most {MAX_ROWS} rows together.")
        self.values_asked_for += count * width
        if self.values_asked_for > MAX_VALUES:
            raise QueryTooComplex(f"All rows of one request may have at most {MAX_VALUES} values together.")

    @cached_property
    def budget(self) -> RequestBudget:
        return RequestBudget()

    def require_feeds(self) -> Feeds:
        assert self.feeds is not None, "the transport runs no subscriptions"  # noqa: S101
        return self.feeds

    def require_token(self) -> None:
        """For mutations. Raises `Unauthenticated` without a valid token, if one is configured."""
        if self.settings.has_token and not self.is_authenticated:
            raise Unauthenticated(_TOKEN_NEEDED)

    def require_token_for_reads(self) -> None:
        """For all operations. Raises `Unauthenticated` without a valid token, if REQUIRE_TOKEN_FOR_READS is set."""
        if self.settings.require_token_for_reads and not self.is_authenticated:
            raise Unauthenticated(_TOKEN_NEEDED)


Info = strawberry.Info[Context, None]
