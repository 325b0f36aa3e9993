"""What a document may weigh, looked at once per document, before it is validated or run."""

from collections.abc import Iterator
from functools import lru_cache

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLSyntaxError,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
    parse,
)
from strawberry.extensions import SchemaExtension

from shared.errors import QueryTooComplex

MAX_LENGTH = 20_000
"Characters. Documents are cached by their text, so this also bounds what the cache can hold."

MAX_TOKENS = 2000
"Twice what GraphiQL's introspection takes; 20,000 would hold the event loop for more than a second."

MAX_DEPTH = 15
MAX_ALIASES = 50

_TOO_DEEP = f"A document may be {MAX_DEPTH} levels deep, no more."

CACHED_DOCUMENTS = 256


class DocumentLimits(SchemaExtension):
    """Parse with a bounded cache. Refuses a document over a limit with `QueryTooComplex`."""

    def on_parse(self) -> Iterator[None]:
        context = self.execution_context
        if context.query:
            context.graphql_document = load_document(context.query)
            operations = [d for d in context.graphql_document.definitions if isinstance(d, OperationDefinitionNode)]
            if len(operations) > 1 and context._provided_operation_name is None:  # Strawberry would run the first
                raise GraphQLError("Must provide operation name if query contains multiple operations.")
        yield


def load_document(query: str) -> DocumentNode:
    """Raises `GraphQLSyntaxError`, `QueryTooComplex`."""
    if len(query) > MAX_LENGTH:
        raise QueryTooComplex(f"A document may have {MAX_LENGTH} characters, no more.")
    return _parse(query)


@lru_cache(maxsize=CACHED_DOCUMENTS)
def _parse(query: str) -> DocumentNode:
    """A document that is refused is not cached."""
    try:
        document = parse(query, max_tokens=MAX_TOKENS)
    except GraphQLSyntaxError as error:
        if f"more than {MAX_TOKENS} tokens" in error.message:
            raise QueryTooComplex(f"A document may have {MAX_TOKENS} tokens, no more.") from None
        if "nested too deeply" in error.message:
            raise QueryTooComplex(_TOO_DEEP) from None
        raise
    fragments = {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}
    weights: dict[str, tuple[int, int]] = {}
    for definition in document.definitions:
        selections = getattr(definition, "selection_set", None)
        depth, aliases = _weigh(selections, fragments, weights) if selections else (0, 0)
        if depth > MAX_DEPTH:
            raise QueryTooComplex(_TOO_DEEP)
        if aliases > MAX_ALIASES:
            raise QueryTooComplex(f"A document may have {MAX_ALIASES} aliases, no more.")
    return document


def _weigh(
    selections: SelectionSetNode,
    fragments: dict[str, FragmentDefinitionNode],
    weights: dict[str, tuple[int, int]],
) -> tuple[int, int]:
    """(levels, aliases) of a selection set, fragments counted wherever they are spread.

    Each fragment is weighed once; one that spreads itself weighs nothing there, and validation refuses it.
    """
    deepest, aliases = 1, 0
    for selection in selections.selections:
        depth, inner = 0, 0
        match selection:
            case FieldNode(selection_set=inner_selections):
                aliases += selection.alias is not None
                if inner_selections:
                    depth, inner = _weigh(inner_selections, fragments, weights)
                    depth += 1
            case InlineFragmentNode(selection_set=inner_selections):
                depth, inner = _weigh(inner_selections, fragments, weights)
            case FragmentSpreadNode():
                name = selection.name.value
                if name in fragments and name not in weights:
                    weights[name] = (0, 0)
                    weights[name] = _weigh(fragments[name].selection_set, fragments, weights)
                depth, inner = weights.get(name, (0, 0))
        deepest, aliases = max(deepest, depth), aliases + inner
    return deepest, aliases
