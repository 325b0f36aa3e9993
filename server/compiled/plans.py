"""What the compiler makes of a document: the fields with their statements, and how a request's variables reach them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

from graphql import FieldNode, GraphQLField, OperationDefinitionNode, get_argument_values
from graphql.execution.values import VariableValues
from graphql.language.location import FormattedSourceLocation

from server.compiled.json_sql import Member, write_answer
from server.compiled.rest import FallBackToStrawberry as FallBackToStrawberry
from server.compiled.rest import Rest
from server.compiled.variables import Readers
from server.reads.context import Context
from server.reads.fields import ReadField
from shared.storage.database import Statement


@dataclass(frozen=True, slots=True)
class Call:
    """A selected field that has a statement, and how its arguments follow from the request's variables."""

    read: ReadField
    node: FieldNode
    definition: GraphQLField
    width: int
    constants: Mapping[str, Any]
    variables: tuple[tuple[str, str], ...] | None
    "The other arguments with their variables; `None` if graphql-core has to put the arguments together."

    def plain_arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.constants, **{name: values[variable] for name, variable in self.variables or ()}}

    def coerced_arguments(self, variables: VariableValues | None) -> dict[str, Any]:
        values = get_argument_values(self.definition, self.node, variables)
        return {snake_case(name): value for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Root:
    member: Member
    calls: tuple[Call, ...]
    "The root field's, then those nested in it."
    locations: list[FormattedSourceLocation]


@dataclass(frozen=True, slots=True)
class Outline:
    """What a remembered request keeps of its plan. The rest, a syntax tree, takes much memory."""

    label: str
    "What metrics call the operation."
    keys: tuple[str, ...]
    "Of the answer, in order."
    empty_members: Mapping[str, bytes]
    "For an answer without PostgreSQL."
    locations: Mapping[str, list[FormattedSourceLocation]]
    "Of the fields that have a statement, by their keys."


class Composed(NamedTuple):
    """The statement that writes the whole answer."""

    sql: str
    digest: bytes


MAX_COMPOSED = 4
"Of one plan. The SQL of a field depends on its arguments, and a document may have 50 fields."


@dataclass(frozen=True, slots=True)
class Plan:
    operation: OperationDefinitionNode
    outline: Outline
    members: Mapping[str, Root | str]
    "By their keys, without those of `rest`; a text is a constant member."
    rest: Rest | None
    readers: Readers | None
    "For variables that need no coercion; `None` if they need it."
    composed: dict[tuple[str, ...], Composed] = field(default_factory=dict)
    "By the SQL of the fields' statements."

    @property
    def roots(self) -> Iterator[Root]:
        return (member for member in self.members.values() if isinstance(member, Root))

    def compose(self, statements: Sequence[Statement]) -> Composed:
        key = tuple(statement.sql for statement in statements)
        composed = self.composed.get(key)
        if composed is None:
            members = [one.member if isinstance(one, Root) else one for one in self.members.values()]
            sql = write_answer(members, statements, is_whole=self.rest is None)
            if len(self.composed) >= MAX_COMPOSED:
                self.composed.clear()
            composed = self.composed[key] = Composed(sql, blake2b(sql.encode(), digest_size=16).digest())
        return composed


def statements_of(
    root: Root, context: Context, values: Mapping[str, Any] | VariableValues | None
) -> Iterator[Statement]:
    """The root field's statement, then those nested in it. Raises the errors that its resolvers would raise."""
    parent: tuple[Statement, ...] = ()
    for call in root.calls:
        if values is None or isinstance(values, VariableValues):
            arguments = call.coerced_arguments(values)
        else:
            arguments = call.plain_arguments(values)
        statement = call.read.statement(context, arguments, call.width, *parent)
        parent = parent or (statement,)
        yield statement


@lru_cache(maxsize=64)
def snake_case(name: str) -> str:
    return re.sub("[A-Z]", lambda match: "_" + match[0].lower(), name)
