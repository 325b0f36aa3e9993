"""The API's whole surface: what is opened, which paths there are, what stands in front of them."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypedDict

from arq.connections import ArqRedis
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from server.compiled.middleware import CompiledExecution
from server.feeds.background import Feeds, open_feeds
from server.http.endpoint import GraphQLView
from server.http.headers import ResponseHeaders
from server.http.health import livez, readyz
from server.http.pages import GraphiQLInBrowsers, Pages
from server.http.prometheus import metrics
from server.metrics import CountedSockets, Metrics
from server.protection.admission import Admission
from server.protection.auth import Access
from server.schema.persisted_queries import PersistedQueries
from server.schema.root import schema
from server.standbys import open_reading
from server.subscriptions.operations import Streams
from server.subscriptions.websocket import Limits, Sockets
from shared.config.settings import Settings
from shared.queue.client import open_redis
from shared.storage.database import DEADLINE_SECONDS, Pool, create_pool
from shared.telemetry.traces import open_traces

POOL_SIZE = 10
STATEMENT_SECONDS = DEADLINE_SECONDS + 0.3
REDIS_RETRIES = 1
PREFLIGHT_SECONDS = 7200
"For how long a browser need not ask again; none remembers it longer than a day, Chromium no longer than this."

SDL = schema.as_str() + "\n"
SDL_ETAG = f'"{hashlib.sha256(SDL.encode()).hexdigest()[:32]}"'


class State(TypedDict):
    """What every request finds on `request.state`."""

    pool: Pool
    "For what is asked: of standbys, where they are named; else the primary's."
    primary: Pool
    redis: ArqRedis
    settings: Settings
    access: Access
    live: Feeds
    admission: Admission
    streams: Streams
    metrics: Metrics
    closing: asyncio.Event
    "Set when the process is to end: what would go on for ever ends then."


def create_app(settings: Settings, limits: Limits = Limits()) -> Starlette:  # noqa: B008  frozen
    """Raises `SettingsError` where API_TOKEN_FILE cannot be used."""
    access = Access(settings)
    pages = Pages()
    counted = Metrics()
    streams = Streams(schema, counted)
    closing = asyncio.Event()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[State]:
        pages.warn_when_missing()
        async with (
            open_traces(settings, "api"),
            create_pool(
                settings, name="server", size=POOL_SIZE, statement_seconds=STATEMENT_SECONDS, only_reads=True
            ) as primary,
            open_reading(settings, primary, size=POOL_SIZE, statement_seconds=STATEMENT_SECONDS) as pool,
            open_redis(settings, retries=REDIS_RETRIES) as redis,
            open_feeds(settings, redis, primary, limits.prices_behind) as live,
        ):
            yield {
                "pool": pool,
                "primary": primary,
                "redis": redis,
                "settings": settings,
                "access": access,
                "live": live,
                "admission": Admission(pool),
                "streams": streams,
                "metrics": counted,
                "closing": closing,
            }

    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "Accept", "X-Request-ID"],
        expose_headers=["ETag", "Retry-After", "X-Request-ID"],
        max_age=PREFLIGHT_SECONDS,
    )
    app = API(
        routes=[
            # Not a Mount: that answers POST /graphql with a redirect.
            Route("/graphql", GraphiQLInBrowsers(GraphQLView(schema, counted), pages)),
            WebSocketRoute("/graphql", CountedSockets(Sockets(streams, limits), counted)),
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/schema.graphql", sdl),
            Route("/", pages.dashboard),
            Route("/assets/{name}", pages.asset),
        ],
        middleware=[cors] if settings.cors_origins else [],
        lifespan=lifespan,
    )
    app.trusted_hops = settings.forwarded_allow_ips
    app.counted = counted
    app.state.closing = closing
    app.state.is_draining = False
    return app


class API(Starlette):
    trusted_hops: tuple[str, ...] = ()
    counted: Metrics | None = None
    persisted: PersistedQueries = PersistedQueries()

    def build_middleware_stack(self) -> ASGIApp:
        """Middleware, planned answers, and only then Starlette's own layers: those cost as much as such an answer."""
        outside, self.user_middleware = self.user_middleware, []
        app: ASGIApp = ResponseHeaders(super().build_middleware_stack())
        app = ProxyHeadersMiddleware(app, list(self.trusted_hops))  # type: ignore[assignment,arg-type]  # uvicorn's types
        app = CompiledExecution(app, schema, self.persisted, self.counted)
        for middleware in reversed(outside):
            app = middleware.cls(app, *middleware.args, **middleware.kwargs)
        return app


async def sdl(request: Request) -> Response:
    """As plain text, which a browser shows; for GraphQL's own media type, which nobody registered, it has no viewer."""
    if not request.state.settings.introspection:
        return PlainTextResponse("The schema is not told here.\n", 404)
    headers = {"ETag": SDL_ETAG, "Cache-Control": "no-cache"}
    if SDL_ETAG in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return PlainTextResponse(SDL, headers=headers)
