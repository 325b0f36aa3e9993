"""Runs an operation and yields its answers as JSON texts, for WebSockets and event streams.

An event of a subscription is executed and serialised once for all subscribers that sent the same request.
"""

import json
from collections.abc import AsyncGenerator
from time import perf_counter
from typing import Any, Protocol

from graphql import (
    DocumentNode,
    ExecutionResult,
    Executor,
    FieldNode,
    GraphQLError,
    OperationType,
    VariableNode,
    create_source_event_stream,
    execute_subscription_event,
    get_operation_ast,
    specified_rules,
)
from graphql.execution.collect_fields import collect_fields

from server.feeds.recent_prices import TooSlow
from server.lru import LRU
from server.metrics import OK, REFUSED, TOO_SLOW, Metrics, code_of, operation_label
from server.protection.admission import Admission
from server.reads.context import Context
from server.schema.documents import GraphQLRequest, load_document, validate
from server.schema.errors import as_graphql, is_request_error, public_error, without_suggestions
from server.schema.root import Schema
from shared.errors import RateLimited, ServiceError
from shared.storage.prices import Price

MAX_WRITTEN_CHARACTERS = 8_000_000
"Of all cached event texts, each with the request that it answers."

_ENTRY_CHARACTERS = 600
"The cost of a cached event besides its texts: a `Price` and the entry itself."

MAX_SHARED_CHARACTERS = 4000
"Of a document and its variables. The events of a longer request are not cached."


class Refused(Exception):
    """The operation was not executed."""

    def __init__(self, errors: list[GraphQLError]) -> None:
        super().__init__(*errors)
        self.errors = errors


class Compiled(Protocol):
    """See `server/compiled/execution.py`."""

    async def text(self, context: Context, request: GraphQLRequest, admission: Admission) -> str | None:
        """The answer of a compiled query; `None` if Strawberry has to answer. Raises `RateLimited`."""


class Streams:
    """One for each process, because it caches the serialised events."""

    def __init__(self, schema: Schema, compiled: Compiled, metrics: Metrics) -> None:
        self._schema = schema
        self._compiled = compiled
        self._metrics = metrics
        self._written: LRU[tuple[str, object], str] = LRU(MAX_WRITTEN_CHARACTERS)

    async def answers(
        self, context: Context, request: GraphQLRequest, admission: Admission, *, is_queued: bool = False
    ) -> AsyncGenerator[str]:
        """Raises `Refused` before the first answer, and `TooSlow` when the subscriber is too far behind.

        `is_queued`: the document has already waited in the queue for long ones.
        """
        try:
            if not is_queued:
                await admission.queue_document(len(request.query))
        except RateLimited as error:
            raise self._busy(error) from error
        document, errors = self._prepare(request.query)
        if errors:
            raise self._refused(context, request, errors)
        operation = get_operation_ast(document, request.operation_name)
        if operation is not None and operation.operation is not OperationType.SUBSCRIPTION:
            try:
                answer = await self._compiled.text(context, request, admission)
                if answer is None:
                    with admission.work():
                        answer = await self._answer(context, request)
            except RateLimited as error:
                raise self._busy(error) from error
            yield answer
            return
        executor = Executor.build(
            self._schema._schema,
            document,
            context_value=context,
            raw_variable_values=request.variables,
            operation_name=request.operation_name,
        )
        if isinstance(executor, list):
            raise self._refused(context, request, [public_error(error) for error in executor])
        source: Any = create_source_event_stream(executor)
        if executor.is_awaitable(source):
            source = await source
        field = _root_field(executor)
        name, code = field.name.value, OK
        if isinstance(source, ExecutionResult):
            refusal = [public_error(error) for error in source.errors or []]
            self._metrics.ended(name, code_of(refusal))
            yield _write(ExecutionResult(source.data, refusal))
            return
        asked = _cache_key(request, field)
        self._metrics.subscriptions[name,] += 1
        try:
            async for event in source:
                self._metrics.prices_sent += type(event) is Price
                yield self._event(executor, asked, event)
        except TooSlow:
            code = TOO_SLOW
            raise
        except Exception as error:  # in the feed: the storage is unavailable, or a bug
            path: list[str | int] = [(field.alias or field.name).value]
            end = public_error(GraphQLError(str(error), [field], path=path, original_error=error))
            code = code_of([end])
            yield _write(ExecutionResult(None, [end]))
        finally:
            self._metrics.subscriptions[name,] -= 1
            self._metrics.ended(name, code)
            await source.aclose()

    def _busy(self, error: RateLimited) -> Refused:
        self._metrics.ended(REFUSED, error.code)
        return Refused([as_graphql(error)])

    def _refused(self, context: Context, request: GraphQLRequest, errors: list[GraphQLError]) -> Refused:
        self._metrics.ended(operation_label(self._schema._schema, request, errors), code_of(errors))
        return Refused(errors if context.settings.introspection else [without_suggestions(error) for error in errors])

    def _prepare(self, query: str) -> tuple[DocumentNode, list[GraphQLError]]:
        try:
            document = load_document(query)
        except GraphQLError as error:
            return DocumentNode(), [public_error(error)]
        except ServiceError as error:
            return DocumentNode(), [as_graphql(error)]
        errors = validate(query, self._schema._schema, tuple(specified_rules))
        return document, [public_error(error) for error in errors]

    async def _answer(self, context: Context, request: GraphQLRequest) -> str:
        began = perf_counter()
        result = await self._schema.execute(
            request.query, request.variables, context, operation_name=request.operation_name
        )
        label = operation_label(self._schema._schema, request, result.errors)
        self._metrics.answered(label, code_of(result.errors), began)
        if is_request_error(result.data, result.errors):
            raise Refused(result.errors or [])
        return _write(ExecutionResult(result.data, result.errors))

    def _event(self, executor: Executor[Any], asked: str | None, event: Any) -> str:
        # A fetch changes only with its status. It is not hashable itself, because it holds lists. Two prices are equal
        # whatever their batch.
        key = (asked or "", (event, event.batch) if isinstance(event, Price) else (event.id, event.status))
        text = self._written.get(key)
        if text is None:
            result = execute_subscription_event(executor.build_per_event_executor(event))
            assert isinstance(result, ExecutionResult)  # noqa: S101  no field of these types is asynchronous
            text = _write(result)
            if asked is not None:
                self._written.put(key, text, len(asked) + len(text) + _ENTRY_CHARACTERS)
        return text


def _write(result: ExecutionResult) -> str:
    errors = [public_error(error) for error in result.errors or []]
    return json.dumps(ExecutionResult(result.data, errors or None).formatted, separators=(",", ":"))


def _root_field(executor: Executor[Any]) -> FieldNode:
    """The subscribed field. Validation makes sure that there is exactly one."""
    operation = executor.operation
    root = executor.schema.get_root_type(operation.operation)
    assert root is not None  # noqa: S101  else the operation was refused
    fields = collect_fields(executor.schema, executor.fragments, executor.variable_values, root, operation)
    return next(iter(fields.grouped_field_set.values()))[0].node


def _cache_key(request: GraphQLRequest, field: FieldNode) -> str | None:
    """All that an event's answer depends on, so not `since` or `after`. `None` if it is too long to be cached."""
    ignored = {
        argument.value.name.value
        for argument in field.arguments or ()
        if argument.name.value in {"since", "after"} and isinstance(argument.value, VariableNode)
    }
    asked = {name: value for name, value in (request.variables or {}).items() if name not in ignored}
    text = json.dumps([request.query, request.operation_name, asked], sort_keys=True)
    return text if len(text) <= MAX_SHARED_CHARACTERS else None
