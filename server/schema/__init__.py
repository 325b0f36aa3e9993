"""The GraphQL schema: each concept's types and resolvers, joined."""

from collections.abc import Iterable
from typing import Any

import strawberry
from graphql import GraphQLError, Undefined
from strawberry.extensions import ValidationCache
from strawberry.schema.config import StrawberryConfig
from strawberry.types import ExecutionContext, ExecutionResult

from server.errors import public_error
from server.limits import CACHED_DOCUMENTS, DocumentLimits
from server.scalars import SCALARS
from server.schema.candles import CandleQuery
from server.schema.coverage import CoverageQuery
from server.schema.jobs import JobMutation, JobQuery
from server.schema.live import Subscription
from server.schema.prices import PriceQuery
from server.schema.tickers import TickerQuery


@strawberry.type(description="What can be read.")
class Query(PriceQuery, CandleQuery, CoverageQuery, TickerQuery, JobQuery):
    pass


@strawberry.type(description="What can be asked to happen.")
class Mutation(JobMutation):
    pass


class Schema(strawberry.Schema):
    """Strawberry's, with every error turned into what the client may see of it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # An argument that may be left out has no default to show: `before: DateTime`, not `before: DateTime = null`.
        for graphql_type in self._schema.type_map.values():
            for field in getattr(graphql_type, "fields", {}).values():
                for argument in getattr(field, "args", {}).values():
                    if argument.default_value is None:
                        argument.default_value = Undefined

    async def execute(self, *arguments: Any, **options: Any) -> ExecutionResult:
        result = await super().execute(*arguments, **options)
        if result.errors:
            result.errors = [public_error(error) for error in result.errors]
        return result

    def process_errors(self, errors: Iterable[GraphQLError], execution_context: ExecutionContext | None = None) -> None:
        """Log nothing here: a client's typo is not our error, and `public_error` logs what is."""


schema = Schema(
    query=Query,
    mutation=Mutation,
    subscription=Subscription,
    extensions=[DocumentLimits, lambda: ValidationCache(maxsize=CACHED_DOCUMENTS)],
    config=StrawberryConfig(scalar_map=SCALARS),
)
