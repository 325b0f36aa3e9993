"""The context of a resolver: the process's pool and Redis, the settings, and the limits of this one request."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import strawberry
from arq.connections import ArqRedis
from starlette.types import Scope

from server.feeds.background import Feeds
from server.protection.admission import Admission
from server.protection.auth import UNKNOWN_CLIENT
from server.protection.heavy_reads import HeavyReads
from server.protection.request_budget import RequestBudget
from server.protection.turns import Turns
from shared.config.settings import Settings
from shared.errors import BadUserInput, QueryTooComplex, Unauthenticated, UnknownTicker
from shared.storage.database import Pool

MAX_LIMIT = 10_000
MAX_ROWS = 20_000
"For all fields of one request together."

MAX_VALUES = 200_000
"For all rows of one request together."

MAX_ROWS_READ = 400_000
"By all fields of one request together, as estimated from their arguments: about a second of PostgreSQL's time."
READS_PER_ROW = 20
"How many rows PostgreSQL reads in the time in which it answers one."

MAX_TICKERS = 1000

MAX_PYTHON_VALUES = 30_000
"Of a request that is not compiled: each value takes some µs of the event loop and 200 bytes."

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
    turns: Turns = field(default_factory=Turns)
    "The process's, for rows that are read in Python."
    heavy_reads: HeavyReads = field(default_factory=HeavyReads)
    "The process's."
    rows_asked_for: int = field(default=0, init=False)
    values_asked_for: int = field(default=0, init=False)
    rows_read: int = field(default=0, init=False)
    python_values: int = field(default=0, init=False)

    @classmethod
    def of(cls, scope: Scope, client: str, *, is_authenticated: bool) -> Self:
        """For a request, or an operation of a socket."""
        state = scope["state"]
        admission: Admission = state["admission"]
        shared = (state["pool"], state["redis"], state["settings"])
        return cls(*shared, is_authenticated, state["feeds"], client, admission.turns, admission.heavy_reads)

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

    def count_reads(self, rows: int) -> None:
        """Count what a statement may read to compute its answer. Raises `QueryTooComplex`."""
        self.rows_read += rows
        if self.rows_read > MAX_ROWS_READ:
            raise QueryTooComplex(
                f"All fields of one request may read at most {MAX_ROWS_READ:,} rows together: `coverage` reads one for "
                "each hour of its period and its `gaps` six, `statistics` one for each slot, `candles` one for each "
                "minute of theirs, or for each hour if they are an hour or longer. Ask for shorter periods, or in "
                "several requests."
            )

    @property
    def weight(self) -> int:
        """For `HeavyReads`: the rows asked for, or as many as take the time that reading takes, whichever is more."""
        return max(self.rows_asked_for, self.rows_read // READS_PER_ROW)

    def rows_in_python(self, width: int) -> int:
        """How many rows Strawberry may read at most: one more than it may write."""
        return (MAX_PYTHON_VALUES - self.python_values) // width + 1

    def count_values_in_python(self, rows: list[Any], width: int) -> None:
        """Count what Strawberry has to write of the rows that were found. Raises `QueryTooComplex`."""
        self.python_values += len(rows) * width
        if self.python_values > MAX_PYTHON_VALUES:
            rows.clear()  # the error's traceback would keep them
            raise QueryTooComplex(
                f"A request that PostgreSQL cannot answer alone, or with an error in one of its fields, may have "
                f"at most {MAX_PYTHON_VALUES} values together: rows times their fields. Ask for fewer rows."
            )

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
