"""The WebSocket `/graphql`: the protocol graphql-transport-ws, with limits for each socket.

Not Strawberry's handler, because here an event is serialised once for all subscribers, and sending waits for the peer
(backpressure): a peer that does not read costs uvicorn's buffer of 64 KiB, and no queue.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from graphql import GraphQLError
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send
from strawberry.http.websocket_origin import is_same_origin
from structlog.contextvars import bind_contextvars

from server.feeds.recent_prices import TooSlow
from server.metrics import REFUSED
from server.protection.auth import client_of, is_authenticated
from server.reads.context import Context
from server.schema.errors import as_graphql
from server.schema.persisted_queries import PERSISTED, PersistedQueries
from server.subscriptions.operations import Refused, Streams
from shared.config.settings import Settings
from shared.errors import QueryTooComplex, ServiceError

logger = logging.getLogger(__name__)

PROTOCOL = "graphql-transport-ws"
TRY_AGAIN_LATER = 1013
TOO_MANY = "Too many sockets; try again later"
_CLOSE_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    sockets: int = 5000
    "Of one process."
    operations: int = 50
    "Concurrent ones, of one socket."
    id_length: int = 128
    init_seconds: float = 10
    prices_behind: int = 10_000
    "Prices in the log. A subscriber that falls further behind is closed and can reconnect with `after`."


class Closed(Exception):
    """Raised to close the socket with a code."""

    def __init__(self, code: int = 4400, reason: str = "Invalid message") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Sockets:
    """The ASGI application behind the route."""

    def __init__(self, streams: Streams, persisted: PersistedQueries, limits: Limits) -> None:
        self.streams = streams
        self.persisted = persisted
        self.limits = limits
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        settings: Settings = scope["state"]["settings"]
        headers = Headers(scope=scope)
        if not is_allowed_origin(headers, settings, scope["scheme"]):
            await send({"type": "websocket.close"})  # before `accept`, which becomes status 403
            return
        if PROTOCOL not in scope["subprotocols"]:
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": 4406, "reason": "Subprotocol not acceptable"})
            return
        await send({"type": "websocket.accept", "subprotocol": PROTOCOL})
        if self._open >= self.limits.sockets:
            await send({"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": TOO_MANY})
            return
        self._open += 1
        try:
            await Socket(scope, receive, send, self).run()
        finally:
            self._open -= 1


def is_allowed_origin(headers: Headers, settings: Settings, scheme: str) -> bool:
    """A page may open a socket (of `scheme`) if it comes from this server or from one of CORS_ORIGINS."""
    origin = headers.get("origin")
    if origin is None or origin in settings.cors_origins or "*" in settings.cors_origins:
        return True
    # Behind a proxy whose headers are not trusted, the socket of an https page seems to be `ws`.
    is_secure_enough = origin.lower().startswith(("https://", "http://") if scheme == "ws" else "https://")
    return is_secure_enough and is_same_origin(origin, headers.get("host"))


class Socket:
    def __init__(self, scope: Scope, receive: Receive, send: Send, shared: Sockets) -> None:
        self._state = scope["state"]
        self._client = client_of(scope)
        self._receive = receive
        self._send = send
        self._shared = shared
        self._limits = shared.limits
        self._is_initialised = False
        self._operations: dict[str, asyncio.Task[None]] = {}
        self._running: set[asyncio.Task[None]] = set()
        "With those whose id is free again, but whose last message is still being sent."
        self._is_authenticated = is_authenticated(scope)

    async def run(self) -> None:
        """Serve until either side closes."""
        self._end = Closed(4408, "Connection initialisation timeout")
        try:
            async with asyncio.timeout(self._limits.init_seconds) as self._until:
                while (message := await self._receive())["type"] == "websocket.receive":
                    await self._handle(_parse(message))
        except TimeoutError:
            await self._close(self._end)
        except Closed as closed:
            await self._close(closed)
        except OSError:  # the peer has disconnected
            pass
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _close(self, closed: Closed) -> None:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):  # a peer that does not read would delay this, too
                await self._send({"type": "websocket.close", "code": closed.code, "reason": closed.reason})

    async def _text(self, text: str) -> None:
        await self._send({"type": "websocket.send", "text": text})

    async def _handle(self, message: dict[str, Any]) -> None:
        match message:
            case {"type": "connection_init"}:
                await self._init(message.get("payload"))
            case {"type": "ping"} if isinstance(message.get("payload"), dict | None):
                await self._text('{"type":"pong"}')
            case {"type": "pong"} if isinstance(message.get("payload"), dict | None):
                pass
            case {"type": "subscribe", "id": str(key), "payload": dict(payload)} if key and _is_valid(payload):
                await self._subscribe(key, payload)
            case {"type": "complete", "id": str(key)}:
                if task := self._operations.pop(key, None):
                    task.cancel()
                    self._running.discard(task)
            case _:
                raise Closed

    async def _init(self, payload: object) -> None:
        if self._is_initialised:
            raise Closed(4429, "Too many initialisation requests")
        if not isinstance(payload, dict | None):
            raise Closed
        settings: Settings = self._state["settings"]
        token = (payload or {}).get("Authorization", (payload or {}).get("authorization"))
        if token is not None and settings.has_token:
            self._is_authenticated = isinstance(token, str) and self._state["access"].accepts(token)
            if not self._is_authenticated:
                raise Closed(4403, "Forbidden")
        if settings.require_token_for_reads and not self._is_authenticated:
            raise Closed(4403, "Forbidden")
        self._is_initialised = True
        self._until.reschedule(None)
        await self._text('{"type":"connection_ack"}')

    async def _subscribe(self, key: str, payload: dict[str, Any]) -> None:
        if not self._is_initialised:
            raise Closed(4401, "Unauthorized")
        if key in self._operations:
            # Escaped and cut, because a close reason has at most 123 bytes.
            raise Closed(4409, f"Subscriber for {json.dumps(key)[1:-1][:80]} already exists")
        if len(key) > self._limits.id_length:
            raise Closed
        try:
            if len(self._running) >= self._limits.operations:
                raise QueryTooComplex(f"A socket may have at most {self._limits.operations} operations at a time.")
            request = self._shared.persisted.read(payload)
        except ServiceError as error:
            self._state["metrics"].ended(REFUSED, error.code)
            await self._error(json.dumps(key), [as_graphql(error)])
            return
        pool, redis, settings, feeds = (self._state[name] for name in ("pool", "redis", "settings", "feeds"))
        context = Context(pool, redis, settings, self._is_authenticated, feeds, self._client)
        answers = self._shared.streams.answers(context, request, self._state["admission"])
        task = asyncio.create_task(self._operate(key, answers))
        self._operations[key] = task
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _operate(self, key: str, answers: AsyncGenerator[str]) -> None:
        bind_contextvars(operation_id=key.encode(errors="backslashreplace").decode())
        try:
            await self._send_all(key, answers)
        except TooSlow:
            self._end_with(Closed(TRY_AGAIN_LATER, "Too slow: reconnect with `after`"))
        except OSError:
            pass  # the peer has disconnected; `run` notices it, too
        except Exception:
            logger.exception("an operation failed")
            self._end_with(Closed(4500, "Internal server error"))

    async def _send_all(self, key: str, answers: AsyncGenerator[str]) -> None:
        """Send all messages of one operation; nothing after the client has completed it, which cancels the task."""
        name, errors = json.dumps(key), None
        try:
            async with aclosing(answers):
                async for answer in answers:
                    await self._text(f'{{"id":{name},"type":"next","payload":{answer}}}')
        except Refused as refused:
            errors = refused.errors
        if self._operations.get(key) is asyncio.current_task():
            del self._operations[key]  # the last message frees the id, unless the client has already reused it
        if errors is None:
            await self._text(f'{{"id":{name},"type":"complete"}}')
        else:
            await self._error(name, errors)

    async def _error(self, name: str, errors: list[GraphQLError]) -> None:
        payload = json.dumps([error.formatted for error in errors])
        await self._text(f'{{"id":{name},"type":"error","payload":{payload}}}')

    def _end_with(self, closed: Closed) -> None:
        """Make the socket's own task, which waits for messages, close it. For the task of an operation."""
        if not self._until.expired():
            self._end = closed
            self._until.reschedule(asyncio.get_running_loop().time())


def _is_valid(payload: dict[str, Any]) -> bool:
    """Whether the protocol has such an operation. That of a persisted query may come without its document."""
    kinds = {"query": str, "operationName": str, "variables": dict, "extensions": dict}
    has_document = payload.get("query") is not None or PERSISTED in (payload.get("extensions") or {})
    return has_document and all(isinstance(payload.get(name), kind | None) for name, kind in kinds.items())


def _parse(message: Message) -> dict[str, Any]:
    """Raises `Closed` unless the message is a text with a JSON object."""
    with suppress(KeyError, TypeError, ValueError, RecursionError):
        if isinstance(parsed := json.loads(message["text"]), dict):
            return parsed
    raise Closed
