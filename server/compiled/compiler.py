"""From a document that reads prices to one SQL statement that writes its answer, for `server/compiled/middleware.py`.

Planned: documents whose root fields are `latestPrice`, `latestPrices`, `priceHistory`, `pricesInPeriod` and
`__typename`, with any aliases, fragments, variables and defaults. Not planned: directives, `maxAgeSeconds`, every other
root field.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLField,
    InlineFragmentNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    get_argument_values,
    get_variable_values,
    specified_rules,
)
from graphql.execution.values import VariableValues

from server.compiled.json_sql import shift_parameters, write_answer, write_member, write_typename
from server.compiled.variables import NotPlain, Readers, plain_readers, read_plain, split_arguments
from server.lru import DocumentCache
from server.metrics import label
from server.schema.context import Context
from server.schema.documents import MAX_LENGTH, load_document, validate, weigh
from server.schema.prices import history_parameters, latest_parameters, latest_prices_parameters, period_parameters
from server.schema.root import Schema
from shared.errors import ServiceError
from shared.storage import prices


@dataclass(frozen=True, slots=True)
class Read:
    """A root field that can be planned. `parameters` are the resolver's own; they raise what the resolver would."""

    statement: str
    is_list: bool
    is_limited: bool
    parameters: Callable[..., tuple[object, ...]]


READS = {
    "latestPrice": Read(prices.LATEST_PRICE, False, False, latest_parameters),
    "latestPrices": Read(prices.LATEST_PRICES, True, False, latest_prices_parameters),
    "priceHistory": Read(prices.PRICE_HISTORY, True, True, history_parameters),
    "pricesInPeriod": Read(prices.PRICES_IN_PERIOD, True, True, period_parameters),
}


class Unplanned(Exception):
    """This is for Strawberry."""


@dataclass(frozen=True, slots=True)
class Root:
    key: str
    nodes: tuple[FieldNode, ...]
    definition: GraphQLField
    read: Read
    constants: dict[str, Any]
    "What the resolver is given whatever the variables are."
    variables: tuple[tuple[str, str], ...] | None
    "Its other arguments and the variables they are; `None` where it is not as plain as that."

    def plain_parameters(self, context: Context, values: Mapping[str, Any]) -> tuple[object, ...]:
        given = {name: values[variable] for name, variable in self.variables or ()}
        return self.read.parameters(context, **self.constants, **given)

    def parameters(self, context: Context, variables: VariableValues | None) -> tuple[object, ...]:
        values = get_argument_values(self.definition, self.nodes[0], variables)
        given = {_snake_case(name): value for name, value in values.items()}
        return self.read.parameters(context, **{**self.constants, **given})


@dataclass(frozen=True, slots=True)
class Plan:
    operation: OperationDefinitionNode
    roots: tuple[Root, ...]
    sql: str
    readers: Readers | None
    "For variables that need no coercion; `None` where they, or what they stand in, may."
    nothing: dict[str, str | None]
    "The answer's data when PostgreSQL is away."
    label: str
    "What metrics call it."


class Planner:
    def __init__(self, schema: Schema) -> None:
        self._schema = schema._schema
        self._query_fields = self._schema.get_type("Query").fields  # type: ignore[union-attr]
        self.plan = DocumentCache(self._plan)

    def plan_for(self, query: str, operation_name: str | None) -> Plan:
        """Raises `Unplanned`. What is too long for a document is not looked at, for plans are cached by their text."""
        if len(query) > MAX_LENGTH or len(operation_name or "") > MAX_LENGTH:
            raise Unplanned
        plan = self.plan(query, operation_name)
        if plan is None:
            raise Unplanned
        return plan

    def parameters(self, plan: Plan, context: Context, variables: Mapping[str, Any] | None) -> list[object]:
        """The statement's parameters. Raises `Unplanned` where a resolver, or GraphQL, would refuse an argument."""
        try:
            if plan.readers is not None:
                with contextlib.suppress(NotPlain):
                    values = read_plain(plan.readers, variables or {})
                    return [value for root in plan.roots for value in root.plain_parameters(context, values)]
            coerced = self._coerce(plan, variables)
            return [value for root in plan.roots for value in root.parameters(context, coerced)]
        except (ServiceError, GraphQLError) as error:
            raise Unplanned from error

    def _coerce(self, plan: Plan, variables: Mapping[str, Any] | None) -> VariableValues | None:
        definitions = plan.operation.variable_definitions
        if not definitions:
            return None
        # One error is enough to know that this is for Strawberry; a million would take half a minute to write.
        values = get_variable_values(self._schema, definitions, dict(variables or {}), max_errors=1)
        if not isinstance(values, VariableValues):
            raise Unplanned
        return values

    def _plan(self, query: str, operation_name: str | None) -> Plan | None:
        try:
            document = load_document(query)
            if validate(query, self._schema, tuple(specified_rules)):
                return None
            fragments = {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}
            operations = [d for d in document.definitions if isinstance(d, OperationDefinitionNode)]
            named = [o for o in operations if operation_name is None or (o.name and o.name.value == operation_name)]
            if len(named) != 1 or named[0].operation is not OperationType.QUERY:
                return None
            return self._plan_operation(named[0], fragments, label(named[0], fragments))
        except (Unplanned, GraphQLError, ServiceError, ValueError):
            return None

    def _plan_operation(
        self, operation: OperationDefinitionNode, fragments: Mapping[str, FragmentDefinitionNode], called: str
    ) -> Plan:
        if operation.directives or any(variable.directives for variable in operation.variable_definitions or ()):
            raise Unplanned
        roots: list[Root] = []
        nothing: dict[str, str | None] = {}
        members: list[str] = []
        first = 0
        for key, nodes in _collect([operation.selection_set], fragments).items():
            name = nodes[0].name.value
            if name == "__typename":
                members.append(write_typename(key, "Query"))
                nothing[key] = "Query"
                continue
            columns = _collect((node.selection_set for node in nodes), fragments)
            # As resolvers count them: a field that fragments repeat counts again.
            width = sum(weigh(node.selection_set, fragments).fields for node in nodes if node.selection_set)
            root = self._root(key, nodes, width)
            base, first = shift_parameters(root.read.statement, first)
            fields = [(key, same[0].name.value) for key, same in columns.items()]
            members.append(write_member(key, base, fields, is_list=root.read.is_list))
            roots.append(root)
            nothing[key] = None
        if not roots:
            raise Unplanned
        is_plain = all(root.variables is not None for root in roots)
        readers = plain_readers(self._schema, operation.variable_definitions or ()) if is_plain else None
        return Plan(operation, tuple(roots), write_answer(members), readers, nothing, called)

    def _root(self, key: str, nodes: Sequence[FieldNode], width: int) -> Root:
        name = nodes[0].name.value
        if name not in READS or any(argument.name.value == "maxAgeSeconds" for argument in nodes[0].arguments or ()):
            raise Unplanned
        read, definition = READS[name], self._query_fields[name]
        constants, variables = {"width": width} if read.is_limited else {}, None
        if arguments := split_arguments(definition, nodes[0]):
            constants |= {_snake_case(name): value for name, value in arguments[0].items()}
            variables = tuple((_snake_case(name), variable) for name, variable in arguments[1].items())
        return Root(key, tuple(nodes), definition, read, constants, variables)


def _collect(
    sets: Iterable[SelectionSetNode | None], fragments: Mapping[str, FragmentDefinitionNode]
) -> dict[str, list[FieldNode]]:
    """Fields by the key they answer under, in order; those that are merged together. Raises `Unplanned`."""
    collected: dict[str, list[FieldNode]] = {}
    spread: set[str] = set()
    for selections in sets:
        for node in _fields(selections, fragments, spread) if selections else ():
            collected.setdefault((node.alias or node.name).value, []).append(node)
    return collected


def _fields(
    selections: SelectionSetNode, fragments: Mapping[str, FragmentDefinitionNode], spread: set[str]
) -> Iterator[FieldNode]:
    """Each fragment once, however often it is spread: its fields merge, and a few lines could spread it 2^100 times.

    Validation has made sure that a fragment's type is the one it is spread in, and that none spreads itself.
    """
    for selection in selections.selections:
        if selection.directives:
            raise Unplanned
        match selection:
            case FieldNode():
                yield selection
            case InlineFragmentNode(selection_set=inner):
                yield from _fields(inner, fragments, spread)
            case FragmentSpreadNode():
                name = selection.name.value
                if fragments[name].directives:
                    raise Unplanned
                if name not in spread:
                    spread.add(name)
                    yield from _fields(fragments[name].selection_set, fragments, spread)


@lru_cache(maxsize=64)
def _snake_case(name: str) -> str:
    return re.sub("[A-Z]", lambda match: "_" + match[0].lower(), name)
