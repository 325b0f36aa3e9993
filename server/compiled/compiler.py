"""From a document to a plan: which fields PostgreSQL answers, and the statement that writes their answer.

The compiler knows no field by name. A root field is compiled if it was declared with `read_field`; any others of the
same document, such as `fetchJob` or introspection, are left to Strawberry, in a document of their own (`Plan.rest`).
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    GraphQLError,
    GraphQLField,
    GraphQLObjectType,
    OperationDefinitionNode,
    OperationType,
    get_location,
    get_named_type,
    get_operation_ast,
    get_variable_values,
    specified_rules,
)
from graphql.execution.collect_fields import FieldDetails, FragmentDetails, collect_fields, collect_subfields
from graphql.execution.values import VariableValues
from graphql.language.location import FormattedSourceLocation

from server.compiled.json_sql import Member, Selected
from server.compiled.plans import Call, FallBackToStrawberry, Outline, Plan, Root, snake_case, statements_of
from server.compiled.rest import leave_to_strawberry
from server.compiled.variables import NeedsCoercion, plain_readers, read_plain, split_arguments, variables_in
from server.lru import DocumentCache
from server.metrics import label_of
from server.reads.columns import READ, columns_of
from server.reads.context import Context
from server.reads.fields import ReadField
from server.reads.selections import weigh
from server.schema.documents import MAX_LENGTH, load_document, validate
from server.schema.root import Schema
from shared.errors import ServiceError
from shared.storage.database import Statement


class Compiler:
    def __init__(self, schema: Schema) -> None:
        self._schema = schema._schema
        self._prepared = DocumentCache(self._prepare)
        self.plans = DocumentCache(self._plan)

    def plan_for(self, query: str, operation_name: str | None, variables: Mapping[str, Any] | None) -> Plan:
        """Raises `FallBackToStrawberry`. Plans are cached by the values of the variables in @skip and @include, too."""
        if len(query) > MAX_LENGTH or len(operation_name or "") > MAX_LENGTH:
            raise FallBackToStrawberry
        prepared = self._prepared(query, operation_name)
        if prepared is None:
            raise FallBackToStrawberry
        switches: tuple[tuple[str, bool], ...] = ()
        if prepared.switches:
            coerced = self._coerce(prepared.switches, variables).coerced
            switches = tuple(sorted(coerced.items()))
        plan = self.plans(query, operation_name, switches)
        if plan is None:
            raise FallBackToStrawberry
        return plan

    def statements(self, plan: Plan, context: Context, variables: Mapping[str, Any] | None) -> list[Statement]:
        """Raises `FallBackToStrawberry` if a resolver, or GraphQL, would refuse an argument."""
        try:
            if plan.readers is not None:
                with contextlib.suppress(NeedsCoercion):
                    values = read_plain(plan.readers, variables or {})
                    return [s for root in plan.roots for s in statements_of(root, context, values)]
            definitions = plan.operation.variable_definitions
            coerced = self._coerce(definitions, variables) if definitions else None
            return [s for root in plan.roots for s in statements_of(root, context, coerced)]
        except (ServiceError, GraphQLError) as error:
            raise FallBackToStrawberry from error

    def _coerce(self, definitions: Any, variables: Mapping[str, Any] | None) -> VariableValues:
        # One error is enough to fall back; a million would take half a minute to write.
        values = get_variable_values(self._schema, definitions, dict(variables or {}), max_errors=1)
        if not isinstance(values, VariableValues):
            raise FallBackToStrawberry
        return values

    def _prepare(self, query: str, operation_name: str | None) -> "_Prepared | None":
        try:
            document = load_document(query)
            if validate(query, self._schema, tuple(specified_rules)):
                return None
        except (GraphQLError, ServiceError):
            return None
        operation = get_operation_ast(document, operation_name)
        if operation is None or operation.operation is not OperationType.QUERY or operation.directives:
            return None
        fragments = {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}
        definitions = operation.variable_definitions or ()
        if any(one.directives for one in definitions) or any(one.directives for one in fragments.values()):
            return None
        used = variables_in(*_directives(operation), *(d for one in fragments.values() for d in _directives(one)))
        switches = [one for one in definitions if one.variable.name.value in used]
        return _Prepared(operation, fragments, switches)

    def _plan(self, query: str, operation_name: str | None, switches: tuple[tuple[str, bool], ...]) -> Plan | None:
        prepared = self._prepared(query, operation_name)
        assert prepared is not None  # noqa: S101  plan_for has looked
        try:
            return self._compile(prepared, self._coerce(prepared.switches, dict(switches)))
        except (FallBackToStrawberry, GraphQLError, ServiceError, ValueError):
            return None

    def _compile(self, prepared: "_Prepared", switches: VariableValues) -> Plan:
        operation, fragments = prepared.operation, prepared.fragments
        query_type: Any = self._schema.query_type
        details = {name: FragmentDetails(node) for name, node in fragments.items()}
        collected = collect_fields(self._schema, details, switches, query_type, operation).grouped_field_set
        selection = _Selection(self._schema, details, switches, operation)
        members: dict[str, Root | str] = {}
        left: dict[str, list[FieldNode]] = {}
        for key, found in collected.items():
            name = found[0].node.name.value
            read = _read_of(query_type.fields.get(name))
            if name == "__typename":
                members[key] = f'"{key}":"Query"'
            elif read is None:
                left[key] = [one.node for one in found]
            else:
                members[key] = _compile_root(selection, key, found, query_type.fields[name], read, fragments)
        roots = [member for member in members.values() if isinstance(member, Root)]
        if not roots:
            raise FallBackToStrawberry
        rest = leave_to_strawberry(operation, fragments, left) if left else None
        is_plain = all(call.variables is not None for root in roots for call in root.calls)
        readers = plain_readers(self._schema, operation.variable_definitions or ()) if is_plain else None
        label = label_of(found[0].node.name.value for found in collected.values())
        empty = {key: (one if isinstance(one, str) else f'"{key}":null').encode() for key, one in members.items()}
        locations = {root.member.key: root.locations for root in roots}
        return Plan(operation, Outline(label, tuple(collected), empty, locations), members, rest, readers)


@dataclass(frozen=True, slots=True)
class _Prepared:
    operation: OperationDefinitionNode
    fragments: Mapping[str, FragmentDefinitionNode]
    switches: Sequence[Any]
    "The definitions of the variables that directives use."


@dataclass(frozen=True, slots=True)
class _Selection:
    """graphql-core's `collect_subfields`, with what it needs besides the fields."""

    schema: Any
    details: dict[str, FragmentDetails]
    switches: VariableValues
    operation: OperationDefinitionNode

    def of(self, kind: GraphQLObjectType, found: list[FieldDetails]) -> dict[str, list[FieldDetails]]:
        collected = collect_subfields(self.schema, self.details, self.switches, self.operation, kind, found)
        return collected.grouped_field_set


def _compile_root(
    selection: _Selection,
    key: str,
    found: list[FieldDetails],
    definition: GraphQLField,
    read: ReadField,
    fragments: Mapping[str, FragmentDefinitionNode],
) -> Root:
    calls = [_call(found, definition, read, fragments)]

    def select(kind: Any, row_type: type, found: list[FieldDetails], *, may_nest: bool) -> tuple[Selected, ...]:
        selected = []
        for key, same in selection.of(kind, found).items():
            name = same[0].node.name.value
            if name == "__typename":
                selected.append(Selected(key, kind.name, None))
                continue
            column, inner = columns_of(row_type)[name], get_named_type(kind.fields[name].type)
            children: tuple[Selected, ...] = ()
            if column.read is not None:
                if not may_nest:  # its statement would run once for each row
                    raise FallBackToStrawberry
                calls.append(_call(same, kind.fields[name], column.read, fragments))
                children = select(inner, column.read.row_type, same, may_nest=False)
            elif column.row_type is not None:
                children = select(inner, column.row_type, same, may_nest=may_nest)
            selected.append(Selected(key, kind.name, column, children))
        return tuple(selected)

    children = select(get_named_type(definition.type), read.row_type, found, may_nest=not read.is_list)
    return Root(Member(key, read, children), tuple(calls), [_location(one.node) for one in found])


def _location(node: FieldNode) -> FormattedSourceLocation:
    assert node.loc is not None  # noqa: S101  documents are parsed with locations
    return get_location(node.loc.source, node.loc.start).formatted


def _call(
    found: list[FieldDetails],
    definition: GraphQLField,
    read: ReadField,
    fragments: Mapping[str, FragmentDefinitionNode],
) -> Call:
    # As resolvers count them: a field that several fragments repeat counts again.
    width = sum(weigh(one.node.selection_set, fragments).fields for one in found if one.node.selection_set)
    node = found[0].node
    arguments = split_arguments(definition, node)
    if arguments is None:
        return Call(read, node, definition, width, {}, None)
    constants = {snake_case(name): value for name, value in arguments[0].items()}
    variables = tuple((snake_case(name), variable) for name, variable in arguments[1].items())
    return Call(read, node, definition, width, constants, variables)


def _read_of(definition: GraphQLField | None) -> ReadField | None:
    declared = (definition.extensions or {}).get("strawberry-definition") if definition is not None else None
    read: ReadField | None = declared.metadata.get(READ) if declared is not None else None
    return read


def _directives(node: Any) -> Iterator[Any]:
    """All directives below this part of a document."""
    for selection in node.selection_set.selections if getattr(node, "selection_set", None) else ():
        yield from selection.directives or ()
        yield from _directives(selection)
