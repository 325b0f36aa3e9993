"""OpenTelemetry: one trace from a mutation through Redis to the job, its calls of the exchange and its insert.

Off unless OTEL_EXPORTER_OTLP_ENDPOINT is set, and then nothing of OpenTelemetry is imported. What else there is to say
(headers, sampler, resource, time-outs), its SDK reads from its own standard variables.

As with logging there is one destination for a process, so that a span is opened where the work is done, and nothing has
to be passed down to there.
"""

import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from structlog.contextvars import get_contextvars

from shared.config.settings import Settings
from shared.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

logger = logging.getLogger(__name__)

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Note = Callable[[str, Any], None]

SHUTDOWN_SECONDS = 2.0
"For the last spans, when the process ends: a collector that is away must not hold it up."

_tracer: "Tracer | None" = None


@asynccontextmanager
async def open_traces(settings: Settings, process: str) -> AsyncIterator[None]:
    """Send spans, from a thread of their own, until this ends. `process`: which of ours it is."""
    endpoint = settings.otel_exporter_otlp_endpoint
    if endpoint is None:
        yield
        return
    try:
        provider = _create_provider(endpoint, process)
    except ImportError as error:
        # The variable may be set for all that runs on a machine: prices are collected all the same.
        logger.warning(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but there will be no traces: the package of %s is not installed "
            "(the extra `traces` of this project has it)",
            error.name,
        )
        yield
        return
    try:
        with recording(provider):
            logger.info("traces go to %s", endpoint)
            yield
    finally:
        # In a thread of its own, for it waits as long as the exporter does; it ends with the process.
        ending = threading.Thread(target=provider.shutdown, daemon=True)
        ending.start()
        ending.join(SHUTDOWN_SECONDS)


@contextmanager
def recording(provider: "TracerProvider") -> Iterator[None]:
    global _tracer
    before, _tracer = _tracer, provider.get_tracer("deribit-price-collector", VERSION)
    try:
        yield
    finally:
        _tracer = before


def is_recording() -> bool:
    return _tracer is not None


@contextmanager
def span(
    name: str,
    kind: Kind = "internal",
    parent: str | None = None,
    *,
    expected: tuple[type[BaseException], ...] = (),
    **attributes: Any,
) -> Iterator[Note]:
    """The work inside it, as part of what it is done in or, where that is elsewhere, of `parent`: a `traceparent`.

    It has the attributes that a line of the log would have, then `attributes`, in whose names `__` is a dot; and what
    is given to the function it yields. Of an exception it tells its kind or code alone, for its text may be anything;
    those `expected` are no errors.
    """
    if _tracer is None:
        yield _forget
        return
    from opentelemetry.trace import SpanKind, Status, StatusCode

    dotted = {key.replace("__", "."): value for key, value in attributes.items() if value is not None}
    with _tracer.start_as_current_span(
        name,
        _context_of(parent),
        SpanKind[kind.upper()],
        {**get_contextvars(), **dotted},
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current.set_attribute
        except BaseException as error:
            current.set_attribute("error.type", getattr(error, "code", type(error).__name__))
            if not isinstance(error, expected):
                current.set_status(Status(StatusCode.ERROR))
            raise


def carried() -> str | None:
    """The current span as a `traceparent`, for what is done elsewhere; `None` where nothing is recorded."""
    if _tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def current_trace_id() -> str | None:
    if _tracer is None:
        return None
    from opentelemetry.trace import format_trace_id, get_current_span

    context = get_current_span().get_span_context()
    return format_trace_id(context.trace_id) if context.is_valid else None


def _create_provider(endpoint: str, process: str) -> "TracerProvider":
    """Raises `ImportError`."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = Resource.create({"service.name": f"deribit-price-collector-{process}", "service.version": VERSION})
    # What its standard variables say of the resource comes last, and so wins.
    provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _context_of(parent: str | None) -> Any:
    """`None` is the context there is. What is no `traceparent` counts as none, and the span begins a trace."""
    if parent is None:
        return None
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": parent}, Context())


def _forget(name: str, value: Any) -> None:
    pass
