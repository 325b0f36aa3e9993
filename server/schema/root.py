"""The GraphQL schema: each concept's types and resolvers, joined."""

from collections.abc import Iterable
from typing import Any

import strawberry
from graphql import GraphQLError, Undefined
from strawberry.schema.config import StrawberryConfig
from strawberry.tools import create_type
from strawberry.types import ExecutionContext, ExecutionResult

from server.protection.request_budget import within_budget
from server.schema.candles import candles
from server.schema.coverage import coverage
from server.schema.documents import DocumentLimits
from server.schema.errors import public_error, without_suggestions
from server.schema.executor import Executor
from server.schema.jobs import JobMutation, fetch_job
from server.schema.live import Subscription
from server.schema.prices import latest_price, latest_prices, price_history, prices_in_period
from server.schema.questions.prices_at import prices_at
from server.schema.questions.statistics import statistics
from server.schema.scalars import SCALARS
from server.schema.tickers import tickers
from shared.errors import QueueUnavailable, StorageUnavailable

Query = create_type(
    "Query",
    [
        latest_price,
        latest_prices,
        price_history,
        prices_in_period,
        candles,
        coverage,
        prices_at,
        statistics,
        tickers,
        fetch_job,
    ],
    description="What can be read.",
)


@strawberry.type(description="What can be asked to happen.")
class Mutation(JobMutation):
    pass


WAITS_FOR_REDIS = {"fetchJob", "fetchPrices"}
"All other fields that wait, wait for PostgreSQL."


class Schema(strawberry.Schema):
    """Strawberry's, with every error turned into what the client may see of it, and its fields' time bounded."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # An argument that may be left out has no default to show: `before: DateTime`, not `before: DateTime = null`.
        for graphql_type in self._schema.type_map.values():
            for name, field in getattr(graphql_type, "fields", {}).items():
                for argument in getattr(field, "args", {}).values():
                    if argument.default_value is None:
                        argument.default_value = Undefined
                definition = getattr(field, "extensions", {}).get("strawberry-definition")
                if definition is not None and definition.is_async and not definition.is_subscription:
                    unavailable = QueueUnavailable if name in WAITS_FOR_REDIS else StorageUnavailable
                    field.resolve = within_budget(field.resolve, unavailable)

    async def execute(
        self,
        query: str | None,
        variable_values: dict[str, Any] | None = None,
        context_value: Any | None = None,
        *arguments: Any,
        **options: Any,
    ) -> ExecutionResult:
        result = await super().execute(query, variable_values, context_value, *arguments, **options)
        if result.errors:
            result.errors = [public_error(error) for error in result.errors]
            if context_value is not None and not context_value.settings.introspection:
                result.errors = [without_suggestions(error) for error in result.errors]
        return result

    def process_errors(self, errors: Iterable[GraphQLError], execution_context: ExecutionContext | None = None) -> None:
        """Log nothing here: a client's typo is not our error, and `public_error` logs what is."""


schema = Schema(
    query=Query,
    mutation=Mutation,
    subscription=Subscription,
    extensions=[DocumentLimits],
    execution_context_class=Executor,
    config=StrawberryConfig(scalar_map=SCALARS),
)
