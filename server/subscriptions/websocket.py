"""The WebSocket `/graphql`: the protocol graphql-transport-ws, and what bounds a socket.

Our own: an event is written once and sent to all who asked for it, and what is sent waits for the peer, so one that
does not read holds what uvicorn buffers (64 KiB) and a place in the log of `server/feeds/price_feed.py`.
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
from structlog.contextvars import bind_contextvars

from server.feeds.price_feed import TooSlow
from server.protection.auth import client_of, is_authenticated
from server.reads.context import Context
from server.subscriptions.operations import Refused, Streams
from shared.config.settings import Settings
from shared.errors import QueryTooComplex

logger = logging.getLogger(__name__)

PROTOCOL = "graphql-transport-ws"
TRY_AGAIN_LATER = 1013
_CLOSE_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    sockets: int = 5000
    "Of one process."
    operations: int = 50
    "At a time, of one socket."
    id_length: int = 128
    init_seconds: float = 10
    prices_behind: int = 10_000
    "Prices kept for those who follow them: who falls further behind is closed, and comes back with `since`."


class Closed(Exception):
    """This socket is to be closed with a code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Sockets:
    """The ASGI application behind the route."""

    def __init__(self, streams: Streams, limits: Limits) -> None:
        self._streams = streams
        self._limits = limits
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        settings: Settings = scope["state"]["settings"]
        headers = Headers(scope=scope)
        if not is_allowed_origin(headers, settings, scope["scheme"]):
            await send({"type": "websocket.close"})  # before it is accepted: status 403
            return
        if PROTOCOL not in scope["subprotocols"]:
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": 4406, "reason": "Subprotocol not acceptable"})
            return
        await send({"type": "websocket.accept", "subprotocol": PROTOCOL})
        if self._open >= self._limits.sockets:
            reason = "Too many sockets; try again later"
            await send({"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": reason})
            return
        self._open += 1
        try:
            socket = Socket(scope, receive, send, self._streams, self._limits)
            socket.is_authenticated = is_authenticated(scope)
            await socket.run()
        finally:
            self._open -= 1


def is_allowed_origin(headers: Headers, settings: Settings, scheme: str) -> bool:
    """A page may open a socket (of `scheme`) if it comes from this server or from one of CORS_ORIGINS."""
    origin = headers.get("origin")
    if origin is None or origin in settings.cors_origins or "*" in settings.cors_origins:
        return True
    page, _, host = origin.lower().partition("://")
    # Behind a proxy that is not trusted to tell, a socket seems to be plain though its page is not.
    return host == headers.get("host", "").lower() and (page == "https" or (page == "http" and scheme == "ws"))


class Socket:
    def __init__(self, scope: Scope, receive: Receive, send: Send, streams: Streams, limits: Limits) -> None:
        self._state = scope["state"]
        self._client = client_of(scope)
        self._receive = receive
        self._send = send
        self._streams = streams
        self._limits = limits
        self._is_initialised = False
        self._operations: dict[str, asyncio.Task[None]] = {}
        self._running: set[asyncio.Task[None]] = set()
        "Those whose id is free again, but whose last message the peer has not taken, too."
        self.is_authenticated = False

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
        except OSError:  # the peer has gone
            pass
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _close(self, closed: Closed) -> None:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):  # a peer that does not read does not read this either
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
            case {"type": "subscribe", "id": str(key), "payload": {"query": str(query), **rest}} if key:
                await self._subscribe(key, query, rest)
            case {"type": "complete", "id": str(key)}:
                if task := self._operations.pop(key, None):
                    task.cancel()
                    self._running.discard(task)
            case _:
                raise Closed(4400, "Invalid message")

    async def _init(self, payload: object) -> None:
        if self._is_initialised:
            raise Closed(4429, "Too many initialisation requests")
        if not isinstance(payload, dict | None):
            raise Closed(4400, "Invalid message")
        settings: Settings = self._state["settings"]
        token = (payload or {}).get("Authorization", (payload or {}).get("authorization"))
        if token is not None and settings.has_token:
            self.is_authenticated = isinstance(token, str) and self._state["access"].accepts(token)
            if not self.is_authenticated:
                raise Closed(4403, "Forbidden")
        if settings.require_token_for_reads and not self.is_authenticated:
            raise Closed(4403, "Forbidden")
        self._is_initialised = True
        self._until.reschedule(None)
        await self._text('{"type":"connection_ack"}')

    async def _subscribe(self, key: str, query: str, rest: dict[Any, Any]) -> None:
        if not self._is_initialised:
            raise Closed(4401, "Unauthorized")
        if key in self._operations:
            # In ASCII, for a reason has 123 bytes, and the id may be anything.
            raise Closed(4409, f"Subscriber for {json.dumps(key)[1:-1][:80]} already exists")
        variables, operation_name = rest.get("variables"), rest.get("operationName")
        if len(key) > self._limits.id_length or not isinstance(operation_name, str | None):
            raise Closed(4400, "Invalid message")
        if not isinstance(variables, dict | None) or not isinstance(rest.get("extensions"), dict | None):
            raise Closed(4400, "Invalid message")
        if len(self._running) >= self._limits.operations:
            message = f"A socket may have {self._limits.operations} operations at a time, no more."
            await self._error(json.dumps(key), [GraphQLError(message, original_error=QueryTooComplex(message))])
            return
        state = self._state
        context = Context(
            state["pool"], state["redis"], state["settings"], self.is_authenticated, state["live"], client=self._client
        )
        answers = self._streams.answers(context, query, variables, operation_name, state["admission"])
        task = asyncio.create_task(self._operate(key, answers))
        self._operations[key] = task
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _operate(self, key: str, answers: AsyncGenerator[str]) -> None:
        bind_contextvars(operation_id=key.encode(errors="backslashreplace").decode())
        try:
            await self._send_all(key, answers)
        except TooSlow:
            self._end_with(Closed(TRY_AGAIN_LATER, "Too slow: come back with `since`"))
        except OSError:
            pass  # the peer has gone, which shows where messages are received
        except Exception:
            logger.exception("fault in an operation")
            self._end_with(Closed(4500, "Internal server error"))

    async def _send_all(self, key: str, answers: AsyncGenerator[str]) -> None:
        """Send what comes of one operation. Nothing is sent for an id that the client has completed."""
        name, errors = json.dumps(key), None
        try:
            async with aclosing(answers):
                async for answer in answers:
                    await self._text(f'{{"id":{name},"type":"next","payload":{answer}}}')
        except Refused as refused:
            errors = refused.errors
        self._forget(key)
        if errors is None:
            await self._text(f'{{"id":{name},"type":"complete"}}')
        else:
            await self._error(name, errors)

    async def _error(self, name: str, errors: list[GraphQLError]) -> None:
        payload = json.dumps([error.formatted for error in errors])
        await self._text(f'{{"id":{name},"type":"error","payload":{payload}}}')

    def _end_with(self, closed: Closed) -> None:
        """From an operation's task: the socket's own, which waits for messages, is to close it."""
        if not self._until.expired():
            self._end = closed
            self._until.reschedule(asyncio.get_running_loop().time())

    def _forget(self, key: str) -> None:
        """Its last message frees the id."""
        if self._operations.get(key) is asyncio.current_task():
            del self._operations[key]


def _parse(message: Message) -> dict[str, Any]:
    """Raises `Closed` for what is no JSON object in a text message."""
    try:
        parsed = json.loads(message["text"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise Closed(4400, "Invalid message") from None
    if not isinstance(parsed, dict):
        raise Closed(4400, "Invalid message")
    return parsed
