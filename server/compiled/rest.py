"""The root fields of a compiled document that Strawberry answers, as a document of their own."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    OperationDefinitionNode,
    SelectionSetNode,
    print_ast,
    separate_operations,
)

from server.compiled.variables import variables_in
from server.reads.context import Context
from server.schema.root import Schema


@dataclass(frozen=True, slots=True)
class Rest:
    query: str
    keys: tuple[str, ...]
    "All keys of the answer, in order."
    left: frozenset[str]
    "Those whose values this document has."


def leave_to_strawberry(
    operation: OperationDefinitionNode,
    fragments: Mapping[str, FragmentDefinitionNode],
    keys: Sequence[str],
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
    return Rest(print_ast(DocumentNode(definitions=(reduced, *others))), tuple(keys), frozenset(left))


async def answer_rest(
    schema: Schema, rest: Rest, context: Context, variables: Mapping[str, object] | None
) -> dict[str, bytes] | None:
    """Members of JSON by their keys; `None` after any error, because then Strawberry answers the whole document."""
    result = await schema.execute(rest.query, dict(variables or {}), context)
    if result.errors or result.data is None:
        return None
    return {key: f'"{key}":{json.dumps(value, separators=(",", ":"))}'.encode() for key, value in result.data.items()}
