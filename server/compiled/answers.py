"""Answers computed once per change of the data, and never older than the request that asks for them.

An answer is read together with the version of its snapshot (migration 0007). If a request finds its answer kept, it
reads the version, in single flight with all requests that wait at that moment. If the version is the same, so is the
answer. What passing time alone changes has an instant at which it expires, by PostgreSQL's clock.
"""

import asyncio
import time
import zlib
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any
from uuid import UUID

from server.compiled.plans import FallBackToStrawberry, Plan
from server.compiled.single_flight import SingleFlight
from server.lru import LRU
from shared.grid import to_microseconds
from shared.storage.database import DEADLINE_SECONDS, Pool

KEPT_BYTES = 16 * 1024 * 1024
"Of all requests and their answers."

_REQUEST_BYTES = 3000
"What a request takes besides its bytes and its answer."

VERSION_SECONDS = 0.9
"For reading the version; the rest of a deadline is for computing the answer."

MIN_GZIP_BYTES = 1000
GZIP_IN_THREAD_BYTES = 32 * 1024
"Compressing more than this would hold the event loop for over a millisecond."

MAX_TAGS, MAX_DIGITS = 10, 18
"Of If-None-Match, and of the instant in a tag."

_GZIP_LEVEL = 5
_VERSION = "select version, now() as now from data_version"


@dataclass(slots=True)
class Answer:
    """`tag` is `None` if the answer changes with the second alone, and must not be cached anywhere."""

    body: bytes
    tag: str | None = None
    version: UUID | None = None
    expires_at: datetime | None = None
    zipped: bytes | None = None

    async def gzip(self) -> bytes:
        if self.zipped is None:
            is_large = len(self.body) > GZIP_IN_THREAD_BYTES
            self.zipped = await asyncio.to_thread(gzip, self.body) if is_large else gzip(self.body)
        return self.zipped


@dataclass(slots=True)
class Request:
    """What a request asks, for as long as it is among the recent ones."""

    plan: Plan
    statement: SingleFlight
    identity: bytes
    "The statement and its parameters: what the answer depends on besides the data."
    variables: dict[str, Any] | None
    persisted: tuple[str, dict[str, Any]] | None = None
    "The document and the extensions, if they register a persisted query."
    kept: Answer | None = None


class Answers:
    """One for a process."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._recent: LRU[bytes, Request] = LRU(limit)
        self._versions: SingleFlight | None = None

    def find(self, key: bytes) -> Request | None:
        return self._recent.get(key)

    def remember(self, key: bytes, request: Request) -> None:
        size = 0 if request.kept is None else len(request.kept.body) + len(request.kept.zipped or b"")
        self._recent.put(key, request, _REQUEST_BYTES + len(key) + size)

    async def answer(self, pool: Pool, key: bytes, request: Request) -> Answer:
        """Raises `StorageUnavailable`, and `FallBackToStrawberry` if the answer is an error that a resolver raises."""
        seconds = DEADLINE_SECONDS
        if request.kept is not None:
            began = time.monotonic()
            version, now = await self._version(pool)
            kept = request.kept
            if kept is not None and kept.version == version and (kept.expires_at is None or now < kept.expires_at):
                return kept
            seconds -= time.monotonic() - began
        version, expires_at, body = await request.statement.row(pool, seconds)
        if body is None:
            raise FallBackToStrawberry
        if expires_at is not None and expires_at.year == 1:  # -infinity: it changes with every second
            return Answer(body)
        answer = Answer(body, _tag(version, request.identity, expires_at), version, expires_at)
        request.kept = answer
        self.remember(key, request)
        return answer

    async def current_tag(self, pool: Pool, request: Request, tags: str) -> str | None:
        """The tag in If-None-Match that is the current answer's."""
        version, now = await self._version(pool)
        for tag in tags.split(",")[:MAX_TAGS]:
            digest, _, expiry = tag.strip().removeprefix("W/").strip('"').partition("-")
            is_alive = not expiry or (
                expiry.isdecimal() and len(expiry) < MAX_DIGITS and to_microseconds(now) < int(expiry)
            )
            if is_alive and digest == _digest(version, request.identity, expiry):
                return tag.strip()
        return None

    async def _version(self, pool: Pool) -> tuple[UUID, datetime]:
        if self._versions is None:
            self._versions = SingleFlight(_VERSION, [])
        version, now = await self._versions.row(pool, VERSION_SECONDS)
        return version, now


def gzip(body: bytes) -> bytes:
    compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return compressor.compress(body) + compressor.flush()


def _tag(version: UUID, identity: bytes, expires_at: datetime | None) -> str:
    """Weak, because the compressed answer has the same. The instant at which it expires can be read from it."""
    expiry = "" if expires_at is None else str(to_microseconds(expires_at))
    return f'W/"{_digest(version, identity, expiry)}{"-" if expiry else ""}{expiry}"'


def _digest(version: UUID, identity: bytes, expiry: str) -> str:
    return blake2b(version.bytes + identity + expiry.encode(), digest_size=16).hexdigest()
