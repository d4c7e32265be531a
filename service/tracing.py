"""Traces: a span for every request and for each of its stages, sent to an OpenTelemetry collector.

Imported only if it is configured. Spans of stages are made from the request's timings when it is over, so that what
computes knows nothing of traces.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from albireo.service.watch import Tally

MOST_STAGES = 128
"""Spans of stages of one request; what is over is counted in the attribute `albireo.stages_left_out`."""

PATH = "/v1/traces"
FLUSH_SECONDS = 5


class Tracing:
    """Makes spans, of a provider of its own: the process's global one is not touched."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("albireo", version("albireo"))
        self._context = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, endpoint: str) -> Tracing:
        """Send spans to a collector by OTLP over HTTP; an address without a path means `/v1/traces`."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        whole = endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + PATH
        return cls.through(OTLPSpanExporter(endpoint=whole, timeout=FLUSH_SECONDS))

    @classmethod
    def through(cls, exporter: SpanExporter) -> Tracing:
        """Hand spans to an exporter, from a thread of its own."""
        about = {"service.name": "albireo", "service.version": version("albireo")}
        provider = TracerProvider(resource=Resource.create(about))
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    @contextmanager
    def request(self, tally: Tally) -> Iterator[None]:
        """A span around a request: a child of the span in `tally.trace`, which becomes the request's own."""
        parent = self._context.extract(tally.trace)
        span = self._tracer.start_span("request", context=parent, kind=SpanKind.SERVER)
        tally.trace.clear()
        self._context.inject(tally.trace, context=set_span_in_context(span))
        try:
            yield
        finally:
            self._finish(span, tally)

    def close(self) -> None:
        """Send what was not sent yet, for a few seconds at most."""
        self._provider.force_flush(FLUSH_SECONDS * 1000)
        self._provider.shutdown()

    def _finish(self, span: Span, tally: Tally) -> None:
        if span.is_recording():
            self._stages(span, tally)
            span.update_name(f"{tally.door} {tally.operation}")
            span.set_attributes(
                {
                    "albireo.request_id": tally.request_id,
                    "albireo.status": tally.status,
                    "albireo.objects": tally.objects,
                    "albireo.failed": tally.n_failed,
                    "albireo.tokens": tally.tokens,
                }
            )
            if tally.code is not None:
                span.set_attribute("error.type", tally.code)
            if tally.broken:
                span.set_status(StatusCode.ERROR, tally.code)
        span.end()

    def _stages(self, span: Span, tally: Tally) -> None:
        intervals = tally.timings.intervals
        context = set_span_in_context(span)
        offset = time.time_ns() - time.monotonic_ns()
        for one in intervals[:MOST_STAGES]:
            child = self._tracer.start_span(one.stage, context, start_time=offset + int(one.began * 1e9))
            child.end(offset + int(one.ended * 1e9))
        if len(intervals) > MOST_STAGES:
            span.set_attribute("albireo.stages_left_out", len(intervals) - MOST_STAGES)
