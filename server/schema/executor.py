"""graphql-core's executor without the reference to itself that would keep it, and all that it holds, after its answer.

Some forty objects a request would wait for Python to look for garbage: under load that takes a tenth of a second now
and then, more the more is going on.
"""

import weakref
from typing import Any

from graphql.type import GraphQLResolveInfoHelpers
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext


class Executor(StrawberryGraphQLCoreExecutionContext):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # What graphql-core has put there are bound methods: the same, but bound only while they run.
        executor = weakref.proxy(self)
        self.async_helpers = GraphQLResolveInfoHelpers(
            gather=lambda awaitables: executor.gather_async_work(awaitables),
            track=lambda values: executor.track_async_work(values),
        )
