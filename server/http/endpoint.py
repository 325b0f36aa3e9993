"""GraphQL over HTTP: how a request is read and what its answer looks like; its execution is the schema's.

Instead of Strawberry's view, which knows one media type and one status of an answer, and refuses in plain text: here an
answer is what the client accepts, and whatever is no GraphQL request gets a coded one too.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NoReturn

from graphql import GraphQLError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from strawberry.http import process_result
from strawberry.schema.exceptions import CannotGetOperationTypeError
from strawberry.types import ExecutionResult
from strawberry.types.graphql import OperationType
from strawberry.utils.operation import get_operation_type

from server.http.negotiation import EVENT_STREAM, GRAPHQL_RESPONSE, JSON, is_json, response_type
from server.metrics import REFUSED, Metrics, code_of, operation_of
from server.protection.auth import client_of, is_authenticated
from server.reads.context import Context
from server.schema.documents import load_document
from server.schema.root import Schema
from server.subscriptions.event_stream import event_stream
from shared.errors import BadUserInput, RateLimited, ServiceError, Unauthenticated

MAX_BODY_BYTES = 128 * 1024
"A document has 20,000 characters; a million bytes of variables would be looked at for a second, and nothing else."
METHODS = "GET, HEAD, OPTIONS, POST"


class Refused(Exception):
    """The request is none that could be executed. `allow`: the methods that are, for status 405."""

    def __init__(self, status: int, message: str, allow: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.allow = allow


@dataclass(frozen=True)
class Parameters:
    """What a GraphQL request says, however it was sent."""

    query: str
    operation_name: str | None
    variables: dict[str, Any] | None

    @property
    def operation_type(self) -> OperationType | None:
        """`None` where the document is none or has no such operation: executing it says what is wrong."""
        try:
            return get_operation_type(load_document(self.query), self.operation_name)
        except (GraphQLError, ServiceError, RuntimeError):
            return None


class GraphQLView:
    """The ASGI application behind the route."""

    def __init__(self, schema: Schema, metrics: Metrics | None = None) -> None:
        self._schema = schema
        self._metrics = metrics or Metrics()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnect):  # before all of the body was here
            response = await self._answer(Request(scope, receive))
            await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        began = perf_counter()
        accept = b", ".join(value for name, value in request.scope["headers"] if name == b"accept") or None
        media_type = response_type(accept)
        try:
            if request.method == "OPTIONS":
                return Response(status_code=204, headers={"Allow": METHODS})
            if request.method not in {"GET", "HEAD", "POST"}:
                raise Refused(405, "GraphQL is asked by GET or POST.", METHODS)
            if media_type is None or (media_type is EVENT_STREAM and request.method == "HEAD"):
                raise Refused(
                    406, "Answers are application/graphql-response+json, application/json or text/event-stream."
                )
            context = _context(request)
            context.require_token_for_reads()
            parameters = await _read_body(request) if request.method == "POST" else _read_url(request)
            await request.state.admission.take_turn(len(parameters.query))
            if media_type is EVENT_STREAM:
                _refuse_operation(parameters.operation_type, request.method, media_type)
                return self._stream(request, context, parameters)
            with request.state.admission.work():
                _refuse_operation(parameters.operation_type, request.method, media_type)
                return await self._execute(context, parameters, media_type)
        except Refused as refused:
            self._metrics.answered(REFUSED, BadUserInput.code, began)
            headers = {"Allow": refused.allow} if refused.allow else {}
            return _refusal(BadUserInput(str(refused)), refused.status, media_type, headers)
        except Unauthenticated as error:
            self._metrics.answered(REFUSED, error.code, began)
            return _refusal(error, 401, media_type, {"WWW-Authenticate": "Bearer"})
        except RateLimited as error:  # of all requests: a fetch's own limit is an error of its field
            self._metrics.ended(REFUSED, error.code)  # a time of nothing would flatter all the others
            return _refusal(error, 503, media_type, {"Retry-After": str(error.retry_after)})

    async def _execute(self, context: Context, parameters: Parameters, media_type: bytes) -> Response:
        began = perf_counter()
        try:
            result = await self._schema.execute(
                parameters.query,
                variable_values=parameters.variables,
                context_value=context,
                operation_name=parameters.operation_name,
            )
        except CannotGetOperationTypeError as error:
            result = ExecutionResult(None, [_as_graphql(BadUserInput(error.as_http_error_reason()))])
        operation = operation_of(parameters.query, parameters.operation_name, result.errors)
        self._metrics.answered(operation, code_of(result.errors), began)
        answer = process_result(result)
        if _is_request_error(result):
            del answer["data"]
        return _json_response(answer, _status(result, media_type), media_type)

    def _stream(self, request: Request, context: Context, parameters: Parameters) -> Response:
        """Errors of GraphQL's come as an event here: a browser's `EventSource` shows nothing of another status."""
        streams, closing = request.state.streams, request.state.closing
        answers = streams.answers(
            context, parameters.query, parameters.variables, parameters.operation_name, request.state.admission
        )
        return event_stream(answers, closing)


def _context(request: Request) -> Context:
    state = request.state
    scope = request.scope
    return Context(
        state.pool, state.redis, state.settings, is_authenticated(scope), state.live, client=client_of(scope)
    )


def _json_response(answer: object, status: int, media_type: bytes | None) -> Response:
    """In JSON, whose media type the client accepts or, of a refusal, would have to."""
    # ASCII, for a message may quote half a surrogate pair.
    response = Response(json.dumps(answer, separators=(",", ":")), status)
    response.headers["Content-Type"] = (GRAPHQL_RESPONSE if media_type is GRAPHQL_RESPONSE else JSON).decode()
    response.headers["Vary"] = "Accept, Accept-Encoding"
    response.headers["Cache-Control"] = "no-store"
    return response


def _refusal(error: ServiceError, status: int, media_type: bytes | None, headers: dict[str, str]) -> Response:
    response = _json_response({"errors": [_as_graphql(error).formatted]}, status, media_type)
    response.headers.update(headers)
    return response


def read_json(data: str | bytes) -> object:
    """Raises `json.JSONDecodeError` for whatever is no JSON in UTF-8."""
    try:
        return _DECODER.decode(data if isinstance(data, str) else data.decode())
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits and brackets without end are no JSON to us either.
        raise json.JSONDecodeError(str(error), "", 0) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _as_graphql(error: ServiceError) -> GraphQLError:
    return GraphQLError(str(error), original_error=error)


def _is_request_error(result: ExecutionResult) -> bool:
    """Nothing was executed: an error of a field says which, by its path."""
    return result.data is None and bool(result.errors) and not any(error.path for error in result.errors or [])


def _status(result: ExecutionResult, media_type: bytes) -> int:
    """As `application/json`, an answer with another status might be that of anything between client and server."""
    if media_type is not GRAPHQL_RESPONSE or not _is_request_error(result):
        return 200
    codes = {(error.extensions or {}).get("code") for error in result.errors or []}
    return 500 if "INTERNAL_SERVER_ERROR" in codes else 400


def _refuse_operation(operation_type: OperationType | None, method: str, media_type: bytes) -> None:
    if operation_type is OperationType.MUTATION and method != "POST":
        raise Refused(405, "A mutation is asked by POST.", "POST")
    if operation_type is OperationType.SUBSCRIPTION and media_type is not EVENT_STREAM:
        raise Refused(406, "A subscription is answered over WebSocket, or as text/event-stream.")


async def _read_body(request: Request) -> Parameters:
    content_type = b", ".join(value for name, value in request.scope["headers"] if name == b"content-type")
    if not is_json(content_type):
        raise Refused(415, "A request's body is application/json, in UTF-8.")
    length, chunks = 0, []
    async for chunk in request.stream():
        length += len(chunk)
        if length > MAX_BODY_BYTES:
            raise Refused(413, f"A request may have {MAX_BODY_BYTES:,} bytes, no more.")
        chunks.append(chunk)
    body = _read("The body", b"".join(chunks))
    if isinstance(body, list):
        raise Refused(400, "A request is one JSON object; several at once are not answered.")
    if not isinstance(body, dict):
        raise Refused(400, "A request is a JSON object with a `query`.")
    return _parameters(body)


def _read_url(request: Request) -> Parameters:
    """An empty parameter is none."""
    given: dict[str, Any] = {name: value for name, value in request.query_params.items() if value}
    for name in given.keys() & {"variables", "extensions"}:
        given[name] = _read(f"`{name}`", given[name])
    return _parameters(given)


def _read(name: str, text: str | bytes) -> object:
    try:
        return read_json(text)
    except json.JSONDecodeError as error:
        raise Refused(400, f"{name} is no JSON.") from error


def _parameters(given: dict[str, Any]) -> Parameters:
    match given.get("query"):
        case str(query) if query:
            pass
        case _:
            raise Refused(400, "`query` is the text of a GraphQL document.")
    if not isinstance(given.get("operationName"), str | None):
        raise Refused(400, "`operationName` is a text or null.")
    for name in ("variables", "extensions"):
        if not isinstance(given.get(name), dict | None):
            raise Refused(400, f"`{name}` is an object or null.")
    return Parameters(query, given.get("operationName"), given.get("variables"))
