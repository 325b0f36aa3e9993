"""A request's variables, taken as they are if graphql-core would not change them.

graphql-core takes 15 µs for two variables and their arguments, half of what a compiled request costs. So a text for a
`String` is used as it is. Everything less plain raises `NeedsCoercion`, and graphql-core coerces it.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from graphql import (
    FieldNode,
    GraphQLEnumType,
    GraphQLField,
    GraphQLList,
    GraphQLNonNull,
    GraphQLSchema,
    VariableDefinitionNode,
    VariableNode,
    Visitor,
    get_argument_values,
    type_from_ast,
    visit,
)

from server.schema.scalars import BadInstant, parse_instant

Reader = Callable[[Any], Any]
"Returns a variable's value, or raises `NeedsCoercion`."

Readers = Sequence[tuple[str, Reader]]
"By the variable's name."


class NeedsCoercion(Exception):
    """Only graphql-core knows what this value means, or that it is wrong."""


def _read_string(value: Any) -> str:
    if type(value) is not str:
        raise NeedsCoercion
    return value


def _read_int(value: Any) -> int:
    if type(value) is not int or not -(2**31) <= value < 2**31:
        raise NeedsCoercion
    return value


def _read_boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise NeedsCoercion
    return value


def _read_instant(value: Any) -> datetime | BadInstant:
    return parse_instant(_read_string(value))


_READERS: dict[str, Reader] = {
    "String": _read_string,
    "ID": _read_string,
    "Int": _read_int,
    "Boolean": _read_boolean,
    "DateTime": _read_instant,
}


def _reader(kind: Any) -> Reader | None:
    kind = kind.of_type if isinstance(kind, GraphQLNonNull) else kind
    if isinstance(kind, GraphQLEnumType):
        members = {name: kind.parse_value(name) for name in kind.values}
        return lambda value: _read_member(members, value)
    if isinstance(kind, GraphQLList):
        item = _reader(kind.of_type)
        return item and (lambda value: _read_list(item, value))
    return _READERS.get(getattr(kind, "name", ""))


def _read_member(members: Mapping[str, Any], value: Any) -> Any:
    if type(value) is not str or value not in members:
        raise NeedsCoercion
    return members[value]


def _read_list(read: Reader, value: Any) -> list[Any]:
    if type(value) is not list:
        raise NeedsCoercion
    return [read(item) for item in value]


def plain_readers(schema: GraphQLSchema, definitions: Sequence[VariableDefinitionNode]) -> Readers | None:
    """`None` unless there is a reader for each variable's type."""
    readers = []
    for definition in definitions:
        reader = _reader(type_from_ast(schema, definition.type))
        if reader is None:
            return None
        readers.append((definition.variable.name.value, reader))
    return readers


def read_plain(readers: Readers, given: Mapping[str, Any]) -> dict[str, Any]:
    """Raises `NeedsCoercion` if a variable is left out, null, or of another kind than its type."""
    try:
        return {name: read(given[name]) for name, read in readers}
    except KeyError as error:
        raise NeedsCoercion from error


def split_arguments(field: GraphQLField, node: FieldNode) -> tuple[dict[str, Any], dict[str, str]] | None:
    """The constant arguments with their values, and the arguments that are a variable with its name.

    `None` if a list or an object has a variable inside.
    """
    variables, constant = {}, []
    for argument in node.arguments or ():
        if isinstance(argument.value, VariableNode):
            variables[argument.name.value] = argument.value.name.value
        elif variables_in(argument.value):
            return None
        else:
            constant.append(argument)
    arguments = {name: argument for name, argument in field.args.items() if name not in variables}
    rest = FieldNode(name=node.name, arguments=tuple(constant))
    values = get_argument_values(GraphQLField(field.type, arguments), rest)
    return values, variables


def variables_in(*nodes: Any) -> set[str]:
    """The names of the variables that are used in these parts of a document."""
    found = _Variables()
    for node in nodes:
        visit(node, found)
    return found.names


class _Variables(Visitor):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def enter_variable(self, node: VariableNode, *_: Any) -> None:
        self.names.add(node.name.value)
