"""What HTTP, sockets and event streams share: compile what is asked, and answer it."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter

import asyncpg
import orjson
from graphql import GraphQLFormattedError

from server.compiled.answers import Answer, Answers, Request
from server.compiled.compiler import Compiler
from server.compiled.plans import FallBackToStrawberry, Outline
from server.compiled.rest import Rest, answer_rest
from server.compiled.single_flight import SingleFlight
from server.metrics import OK, Metrics
from server.protection.admission import Admission, busy
from server.reads.context import Context
from server.schema.documents import GraphQLRequest, prepare
from server.schema.root import Schema
from shared.errors import StorageUnavailable
from shared.storage.database import Pool


class Compiled:
    """One for a process."""

    def __init__(self, schema: Schema, metrics: Metrics) -> None:
        self.compiler = Compiler(schema)
        self.answers = Answers()
        self._schema = schema
        self._metrics = metrics

    def find(self, key: bytes) -> Request | None:
        """A recent request with these bytes: pages ask the same again and again."""
        request = self.answers.find(key)
        self._metrics.plan_hits += request is not None
        return request

    async def prepare(self, query: str, admission: Admission) -> None:
        """To be awaited before `learn`. Raises `RateLimited`."""
        await prepare(query, self._schema._schema, admission.run_document)

    def learn(self, context: Context, asked: GraphQLRequest, key: bytes) -> Request:
        """`key`: the request's bytes, by which it is found again; empty if it is not to be remembered.

        Raises `FallBackToStrawberry`.
        """
        misses = self.compiler.plans.misses
        plan = self.compiler.plan_for(asked.query, asked.operation_name, asked.variables)
        statements = self.compiler.statements(plan, context, asked.variables)
        parameters = [value for statement in statements for value in statement.parameters]
        composed = plan.compose(statements)
        identity = composed.digest + repr(parameters).encode(errors="surrogatepass")
        flight = SingleFlight(composed.sql, parameters)
        is_miss = self.compiler.plans.misses > misses
        self._metrics.plan_misses += is_miss
        self._metrics.plan_hits += not is_miss
        if plan.rest is not None:
            return Request(b"", plan.outline, flight, identity, plan.rest, asked.variables, context.weight)
        request = Request(key, plan.outline, flight, identity, None, None, context.weight)
        self.answers.remember(request)
        return request

    async def answer(
        self, context: Context, admission: Admission, request: Request, began: float, tags: str | None = None
    ) -> Answer:
        """`began`: when it was asked, by `perf_counter`. `tags`: of If-None-Match.

        Raises `FallBackToStrawberry`, `RateLimited`.
        """
        outline = request.outline
        errors: list[GraphQLFormattedError] = []
        admission.under_way += 1
        try:
            async with admission.heavy_reads.place(request.weight):
                if request.rest is None:
                    answer = await self.answers.answer(context.pool, request, tags)
                else:
                    answer, errors = await self._join(context, request, request.rest)
        except StorageUnavailable as error:
            errors = _unavailable(outline, error)
            answer = _written(outline, outline.empty_members, errors)
        except asyncpg.PostgresError as error:  # a fault of ours, which Strawberry's path meets, masks and logs
            raise FallBackToStrawberry from error
        finally:
            admission.under_way -= 1
        self._metrics.answered(outline.label, errors[0]["extensions"]["code"] if errors else OK, began)
        return answer

    async def text(self, context: Context, asked: GraphQLRequest, admission: Admission) -> str | None:
        """The answer for a socket or an event stream; `None` if Strawberry has to answer. Raises `RateLimited`."""
        began = perf_counter()
        try:
            key = orjson.dumps(tuple(asked))
        except TypeError:  # half a surrogate pair, or a number of over 64 bits
            return None
        request = self.find(key)
        if admission.is_full() if request is not None else admission.is_full_for_work():
            raise busy()
        fresh = replace(context)  # Strawberry counts the rows again
        try:
            request = request or self.learn(fresh, asked, key)
            return (await self.answer(fresh, admission, request, began)).body.decode()
        except FallBackToStrawberry:
            self._metrics.fallbacks += 1
            return None

    async def _join(self, context: Context, request: Request, rest: Rest) -> tuple[Answer, list[GraphQLFormattedError]]:
        """At the same time, so that an outage of both servers is answered in time."""
        (members, errors), (others, more) = await asyncio.gather(
            self._members(context.pool, request),
            answer_rest(self._schema, rest, replace(context), request.variables),
        )
        errors += [error.formatted for error in more]
        return _written(request.outline, {**members, **others}, errors), errors

    async def _members(self, pool: Pool, request: Request) -> tuple[Mapping[str, bytes], list[GraphQLFormattedError]]:
        outline = request.outline
        try:
            _, _, *found = await request.statement.row(pool)
        except StorageUnavailable as error:
            return outline.empty_members, _unavailable(outline, error)
        if None in found:
            raise FallBackToStrawberry
        return dict(zip(outline.empty_members, found, strict=True)), []


def _written(outline: Outline, members: Mapping[str, bytes], errors: Sequence[GraphQLFormattedError]) -> Answer:
    body = b'{"data":{' + b",".join(members[key] for key in outline.keys) + b"}"
    if errors:
        body += b',"errors":' + json.dumps(errors, separators=(",", ":")).encode()
    return Answer(body + b"}")


def _unavailable(outline: Outline, error: StorageUnavailable) -> list[GraphQLFormattedError]:
    return [
        {"message": str(error), "locations": locations, "path": [key], "extensions": error.extensions}
        for key, locations in outline.locations.items()
    ]
