"""The API's whole surface: what is opened, which paths there are, what stands in front of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypedDict

from arq.connections import ArqRedis
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from server.execution import PlannedExecution
from server.graphql import GraphQLView
from server.health import livez, readyz
from server.schema import schema
from shared.db import Pool, create_pool
from shared.queue import open_redis
from shared.settings import Settings

POOL_SIZE = 10
REDIS_RETRIES = 1


class State(TypedDict):
    """What every request finds on `request.state`."""

    pool: Pool
    redis: ArqRedis
    settings: Settings


def create_app(settings: Settings) -> Starlette:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[State]:
        async with (
            await create_pool(settings, name="server", size=POOL_SIZE) as pool,
            open_redis(settings, retries=REDIS_RETRIES) as redis,
        ):
            yield {"pool": pool, "redis": redis, "settings": settings}

    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type"],
    )
    return Starlette(
        routes=[
            # Not a Mount: that answers POST /graphql with a redirect.
            Route("/graphql", GraphQLView(schema)),
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/schema.graphql", sdl),
            Route("/", home),
        ],
        middleware=[*([cors] if settings.cors_origins else []), Middleware(PlannedExecution, schema)],
        lifespan=lifespan,
    )


async def sdl(_: Request) -> Response:
    return PlainTextResponse(schema.as_str() + "\n")


async def home(_: Request) -> Response:
    return RedirectResponse("/graphql")
