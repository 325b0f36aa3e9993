"""Which part of an error the client sees, and which part only the log gets."""

import logging
import re
import uuid
from collections.abc import Sequence

from graphql import GraphQLError, GraphQLSyntaxError

from shared.errors import ServiceError

logger = logging.getLogger(__name__)

_BAD_VARIABLE = re.compile(r"Variable '\$\w+' (has|got) invalid value|Variable values are nested")
_SUGGESTION = re.compile(r" Did you mean [^?]*\?")


def public_error(error: GraphQLError) -> GraphQLError:
    """The error with its code of the public contract. A fault of the server is logged, and its details are masked."""
    cause = _cause(error)
    if isinstance(cause, ServiceError):
        return error  # graphql-core copied its extensions; a fault that the operator must mend is already in the log
    # Without a path no resolver ran: graphql-core failed on a literal, such as a number of 5,000 digits.
    if cause is not None and not (error.path is None and isinstance(cause, ValueError | RecursionError)):
        return _masked(error, cause)
    if "code" not in (error.extensions or {}):
        error.extensions = {**(error.extensions or {}), "code": _code(error)}
    return error


def as_graphql(error: Exception) -> GraphQLError:
    """Of the whole request, not of a field."""
    return GraphQLError(str(error), original_error=error)


def without_suggestions(error: GraphQLError) -> GraphQLError:
    """Without the names of the schema that GraphQL suggests for a misspelt one."""
    message = _SUGGESTION.sub("", error.message)
    if message == error.message:
        return error
    return GraphQLError(message, error.nodes, path=error.path, extensions=error.extensions)


def is_request_error(data: object, errors: Sequence[GraphQLError] | None) -> bool:
    """Whether nothing was executed. The error of a field has its path."""
    return data is None and bool(errors) and not any(error.path for error in errors or ())


def _cause(error: GraphQLError) -> BaseException | None:
    """The exception inside the GraphQL errors; `None` if GraphQL itself raised the error."""
    cause = error.original_error
    while isinstance(cause, GraphQLError):
        cause = cause.original_error
    return cause


def _code(error: GraphQLError) -> str:
    if isinstance(error, GraphQLSyntaxError):
        return "GRAPHQL_PARSE_FAILED"
    # graphql-core coerces variables during execution, but a bad value is the client's input.
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
