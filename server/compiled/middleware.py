"""ASGI middleware: a request for stored data is one SQL statement, which writes the answer as JSON.

A document becomes a statement once (`compiler.py`), and an answer is kept until the data change (`answers.py`).
Whatever cannot be compiled, or has an argument that a resolver would refuse, goes to Strawberry unchanged.
"""

import json
from time import perf_counter
from typing import Any

import asyncpg
import orjson
from graphql import GraphQLError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.compiled.answers import MIN_GZIP_BYTES, Answer, Answers, Request
from server.compiled.compiler import Compiler, Unprepared
from server.compiled.plans import FallBackToStrawberry, Plan
from server.compiled.requests import Asked, read_headers, read_on, read_url, replay
from server.compiled.rest import answer_rest
from server.compiled.single_flight import SingleFlight
from server.http.endpoint import MAX_BODY_BYTES
from server.http.headers import NO_SNIFFING
from server.metrics import OK, REFUSED, Metrics
from server.protection.admission import RETRY_SECONDS, Admission, busy
from server.protection.auth import is_authenticated
from server.reads.context import Context
from server.request_ids import HEADER, REQUEST_ID, remember_request, request_id_of
from server.schema.errors import public_error
from server.schema.persisted_queries import PersistedQueries
from server.schema.root import Schema
from shared.errors import RateLimited, ServiceError, StorageUnavailable

MAX_KEPT_REQUEST_BYTES = 2048
"A longer request is parsed each time it comes."

MAX_NESTING = 200
"Brackets in a request's JSON. With more of them, the endpoint decides what is JSON."

_BUSY = json.dumps({"errors": [GraphQLError(str(busy()), original_error=busy()).formatted]}).encode()


class CompiledExecution:
    def __init__(
        self, app: ASGIApp, schema: Schema, persisted: PersistedQueries, metrics: Metrics | None = None
    ) -> None:
        self._app = app
        self._schema = schema
        self._persisted = persisted
        self._metrics = metrics or Metrics()
        self._compiler = Compiler(schema)
        self._answers = Answers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        remember_request(scope)
        asked = read_headers(scope)
        if asked is None or (scope["state"]["settings"].require_token_for_reads and not is_authenticated(scope)):
            await self._app(scope, receive, send)
            return
        message: Message | None = None
        if asked.is_get:
            key = b"?" + scope["query_string"]
        else:
            message = await receive()
            key = message.get("body", b"")
            if message.get("more_body"):
                message, key = await read_on(message, receive)
            if message["type"] == "http.disconnect":
                return
        admission: Admission = scope["state"]["admission"]
        request = self._answers.find(key)
        if admission.is_full() if request is not None else admission.is_full_for_work():
            await self._send_busy(scope, send, asked)
            return
        try:
            if len(key) > MAX_BODY_BYTES:
                raise FallBackToStrawberry
            if request is None:
                await admission.queue_document(len(key))
            try:
                await self._answer(scope, send, asked, key, request)
            except Unprepared as unprepared:
                await self._compiler.prepare(unprepared.query, admission.run_document)
                await self._answer(scope, send, asked, key, request)
        except RateLimited:
            await self._send_busy(scope, send, asked)
        except FallBackToStrawberry:
            self._metrics.unplanned += 1
            if admission.is_full_for_work():  # before Starlette's layers, which cost more than this refusal
                await self._send_busy(scope, send, asked)
                return
            replayed = receive if message is None else replay({**message, "body": key}, receive)
            await self._app(scope, replayed, send)

    async def _answer(self, scope: Scope, send: Send, asked: Asked, key: bytes, request: Request | None) -> None:
        began = perf_counter()
        state = scope["state"]
        # Pages ask the same again and again, and what is asked depends on nothing but these bytes.
        if request is None:
            request = self._learn(state, key, is_get=asked.is_get)
        else:
            self._metrics.plan_hits += 1
            if request.persisted is not None:  # sent again, because its hash had been forgotten
                self._persisted.resolve(*request.persisted)
        admission: Admission = state["admission"]
        admission.under_way += 1
        try:
            if asked.tags is not None and request.plan.rest is None:
                tag = await self._answers.current_tag(state["pool"], request, asked.tags)
                if tag is not None:
                    self._metrics.answered(request.plan.label, OK, began)
                    await _send(scope, send, 304, [(b"etag", tag.encode("latin-1")), *_caching(scope)], b"")
                    return
            answer = await self._compute(scope, key, request)
        except StorageUnavailable as error:
            if request.plan.rest is not None:
                raise FallBackToStrawberry from error
            self._metrics.answered(request.plan.label, error.code, began)
            answer = Answer(_unavailable(request.plan, error))
        except asyncpg.PostgresError as error:  # a fault of ours, which Strawberry's path meets, masks and logs
            raise FallBackToStrawberry from error
        else:
            self._metrics.answered(request.plan.label, OK, began)
        finally:
            admission.under_way -= 1
        headers = [(b"content-type", asked.media_type)]
        if asked.is_get and answer.tag is not None:
            headers += [(b"etag", answer.tag.encode()), *_caching(scope)]
        else:
            headers += [_NO_STORE, _vary(scope)]
        body = answer.body
        if asked.accepts_gzip and len(body) >= MIN_GZIP_BYTES:
            body = await answer.gzip()
            headers.append((b"content-encoding", b"gzip"))
        await _send(scope, send, 200, headers, body)

    async def _compute(self, scope: Scope, key: bytes, request: Request) -> Answer:
        state = scope["state"]
        rest = request.plan.rest
        if rest is None:
            return await self._answers.answer(state["pool"], key, request)
        context = Context(state["pool"], state["redis"], state["settings"], is_authenticated(scope))
        _, _, *compiled = await request.statement.row(state["pool"])
        if None in compiled:
            raise FallBackToStrawberry
        others = await answer_rest(self._schema, rest, context, request.variables)
        if others is None:
            raise FallBackToStrawberry
        members = iter(compiled)
        ordered = [others[name] if name in rest.left else next(members) for name in rest.keys]
        return Answer(b'{"data":{' + b",".join(ordered) + b"}}")

    def _learn(self, state: Any, key: bytes, *, is_get: bool) -> Request:
        misses = self._compiler.plans.misses
        request = self._read(Context(state["pool"], state["redis"], state["settings"]), key, is_get=is_get)
        is_miss = self._compiler.plans.misses > misses
        self._metrics.plan_misses += is_miss
        self._metrics.plan_hits += not is_miss
        if len(key) <= MAX_KEPT_REQUEST_BYTES and request.plan.rest is None:
            self._answers.remember(key, request)
        return request

    def _read(self, context: Context, key: bytes, *, is_get: bool) -> Request:
        if len(key) > MAX_NESTING and key.count(b"[") + key.count(b"{") > MAX_NESTING:
            raise FallBackToStrawberry
        try:
            given = read_url(key[1:]) if is_get else orjson.loads(key)
        except ValueError as error:  # or JSON of a kind that only the endpoint takes
            raise FallBackToStrawberry from error
        if not isinstance(given, dict):
            raise FallBackToStrawberry
        query, operation_name, variables = given.get("query"), given.get("operationName"), given.get("variables")
        extensions = given.get("extensions")
        if (
            not isinstance(query, str | None)
            or not isinstance(operation_name, str | None)
            or not isinstance(variables, dict | None)
            or not isinstance(extensions, dict | None)
        ):
            raise FallBackToStrawberry
        try:
            document = self._persisted.resolve(query, extensions)
        except ServiceError as error:
            raise FallBackToStrawberry from error
        if not document:
            raise FallBackToStrawberry
        plan = self._compiler.plan_for(document, operation_name or None, variables)
        statements = self._compiler.statements(plan, context, variables)
        parameters = [value for statement in statements for value in statement.parameters]
        composed = plan.compose(statements)
        identity = composed.digest + repr(parameters).encode(errors="surrogatepass")
        persisted = (query, extensions) if query and extensions and "persistedQuery" in extensions else None
        return Request(plan, SingleFlight(composed.sql, parameters), identity, variables, persisted)

    async def _send_busy(self, scope: Scope, send: Send, asked: Asked) -> None:
        self._metrics.ended(REFUSED, RateLimited.code)
        retry = (b"retry-after", b"%d" % RETRY_SECONDS)
        await _send(scope, send, 503, [(b"content-type", asked.media_type), retry, _NO_STORE, _vary(scope)], _BUSY)


_NO_STORE = (b"cache-control", b"no-store")


def _caching(scope: Scope) -> list[tuple[bytes, bytes]]:
    is_private = scope["state"]["settings"].require_token_for_reads
    return [(b"cache-control", b"private, no-cache" if is_private else b"no-cache"), _vary(scope)]


def _vary(scope: Scope) -> tuple[bytes, bytes]:
    is_private = scope["state"]["settings"].require_token_for_reads
    return (b"vary", b"Accept, Accept-Encoding, Authorization" if is_private else b"Accept, Accept-Encoding")


async def _send(scope: Scope, send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    headers.append(NO_SNIFFING)
    if status != 304:
        headers.append((b"content-length", b"%d" % len(body)))
    if REQUEST_ID in scope:  # a line was logged about this request
        headers.append((HEADER, request_id_of(scope).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _unavailable(plan: Plan, error: StorageUnavailable) -> bytes:
    errors = [
        public_error(GraphQLError(str(error), list(root.nodes), path=[root.member.key], original_error=error)).formatted
        for root in plan.roots
    ]
    return json.dumps({"data": plan.data_if_unavailable, "errors": errors}, separators=(",", ":")).encode()
