"""The root fields of a compiled document that Strawberry answers, as a document of their own."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    GraphQLError,
    OperationDefinitionNode,
    SelectionSetNode,
    print_ast,
    separate_operations,
)

from server.compiled.variables import variables_in
from server.reads.context import Context
from server.schema.root import Schema
from shared.errors import ServiceError


class FallBackToStrawberry(Exception):
    """This request cannot be compiled; Strawberry answers it."""


@dataclass(frozen=True, slots=True)
class Rest:
    query: str
    nodes: Mapping[str, Sequence[FieldNode]]
    "Of the original document, by the key of the answer."


def leave_to_strawberry(
    operation: OperationDefinitionNode,
    fragments: Mapping[str, FragmentDefinitionNode],
    left: Mapping[str, Sequence[FieldNode]],
) -> Rest:
    selections = SelectionSetNode(selections=tuple(node for nodes in left.values() for node in nodes))
    reduced = OperationDefinitionNode(operation=operation.operation, selection_set=selections)
    [document] = separate_operations(DocumentNode(definitions=(reduced, *fragments.values()))).values()
    used = variables_in(document)
    definitions = tuple(d for d in operation.variable_definitions or () if d.variable.name.value in used)
    reduced = OperationDefinitionNode(
        operation=operation.operation, selection_set=selections, variable_definitions=definitions
    )
    others = tuple(d for d in document.definitions if isinstance(d, FragmentDefinitionNode))
    return Rest(print_ast(DocumentNode(definitions=(reduced, *others))), left)


async def answer_rest(
    schema: Schema, rest: Rest, context: Context, variables: Mapping[str, object] | None
) -> tuple[dict[str, bytes], list[GraphQLError]]:
    """Members of JSON by their keys. Raises `FallBackToStrawberry` after any error but a field's own."""
    result = await schema.execute(rest.query, dict(variables or {}), context)
    errors = []
    for error in result.errors or []:
        cause, path = error.original_error, error.path or []
        if not isinstance(cause, ServiceError) or len(path) != 1:
            raise FallBackToStrawberry
        # At its place in the original document.
        errors.append(GraphQLError(error.message, list(rest.nodes[str(path[0])]), path=path, original_error=cause))
    if result.data is None:
        raise FallBackToStrawberry
    members = {
        key: f'"{key}":{json.dumps(value, separators=(",", ":"))}'.encode() for key, value in result.data.items()
    }
    return members, errors
