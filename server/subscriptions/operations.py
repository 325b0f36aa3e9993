"""Runs an operation and yields its answers as JSON texts, for WebSockets and event streams.

An event of a subscription is serialised once for all subscribers that select the same. A subscription keeps neither its
document nor its variables: only the arguments of its field, and what its events select.
"""

import json
from collections.abc import AsyncGenerator
from time import perf_counter
from typing import Any, Protocol

from graphql import (
    DocumentNode,
    ExecutionResult,
    GraphQLError,
    OperationType,
    create_source_event_stream,
    get_operation_ast,
)

from server.feeds.recent_prices import TooSlow
from server.metrics import OK, REFUSED, TOO_SLOW, Metrics, code_of, operation_label
from server.protection.admission import Admission
from server.reads.context import Context
from server.schema.documents import GraphQLRequest, load_document, prepare, validate
from server.schema.errors import as_graphql, is_request_error, public_error, without_suggestions
from server.schema.executor import Executor
from server.schema.root import Schema
from server.subscriptions.event_writer import EventWriter, EventWriters
from shared.errors import RateLimited, ServiceError
from shared.storage.prices import Price


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
    """One for each process, because it shares what writes the events."""

    def __init__(self, schema: Schema, compiled: Compiled, metrics: Metrics) -> None:
        self._schema = schema
        self._compiled = compiled
        self._metrics = metrics
        self._writers = EventWriters()

    async def answers(
        self, context: Context, request: GraphQLRequest, admission: Admission, *, is_queued: bool = False
    ) -> AsyncGenerator[str]:
        """Raises `Refused` before the first answer, and `TooSlow` when the subscriber is too far behind.

        `is_queued`: the document has already waited in the queue for long ones.
        """
        try:
            if not is_queued:
                await admission.queue_document(len(request.query))
            await prepare(request.query, self._schema._schema, admission.run_document)
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
        source, name, locations, writer = await self._subscribe(context, request, document)
        del request, document, operation  # a client may send 128 KiB, which must not stay for as long as it follows
        code = OK
        if isinstance(source, ExecutionResult):
            refusal = [public_error(error) for error in source.errors or []]
            self._metrics.ended(name, code_of(refusal))
            yield _write(ExecutionResult(source.data, refusal))
            return
        self._metrics.subscriptions[name,] += 1
        try:
            async for event in source:
                self._metrics.prices_sent += type(event) is Price
                yield self._writers.write(writer, event)
        except TooSlow:
            code = TOO_SLOW
            raise
        except Exception as error:  # in the feed: the storage is unavailable, or a bug
            end = public_error(GraphQLError(str(error), path=[writer.key], original_error=error))
            end.locations = locations
            code = code_of([end])
            yield _write(ExecutionResult(None, [end]))
        finally:
            self._metrics.subscriptions[name,] -= 1
            self._metrics.ended(name, code)
            await source.aclose()

    async def _subscribe(
        self, context: Context, request: GraphQLRequest, document: DocumentNode
    ) -> tuple[Any, str, Any, EventWriter]:
        """The source of the events, or its refusal; the field's name and locations; and what writes the events.

        Raises `Refused`.
        """
        executor = Executor.build(
            self._schema._schema,
            document,
            context_value=context,
            raw_variable_values=request.variables,
            operation_name=request.operation_name,
        )
        if isinstance(executor, list):
            raise self._refused(context, request, [public_error(error) for error in executor])
        try:
            field, writer = self._writers.writer(executor)
        except RateLimited as error:
            raise self._busy(error) from error
        source: Any = create_source_event_stream(executor)
        if executor.is_awaitable(source):
            source = await source
        # Not the field itself: a node's tokens keep the document.
        return source, field.name.value, GraphQLError("", [field]).locations, writer

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
        errors = validate(query, self._schema._schema)
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


def _write(result: ExecutionResult) -> str:
    errors = [public_error(error) for error in result.errors or []]
    return json.dumps(ExecutionResult(result.data, errors or None).formatted, separators=(",", ":"))
