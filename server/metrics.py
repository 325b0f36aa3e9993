"""What the API counts; `server/http/prometheus.py` is where Prometheus reads it.

Every label has few values, none of them a client's own word: an operation is the root field it asks for, never the name
it was given.
"""

from collections import Counter, defaultdict
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import Final

from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
    get_operation_ast,
)
from prometheus_client.core import Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.schema.documents import load_document
from server.schema.root import schema
from shared.errors import QueryTooComplex, ServiceError
from shared.telemetry.metrics import Labels, Timing, build_info, counter, create_registry, gauge, histogram

OK: Final = "ok"
_UNREADABLE = {"GRAPHQL_PARSE_FAILED", QueryTooComplex.code}

TOO_SLOW = "TOO_SLOW"
"Of a follower that has fallen too far behind: it is closed, not answered."

REFUSED, SEVERAL, INTROSPECTION = "refused", "several", "introspection"

FIELDS = frozenset(
    name
    for root in (schema._schema.query_type, schema._schema.mutation_type, schema._schema.subscription_type)
    for name in (root.fields if root else ())
)
"What can be asked for at all; validation refuses everything else."

OPERATIONS = (*sorted(FIELDS), SEVERAL, INTROSPECTION, REFUSED)

OUR_CODES = (OK, "STORAGE_UNAVAILABLE", "QUEUE_UNAVAILABLE", "INTERNAL_SERVER_ERROR")
"Told from the start, as 0: of a series that begins with its first error Prometheus would not see that one."

BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
"Seconds. A planned answer takes some 0.3 ms, and 2 s is what a client is promised when something is away."

SOCKET_CODES = frozenset(
    {1000, 1001, 1005, 1006, 1009, 1011, 1012, 1013, 4400, 4401, 4403, 4406, 4408, 4409, 4429, 4500}
)
"Why a socket is closed. A client may send any number, which is told as `other`."


class Metrics:
    """One for an app."""

    def __init__(self) -> None:
        self._requests: defaultdict[Labels, Timing] = defaultdict(lambda: Timing(BUCKETS))
        self._ended: Counter[Labels] = Counter()
        self._closed: Counter[Labels] = Counter()
        self.plan_hits = 0
        self.plan_misses = 0
        self.unplanned = 0
        self.sockets = 0
        self.prices_sent = 0
        self.subscriptions: Counter[Labels] = Counter({("priceUpdates",): 0, ("fetchProgress",): 0})
        self._registry = create_registry()

    def answered(self, operation: str, code: str, began: float) -> None:
        """`code`: what the answer's first error has, or `OK`. `began`: a time of `time.perf_counter`."""
        self._requests[operation, code].add_since(began)

    def ended(self, operation: str, code: str) -> None:
        """A subscription: how long it lasted was the client's wish."""
        self._ended[operation, code] += 1

    def closed(self, code: int | str) -> None:
        self._closed[str(code) if code in SOCKET_CODES or isinstance(code, str) else "other",] += 1

    def _counts(self) -> Mapping[Labels, float]:
        counts: Counter[Labels] = Counter({(name, code): 0 for name in OPERATIONS for code in OUR_CODES})
        counts.update(self._ended)
        counts.update({labels: timing.count for labels, timing in self._requests.items()})
        return counts

    def _timings(self) -> Iterator[tuple[Labels, Sequence[Timing]]]:
        for name in sorted({operation for operation, _ in self._requests}):
            yield (name,), [timing for (operation, _), timing in self._requests.items() if operation == name]

    def collect(self) -> Iterator[Metric]:
        """What this process counts."""
        yield from self._registry.collect()
        yield build_info()
        yield counter(
            "requests",
            "GraphQL operations answered, however they were asked, by the root field they ask for (several; "
            "introspection; refused: none that could be run) and the first error's extensions.code, or ok. A "
            "subscription counts when it has ended; TOO_SLOW: it did not keep up.",
            ["operation", "code"],
            self._counts(),
        )
        yield histogram(
            "request_duration_seconds",
            "From a request that is here whole to its answer, by root field; without subscriptions.",
            ["operation"],
            self._timings(),
        )
        yield counter(
            "plan_lookups",
            "Requests for which an SQL statement that writes the answer was there (hit), was made (miss), or cannot "
            "be had, so that Strawberry answered (unplanned).",
            ["result"],
            {("hit",): self.plan_hits, ("miss",): self.plan_misses, ("unplanned",): self.unplanned},
        )
        yield gauge("sockets", "WebSockets open now.", [], {(): self.sockets})
        yield counter(
            "sockets_closed",
            "WebSockets closed, by code; 403: of a foreign origin, never opened; other: a number of the client's own.",
            ["code"],
            self._closed,
        )
        yield gauge(
            "subscriptions",
            "Subscriptions that go on now, over WebSockets and as event streams, by root field.",
            ["operation"],
            dict(self.subscriptions),
        )
        yield counter("prices_sent", "Prices sent to subscribers, each of them counted.", [], {(): self.prices_sent})


def operation_of(query: str, operation_name: str | None, errors: Sequence[GraphQLError] | None = None) -> str:
    """What metrics call an operation. `errors`: what it was answered."""
    if errors and errors[0].path is None and code_of(errors) in _UNREADABLE:
        return REFUSED  # it takes longest to read what is refused for its length, and no document of that kind is kept
    try:
        document = load_document(query)
    except (GraphQLError, ServiceError):
        return REFUSED
    operation = get_operation_ast(document, operation_name)
    fragments = {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}
    return label(operation, fragments) if operation else REFUSED


def label(operation: OperationDefinitionNode, fragments: Mapping[str, FragmentDefinitionNode]) -> str:
    names = set(_root_fields(operation.selection_set, fragments, set()))
    asked = {name for name in names if not name.startswith("__")}
    if not names or not asked <= FIELDS:
        return REFUSED
    return INTROSPECTION if not asked else asked.pop() if len(asked) == 1 else SEVERAL


def _root_fields(
    selections: SelectionSetNode, fragments: Mapping[str, FragmentDefinitionNode], spread: set[str]
) -> Iterator[str]:
    """The document may be one that validation refuses."""
    for selection in selections.selections:
        match selection:
            case FieldNode(name=name):
                yield name.value
            case InlineFragmentNode(selection_set=inner):
                yield from _root_fields(inner, fragments, spread)
            case FragmentSpreadNode(name=name) if name.value in fragments and name.value not in spread:
                spread.add(name.value)
                yield from _root_fields(fragments[name.value].selection_set, fragments, spread)


def code_of(errors: Sequence[GraphQLError] | None) -> str:
    """Of errors that a client may see."""
    return str((errors[0].extensions or {}).get("code", OK)) if errors else OK


class CountedSockets:
    """ASGI application around the WebSockets': how many are open, and why each was closed."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        code: int | str = 1006  # until either side says one
        is_accepted = False

        async def receive_noted() -> Message:
            nonlocal code
            message = await receive()
            if message["type"] == "websocket.disconnect":
                code = message.get("code", 1005)
            return message

        def send_noted(message: Message) -> Awaitable[None]:
            nonlocal code, is_accepted
            if message["type"] == "websocket.accept":
                is_accepted = True
                self._metrics.sockets += 1
            elif message["type"] == "websocket.close":
                code = message.get("code", 1000) if is_accepted else "403"
            return send(message)

        try:
            await self._app(scope, receive_noted, send_noted)
        finally:
            self._metrics.sockets -= is_accepted
            self._metrics.closed(code)
