"""graphql-core's executor without the reference to itself that would keep it, and all that it holds, after its answer.

Some forty objects a request would wait for Python to look for garbage: under load that takes a tenth of a second now
and then, more the more is going on.
"""

import weakref
from typing import Any

from graphql import DocumentNode, GraphQLError, GraphQLSchema
from graphql import Executor as GraphQLExecutor
from graphql.type import GraphQLResolveInfoHelpers
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext

from server.schema.documents import refuse_many_values
from shared.errors import QueryTooComplex


class Executor(StrawberryGraphQLCoreExecutionContext):
    @classmethod
    def build(
        cls,
        schema: GraphQLSchema,
        document: DocumentNode,
        root_value: Any = None,
        context_value: Any = None,
        raw_variable_values: dict[str, Any] | None = None,
        *arguments: Any,
        **options: Any,
    ) -> "list[GraphQLError] | GraphQLExecutor[Any]":
        """Refuses variables that would take long to coerce."""
        try:
            refuse_many_values(raw_variable_values)
        except QueryTooComplex as error:
            return [GraphQLError(str(error), original_error=error)]
        return super().build(schema, document, root_value, context_value, raw_variable_values, *arguments, **options)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # What graphql-core has put there are bound methods: the same, but bound only while they run.
        executor = weakref.proxy(self)
        self.async_helpers = GraphQLResolveInfoHelpers(
            gather=lambda awaitables: executor.gather_async_work(awaitables),
            track=lambda values: executor.track_async_work(values),
        )
