"""GraphQL over HTTP: how a request is read and what its answer looks like. The schema executes it.

Not Strawberry's view, which has one media type and refuses bad requests in plain text. Here the client negotiates the
media type, and each refusal is JSON with a code.
"""

import json
from contextlib import suppress
from time import perf_counter
from typing import Any, NoReturn

from graphql import GraphQLError, get_operation_ast
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from strawberry.http import process_result
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError
from strawberry.types import ExecutionResult
from strawberry.types.graphql import OperationType

from server.http.negotiation import EVENT_STREAM, GRAPHQL_RESPONSE, JSON, header_of, is_json, response_type
from server.metrics import REFUSED, Metrics, code_of, operation_label
from server.protection.auth import client_of, is_authenticated
from server.protection.document_queue import IS_QUEUED
from server.protection.holdings import SOCKET_BYTES, SUBSCRIPTION_BYTES
from server.reads.context import Context
from server.schema.documents import GraphQLRequest, load_document, prepare
from server.schema.errors import as_graphql, is_request_error, public_error
from server.schema.persisted_queries import PersistedQueries
from server.schema.root import Schema
from server.subscriptions.event_stream import event_stream, refusing_stream
from shared.errors import BadUserInput, PersistedQueryNotFound, RateLimited, ServiceError, Unauthenticated

MAX_BODY_BYTES = 128 * 1024
"A document has at most 20,000 characters; coercing a megabyte of variables would block the event loop for a second."

METHODS = "GET, HEAD, OPTIONS, POST"
_READS = (OperationType.QUERY,)
_ALLOWED = {"GET": _READS, "HEAD": _READS, "POST": (*_READS, OperationType.MUTATION)}


class Refused(Exception):
    """The request cannot be executed. `allow`: the methods that can, for status 405."""

    def __init__(self, status: int, message: str, allow: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.allow = allow


class GraphQLView:
    """The ASGI application behind the route."""

    def __init__(self, schema: Schema, persisted: PersistedQueries, metrics: Metrics) -> None:
        self._schema = schema
        self._persisted = persisted
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnect):  # before the body was complete
            response = await self._answer(Request(scope, receive))
            await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        began = perf_counter()
        media_type = response_type(header_of(request.scope, b"accept"))
        try:
            if request.method == "OPTIONS":
                return Response(status_code=204, headers={"Allow": METHODS})
            if request.method not in {"GET", "HEAD", "POST"}:
                raise Refused(405, "Send GraphQL by GET or POST.", METHODS)
            if media_type is None or (media_type is EVENT_STREAM and request.method == "HEAD"):
                raise Refused(
                    406, "Accept must allow application/graphql-response+json, application/json or text/event-stream."
                )
            context = _context(request)
            context.require_token_for_reads()
            asked = self._persisted.read(await _read_body(request) if request.method == "POST" else _read_url(request))
            if IS_QUEUED not in request.scope:
                await request.state.admission.queue_document(len(asked.query))
            await prepare(asked.query, self._schema._schema, request.state.admission.run_document)
            if media_type is EVENT_STREAM:
                return self._stream(request, context, asked)
            with request.state.admission.work():
                return await self._execute(context, asked, request.method, media_type)
        except Refused as refused:
            self._metrics.answered(REFUSED, BadUserInput.code, began)
            headers = {"Allow": refused.allow} if refused.allow else {}
            return refusal(BadUserInput(str(refused)), refused.status, media_type, headers)
        except (BadUserInput, PersistedQueryNotFound) as error:
            self._metrics.answered(REFUSED, error.code, began)
            if media_type is EVENT_STREAM:
                return refusing_stream(error)
            # Clients send the document after an error in an ordinary answer.
            return refusal(error, 200 if isinstance(error, PersistedQueryNotFound) else 400, media_type, {})
        except Unauthenticated as error:
            self._metrics.answered(REFUSED, error.code, began)
            return refusal(error, 401, media_type, {"WWW-Authenticate": "Bearer"})
        except RateLimited as error:  # by admission control: the limit of fetches is an error of its field
            self._metrics.ended(REFUSED, error.code)  # without a duration, which would make the others look fast
            headers = {"Retry-After": str(error.retry_after)}
            if media_type is EVENT_STREAM:  # a client of too many streams would keep the connections of those refused
                headers["Connection"] = "close"
            return refusal(error, 503, media_type, headers)

    async def _execute(self, context: Context, asked: GraphQLRequest, method: str, media_type: bytes) -> Response:
        began = perf_counter()
        try:
            result = await self._schema.execute(
                asked.query,
                asked.variables,
                context,
                operation_name=asked.operation_name,
                allowed_operation_types=_ALLOWED[method],
            )
        except InvalidOperationTypeError as error:
            if error.operation_type is OperationType.SUBSCRIPTION:
                raise Refused(406, "Subscribe over WebSocket, or accept text/event-stream.") from error
            raise _mutation_by_get() from error
        except CannotGetOperationTypeError as error:
            result = ExecutionResult(None, [as_graphql(BadUserInput(error.as_http_error_reason()))])
        label = operation_label(self._schema._schema, asked, result.errors)
        self._metrics.answered(label, code_of(result.errors), began)
        answer = process_result(result)
        if is_request_error(result.data, result.errors):
            del answer["data"]
        return _json_response(answer, _status(result, media_type), media_type)

    def _stream(self, request: Request, context: Context, asked: GraphQLRequest) -> Response:
        """GraphQL errors become events, because a browser's `EventSource` hides the body of any status but 200."""
        if request.method != "POST" and _is_mutation(asked):
            raise _mutation_by_get()
        state = request.state
        answers = state.streams.answers(context, asked, state.admission, is_queued=True)
        held = state.followers.hold(context.client, SOCKET_BYTES + SUBSCRIPTION_BYTES)
        return event_stream(answers, state.closing, held)


def _mutation_by_get() -> Refused:
    return Refused(405, "Send mutations by POST.", "POST")


def _is_mutation(asked: GraphQLRequest) -> bool:
    """False for a document with errors, too: its execution reports them."""
    with suppress(GraphQLError, ServiceError):
        operation = get_operation_ast(load_document(asked.query), asked.operation_name)
        return operation is not None and operation.operation.value == "mutation"
    return False


def _context(request: Request) -> Context:
    scope = request.scope
    return Context.of(scope, client_of(scope), is_authenticated=is_authenticated(scope))


def _json_response(answer: object, status: int, media_type: bytes | None) -> Response:
    # ASCII, because a message may quote half a surrogate pair.
    response = Response(json.dumps(answer, separators=(",", ":")), status)
    response.headers["Content-Type"] = (GRAPHQL_RESPONSE if media_type is GRAPHQL_RESPONSE else JSON).decode()
    response.headers["Vary"] = "Accept"
    return response


def refusal(error: Exception, status: int, media_type: bytes | None, headers: dict[str, str]) -> Response:
    response = _json_response({"errors": [public_error(as_graphql(error)).formatted]}, status, media_type)
    response.headers.update(headers)
    return response


def _status(result: ExecutionResult, media_type: bytes) -> int:
    """Always 200 with `application/json`: a client could not tell another status from that of a proxy."""
    if media_type is not GRAPHQL_RESPONSE or not is_request_error(result.data, result.errors):
        return 200
    codes = {(error.extensions or {}).get("code") for error in result.errors or []}
    return 500 if "INTERNAL_SERVER_ERROR" in codes else 400


async def _read_body(request: Request) -> dict[str, Any]:
    if not is_json(header_of(request.scope, b"content-type")):
        raise Refused(415, "The body must be application/json in UTF-8.")
    if (header_of(request.scope, b"content-encoding") or b"identity").lower() != b"identity":
        raise Refused(415, "The body must not be compressed.")
    length, chunks = 0, []
    async for chunk in request.stream():
        length += len(chunk)
        if length > MAX_BODY_BYTES:
            raise Refused(413, f"The body may have at most {MAX_BODY_BYTES:,} bytes.")
        chunks.append(chunk)
    body = _read("The body", b"".join(chunks))
    if isinstance(body, list):
        raise Refused(400, "The body must be one JSON object; batches are not supported.")
    if not isinstance(body, dict):
        raise Refused(400, "The body must be a JSON object with a `query`.")
    return body


def _read_url(request: Request) -> dict[str, Any]:
    """An empty parameter counts as absent."""
    given: dict[str, Any] = {name: value for name, value in request.query_params.items() if value}
    for name in given.keys() & {"variables", "extensions"}:
        given[name] = _read(f"`{name}`", given[name].encode())
    return given


def _read(name: str, text: bytes) -> object:
    try:
        return json.loads(text.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and brackets nested too deeply
        raise Refused(400, f"{name} is not JSON.") from error


def _refuse_constant(name: str) -> NoReturn:
    """NaN and Infinity, which Python accepts."""
    raise ValueError(name)
