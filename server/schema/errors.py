"""What of an error a client sees, and what of it the log keeps."""

import logging
import re
import uuid

from graphql import GraphQLError, GraphQLSyntaxError

from shared.errors import ServiceError

logger = logging.getLogger(__name__)

_BAD_VARIABLE = re.compile(r"Variable '\$\w+' (has|got) invalid value|Variable values are nested")
_SUGGESTION = re.compile(r" Did you mean [^?]*\?")


def public_error(error: GraphQLError) -> GraphQLError:
    """The error with the code that the public contract promises; without any detail when it is a fault of ours."""
    cause = _cause(error)
    if isinstance(cause, ServiceError):
        return error  # graphql-core copied its extensions; where it is ours to mend, its origin has logged it
    # Without a path no resolver has run: a literal that GraphQL itself chokes on, such as a number of 5,000 digits.
    if cause is not None and not (error.path is None and isinstance(cause, ValueError | RecursionError)):
        return _masked(error, cause)
    if "code" not in (error.extensions or {}):
        error.extensions = {**(error.extensions or {}), "code": _code(error)}
    return error


def without_suggestions(error: GraphQLError) -> GraphQLError:
    """As it is, but without names of the schema that the client has not guessed quite right."""
    message = _SUGGESTION.sub("", error.message)
    if message == error.message:
        return error
    return GraphQLError(message, error.nodes, path=error.path, extensions=error.extensions)


def _cause(error: GraphQLError) -> BaseException | None:
    """The exception below any layers of GraphQL errors, `None` for one that GraphQL itself raised."""
    cause = error.original_error
    while isinstance(cause, GraphQLError):
        cause = cause.original_error
    return cause


def _code(error: GraphQLError) -> str:
    if isinstance(error, GraphQLSyntaxError):
        return "GRAPHQL_PARSE_FAILED"
    # A variable's value is looked at when the operation runs; what it is refused for is the client's input.
    return "BAD_USER_INPUT" if _BAD_VARIABLE.match(error.message) else "GRAPHQL_VALIDATION_FAILED"


def _masked(error: GraphQLError, cause: BaseException) -> GraphQLError:
    error_id = uuid.uuid4().hex
    logger.error("internal error %s at %s", error_id, error.path, exc_info=cause, extra={"error_id": error_id})
    return GraphQLError(
        "Internal error.",
        nodes=error.nodes,
        path=error.path,
        extensions={"code": "INTERNAL_SERVER_ERROR", "errorId": error_id},
    )
