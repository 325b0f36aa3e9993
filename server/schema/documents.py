"""Limits on documents: each is parsed and weighed once, before it is validated or executed."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from graphql import (
    DocumentNode,
    FragmentDefinitionNode,
    GraphQLError,
    GraphQLSchema,
    GraphQLSyntaxError,
    OperationDefinitionNode,
    parse,
)
from graphql.validation import ASTValidationRule, NoSchemaIntrospectionCustomRule
from strawberry.extensions import SchemaExtension
from strawberry.schema.schema import validate_document

from server.lru import DocumentCache
from server.reads.selections import Weight, weigh
from shared.errors import QueryTooComplex

MAX_LENGTH = 20_000
"Characters."

MAX_TOKENS = 2000
"Twice as many as GraphiQL's introspection has; 20,000 would block the event loop for more than a second."

MAX_DEPTH = 15
MAX_ALIASES = 50
MAX_FIELDS = 300
"GraphiQL's introspection has fewer. Validation compares the fields of a level in pairs, in quadratic time."

MAX_NAME_LENGTH = 100
"Each row of the answer repeats the name."

_TOO_DEEP = f"A document may be at most {MAX_DEPTH} levels deep."


class GraphQLRequest(NamedTuple):
    query: str
    operation_name: str | None = None
    variables: dict[str, Any] | None = None


class DocumentLimits(SchemaExtension):
    """A Strawberry extension: caches documents, refuses one over a limit with `QueryTooComplex`, and refuses
    introspection unless INTROSPECTION is on.
    """

    def on_parse(self) -> Iterator[None]:
        context = self.execution_context
        if context.context is not None and not context.context.settings.introspection:
            context.validation_rules = (*context.validation_rules, NoSchemaIntrospectionCustomRule)
        if context.query:
            context.graphql_document = load_document(context.query)
            operations = [d for d in context.graphql_document.definitions if isinstance(d, OperationDefinitionNode)]
            if len(operations) > 1 and context._provided_operation_name is None:  # Strawberry would execute the first
                raise GraphQLError("Must provide operation name if query contains multiple operations.")
        yield

    def on_validate(self) -> Iterator[None]:
        context = self.execution_context
        context.pre_execution_errors = validate(context.query, context.schema._schema, context.validation_rules)
        yield


def load_document(query: str) -> DocumentNode:
    """Raises `GraphQLSyntaxError`, `QueryTooComplex`."""
    if len(query) > MAX_LENGTH:
        raise QueryTooComplex(f"A document may have at most {MAX_LENGTH} characters.")
    return _parse(query)


def _parse_uncached(query: str) -> DocumentNode:
    try:
        document = parse(query, max_tokens=MAX_TOKENS)
    except GraphQLSyntaxError as error:
        if f"more than {MAX_TOKENS} tokens" in error.message:
            raise QueryTooComplex(f"A document may have at most {MAX_TOKENS} tokens.") from None
        if "nested too deeply" in error.message:
            raise QueryTooComplex(_TOO_DEEP) from None
        raise
    fragments = {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}
    for definition in document.definitions:
        selections = getattr(definition, "selection_set", None)
        if selections:
            _refuse_heavy(weigh(selections, fragments))
    return document


def _validate_uncached(
    query: str, schema: GraphQLSchema, rules: tuple[type[ASTValidationRule], ...]
) -> list[GraphQLError]:
    return validate_document(schema, load_document(query), rules)


_parse = DocumentCache(_parse_uncached)
validate = DocumentCache(_validate_uncached)


def _refuse_heavy(weight: Weight) -> None:
    if weight.depth > MAX_DEPTH:
        raise QueryTooComplex(_TOO_DEEP)
    if weight.aliases > MAX_ALIASES:
        raise QueryTooComplex(f"A document may have at most {MAX_ALIASES} aliases.")
    if weight.fields > MAX_FIELDS:
        raise QueryTooComplex(f"A document may have at most {MAX_FIELDS} fields.")
    if weight.longest > MAX_NAME_LENGTH:
        raise QueryTooComplex(f"A name may have at most {MAX_NAME_LENGTH} characters.")
