"""Limits on documents: each is parsed and weighed once, before it is validated or executed."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from graphql import (
    DocumentNode,
    FragmentDefinitionNode,
    GraphQLError,
    GraphQLSchema,
    GraphQLSyntaxError,
    OperationDefinitionNode,
    Source,
    specified_rules,
)
from graphql import validate as graphql_validate
from graphql.language import Lexer, Token
from graphql.language.parser import Parser
from graphql.validation import ASTValidationRule, NoSchemaIntrospectionCustomRule, ValidationContext
from strawberry.extensions import SchemaExtension
from strawberry.schema.validation_rules.maybe_null import MaybeNullValidationRule
from strawberry.schema.validation_rules.one_of import OneOfInputValidationRule

from server.lru import DocumentCache
from server.protection.document_queue import LONG
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

MAX_FRAGMENTS = 50
"Validation compares a chain of fragments in pairs, too."

MAX_ERRORS = 5
"Of validation, and of a request's variables. Each error costs as much as some fields that are right."

MAX_VARIABLE_VALUES = 4000
"Each takes some µs to coerce."

MAX_NAME_LENGTH = 100
"Each row of the answer repeats the name."

_RULES = (*specified_rules, MaybeNullValidationRule, OneOfInputValidationRule)
"Strawberry's."

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
        if context.query:
            context.graphql_document = load_document(context.query)
            operations = [d for d in context.graphql_document.definitions if isinstance(d, OperationDefinitionNode)]
            if len(operations) > 1 and context._provided_operation_name is None:  # Strawberry would execute the first
                raise GraphQLError("Must provide operation name if query contains multiple operations.")
        yield

    def on_validate(self) -> Iterator[None]:
        context = self.execution_context
        schema = context.schema._schema
        errors = validate(context.query, schema)
        if not errors and context.context is not None and not context.context.settings.introspection:
            errors = _validate_introspection(context.query, schema)
        context.pre_execution_errors = errors
        yield


def load_document(query: str) -> DocumentNode:
    """Raises `GraphQLSyntaxError`, `QueryTooComplex`."""
    if len(query) > MAX_LENGTH:
        raise QueryTooComplex(f"A document may have at most {MAX_LENGTH} characters.")
    found = _parse(query)
    if isinstance(found, DocumentNode):
        return found
    raise found()


def _parse_or_refuse(query: str) -> DocumentNode | Callable[[], Exception]:
    """The document, or what makes its error. (One error that is raised repeatedly would keep its traceback.)"""
    try:
        return _parse_uncached(query)
    except QueryTooComplex as error:
        return partial(QueryTooComplex, str(error))
    except GraphQLSyntaxError as error:
        [position] = error.positions or []
        description = error.message.removeprefix("Syntax Error: ")
        return partial(GraphQLSyntaxError, Source(query), position, description)


def _parse_uncached(query: str) -> DocumentNode:
    lexer = Lexer(Source(query))
    first: Token | None = lexer.token
    try:
        document = Parser(lexer.source, max_tokens=MAX_TOKENS, lexer=lexer).parse_document()
    except RecursionError:
        raise QueryTooComplex(_TOO_DEEP) from None
    except GraphQLSyntaxError as error:
        if f"more than {MAX_TOKENS} tokens" in error.message:
            raise QueryTooComplex(f"A document may have at most {MAX_TOKENS} tokens.") from None
        if "nested too deeply" in error.message:
            raise QueryTooComplex(_TOO_DEEP) from None
        raise
    finally:
        while first is not None:  # without its cycles, a document is freed at once
            first.prev, first = None, first.next
    fragments = {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}
    if len(fragments) > MAX_FRAGMENTS:
        raise QueryTooComplex(f"A document may have at most {MAX_FRAGMENTS} fragments.")
    for definition in document.definitions:
        selections = getattr(definition, "selection_set", None)
        if selections:
            _refuse_heavy(weigh(selections, fragments))
    return document


def _validate_uncached(query: str, schema: GraphQLSchema) -> list[GraphQLError]:
    return _validate_document(load_document(query), schema)


def _validate_document(document: DocumentNode, schema: GraphQLSchema) -> list[GraphQLError]:
    """Errors without their nodes, which would keep the document. graphql-core's visitors would, too, by cycles."""
    visitors: list[ASTValidationRule] = []

    def remembered(rule: type[ASTValidationRule], context: ValidationContext) -> ASTValidationRule:
        visitors.append(rule(context))
        return visitors[-1]

    rules: Any = [partial(remembered, rule) for rule in _RULES]
    errors = graphql_validate(schema, document, rules, max_errors=MAX_ERRORS)
    for visitor in visitors:
        vars(visitor.context).clear()
        vars(visitor).clear()
    return [GraphQLError(error.message, source=error.source, positions=error.positions) for error in errors]


def _refuse_introspection(query: str, schema: GraphQLSchema) -> list[GraphQLError]:
    rules = [NoSchemaIntrospectionCustomRule]
    return graphql_validate(schema, load_document(query), rules, max_errors=MAX_ERRORS)


_parse = DocumentCache(_parse_or_refuse)
validate = DocumentCache(_validate_uncached)
_validate_introspection = DocumentCache(_refuse_introspection)


def is_prepared(query: str, schema: GraphQLSchema) -> bool:
    """Whether the document is short, or known."""
    return len(query) <= LONG or len(query) > MAX_LENGTH or validate.knows(query, schema)


async def prepare(query: str, schema: GraphQLSchema, run: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
    """Parse and validate a long document beforehand. `load_document` raises its errors.

    `run`: see `Admission.run_document`, which raises `RateLimited`.
    """
    if is_prepared(query, schema):
        return

    def work() -> tuple[DocumentNode | Callable[[], Exception], list[GraphQLError]]:
        found = _parse_or_refuse(query)
        return found, _validate_document(found, schema) if isinstance(found, DocumentNode) else []

    found, errors = await run(work)
    # On the event loop, because the caches are not made for threads.
    _parse.put(found, query)
    validate.put(errors, query, schema)


def refuse_many_values(variables: Mapping[str, Any] | None) -> None:
    """Raises `QueryTooComplex`. To be called before variables are coerced."""
    count, left = 0, [variables]
    while left:
        value: Any = left.pop()
        if isinstance(value, dict | list):
            count += len(value)
            if count > MAX_VARIABLE_VALUES:
                raise QueryTooComplex(f"The variables of a request may have at most {MAX_VARIABLE_VALUES} values.")
            left += value.values() if isinstance(value, dict) else value


def _refuse_heavy(weight: Weight) -> None:
    if weight.depth > MAX_DEPTH:
        raise QueryTooComplex(_TOO_DEEP)
    if weight.aliases > MAX_ALIASES:
        raise QueryTooComplex(f"A document may have at most {MAX_ALIASES} aliases.")
    if weight.fields > MAX_FIELDS:
        raise QueryTooComplex(f"A document may have at most {MAX_FIELDS} fields.")
    if weight.longest > MAX_NAME_LENGTH:
        raise QueryTooComplex(f"A name may have at most {MAX_NAME_LENGTH} characters.")
