"""What a resolver is given: the process's pool and Redis, the settings, and what this one request may do."""

from dataclasses import dataclass, field
from functools import cached_property

import strawberry
from arq.connections import ArqRedis

from server.feeds.background import Feeds
from server.protection.auth import UNKNOWN_CLIENT
from server.protection.request_budget import Allowance
from shared.config.settings import Settings
from shared.errors import BadUserInput, QueryTooComplex, Unauthenticated, UnknownTicker
from shared.storage.database import Pool

MAX_LIMIT = 10_000
MAX_ROWS = 20_000
"Rows that all fields of one request may ask for together."

MAX_VALUES = 200_000
_TOKEN_NEEDED = "This needs the header `Authorization: Bearer <API_TOKEN>`."  # noqa: S105  words, no token
MAX_TICKERS = 1000


@dataclass
class Context:
    pool: Pool
    redis: ArqRedis
    settings: Settings
    is_authenticated: bool = False
    live: Feeds | None = None
    "Where subscriptions can be had: not with a plain request."
    client: str = UNKNOWN_CLIENT
    "Whose fetches are counted together."
    rows_asked_for: int = field(default=0, init=False)
    values_asked_for: int = field(default=0, init=False)

    def ticker(self, name: str) -> str:
        """The index name as it is stored. Raises `UnknownTicker`."""
        ticker = name.strip().lower()
        if ticker not in self.settings.tickers:
            raise UnknownTicker(f"{name[:80]!r} is not collected here; these are: {', '.join(self.settings.tickers)}.")
        return ticker

    def tickers(self, names: list[str] | None) -> list[str]:
        """As `ticker`, for several; all of them where none is named."""
        if names is not None and len(names) > MAX_TICKERS:
            raise BadUserInput(f"tickers has {len(names)} names; accepted are {MAX_TICKERS}, or null for all.")
        return list(dict.fromkeys(map(self.ticker, self.settings.tickers if names is None else names)))

    def rows(self, limit: int, width: int) -> int:
        """The limit, once it is known to be one and to fit in the request. `width`: fields of a row.

        Raises `BadUserInput`, `QueryTooComplex`.
        """
        if not 1 <= limit <= MAX_LIMIT:
            raise BadUserInput(f"limit is {limit}; accepted are 1 to {MAX_LIMIT}.")
        self.rows_asked_for += limit
        if self.rows_asked_for > MAX_ROWS:
            raise QueryTooComplex(f"All fields of one request may ask for {MAX_ROWS} rows together, no more.")
        self.values_asked_for += limit * width
        if self.values_asked_for > MAX_VALUES:
            raise QueryTooComplex(f"All rows of one request may have {MAX_VALUES} values together, no more.")
        return limit

    @cached_property
    def allowance(self) -> Allowance:
        return Allowance()

    @property
    def following(self) -> Feeds:
        assert self.live is not None, "a subscription over plain HTTP is refused before it is run"  # noqa: S101
        return self.live

    def require_token(self) -> None:
        """For mutations. Raises `Unauthenticated` unless the request carries a token, or none is set."""
        if self.settings.has_token and not self.is_authenticated:
            raise Unauthenticated(_TOKEN_NEEDED)

    def require_token_for_reads(self) -> None:
        """For whatever is asked. Raises `Unauthenticated` where that needs a token, too."""
        if self.settings.require_token_for_reads and not self.is_authenticated:
            raise Unauthenticated(_TOKEN_NEEDED)


Info = strawberry.Info[Context, None]
