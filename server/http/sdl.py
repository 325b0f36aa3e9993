"""`/schema.graphql`: the schema in GraphQL's schema definition language."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from server.http.caching import cacheable
from server.schema.root import schema

SDL = schema.as_str() + "\n"


async def sdl(request: Request) -> Response:
    """As plain text, because browsers do not show a text of GraphQL's own media type."""
    if not request.state.settings.introspection:
        return PlainTextResponse("This server does not publish its schema.\n", 404)
    return cacheable(request, SDL.encode(), "text/plain", {})
