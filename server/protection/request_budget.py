"""How much time and how many connections one request may use, however many fields it asks for.

Each field has a deadline, but the fields of a mutation run one after another, and those of a query run concurrently and
could take all connections of the pool.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from graphql import GraphQLResolveInfo

from shared.errors import QueueUnavailable, StorageUnavailable

logger = logging.getLogger(__name__)

REQUEST_SECONDS = 5.0
"For all fields together, from the first one that waits. Compiled queries are one statement and need no budget."

FIELDS_AT_ONCE = 3
"Of one request. A pool has ten connections."

Unavailable = type[StorageUnavailable] | type[QueueUnavailable]


class RequestBudget:
    def __init__(self, seconds: float = REQUEST_SECONDS) -> None:
        self._seconds = seconds
        self._until: float | None = None
        self._fields = asyncio.Semaphore(FIELDS_AT_ONCE)
        self._unavailable: dict[Unavailable, str] = {}

    async def spend(self, resolve: Callable[[], Awaitable[Any]], unavailable: Unavailable) -> Any:
        """Resolve a field. Raises `unavailable` when the time is over, which cancels the field's statement in
        PostgreSQL, too; or at once if another field of the request has already failed with it.
        """
        if self._until is None:
            self._until = asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(self._until), self._fields:
                if unavailable in self._unavailable:
                    raise unavailable(self._unavailable[unavailable])
                return await resolve()
        except TimeoutError:
            message = f"The request took longer than {self._seconds:g} s; ask for less at once, or try again shortly."
            if unavailable not in self._unavailable:
                logger.warning("a request took longer than %g s", self._seconds)
                self._unavailable[unavailable] = message
            raise unavailable(message) from None
        except unavailable as error:
            if not getattr(error, "is_answered", False):
                self._unavailable.setdefault(unavailable, str(error))
            raise


def within_budget(resolve: Callable[..., Any], unavailable: Unavailable) -> Callable[..., Any]:
    """Makes the resolver of a field that waits spend its request's budget."""

    async def resolve_within(source: Any, info: GraphQLResolveInfo[Any], **arguments: Any) -> Any:
        return await info.context.budget.spend(lambda: resolve(source, info, **arguments), unavailable)

    return resolve_within
