"""Writes the events of a subscription as JSON, for a selection that is compiled once.

Executing the document for each event would take twenty times as long, and keep the document and its variables.
"""

import itertools
import json
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from graphql import (
    Executor,
    FieldNode,
    GraphQLLeafType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    is_leaf_type,
)
from graphql.execution.collect_fields import FieldDetails, collect_fields, collect_subfields

from server.lru import LRU
from shared.errors import RateLimited
from shared.storage.prices import Price

MAX_LIVE_DOCUMENTS = 1000
"Different selections that one process writes for each event. Subscriptions that select the same share one."

MAX_WRITTEN_CHARACTERS = 8_000_000
"Of all cached event texts."

_ENTRY_CHARACTERS = 600
"The cost of a cached event besides its text: a `Price` and the entry itself."

_RETRY_SECONDS = 10

Shape = tuple[tuple[str, str, Any], ...]
"Of each selected field: its key in the answer, its name, and the shape of its own selection."

Write = Callable[[Any], str]


_numbers = itertools.count()


class EventWriter:
    """`key`: of the subscribed field in the answers."""

    def __init__(self, write: Write, key: str) -> None:
        self._write = write
        self.key = key
        self.number = next(_numbers)
        "Identifies it among cached texts, which must not keep it."

    def __call__(self, event: Any) -> str:
        return f'{{"data":{{{json.dumps(self.key)}:{self._write(event)}}}}}'


class EventWriters:
    """One for each process. A writer is dropped with the last subscription that uses it."""

    def __init__(self) -> None:
        self._writers: WeakValueDictionary[tuple[str, Shape], EventWriter] = WeakValueDictionary()
        self._written: LRU[tuple[int, object], str] = LRU(MAX_WRITTEN_CHARACTERS)

    def writer(self, executor: Executor[Any]) -> tuple[FieldNode, EventWriter]:
        """The subscribed field, and what writes its events. Raises `RateLimited` if there are too many writers."""
        operation = executor.operation
        root: Any = executor.schema.get_root_type(operation.operation)
        fields = collect_fields(executor.schema, executor.fragments, executor.variable_values, root, operation)
        # Validation makes sure that there is exactly one.
        [(key, found)] = fields.grouped_field_set.items()
        field = found[0].node
        kind = root.fields[field.name.value].type
        while isinstance(kind, GraphQLNonNull):
            kind = kind.of_type
        shape = _shape(executor, kind, found)
        writer = self._writers.get((key, shape))
        if writer is None:
            if len(self._writers) >= MAX_LIVE_DOCUMENTS:
                raise RateLimited(
                    f"The server already follows {MAX_LIVE_DOCUMENTS} different selections; select what others do, or "
                    "try again later.",
                    _RETRY_SECONDS,
                )
            writer = EventWriter(_object_writer(kind, shape), key)
            self._writers[key, shape] = writer
        return field, writer

    def write(self, writer: EventWriter, event: Any) -> str:
        # A fetch changes only with its status. It is not hashable itself, because it holds lists. Two prices are equal
        # whatever their batch.
        key = writer.number, (event, event.batch) if isinstance(event, Price) else (event.id, event.status)
        text = self._written.get(key)
        if text is None:
            text = writer(event)
            self._written.put(key, text, len(text) + _ENTRY_CHARACTERS)
        return text


def _shape(executor: Executor[Any], kind: GraphQLObjectType, found: list[FieldDetails]) -> Shape:
    collected = collect_subfields(
        executor.schema, executor.fragments, executor.variable_values, executor.operation, kind, found
    )
    shape = []
    for key, same in collected.grouped_field_set.items():
        name = same[0].node.name.value
        inner = None if name == "__typename" else _named(kind.fields[name].type)
        shape.append((key, name, _shape(executor, inner, same) if isinstance(inner, GraphQLObjectType) else None))
    return tuple(shape)


def _named(kind: Any) -> Any:
    while isinstance(kind, GraphQLNonNull | GraphQLList):
        kind = kind.of_type
    return kind


def _object_writer(kind: GraphQLObjectType, shape: Shape) -> Write:
    members = [(json.dumps(key) + ":", *_member(kind, name, inner)) for key, name, inner in shape]

    def write(value: Any) -> str:
        return "{" + ",".join([key + member(getattr(value, name)) for key, name, member in members]) + "}"

    return write


def _member(kind: GraphQLObjectType, name: str, shape: Shape | None) -> tuple[str, Write]:
    """The attribute of the event that holds the field, and how its value is written."""
    if name == "__typename":
        typename = json.dumps(kind.name)
        return "__class__", lambda _: typename
    field = kind.fields[name]
    definition = field.extensions["strawberry-definition"]
    assert definition.base_resolver is None, f"{name} of an event has a resolver"  # noqa: S101
    return definition.python_name, _value_writer(field.type, shape)


def _value_writer(kind: Any, shape: Shape | None) -> Write:
    if not isinstance(kind, GraphQLNonNull):
        write = _value_writer(GraphQLNonNull(kind), shape)
        return lambda value: "null" if value is None else write(value)
    kind = kind.of_type
    if isinstance(kind, GraphQLList):
        item = _value_writer(kind.of_type, shape)
        return lambda value: "[" + ",".join(map(item, value)) + "]"
    if is_leaf_type(kind):
        return _leaf_writer(kind)
    return _object_writer(kind, shape or ())


def _leaf_writer(kind: GraphQLLeafType) -> Write:
    serialize = kind.coerce_output_value
    return lambda value: json.dumps(serialize(value))
