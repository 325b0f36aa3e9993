"""What one request may take of PostgreSQL and Redis, however many fields it asks for: so long, and so much at a time.

A statement has a deadline of its own, under which a field ends. But a mutation's fields run one after the other, and
those of a query would take all of the pool's connections, which are everybody's.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from graphql import GraphQLResolveInfo

from shared.errors import QueueUnavailable, StorageUnavailable

logger = logging.getLogger(__name__)

REQUEST_SECONDS = 5.0
"Of all fields together, from the first one that waits for anything. An answer of planned reads is one statement."

FIELDS_AT_ONCE = 3
"Of one request; a pool has ten connections."

Away = type[StorageUnavailable] | type[QueueUnavailable]


class Allowance:
    """One request's."""

    def __init__(self, seconds: float = REQUEST_SECONDS) -> None:
        self._seconds = seconds
        self._until: float | None = None
        self._turns = asyncio.Semaphore(FIELDS_AT_ONCE)
        self._away: dict[Away, str] = {}

    async def spend(self, resolve: Callable[[], Awaitable[Any]], away: Away) -> Any:
        """Resolve a field. Raises `away` where that is known to be away from another field, or when the time is over:
        what the field waits for is cancelled then, a statement in PostgreSQL too.
        """
        if self._until is None:
            self._until = asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(self._until), self._turns:
                if away in self._away:
                    raise away(self._away[away])
                return await resolve()
        except TimeoutError:
            message = f"The request took longer than {self._seconds:g} s; ask for less at once, or try again shortly."
            if away not in self._away:
                logger.warning("a request took longer than %g s", self._seconds)
                self._away[away] = message
            raise away(message) from None
        except away as error:
            if not getattr(error, "is_answered", False):
                self._away.setdefault(away, str(error))
            raise


def within_allowance(resolve: Callable[..., Any], away: Away) -> Callable[..., Any]:
    """The resolver of a field that waits, within its request's allowance."""

    async def resolve_within(source: Any, info: GraphQLResolveInfo[Any], **arguments: Any) -> Any:
        return await info.context.allowance.spend(lambda: resolve(source, info, **arguments), away)

    return resolve_within
