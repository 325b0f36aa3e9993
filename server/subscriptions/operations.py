"""An operation's answers one by one, as JSON texts: what a WebSocket and an event stream both send.

An event of a subscription is executed and written once for all who asked for it in the same words, and sent many times.
"""

import json
from collections.abc import AsyncGenerator, Mapping
from time import perf_counter
from typing import Any

from graphql import (
    DocumentNode,
    ExecutionResult,
    Executor,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    OperationType,
    SelectionSetNode,
    VariableNode,
    create_source_event_stream,
    execute_subscription_event,
    get_operation_ast,
    specified_rules,
)

from server.feeds.price_feed import TooSlow
from server.lru import LRU
from server.metrics import OK, REFUSED, TOO_SLOW, Metrics, code_of, operation_of
from server.protection.admission import Admission
from server.reads.context import Context
from server.schema.documents import load_document, validate
from server.schema.errors import public_error, without_suggestions
from server.schema.root import Schema
from shared.errors import RateLimited, ServiceError
from shared.storage.prices import Price

MAX_WRITTEN_CHARACTERS = 8_000_000
"Of all cached event texts, each with the request that it answers."

_ENTRY_CHARACTERS = 600
"The cost of a cached event besides its texts: a `Price` and the entry itself."

MAX_SHARED_CHARACTERS = 4000
"Of a document and its variables, for its events to be shared."


class Refused(Exception):
    """Nothing of the operation was executed."""

    def __init__(self, errors: list[GraphQLError]) -> None:
        super().__init__(*errors)
        self.errors = errors


class Streams:
    """One for a process: it holds what is shared."""

    def __init__(self, schema: Schema, metrics: Metrics | None = None) -> None:
        self._schema = schema
        self._metrics = metrics or Metrics()
        self._written: LRU[tuple[str, object], str] = LRU(MAX_WRITTEN_CHARACTERS)

    async def answers(
        self,
        context: Context,
        query: str,
        variables: dict[str, Any] | None,
        operation_name: str | None,
        admission: Admission,
    ) -> AsyncGenerator[str]:
        """Raises `Refused` instead of the first one, `TooSlow` where a follower has fallen too far behind."""
        try:
            await admission.take_turn(len(query))
        except RateLimited as error:
            raise self._busy(error) from error
        document, errors = self._prepare(query)
        if errors:
            raise self._refused(context, query, operation_name, errors)
        operation = get_operation_ast(document, operation_name)
        if operation is not None and operation.operation is not OperationType.SUBSCRIPTION:
            try:
                with admission.work():
                    answer = await self._answer(context, query, variables, operation_name)
            except RateLimited as error:
                raise self._busy(error) from error
            yield answer
            return
        executor = Executor.build(
            self._schema._schema,
            document,
            context_value=context,
            raw_variable_values=variables,
            operation_name=operation_name,
        )
        if isinstance(executor, list):
            raise self._refused(context, query, operation_name, [public_error(error) for error in executor])
        source: Any = create_source_event_stream(executor)
        if executor.is_awaitable(source):
            source = await source
        field = _root_field(document, executor.operation.selection_set)
        name, code = field.name.value, OK
        if isinstance(source, ExecutionResult):
            refusal = [public_error(error) for error in source.errors or []]
            self._metrics.ended(name, code_of(refusal))
            yield _write(ExecutionResult(source.data, refusal))
            return
        asked = _shared(query, operation_name, variables, field)
        self._metrics.subscriptions[name,] += 1
        try:
            async for event in source:
                self._metrics.prices_sent += type(event) is Price
                yield self._event(executor, asked, event)
        except TooSlow:
            code = TOO_SLOW
            raise
        except Exception as error:  # of following itself: the storage is away, or a fault of ours
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
        return Refused([GraphQLError(str(error), original_error=error)])

    def _refused(self, context: Context, query: str, operation_name: str | None, errors: list[GraphQLError]) -> Refused:
        self._metrics.ended(operation_of(query, operation_name, errors), code_of(errors))
        return Refused(errors if context.settings.introspection else [without_suggestions(error) for error in errors])

    def _prepare(self, query: str) -> tuple[DocumentNode, list[GraphQLError]]:
        try:
            document = load_document(query)
        except GraphQLError as error:
            return DocumentNode(), [public_error(error)]
        except ServiceError as error:
            return DocumentNode(), [public_error(GraphQLError(str(error), original_error=error))]
        errors = validate(query, self._schema._schema, tuple(specified_rules))
        return document, [public_error(error) for error in errors]

    async def _answer(
        self, context: Context, query: str, variables: dict[str, Any] | None, operation_name: str | None
    ) -> str:
        began = perf_counter()
        result = await self._schema.execute(
            query, variable_values=variables, context_value=context, operation_name=operation_name
        )
        operation = operation_of(query, operation_name, result.errors)
        self._metrics.answered(operation, code_of(result.errors), began)
        if result.data is None and result.errors and not any(error.path for error in result.errors):
            raise Refused(result.errors)
        return _write(ExecutionResult(result.data, result.errors))

    def _event(self, executor: Executor[Any], asked: str | None, event: Any) -> str:
        # A fetch is the same while its status is; it holds lists, which are no part of a key.
        key = (asked or "", event if isinstance(event, Price) else (event.id, event.status))
        text = self._written.get(key)
        if text is None:
            result = execute_subscription_event(executor.build_per_event_executor(event))
            assert isinstance(result, ExecutionResult)  # noqa: S101  no field of these types waits for anything
            text = _write(result)
            if asked is not None:
                self._written.put(key, text, len(asked) + len(text) + _ENTRY_CHARACTERS)
        return text


def _write(result: ExecutionResult) -> str:
    errors = [public_error(error) for error in result.errors or []]
    return json.dumps(ExecutionResult(result.data, errors or None).formatted, separators=(",", ":"))


def _root_field(document: DocumentNode, selections: SelectionSetNode) -> FieldNode:
    """The field that is subscribed to: validation has seen to it that there is one."""
    fragments = {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}
    [selection, *_] = selections.selections
    if isinstance(selection, FieldNode):
        return selection
    if isinstance(selection, FragmentSpreadNode):
        return _root_field(document, fragments[selection.name.value].selection_set)
    assert isinstance(selection, InlineFragmentNode)  # noqa: S101  there is nothing else
    return _root_field(document, selection.selection_set)


def _shared(
    query: str, operation_name: str | None, variables: Mapping[str, Any] | None, field: FieldNode
) -> str | None:
    """All that an event's answer depends on: where to begin is not part of it.

    `None` where it is longer than what anybody would ask in the same words: it is kept beside each answer.
    """
    beginning = {
        argument.value.name.value
        for argument in field.arguments or ()
        if argument.name.value == "since" and isinstance(argument.value, VariableNode)
    }
    asked = {name: value for name, value in (variables or {}).items() if name not in beginning}
    text = json.dumps([query, operation_name, asked], sort_keys=True)
    return text if len(text) <= MAX_SHARED_CHARACTERS else None
