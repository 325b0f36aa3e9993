"""OpenTelemetry: one trace from a mutation through Redis to the job, its calls of the exchange and its insert.

Off unless OTEL_EXPORTER_OTLP_ENDPOINT is set: OpenTelemetry's API alone records nothing, and its SDK is not imported.
The SDK reads everything else (headers, sampler, resource, time-outs) from its own standard variables.

The tracer is global to the process, as the loggers are, so it is not passed down to where a span is opened.
"""

import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from opentelemetry.context import Context
from opentelemetry.trace import NoOpTracer, SpanKind, Status, StatusCode, Tracer, format_trace_id, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog.contextvars import get_contextvars

from shared.config.messages import masked
from shared.config.outbound import is_local
from shared.config.settings import Settings
from shared.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

Kind = Literal["internal", "server", "client", "producer", "consumer"]
SetAttribute = Callable[[str, Any], None]

SHUTDOWN_SECONDS = 2.0
"For the last spans when the process ends, so that an unavailable collector does not delay it."

_tracer: Tracer = NoOpTracer()


@asynccontextmanager
async def open_traces(settings: Settings, process: str) -> AsyncIterator[None]:
    """Send spans, from a separate thread, until the block ends. `process`: "api" or "worker"."""
    endpoint = settings.otel_exporter_otlp_endpoint
    if endpoint is None:
        yield
        return
    try:
        provider = _create_provider(endpoint, process)
    except ImportError as error:
        # The variable may be set for everything on a machine, so the process collects prices without traces.
        logger.warning(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but there will be no traces: the package of %s is not installed "
            "(the extra `traces` of this project has it)",
            error.name,
        )
        yield
        return
    try:
        with recording(provider):
            logger.info("traces go to %s", masked("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint))
            yield
    finally:
        # `shutdown` waits as long as the exporter does, so it runs in a daemon thread, which ends with the process.
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
    return not isinstance(_tracer, NoOpTracer)


@contextmanager
def span(
    name: str,
    kind: Kind = "internal",
    parent: str | None = None,
    *,
    expected: tuple[type[BaseException], ...] = (),
    **attributes: Any,
) -> Iterator[SetAttribute]:
    """A span around a block of work. Yields the function that sets further attributes.

    It is a child of `parent`, a `traceparent`, or of the current span. It gets the attributes that a log line would
    have, then `attributes`, in whose names `__` stands for a dot. Of an exception it notes the type or code alone,
    because the text may contain anything; the types in `expected` do not mark the span as failed.
    """
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


def current_traceparent() -> str | None:
    """The current span as a W3C `traceparent`; `None` without one."""
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def current_trace_id() -> str | None:
    context = get_current_span().get_span_context()
    return format_trace_id(context.trace_id) if context.is_valid else None


def _create_provider(endpoint: str, process: str) -> "TracerProvider":
    """Raises `ImportError`."""
    import requests
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = Resource.create({"service.name": f"deribit-price-collector-{process}", "service.version": VERSION})
    # The resource from the standard variables is merged last, so it wins.
    provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    session = requests.Session()
    session.trust_env = not is_local(endpoint)  # no proxy for a collector on this machine
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", session=session)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _context_of(parent: str | None) -> Context | None:
    """`None` is the current context. A `parent` that is not a `traceparent` is ignored: the span begins a trace."""
    if parent is None or not is_recording():
        return None
    return TraceContextTextMapPropagator().extract({"traceparent": parent}, Context())
