"""GraphQL over HTTP: Strawberry's view, with our context, and a coded JSON answer to what is no GraphQL request."""

import hmac
import json
from typing import Any

from cross_web import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket
from strawberry.asgi import GraphQL

from server.context import Context
from shared.settings import Settings

MAX_BODY_BYTES = 1024 * 1024


class GraphQLView(GraphQL[Context, None]):
    async def run(self, request: Any, *arguments: Any, **options: Any) -> Any:
        try:
            await _refuse_large_body(request)
            return await super().run(request, *arguments, **options)
        except HTTPException as error:
            return refusal(error.status_code, error.reason)

    async def get_context(self, request: Request | WebSocket, response: Response | WebSocket) -> Context:
        state = request.state
        return Context(state.pool, state.redis, state.settings, _is_authenticated(request, state.settings))

    def parse_json(self, data: str | bytes) -> Any:
        value = super().parse_json(data)
        if isinstance(data, bytes) and not isinstance(value, dict | list):  # text is a parameter of a GET
            raise HTTPException(400, "A request is a JSON object with a `query`.")
        return value

    def decode_json(self, data: str | bytes) -> object:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            # Not UTF-8, a number of thousands of digits, brackets without end: all of it is no JSON to us.
            raise json.JSONDecodeError(str(error), "", 0) from error


def refusal(status: int, message: str) -> Response:
    """An answer to what is no GraphQL request, in the shape that GraphQL clients read."""
    body = {"errors": [{"message": message, "extensions": {"code": "BAD_USER_INPUT"}}]}
    # ASCII, for the message may quote half a surrogate pair.
    headers = {"Allow": "GET, POST"} if status == 405 else None
    return Response(json.dumps(body), status, headers, media_type="application/json")


async def _refuse_large_body(request: Request) -> None:
    """Read the body, which Starlette keeps for the view, but no further than is allowed."""
    length = 0
    chunks = []
    async for chunk in request.stream():
        length += len(chunk)
        if length > MAX_BODY_BYTES:
            raise HTTPException(413, f"A request may have {MAX_BODY_BYTES} bytes, no more.")
        chunks.append(chunk)
    request._body = b"".join(chunks)


def _is_authenticated(request: Request | WebSocket, settings: Settings) -> bool:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    # In constant time: how much of a guess was right must not show.
    return (
        settings.api_token is not None
        and scheme.lower() == "bearer"
        and hmac.compare_digest(token.strip().encode(), settings.api_token.encode())
    )
