"""What the API counts; Prometheus reads it through `server/http/prometheus.py`.

Each label has few values, and a client chooses none of them: the label of an operation is the root field that it asks
for, not its name.
"""

from collections import Counter, defaultdict
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from graphql import GraphQLError, GraphQLSchema, get_operation_ast, get_variable_values, print_ast
from graphql.execution.collect_fields import FragmentDetails, collect_fields
from graphql.execution.values import VariableValues
from graphql.language import FragmentDefinitionNode
from prometheus_client.core import Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.schema.documents import GraphQLRequest, load_document
from shared.errors import QueryTooComplex, ServiceError
from shared.telemetry.metrics import Labels, Timing, build_info, counter, create_registry, gauge, histogram

OK: Final = "ok"
EXPORT: Final = "export"
REFUSED: Final = "refused"
"An operation that could not be run."

SEVERAL, INTROSPECTION = "several", "introspection"

_UNREADABLE = {"GRAPHQL_PARSE_FAILED", QueryTooComplex.code}

TOO_SLOW = "TOO_SLOW"
"The code of a subscription whose client fell too far behind: it is closed without an answer."

OUR_CODES = (OK, "STORAGE_UNAVAILABLE", "QUEUE_UNAVAILABLE", "INTERNAL_SERVER_ERROR")
"Exported as 0 from the start, because Prometheus does not see the increase from no series to 1."

BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
"Seconds. A compiled query takes about 0.3 ms; clients are promised an answer within 2 s while a server is unavailable."

SOCKET_CODES = frozenset(
    {1000, 1001, 1005, 1006, 1009, 1011, 1012, 1013, 4400, 4401, 4403, 4406, 4408, 4409, 4429, 4500}
)
"The known close codes. A client may send any number; the others are counted as `other`."


class Metrics:
    """One for each app. `operations`: the labels whose series begin at 0."""

    def __init__(self, operations: Iterable[str] = ()) -> None:
        self._operations = tuple(operations)
        self._requests: defaultdict[Labels, Timing] = defaultdict(lambda: Timing(BUCKETS))
        self._ended: Counter[Labels] = Counter()
        self._closed: Counter[Labels] = Counter()
        self.plan_hits = 0
        self.plan_misses = 0
        self.fallbacks = 0
        self.sockets = 0
        self.prices_sent = 0
        self.subscriptions: Counter[Labels] = Counter({("priceUpdates",): 0, ("fetchProgress",): 0})
        self._registry = create_registry()

    def answered(self, operation: str, code: str, began: float) -> None:
        """`code`: that of the answer's first error, or `OK`. `began`: when it was asked, by `time.perf_counter`."""
        self._requests[operation, code].add_since(began)

    def ended(self, operation: str, code: str) -> None:
        """Count without a duration: a subscription lasts as long as the client wants."""
        self._ended[operation, code] += 1

    def closed(self, code: int | str) -> None:
        self._closed[str(code) if code in SOCKET_CODES or isinstance(code, str) else "other",] += 1

    def _counts(self) -> Mapping[Labels, float]:
        counts: Counter[Labels] = Counter({(name, code): 0 for name in self._operations for code in OUR_CODES})
        counts.update(self._ended)
        counts.update({labels: timing.count for labels, timing in self._requests.items()})
        return counts

    def _timings(self) -> Iterator[tuple[Labels, Sequence[Timing]]]:
        for name in sorted({operation for operation, _ in self._requests}):
            yield (name,), [timing for (operation, _), timing in self._requests.items() if operation == name]

    def collect(self) -> Iterator[Metric]:
        """For a scrape."""
        yield from self._registry.collect()
        yield build_info()
        yield counter(
            "requests",
            "GraphQL operations answered over any transport, by root field (or several; introspection; refused: it "
            "could not be run), and exports, by the first error's extensions.code, or ok. A subscription counts when "
            "it ends; TOO_SLOW: the client did not keep up.",
            ["operation", "code"],
            self._counts(),
        )
        yield histogram(
            "request_duration_seconds",
            "Time from the complete request to its answer, by root field; without subscriptions.",
            ["operation"],
            self._timings(),
        )
        yield counter(
            "plan_lookups",
            "Operations, without subscriptions: the SQL statement was cached (hit), it was compiled (miss), or there "
            "is none and Strawberry answered (unplanned).",
            ["result"],
            {("hit",): self.plan_hits, ("miss",): self.plan_misses, ("unplanned",): self.fallbacks},
        )
        yield gauge("sockets", "WebSockets open now.", [], {(): self.sockets})
        yield counter(
            "sockets_closed",
            "WebSockets closed, by code; 403: refused for a foreign origin; other: a code that the client made up.",
            ["code"],
            self._closed,
        )
        yield gauge(
            "subscriptions",
            "Subscriptions open now, over WebSockets and as event streams, by root field.",
            ["operation"],
            dict(self.subscriptions),
        )
        yield counter("prices_sent", "Prices sent, counted once for each subscriber.", [], {(): self.prices_sent})


def all_labels(schema: GraphQLSchema) -> tuple[str, ...]:
    roots = filter(None, (schema.query_type, schema.mutation_type, schema.subscription_type))
    return (*sorted(name for root in roots for name in root.fields), SEVERAL, INTROSPECTION, EXPORT, REFUSED)


def label_of(names: Iterable[str]) -> str:
    """`names`: of the operation's root fields."""
    asked = {name for name in names if not name.startswith("__")}
    return SEVERAL if len(asked) > 1 else asked.pop() if asked else INTROSPECTION


def operation_label(
    schema: GraphQLSchema, request: GraphQLRequest, errors: Sequence[GraphQLError] | None = None
) -> str:
    """Also of a document that validation refuses. `errors`: those in the answer.

    A document that was refused for its syntax or size is not parsed again, because it is not cached either.
    """
    if errors and errors[0].path is None and code_of(errors) in _UNREADABLE:
        return REFUSED
    try:
        document = load_document(request.query)
        operation = get_operation_ast(document, request.operation_name)
        if operation is None or (root := schema.get_root_type(operation.operation)) is None:
            return REFUSED
        # Only `@skip` and `@include` read variables here; to coerce all of them takes up to 0.1 s.
        conditions = [v for v in operation.variable_definitions or () if print_ast(v.type).rstrip("!") == "Boolean"]
        values = get_variable_values(schema, conditions, request.variables or {}, max_errors=1)
        if not isinstance(values, VariableValues):
            values = VariableValues({}, {})
        fragments = {
            d.name.value: FragmentDetails(d) for d in document.definitions if isinstance(d, FragmentDefinitionNode)
        }
        fields = collect_fields(schema, fragments, values, root, operation).grouped_field_set
    except (GraphQLError, ServiceError):
        return REFUSED
    names = {details.node.name.value for group in fields.values() for details in group}
    is_known = names and all(name.startswith("__") or name in root.fields for name in names)
    return label_of(names) if is_known else REFUSED


def code_of(errors: Sequence[GraphQLError] | None) -> str:
    """`errors`: as the client sees them."""
    return str((errors[0].extensions or {}).get("code", OK)) if errors else OK


class CountedSockets:
    """ASGI middleware that counts open WebSockets and their close codes."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        code: int | str = 1006  # no close frame
        is_accepted = False

        async def counted_receive() -> Message:
            nonlocal code
            message = await receive()
            if message["type"] == "websocket.disconnect":
                code = message.get("code", 1005)
            return message

        def counted_send(message: Message) -> Awaitable[None]:
            nonlocal code, is_accepted
            if message["type"] == "websocket.accept":
                is_accepted = True
                self._metrics.sockets += 1
            elif message["type"] == "websocket.close":
                code = message.get("code", 1000) if is_accepted else "403"
            return send(message)

        try:
            await self._app(scope, counted_receive, counted_send)
        finally:
            self._metrics.sockets -= is_accepted
            self._metrics.closed(code)
