"""ASGI middleware: a request for stored data is one SQL statement, which writes the answer as JSON.

A document becomes a statement once (`compiler.py`); from then on a request is that statement. Whatever cannot be
compiled, or has an argument that a resolver would refuse, goes to Strawberry unchanged.
"""

import json
from time import perf_counter
from typing import Any, NamedTuple

import asyncpg
import orjson
from graphql import GraphQLError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.compiled.compiler import Plan, Planner, Unplanned
from server.compiled.single_flight import SharedStatement
from server.http.endpoint import MAX_BODY_BYTES
from server.http.headers import NO_SNIFFING
from server.http.negotiation import EVENT_STREAM, is_json, response_type
from server.lru import MAX_DOCUMENT_CHARACTERS
from server.metrics import OK, REFUSED, Metrics
from server.protection.admission import RETRY_SECONDS, Admission, busy
from server.protection.auth import is_authenticated
from server.request_ids import HEADER, REQUEST_ID, remember_request, request_id_of
from server.schema.context import Context
from server.schema.errors import public_error
from server.schema.root import Schema
from shared.errors import RateLimited, StorageUnavailable

KNOWN_REQUESTS = 256
KNOWN_BYTES = 2048
"Of a request that is kept."
MAX_LEVELS = 200
"Of a request's JSON, at most: it is brackets that are counted."

_BUSY = json.dumps({"errors": [GraphQLError(str(busy()), original_error=busy()).formatted]}).encode()

_VARY = (b"vary", b"Accept")


class Request(NamedTuple):
    plan: Plan
    statement: SharedStatement


class PlannedExecution:
    """ASGI middleware: answers what is planned, passes on what is not."""

    def __init__(self, app: ASGIApp, schema: Schema, metrics: Metrics | None = None) -> None:
        self._app = app
        self._metrics = metrics or Metrics()
        self._planner = Planner(schema)
        self._known: dict[bytes, Request] = {}
        self._known_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        remember_request(scope)
        media_type = _media_type(scope)
        if media_type is None or (scope["state"]["settings"].require_token_for_reads and not is_authenticated(scope)):
            await self._app(scope, receive, send)
            return
        message = await receive()
        body = message.get("body", b"")
        if message.get("more_body"):
            message, body = await _read_on(message, receive)
        if message["type"] == "http.disconnect":
            return
        admission: Admission = scope["state"]["admission"]
        is_known = body in self._known
        if admission.is_full() if is_known else admission.is_full_for_work():
            await self._send_busy(scope, send, media_type)
            return
        try:
            if len(body) > MAX_BODY_BYTES:
                raise Unplanned
            if not is_known:
                await admission.take_turn(len(body))
            answer = await self._answer(scope["state"], body)
        except RateLimited:
            await self._send_busy(scope, send, media_type)
            return
        except Unplanned:
            self._metrics.unplanned += 1
            if admission.is_full_for_work():  # before Starlette's layers, which cost more than to say so
                await self._send_busy(scope, send, media_type)
                return
            await self._app(scope, _replay({**message, "body": body}, receive), send)
            return
        headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(answer)), NO_SNIFFING, _VARY]
        if REQUEST_ID in scope:  # a line was written about it
            headers.append((HEADER, request_id_of(scope).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _send_busy(self, scope: Scope, send: Send, media_type: bytes) -> None:
        self._metrics.ended(REFUSED, RateLimited.code)
        headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(_BUSY)), NO_SNIFFING, _VARY]
        headers.append((b"retry-after", b"%d" % RETRY_SECONDS))
        if REQUEST_ID in scope:
            headers.append((HEADER, request_id_of(scope).encode()))
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": _BUSY})

    async def _answer(self, state: Any, body: bytes) -> bytes:
        began = perf_counter()
        # Whoever shows prices asks the same again and again, and what is asked depends on nothing but these bytes.
        request = self._known.get(body)
        if request is None:
            request = self._learn(state, body)
        else:
            self._metrics.plan_hits += 1
        admission = state["admission"]
        admission.under_way += 1
        try:
            answer = await request.statement.answer(state["pool"])
        except StorageUnavailable as error:
            self._metrics.answered(request.plan.label, error.code, began)
            return _refused(request.plan, error)
        except asyncpg.PostgresError as error:  # a fault of ours, which Strawberry's path meets, masks and logs
            raise Unplanned from error
        finally:
            admission.under_way -= 1
        self._metrics.answered(request.plan.label, OK, began)
        return answer

    def _learn(self, state: Any, body: bytes) -> Request:
        computed = self._planner.plan.misses
        request = self._read(Context(state["pool"], state["redis"], state["settings"]), body)
        is_miss = self._planner.plan.misses > computed
        self._metrics.plan_misses += is_miss
        self._metrics.plan_hits += not is_miss
        if len(body) <= KNOWN_BYTES:
            self._known[body] = request
            self._known_bytes += len(body)
            # Each keeps its plan, and with it the tree of its document.
            while len(self._known) > KNOWN_REQUESTS or self._known_bytes > MAX_DOCUMENT_CHARACTERS:
                oldest = next(iter(self._known))
                del self._known[oldest]
                self._known_bytes -= len(oldest)
        return request

    def _read(self, context: Context, body: bytes) -> Request:
        if len(body) > MAX_LEVELS and body.count(b"[") + body.count(b"{") > MAX_LEVELS:
            raise Unplanned  # as deep as that, it is the view that says what JSON is
        try:
            request = orjson.loads(body)
        except ValueError as error:  # or JSON of a kind that only the view takes
            raise Unplanned from error
        if not isinstance(request, dict):
            raise Unplanned
        query, operation_name, variables = request.get("query"), request.get("operationName"), request.get("variables")
        extensions = request.get("extensions")
        if (
            not isinstance(query, str)
            or not (operation_name is None or isinstance(operation_name, str))
            or not (variables is None or isinstance(variables, dict))
            or not (extensions is None or isinstance(extensions, dict))
        ):
            raise Unplanned
        plan = self._planner.plan_for(query, operation_name)
        return Request(plan, SharedStatement(plan.sql, self._planner.parameters(plan, context, variables)))


def _media_type(scope: Scope) -> bytes | None:
    """The answer's, where this is JSON in and JSON out. All other ways of asking are the view's."""
    if scope["type"] != "http" or scope["path"] != "/graphql" or scope["method"] != "POST":
        return None
    content_type = accept = None
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value if content_type is None else content_type + b"," + value
        elif name == b"accept":
            accept = value if accept is None else accept + b"," + value
    media_type = response_type(accept) if is_json(content_type) else None
    return None if media_type == EVENT_STREAM else media_type


async def _read_on(message: Message, receive: Receive) -> tuple[Message, bytes]:
    """The message that ends the body, or with which it is too long; and the body so far."""
    parts = [message.get("body", b"")]
    length = len(parts[0])
    while message.get("more_body") and length <= MAX_BODY_BYTES:
        message = await receive()
        parts.append(message.get("body", b""))
        length += len(parts[-1])
    return message, b"".join(parts)


def _replay(message: Message, receive: Receive) -> Receive:
    """What was read already, as one message."""
    is_read = False

    async def replayed() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return message

    return replayed


def _refused(plan: Plan, error: StorageUnavailable) -> bytes:
    errors = [
        public_error(GraphQLError(str(error), list(root.nodes), path=[root.key], original_error=error)).formatted
        for root in plan.roots
    ]
    return json.dumps({"data": plan.nothing, "errors": errors}, separators=(",", ":")).encode()
