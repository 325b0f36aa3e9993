"""Answers computed once per change of the data, and never older than the request that asks for them.

An answer is read together with the version of its snapshot (migration 0007). If a request finds its answer kept, it
reads the version, in single flight with all requests that wait at that moment. If the version is the same, so is the
answer. What passing time alone changes has an instant at which it expires, by PostgreSQL's clock.
"""

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any
from uuid import UUID

from server.compiled.plans import FallBackToStrawberry, Outline
from server.compiled.rest import Rest
from server.compiled.single_flight import SingleFlight
from server.http.compression import gzip
from server.lru import LRU
from shared.grid import to_microseconds
from shared.storage.database import DEADLINE_SECONDS, Pool

KEPT_BYTES = 8 * 1024 * 1024
"Of all requests and their answers."

MAX_ANSWER_BYTES = KEPT_BYTES // 4
"A longer answer is not kept, because it would evict most others."

MAX_REQUEST_BYTES = 40_000
"For 1,000 instants. A longer request is parsed each time it comes."

_REQUEST_BYTES = 3000
"What a request takes besides its texts and its answer."

VERSION_SECONDS = 0.9
"For reading the version; the rest of a deadline is for computing the answer."

MAX_TAGS, MAX_DIGITS = 10, 18
"Of If-None-Match, and of the instant in a tag."

_VERSION = "select version, now() as now from data_version"


@dataclass(slots=True)
class Answer:
    """`tag` is `None` if the answer changes with the second alone, and must not be cached anywhere."""

    body: bytes
    tag: str | None = None
    is_known: bool = False
    "The client has it, by its tag, and the body was not computed."
    version: UUID | None = None
    expires_at: datetime | None = None
    zipped: asyncio.Future[bytes] | None = None

    @property
    def size(self) -> int:
        zipped = self.zipped.result() if self.zipped is not None and self.zipped.done() else b""
        return len(self.body) + len(zipped)


@dataclass(slots=True)
class Request:
    """What a request asks, for as long as it is among the recent ones."""

    key: bytes
    "The bytes of the request, on which all the rest depends. Empty if the request is not to be remembered."
    outline: Outline
    statement: SingleFlight
    identity: bytes
    "The statement and its parameters: what the answer depends on besides the data."
    rest: Rest | None
    variables: dict[str, Any] | None
    "For `rest`."
    weight: int = 0
    "See `Context.weight`."
    kept: Answer | None = None


class Answers:
    """One for a process."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._recent: LRU[bytes, Request] = LRU(limit)
        self._versions: SingleFlight | None = None

    def find(self, key: bytes) -> Request | None:
        return self._recent.get(key)

    def remember(self, request: Request) -> None:
        if request.key and len(request.key) <= MAX_REQUEST_BYTES:
            texts = 2 * (len(request.key) + len(request.identity)) + request.statement.length
            answer = 0 if request.kept is None else request.kept.size
            self._recent.put(request.key, request, _REQUEST_BYTES + texts + answer)

    async def answer(self, pool: Pool, request: Request, tags: str | None = None) -> Answer:
        """`tags`: of If-None-Match.

        Raises `StorageUnavailable`, and `FallBackToStrawberry` if the answer is an error that a resolver raises.
        """
        seconds = DEADLINE_SECONDS
        if request.kept is not None or tags is not None:
            began = time.monotonic()
            version, now = await self._version(pool)
            tag = _current_tag(tags, version, now, request.identity) if tags is not None else None
            if tag is not None:
                return Answer(b"", tag, is_known=True)
            kept = request.kept
            if kept is not None and kept.version == version and (kept.expires_at is None or now < kept.expires_at):
                return kept
            seconds -= time.monotonic() - began
        version, expires_at, body = await request.statement.row(pool, seconds)
        if body is None:
            raise FallBackToStrawberry
        if expires_at is not None and expires_at.year == 1:  # -infinity: it changes with every second
            return Answer(body)
        answer = Answer(body, _tag(version, request.identity, expires_at), False, version, expires_at)
        request.kept = answer if len(body) <= MAX_ANSWER_BYTES else None
        self.remember(request)
        return answer

    async def gzip(self, request: Request, answer: Answer) -> bytes:
        """Compresses an answer once for all that ask for it."""
        if answer.zipped is None:
            answer.zipped = asyncio.ensure_future(gzip(answer.body))
        zipped = await asyncio.shield(answer.zipped)
        if request.kept is answer:
            self.remember(request)
        return zipped

    async def _version(self, pool: Pool) -> tuple[UUID, datetime]:
        if self._versions is None:
            self._versions = SingleFlight(_VERSION, [])
        version, now = await self._versions.row(pool, VERSION_SECONDS)
        return version, now


def _current_tag(tags: str, version: UUID, now: datetime, identity: bytes) -> str | None:
    """The one of If-None-Match that is the current answer's."""
    for tag in tags.split(",")[:MAX_TAGS]:
        digest, _, expiry = tag.strip().removeprefix("W/").strip('"').partition("-")
        is_alive = not expiry or (
            expiry.isdecimal() and len(expiry) < MAX_DIGITS and to_microseconds(now) < int(expiry)
        )
        if is_alive and digest == _digest(version, identity, expiry):
            return _spell_tag(digest, expiry)
    return None


def _tag(version: UUID, identity: bytes, expires_at: datetime | None) -> str:
    """Weak, because the compressed answer has the same. The instant at which it expires can be read from it."""
    expiry = "" if expires_at is None else str(to_microseconds(expires_at))
    return _spell_tag(_digest(version, identity, expiry), expiry)


def _spell_tag(digest: str, expiry: str) -> str:
    return f'W/"{digest}-{expiry}"' if expiry else f'W/"{digest}"'


def _digest(version: UUID, identity: bytes, expiry: str) -> str:
    return blake2b(version.bytes + identity + expiry.encode(), digest_size=16).hexdigest()
