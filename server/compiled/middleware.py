"""ASGI middleware: a request for stored data is one SQL statement, which writes the answer as JSON.

A document becomes a statement once (`compiler.py`), and an answer is kept until the data change (`answers.py`).
Whatever cannot be compiled, or has an argument that a resolver would refuse, goes to Strawberry unchanged.
"""

import json
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.compiled.answers import Request
from server.compiled.execution import Compiled
from server.compiled.plans import FallBackToStrawberry
from server.compiled.requests import Asked, read_headers, read_on, read_parameters, replay
from server.http.compression import MIN_GZIP_BYTES
from server.http.endpoint import MAX_BODY_BYTES
from server.http.headers import NO_SNIFFING, NO_STORE
from server.metrics import REFUSED, Metrics
from server.protection.admission import RETRY_SECONDS, Admission, busy
from server.protection.auth import is_authenticated
from server.protection.document_queue import IS_QUEUED
from server.reads.context import Context
from server.request_ids import HEADER, REQUEST_ID, remember_request, request_id_of
from server.schema.errors import as_graphql
from server.schema.persisted_queries import PERSISTED, PersistedQueries
from shared.errors import RateLimited, ServiceError

_NO_CACHE = {False: (b"cache-control", b"no-cache"), True: (b"cache-control", b"private, no-cache")}
"By whether reads need a token."

_VARY = {False: (b"vary", b"Accept, Accept-Encoding"), True: (b"vary", b"Accept, Accept-Encoding, Authorization")}
_BUSY = json.dumps({"errors": [as_graphql(busy()).formatted]}).encode()


class CompiledQueries:
    def __init__(self, app: ASGIApp, compiled: Compiled, persisted: PersistedQueries, metrics: Metrics) -> None:
        self._app = app
        self._compiled = compiled
        self._persisted = persisted
        self._metrics = metrics

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
        request = self._compiled.find(key)
        if admission.is_full() if request is not None else admission.is_full_for_work():
            await self._send_busy(scope, send, asked)
            return
        try:
            if len(key) > MAX_BODY_BYTES:
                raise FallBackToStrawberry
            if request is None:
                await admission.queue_document(len(key))
                scope[IS_QUEUED] = True
            await self._answer(scope, send, asked, key, request)
        except RateLimited:
            await self._send_busy(scope, send, asked)
        except FallBackToStrawberry:
            self._metrics.fallbacks += 1
            if admission.is_full_for_work():  # before Starlette's layers, which cost more than this refusal
                await self._send_busy(scope, send, asked)
                return
            replayed = receive if message is None else replay({**message, "body": key}, receive)
            await self._app(scope, replayed, send)

    async def _answer(self, scope: Scope, send: Send, asked: Asked, key: bytes, request: Request | None) -> None:
        began = perf_counter()
        state = scope["state"]
        context = Context(state["pool"], state["redis"], state["settings"])
        if request is None:
            request = self._learn(context, key, is_get=asked.is_get)
        answer = await self._compiled.answer(context, state["admission"], request, began, asked.tags)
        headers = [_vary(scope)]
        if asked.is_get and answer.tag is not None:
            headers += [(b"etag", answer.tag.encode()), _NO_CACHE[state["settings"].require_token_for_reads]]
        else:
            headers.append(NO_STORE)
        if answer.is_known:
            await _send(scope, send, 304, headers, b"")
            return
        body = answer.body
        headers.append((b"content-type", asked.media_type))
        if asked.accepts_gzip and len(body) >= MIN_GZIP_BYTES:
            body = await self._compiled.answers.gzip(request, answer)
            headers.append((b"content-encoding", b"gzip"))
        await _send(scope, send, 200, headers, body)

    def _learn(self, context: Context, key: bytes, *, is_get: bool) -> Request:
        given = read_parameters(key, is_get=is_get)
        try:
            asked = self._persisted.read(given)
        except ServiceError as error:
            raise FallBackToStrawberry from error
        # One that registers a persisted query is not remembered: if its hash was forgotten, it registers it again.
        is_registering = given.get("query") and PERSISTED in (given.get("extensions") or {})
        return self._compiled.learn(context, asked, b"" if is_registering else key)

    async def _send_busy(self, scope: Scope, send: Send, asked: Asked) -> None:
        self._metrics.ended(REFUSED, RateLimited.code)
        retry = (b"retry-after", b"%d" % RETRY_SECONDS)
        await _send(scope, send, 503, [(b"content-type", asked.media_type), retry, NO_STORE, _vary(scope)], _BUSY)


def _vary(scope: Scope) -> tuple[bytes, bytes]:
    return _VARY[scope["state"]["settings"].require_token_for_reads]


async def _send(scope: Scope, send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    headers.append(NO_SNIFFING)
    if status != 304:
        headers.append((b"content-length", b"%d" % len(body)))
    if REQUEST_ID in scope:  # a line was logged about this request
        headers.append((HEADER, request_id_of(scope).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
