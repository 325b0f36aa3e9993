"""How many connections one process may have, and which are closed to make room for new ones."""

import asyncio
import heapq
import logging
import os
import resource
import socket
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from typing import Any, cast

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 6000
"Of one process, with its up to 5,000 sockets and event streams (see `Limits` in server/subscriptions/websocket.py)."

RESERVED_CONNECTIONS = 64
"Over the maximum, for the health checks alone."

HEALTH_PATHS = ("/livez", "/readyz")

CLOSED_AT_ONCE = 32
"To make room, so that the search for them is not repeated for each new connection."

SEARCH_SECONDS = 0.1
"After a search that found none to close. With 6,000 connections it takes about 3 ms."

ACCEPTS_PER_ITERATION = 32
BACKLOG = 2048
_SPARE_FILES = 200
"For PostgreSQL, Redis, the log, the reserve, and connections that are being refused."

FULL = b"Too many connections; try again later."


class Place(Enum):
    FREE = "free"
    RESERVED = "for health checks"
    NONE = "none"


class ConnectionTable:
    """One for each process."""

    def __init__(self, maximum: int = MAX_CONNECTIONS) -> None:
        self._maximum = maximum
        self._freed = 0
        "Places of connections that are being closed."
        self._search_at = 0.0

    def place(self, connections: Iterable[Any], newest: object, number: int, now: float) -> Place:
        """`number`: of all connections, the newest included. `now`: the loop's time."""
        if number <= self._maximum:
            self._freed = 0
            return Place.FREE
        has_reserve = number <= self._maximum + RESERVED_CONNECTIONS
        if not self._freed and (now >= self._search_at or not has_reserve):
            self._freed = close_awaiting(connections, newest)
            if not self._freed:
                self._search_at = now + SEARCH_SECONDS
        if self._freed:
            self._freed -= 1
            return Place.FREE
        return Place.RESERVED if has_reserve else Place.NONE


def close_awaiting(connections: Iterable[Any], newest: object) -> int:
    """Close the connections that have waited longest for their clients. Returns how many.

    Those are idle, or slow to send a request, or have not finished a WebSocket's handshake.
    """
    waiting = [
        (since, number, one)
        for number, one in enumerate(connections)
        if one is not newest and (since := one.awaiting_since) is not None and not one.transport.is_closing()
    ]
    longest = heapq.nsmallest(CLOSED_AT_ONCE, waiting)
    for _, _, one in longest:
        one.transport.abort()
    return len(longest)


async def refuse_request(_: object, __: object, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    """An ASGI application for connections that are reserved for health checks."""
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(FULL))]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": FULL})


async def accept_more(
    servers: Iterable[asyncio.AbstractServer], protocol: Callable[[], asyncio.Protocol]
) -> list[asyncio.Server]:
    """Add duplicates of the listening sockets.

    uvloop accepts one connection for each listening socket in an iteration of the loop. With iterations of 5 ms, 300
    simultaneous connections are accepted in 0.12 s instead of 2.7 s; admission control cannot see them before.
    """
    loop = asyncio.get_running_loop()
    return [
        await loop.create_server(protocol, sock=socket.socket(fileno=os.dup(listening.fileno())), backlog=BACKLOG)
        for server in servers
        for listening in cast(asyncio.Server, server).sockets
        for _ in range(ACCEPTS_PER_ITERATION - 1)
    ]


def raise_file_limit() -> int:
    """Raise the limit of open files for `MAX_CONNECTIONS`; return how many connections it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + _SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    connections = max(wanted - _SPARE_FILES, _SPARE_FILES)
    if connections < MAX_CONNECTIONS:
        logger.warning("at most %d connections, because the process may open only %d files", connections, wanted)
    return connections
