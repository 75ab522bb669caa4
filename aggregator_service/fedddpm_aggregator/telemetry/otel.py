"""Traces by OpenTelemetry, where an operator asks for them; the ``OTEL_*`` variables say where they go.

Spans name requests by their route, statements without their parameters, and runs and rounds as the log does. Headers,
bodies and texts of errors stay out: they may hold signatures, shares and vectors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from fedddpm_aggregator.db.engine import Database
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.settings import Settings
from fedddpm_aggregator.telemetry.logs import noted
from fedddpm_aggregator.telemetry.tracer import NoTracer, Tracer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

SERVICE = "fedddpm-aggregator"
PREFIX = "fedddpm."
FLUSH_MS = 3000
NAMED_HEADERS = ["x-request-id"]  # named, so that no variable can ask for those of signatures
UNTRACED = "healthz,readyz,metrics"


def open_tracer(settings: Settings, database: Database) -> Tracer:
    """A tracer of the database and of what the service does; one that does nothing unless asked.

    Raises OperatorError if it is asked for and the extra ``otel`` is missing.
    """
    if not settings.tracing:
        return NoTracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise OperatorError(
            f"tracing needs {error.name}; install the extra: pip install 'fedddpm-aggregator[otel]', or leave out "
            "FEDDDPM_AGGREGATOR_TRACING"
        ) from error
    name = os.environ.get("OTEL_SERVICE_NAME", SERVICE)
    provider = TracerProvider(
        resource=Resource.create().merge(Resource({"service.name": name})).merge(OTELResourceDetector().detect())
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    engines = (
        [database.engine] if database.engine is database.relaxed_engine else [database.engine, database.relaxed_engine]
    )
    # It names an older SQLAlchemy than it works with; a test looks at what it sends.
    SQLAlchemyInstrumentor().instrument(engines=engines, tracer_provider=provider, skip_dep_check=True)
    return OpenTelemetry(provider)


def trace_requests(app: FastAPI, tracer: Tracer) -> None:
    """Make a span of every request; before the application answers its first one."""
    if not isinstance(tracer, OpenTelemetry):
        return
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=tracer.provider,
        excluded_urls=UNTRACED,
        exclude_spans=["receive", "send"],
        http_capture_headers_server_request=NAMED_HEADERS,
        http_capture_headers_server_response=NAMED_HEADERS,
    )


class OpenTelemetry:
    """A tracer over a provider of spans."""

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self._tracer = provider.get_tracer(SERVICE)

    def span(self, name: str) -> AbstractContextManager[object]:
        """Time what is done inside; a failure shows as its type."""
        return self._span(name)

    def annotate(self) -> None:
        """Put what is noted onto the request's span."""
        from opentelemetry.trace import get_current_span

        _annotate(get_current_span())

    def quiet(self) -> AbstractContextManager[object]:
        """No spans of what is done inside, such as looks at the clock twice a second."""
        from opentelemetry.instrumentation.utils import suppress_instrumentation

        quiet: AbstractContextManager[object] = suppress_instrumentation()
        return quiet

    def close(self) -> None:
        """Send what is left, for a few seconds."""
        self.provider.force_flush(FLUSH_MS)
        self.provider.shutdown()

    @contextmanager
    def _span(self, name: str) -> Iterator[None]:
        from opentelemetry.trace import Status, StatusCode

        with self._tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as span:
            try:
                yield
            except BaseException as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise
            finally:
                _annotate(span)


def _annotate(span: Span) -> None:
    for name, value in noted().items():
        span.set_attribute(PREFIX + name, value if isinstance(value, bool | int | float | str) else str(value))
