"""Traces: a span for a request and each of its stages, the trace of the caller carried on, loaded only if asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from albireo.observations.errors import BadInput
from albireo.service.app import create_app
from albireo.service.core import Core
from albireo.service.observing import Observe, Telemetry
from albireo.service.readiness import Readiness
from albireo.service.settings import Settings
from albireo.service.tracing import MOST_STAGES, Tracing
from albireo.service.watch import STAGES, tally


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(spans: InMemorySpanExporter) -> Telemetry:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return Telemetry(tracing=Tracing(provider))


def by_name(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_span_for_a_request_and_its_stages(
    core: Core, settings: Settings, traced: Telemetry, spans: InMemorySpanExporter, image: Callable[..., bytes]
) -> None:
    app = create_app(core, settings, Readiness(core, settings.data_folder), traced)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=1", "Content-Type": "application/fits"}
    with TestClient(app) as client:
        answer = client.post("/v1/embed", content=image("a"), headers=headers)
        client.get("/readyz")
    found = by_name(spans)
    request = found.pop("rest embed")
    assert request.kind == SpanKind.SERVER
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT
    assert f"{request.context.trace_id:032x}" == TRACE
    attributes = dict(request.attributes or {})
    assert attributes["albireo.request_id"] == answer.headers["x-request-id"]
    assert attributes["albireo.objects"] == 1
    assert attributes["albireo.status"] == "200"
    assert {"tokenize", "queue", "encode"} <= set(found) <= set(STAGES)
    for stage in found.values():
        assert stage.parent is not None
        assert stage.parent.span_id == request.context.span_id
        assert stage.start_time is not None
        assert stage.end_time is not None
        assert request.start_time is not None
        assert request.end_time is not None
        # The clock of spans and that of stages are read one after the other.
        assert request.start_time - 5e6 <= stage.start_time <= stage.end_time <= request.end_time + 5e6


def test_calls_to_others_carry_the_trace_on(traced: Telemetry, spans: InMemorySpanExporter) -> None:
    with traced.request("grpc", trace={"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=1"}):
        carried = dict(tally().trace)
        assert tally().trace_id == TRACE
    (span,) = spans.get_finished_spans()
    assert carried == {"traceparent": f"00-{TRACE}-{span.context.span_id:016x}-01", "tracestate": "a=1"}


@pytest.mark.parametrize("parent", ["", "nonsense", "00-xyz-b7ad6b7169203331-01", f"00-{TRACE}-{PARENT}-01\n"])
def test_a_trace_that_is_none_begins_anew(traced: Telemetry, spans: InMemorySpanExporter, parent: str) -> None:
    with traced.request("rest", trace={"traceparent": parent}):
        assert tally().trace_id != TRACE
    (span,) = spans.get_finished_spans()
    assert span.parent is None


def test_without_a_collector_the_trace_passes_through() -> None:
    given = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=1"}
    with Telemetry().request("rest", trace=given):
        assert tally().trace == given


def test_a_defect_marks_its_span(traced: Telemetry, spans: InMemorySpanExporter) -> None:
    with pytest.raises(RuntimeError), traced.request("rest"):
        raise RuntimeError
    with pytest.raises(BadInput), traced.request("rest"):
        raise BadInput("not_finite", "x")
    defect, refusal = spans.get_finished_spans()
    assert not defect.status.is_ok
    assert dict(defect.attributes or {})["error.type"] == "internal"
    assert refusal.status.is_unset
    assert dict(refusal.attributes or {})["error.type"] == "not_finite"


def test_stages_beyond_the_limit_are_counted(traced: Telemetry, spans: InMemorySpanExporter) -> None:
    with traced.request("rest") as mine:
        for n in range(MOST_STAGES + 7):
            mine.timings.add("parse", n, n + 1)
    found = spans.get_finished_spans()
    assert len(found) == MOST_STAGES + 1
    assert dict(found[-1].attributes or {})["albireo.stages_left_out"] == 7


def test_health_checks_are_not_traced(traced: Telemetry, spans: InMemorySpanExporter) -> None:
    app = FastAPI()
    app.add_middleware(Observe, telemetry=traced)
    app.get("/livez")(lambda: "alive")
    app.get("/other")(lambda: "other")
    with TestClient(app) as client:
        client.get("/livez")
        client.get("/other")
    assert [span.name for span in spans.get_finished_spans()] == ["rest /other"]


PROGRAM = """
import sys
from albireo.observations.errors import AlbireoError
from albireo.service.observing import Telemetry
from albireo.service.settings import Settings

def loaded():
    return any(name.startswith("opentelemetry.sdk") for name in sys.modules)

print(Telemetry.of(Settings()).tracing, loaded())
sys.modules["opentelemetry.sdk"] = None  # as if it were not installed
try:
    Telemetry.of(Settings(otlp_endpoint="http://127.0.0.1:9"))
except AlbireoError as error:
    print(error.code, error.fix)
del sys.modules["opentelemetry.sdk"]
telemetry = Telemetry.of(Settings(otlp_endpoint="http://127.0.0.1:9"))
print(telemetry.tracing is not None, loaded())
telemetry.close()
"""


def test_traces_are_loaded_only_if_configured() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "None False",
        "dependency_missing pip install 'albireo[otel]'",
        "True True",
    ]


def test_the_address_of_the_collector() -> None:
    for address, whole in (
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("https://c/otlp/v1/traces", "https://c/otlp/v1/traces"),
    ):
        tracing = Tracing.to(address)
        (processor,) = tracing._provider._active_span_processor._span_processors
        assert processor.span_exporter._endpoint == whole  # type: ignore[attr-defined]
        tracing.close()
