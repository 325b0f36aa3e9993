"""Answers written by PostgreSQL: what makes reading prices fast. Nothing else knows about it.

A document that reads nothing but prices becomes, once, one SQL statement that writes the answer's JSON
(`server/planning.py`); from then on a request is that statement. Everything else goes to Strawberry unchanged, and so
does a request with an argument that a resolver would refuse: no error is known here but that the storage is away.
"""

import json
from collections.abc import Iterable
from typing import Any

import asyncpg
from graphql import GraphQLError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.context import Context
from server.errors import public_error
from server.graphql import MAX_BODY_BYTES
from server.planning import Plan, Planner, Unplanned
from server.schema import Schema
from shared.db import fetch
from shared.errors import StorageUnavailable


class PlannedExecution:
    """ASGI middleware: answers what is planned, passes on what is not."""

    def __init__(self, app: ASGIApp, schema: Schema) -> None:
        self._app = app
        self._planner = Planner(schema)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/graphql" or scope["method"] != "POST" or not _is_plain(scope):
            await self._app(scope, receive, send)
            return
        messages = [await receive()]
        length = len(messages[0].get("body", b""))
        while messages[-1].get("more_body") and length <= MAX_BODY_BYTES:
            messages.append(await receive())
            length += len(messages[-1].get("body", b""))
        if messages[-1]["type"] == "http.disconnect":
            return
        try:
            if length > MAX_BODY_BYTES:
                raise Unplanned
            answer = await self._answer(scope["state"], b"".join(m.get("body", b"") for m in messages))
        except Unplanned:
            await self._app(scope, _replay(messages, receive), send)
            return
        body = answer.encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, state: Any, body: bytes) -> str:
        try:
            request = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Unplanned from error
        match request:
            case {"query": str(query)}:
                operation_name, variables = request.get("operationName"), request.get("variables")
                objects = isinstance(variables, dict | None) and isinstance(request.get("extensions"), dict | None)
                if objects and isinstance(operation_name, str | None):
                    context = Context(state["pool"], state["redis"], state["settings"])
                    return await self._run(context, query, operation_name, variables)
        raise Unplanned

    async def _run(self, context: Context, query: str, operation_name: str | None, variables: Any) -> str:
        plan = self._planner.plan_for(query, operation_name)
        parameters = self._planner.parameters(plan, context, variables)
        try:
            rows = await fetch(context.pool, plan.sql, *parameters)
        except StorageUnavailable as error:
            return _refused(plan, error)
        except asyncpg.PostgresError as error:  # a fault of ours, which Strawberry's path meets, masks and logs
            raise Unplanned from error
        answer: str = rows[0][0]
        return answer


def _is_plain(scope: Scope) -> bool:
    """JSON in, JSON out. Other ways of asking, such as an event stream, are the view's."""
    is_json = False
    for name, value in scope["headers"]:
        if name == b"content-type":
            is_json = value.partition(b";")[0].strip().lower() == b"application/json"
        elif name == b"accept" and (b"event-stream" in value or b"multipart" in value):
            return False
    return is_json


def _replay(messages: Iterable[Message], receive: Receive) -> Receive:
    read = iter(messages)

    async def replayed() -> Message:
        for message in read:
            return message
        return await receive()

    return replayed


def _refused(plan: Plan, error: StorageUnavailable) -> str:
    errors = [
        public_error(GraphQLError(str(error), list(root.nodes), path=[root.key], original_error=error)).formatted
        for root in plan.roots
    ]
    return json.dumps({"data": plan.nothing, "errors": errors}, separators=(",", ":"))
