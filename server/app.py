"""The whole API on one screen: the resources it opens, its paths, and its middleware."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypedDict

from arq.connections import ArqRedis
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from server.compiled.execution import Compiled
from server.compiled.middleware import CompiledQueries
from server.feeds.background import Feeds, open_feeds
from server.http.endpoint import GraphQLView
from server.http.export import Exports
from server.http.headers import ResponseHeaders
from server.http.health import livez, readyz
from server.http.pages import GraphiQLInBrowsers, Pages
from server.http.prometheus import metrics
from server.http.sdl import sdl
from server.metrics import CountedSockets, Metrics, all_labels
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
"How long a browser may cache a preflight's answer. Chromium caches no answer for longer."


class State(TypedDict):
    """The attributes of `request.state`."""

    pool: Pool
    "For queries: of the standbys if DATABASE_READ_URL names some, else the primary's."
    primary: Pool
    redis: ArqRedis
    settings: Settings
    access: Access
    feeds: Feeds
    admission: Admission
    streams: Streams
    metrics: Metrics
    closing: asyncio.Event
    "Set when the process ends, so that event streams end, too."


def create_app(settings: Settings, limits: Limits = Limits()) -> Starlette:  # noqa: B008  frozen
    """Raises `SettingsError` if API_TOKEN_FILE cannot be used."""
    access = Access(settings)
    pages = Pages()
    counted = Metrics(all_labels(schema._schema))
    compiled = Compiled(schema, counted)
    persisted = PersistedQueries()
    streams = Streams(schema, compiled, counted)
    exports = Exports(counted)
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
            open_feeds(settings, redis, primary, limits.prices_behind) as feeds,
        ):
            yield {
                "pool": pool,
                "primary": primary,
                "redis": redis,
                "settings": settings,
                "access": access,
                "feeds": feeds,
                "admission": Admission(pool),
                "streams": streams,
                "metrics": counted,
                "closing": closing,
            }

    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],  # a preflight gets the names that it asks for, because * does not cover Authorization
        expose_headers=["Content-Disposition", "ETag", "Retry-After", "X-Request-ID"],
        max_age=PREFLIGHT_SECONDS,
    )

    def put_in_front(app: ASGIApp) -> ASGIApp:
        """Compiled queries skip Starlette's own layers, which take as long as a whole such query."""
        behind = ProxyHeadersMiddleware(ResponseHeaders(app), list(settings.forwarded_allow_ips))  # type: ignore[arg-type]  # uvicorn's types
        return CompiledQueries(behind, compiled, persisted, counted)  # type: ignore[arg-type]

    app = API(
        put_in_front,
        routes=[
            # Not a Mount, which would redirect POST /graphql.
            Route("/graphql", GraphiQLInBrowsers(GraphQLView(schema, persisted, counted), pages)),
            WebSocketRoute("/graphql", CountedSockets(Sockets(streams, persisted, limits), counted)),
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/schema.graphql", sdl),
            Route("/export/prices.csv", exports, methods=["GET"]),
            Route("/export/candles.csv", exports, methods=["GET"]),
            Route("/", pages.dashboard),
            Route("/assets/{name}", pages.asset),
        ],
        middleware=[cors] if settings.cors_origins else [],
        lifespan=lifespan,
    )
    app.state.closing = closing
    app.state.is_draining = False
    return app


class API(Starlette):
    def __init__(self, put_in_front: Callable[[ASGIApp], ASGIApp], **options: Any) -> None:
        super().__init__(**options)
        self._put_in_front = put_in_front

    def build_middleware_stack(self) -> ASGIApp:
        outside, self.user_middleware = self.user_middleware, []
        app = self._put_in_front(super().build_middleware_stack())
        for middleware in reversed(outside):
            app = middleware.cls(app, *middleware.args, **middleware.kwargs)
        return app
