"""From a document that reads prices to one SQL statement that writes its answer, for `server/execution.py`.

Planned: documents whose root fields are `latestPrice`, `latestPrices`, `priceHistory`, `pricesInPeriod` and
`__typename`, with any aliases, fragments, variables and defaults. Not planned: directives, `maxAgeSeconds`, every other
root field.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
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
from strawberry.schema.schema import validate_document

from server.context import Context
from server.limits import MAX_LENGTH, load_document
from server.schema import Schema
from server.schema.prices import history_parameters, latest_parameters, latest_prices_parameters, period_parameters
from shared import prices
from shared.errors import ServiceError

CACHED_PLANS = 256

_INSTANT = """to_char({}, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""

# How a column is written, without the quotes around it; a test holds each against the scalar it stands for.
_COLUMNS = {
    "ticker": ("ticker", True),
    "price": ("price", True),
    "timestamp": (_INSTANT.format("timestamp"), True),
    "observedAt": (_INSTANT.format("observed_at"), True),
    "source": ("source", True),
    "testnet": ("testnet::text", False),
}


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
    width: int
    "Fields of a row."
    constants: dict[str, Any] | None
    "The arguments' values, where the operation has no variables that could change them."

    def parameters(self, context: Context, variables: VariableValues | None) -> tuple[object, ...]:
        values = self.constants or self.values(variables)
        return self.read.parameters(context, **values, **({"width": self.width} if self.read.is_limited else {}))

    def values(self, variables: VariableValues | None) -> dict[str, Any]:
        values = get_argument_values(self.definition, self.nodes[0], variables)
        return {_snake_case(name): value for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Plan:
    operation: OperationDefinitionNode
    roots: tuple[Root, ...]
    sql: str
    nothing: dict[str, str | None]
    "The answer's data when PostgreSQL is away."


class Planner:
    def __init__(self, schema: Schema) -> None:
        self._schema = schema._schema
        self._query_fields = self._schema.get_type("Query").fields  # type: ignore[union-attr]
        self.plan = lru_cache(maxsize=CACHED_PLANS)(self._plan)

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
        coerced = None
        if plan.operation.variable_definitions:
            definitions, given = plan.operation.variable_definitions, dict(variables or {})
            # One error is enough to know that this is for Strawberry; a million would take half a minute to write.
            values = get_variable_values(self._schema, definitions, given, max_errors=1)
            if not isinstance(values, VariableValues):
                raise Unplanned
            coerced = values
        try:
            return [value for root in plan.roots for value in root.parameters(context, coerced)]
        except (ServiceError, GraphQLError) as error:
            raise Unplanned from error

    def _plan(self, query: str, operation_name: str | None) -> Plan | None:
        try:
            document = load_document(query)
            if validate_document(self._schema, document, tuple(specified_rules)):
                return None
            fragments = {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}
            operations = [d for d in document.definitions if isinstance(d, OperationDefinitionNode)]
            named = [o for o in operations if operation_name is None or (o.name and o.name.value == operation_name)]
            if len(named) != 1 or named[0].operation is not OperationType.QUERY:
                return None
            return self._plan_operation(named[0], fragments)
        except (Unplanned, GraphQLError, ServiceError, ValueError):
            return None

    def _plan_operation(
        self, operation: OperationDefinitionNode, fragments: Mapping[str, FragmentDefinitionNode]
    ) -> Plan:
        if operation.directives or any(variable.directives for variable in operation.variable_definitions or ()):
            raise Unplanned
        roots: list[Root] = []
        nothing: dict[str, str | None] = {}
        written: list[str] = []
        first = 0
        for key, nodes in _collect([operation.selection_set], fragments).items():
            name = nodes[0].name.value
            if name == "__typename":
                written.append(f'\'"{key}":"Query"\'')
                nothing[key] = "Query"
                continue
            if name not in READS:
                raise Unplanned
            read = READS[name]
            if any(argument.name.value == "maxAgeSeconds" for argument in nodes[0].arguments or ()):
                raise Unplanned
            columns = _collect((node.selection_set for node in nodes), fragments)
            root = Root(key, tuple(nodes), self._query_fields[name], read, len(columns), None)
            roots.append(root if operation.variable_definitions else replace(root, constants=root.values(None)))
            nothing[key] = None
            row = _write_row(columns)
            base, first = _shift_parameters(read.statement, first)
            value, empty = (f"'[' || string_agg({row}, ',') || ']'", "[]") if read.is_list else (row, "null")
            written.append(f"'\"{key}\":' || coalesce((select {value} from ({base}) as row), '{empty}')")
        if not roots:
            raise Unplanned
        sql = "select '{\"data\":{' || " + " || ',' || ".join(written) + " || '}}'"
        return Plan(operation, tuple(roots), sql, nothing)


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


def _write_row(fields: Mapping[str, list[FieldNode]]) -> str:
    """A price as JSON, in SQL. Keys are GraphQL names and tickers index names: neither needs escaping."""
    text = "'{"
    for position, (key, nodes) in enumerate(fields.items()):
        text += f'{"," if position else ""}"{key}":'
        if nodes[0].name.value == "__typename":
            text += '"Price"'
        else:
            column, is_quoted = _COLUMNS[nodes[0].name.value]
            quote = '"' if is_quoted else ""
            text += f"{quote}' || {column} || '{quote}"
    return text + "}'"


def _shift_parameters(statement: str, first: int) -> tuple[str, int]:
    """The statement with its parameters numbered after the first `first`, and how many there are then."""
    numbers = [int(number) for number in re.findall(r"\$(\d+)", statement)]
    return re.sub(r"\$(\d+)", lambda match: f"${int(match[1]) + first}", statement), first + max(numbers)


@lru_cache(maxsize=64)
def _snake_case(name: str) -> str:
    return re.sub("[A-Z]", lambda match: "_" + match[0].lower(), name)
