"""The objects of an operation are freed with its answer, without the garbage collector."""

import gc
from collections.abc import Iterator

import pytest
from graphql import parse
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext

from server.schema.executor import Executor
from server.schema.root import schema


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def left_behind(document: str) -> int:
    for _ in range(3):
        result = await schema.execute(document)
        assert result.data
    return sum(isinstance(thing, StrawberryGraphQLCoreExecutionContext) for thing in gc.get_objects())


@pytest.mark.parametrize("document", ["{ __typename }", "{ __schema { types { name fields { name } } } }"])
async def test_no_executor_stays_in_memory(no_collection: None, document: str) -> None:
    assert await left_behind(document) == 0


async def test_graphql_cores_own_executor_would_stay_in_memory(
    no_collection: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "execution_context_class", StrawberryGraphQLCoreExecutionContext)
    assert await left_behind("{ __typename }") == 3, "graphql-core has mended it: server/schema/executor.py can go"


def test_resolvers_get_the_executors_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    tracked: list[object] = []
    monkeypatch.setattr(Executor, "track_async_work", lambda _, values: tracked.extend(values))
    executor = Executor.build(schema._schema, parse("{ __typename }"))
    assert isinstance(executor, Executor)
    executor.async_helpers.track(["work"])
    assert tracked == ["work"]
