"""Metrics and timings: what is counted, once; what it costs; nothing a client wrote becomes a label."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import get_args

import anyio.to_thread
import prometheus_client as library
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from albireo.observations.errors import BadInput
from albireo.service.app import create_app
from albireo.service.core import Core
from albireo.service.observing import Telemetry
from albireo.service.readiness import Readiness
from albireo.service.settings import Settings
from albireo.service.telemetry import STAGE_SECONDS, Metrics
from albireo.service.watch import STAGES, UNWATCHED, Interval, Stage, Tally, Timings, Watch, current, tally

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(metrics: Metrics, parse: Callable[[str], object] = text_string_to_metric_families) -> Samples:
    """(name, sorted labels) -> value, as a Prometheus server reads it."""
    text = metrics.exposition("")[0].decode()
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in parse(text) for s in f.samples}  # type: ignore[attr-defined]


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, tuple(sorted(labels.items()))))


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture
def readiness(core: Core, settings: Settings) -> Readiness:
    """One probe at the start, and none for each look at the metrics."""
    return Readiness(core, settings.data_folder, fresh_seconds=3600.0, wait_seconds=20.0)


@pytest.fixture
def client(core: Core, settings: Settings, readiness: Readiness, telemetry: Telemetry) -> Iterator[TestClient]:
    with TestClient(create_app(core, settings, readiness, telemetry), raise_server_exceptions=False) as made:
        assert made.get("/readyz").status_code == 200
        yield made


# Timings


def test_a_stage_inside_another_is_not_counted_twice() -> None:
    timings = Timings()
    timings.add("search", 10.0, 15.0)
    timings.add("encode", 11.0, 13.0)
    assert timings.seconds() == {"encode": 2.0, "search": 3.0}


def test_a_wait_counts_only_while_nothing_is_computed() -> None:
    timings = Timings()
    timings.add("encode", 0.0, 4.0)
    timings.add("queue", 1.0, 6.0)
    timings.add("encode", 6.0, 7.0)
    assert timings.milliseconds() == {"queue": 2000.0, "encode": 5000.0}


moments = st.integers(0, 30)
intervals = st.lists(
    st.builds(lambda a, b, stage: Interval(min(a, b), max(a, b), stage), moments, moments, st.sampled_from(STAGES)),
    max_size=12,
)


@given(intervals)
def test_every_moment_counts_once(some: list[Interval]) -> None:
    timings = Timings()
    for one in some:
        timings.add(one.stage, one.began, one.ended)
    seconds = timings.seconds()
    certain = dict.fromkeys(STAGES, 0)
    for moment in range(30):
        running = [one for one in some if one.began <= moment < one.ended]
        computed = [one for one in running if one.stage != "queue"] or running
        last = {one.stage for one in computed if one.began == max(one.began for one in computed)}
        if len(last) == 1:  # of those that began together, either may be counted
            certain[last.pop()] += 1
    assert all(seconds.get(stage, 0) >= certain[stage] for stage in STAGES)
    assert sum(seconds.values()) == len({t for one in some for t in range(int(one.began), int(one.ended))})
    assert set(seconds) == {one.stage for one in some}


def test_a_stage_that_still_runs_counts_until_now() -> None:
    """An answer says how long it was written until it said so; stages that were asked for are there as 0."""
    timings = Timings()
    with timings.stage("serialize"):
        time.sleep(0.02)
        with timings.stage("parse"):
            told = timings.seconds("queue", "serialize")
        assert list(told) == ["parse", "queue", "serialize"]
        assert (told["queue"], 0.02 < told["serialize"] < 5) == (0.0, True)
        assert len(timings.intervals) == 1
    assert set(timings.seconds()) == {"parse", "serialize"}


def test_threads_of_a_request_share_its_timings(telemetry: Telemetry) -> None:
    def work(n: int) -> None:
        for _ in range(n):
            with tally().timings.stage("tokenize", "image"):
                pass

    async def request() -> Tally:
        with telemetry.request("rest") as mine:
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(anyio.to_thread.run_sync, work, 50)
        return mine

    mine = asyncio.run(request())
    assert len(mine.timings.intervals) == 200
    assert value(telemetry.metrics, "albireo_stage_seconds_count", stage="tokenize", modality="image") == 200
    assert current() is None


# Metrics


def test_histograms_are_those_of_the_library() -> None:
    """Independent of how we count: the client library's own histogram of the same numbers."""
    metrics, registry = Metrics(), library.CollectorRegistry()
    theirs = library.Histogram(
        "albireo_stage_seconds", "x", ("stage", "modality"), buckets=STAGE_SECONDS, registry=registry
    )
    numbers = [0.0, *STAGE_SECONDS, *(1.01 * bound for bound in STAGE_SECONDS), 1e9]
    for number in numbers:
        metrics.stage("encode", number)
        theirs.labels("encode", "").observe(number)
    ours = {key: n for key, n in samples(metrics).items() if key[0].startswith("albireo_stage_seconds")}
    found = text_string_to_metric_families(library.generate_latest(registry).decode())
    expected = {(s.name, tuple(sorted(s.labels.items()))): s.value for family in found for s in family.samples}
    assert ours == {key: n for key, n in expected.items() if not key[0].endswith("_created")}


def test_what_the_pipeline_tells() -> None:
    metrics = Metrics()
    watch: Watch = metrics
    watch.processed("tok_image", 576, 1)
    watch.processed("image.legacysurvey", 1152, 2)
    watch.batch(1024, 4096, 3)
    watch.engine_error()
    watch.refused("overloaded")
    watch.failed("not_finite", 2)
    assert value(metrics, "albireo_tokens_total", modality="image.legacysurvey") == 1728
    assert value(metrics, "albireo_objects_total", modality="image.legacysurvey") == 3
    assert value(metrics, "albireo_batch_fill_ratio_sum") == 0.25
    assert value(metrics, "albireo_batch_objects_bucket", le="4.0") == 1
    assert value(metrics, "albireo_batch_objects_bucket", le="2.0") == 0
    assert value(metrics, "albireo_engine_errors_total") == 1
    assert value(metrics, "albireo_requests_refused_total", code="overloaded") == 1
    assert value(metrics, "albireo_objects_failed_total", code="not_finite") == 2


def test_counters_that_alerts_watch_begin_with_zero() -> None:
    metrics = Metrics()
    assert value(metrics, "albireo_requests_refused_total", code="internal") == 0
    assert value(metrics, "albireo_engine_errors_total") == 0


def test_labels_come_from_short_lists() -> None:
    metrics = Metrics()
    for n in range(50):
        metrics.processed(f"modality-{n}", 1, 1)
        metrics.stage("parse", 0.1, f"modality-{n}")
        metrics.refused(f"code-{n}")
        metrics.failed(f"code-{n}")
    assert value(metrics, "albireo_tokens_total", modality="other") == 50
    assert value(metrics, "albireo_stage_seconds_count", stage="parse", modality="other") == 50
    assert value(metrics, "albireo_requests_refused_total", code="other") == 50
    assert value(metrics, "albireo_objects_failed_total", code="other") == 50
    assert "-1" not in metrics.exposition("")[0].decode()


def test_doing_nothing_is_a_watch() -> None:
    watch: Watch = UNWATCHED
    assert watch.stage("parse", 1.0) is None  # type: ignore[func-returns-value]
    assert set(get_args(Stage)) == set(STAGES)


def test_two_services_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.failed("not_finite")
    assert value(one, "albireo_objects_failed_total", code="not_finite") == 1
    assert value(other, "albireo_objects_failed_total", code="not_finite") is None


def test_what_a_request_costs() -> None:
    """Every call of a request of one object that is a batch of its own, in microseconds of this thread."""
    metrics = Metrics()
    mine = Tally("0" * 32, "rest", operation="embed", status="200", bytes_in=10, bytes_out=10)

    def request() -> None:
        metrics.began("rest")
        for stage in ("parse", "tokenize", "queue", "encode", "serialize"):
            metrics.stage(stage, 0.01)
        metrics.processed("tok_image", 576, 1)
        metrics.batch(576, 4096, 1)
        metrics.over(mine, 0.02)

    def microseconds() -> float:
        began = time.thread_time()
        for _ in range(500):
            request()
        return (time.thread_time() - began) / 500 * 1e6

    assert min(microseconds() for _ in range(10)) < 40  # 7 to 19 on two cores, by what else runs there


# Over HTTP


def test_requests_stages_and_objects(client: TestClient, telemetry: Telemetry, image: Callable[..., bytes]) -> None:
    files = [("file", ("a.fits", image("a"))), ("file", ("b.fits", image("b")[:3000]))]
    found = telemetry.metrics
    before = samples(found)
    answer = client.post("/v1/embed", files=files)
    assert answer.status_code == 200

    def more(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return samples(found)[key] - before.get(key, 0.0)

    assert value(found, "albireo_requests_total", door="rest", operation="embed", status="200") == 1
    assert value(found, "albireo_request_seconds_count", door="rest", operation="embed") == 1
    assert value(found, "albireo_objects_failed_total", code="damaged_file") == 1
    assert more("albireo_tokens_total", modality="image.legacysurvey") == 4
    assert more("albireo_objects_total", modality="image.legacysurvey") == 1
    assert more("albireo_stage_seconds_count", stage="tokenize", modality="image") == 1
    assert more("albireo_stage_seconds_count", stage="encode", modality="") == 1
    assert more("albireo_stage_seconds_count", stage="queue", modality="") == 1
    assert more("albireo_batch_objects_count") == 1
    assert more("albireo_received_bytes_total", door="rest") > len(image("a")) + 3000
    assert more("albireo_sent_bytes_total", door="rest") == len(answer.content)


def test_both_texts_of_the_metrics(client: TestClient) -> None:
    client.get("/v1/heads")
    plain = client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    open_text = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert open_text.headers["content-type"].startswith("application/openmetrics-text")
    names = [{family.name for family in text_string_to_metric_families(plain.text)}]
    names.append({family.name for family in open_metrics(open_text.text)})
    for some in names:
        assert {"albireo_requests", "albireo_request_seconds", "albireo_ready", "process_cpu_seconds"} <= some
        assert {"process_resident_memory_bytes", "python_gc_collections"} <= some


def test_nothing_that_a_client_wrote_becomes_a_label(client: TestClient, telemetry: Telemetry) -> None:
    for path in ("/v1/collections/mine-7431", "/v1/nothing-7431", "/v1/predict/head-7431", "/7431"):
        client.get(path, headers={"X-Request-Id": "id-7431"})
    client.put("/v1/collections/mine-7431")
    client.request("MADE-UP-7431", "/v1/embed")
    assert "7431" not in telemetry.metrics.exposition("")[0].decode()
    assert value(telemetry.metrics, "albireo_requests_total", door="rest", operation="collection", status="404") == 1
    assert value(telemetry.metrics, "albireo_requests_total", door="rest", operation="unknown", status="404") == 2
    assert value(telemetry.metrics, "albireo_requests_total", door="rest", operation="embed", status="405") == 1


def test_a_refusal_counts_once_however_often_it_is_said(telemetry: Telemetry) -> None:
    with telemetry.request("rest"):
        telemetry.metrics.refused("overloaded")
        telemetry.metrics.refused("overloaded")
    assert value(telemetry.metrics, "albireo_requests_refused_total", code="overloaded") == 1


def test_bodies_over_the_limit_are_seen(client: TestClient, telemetry: Telemetry) -> None:
    answer = client.post("/v1/embed", content=bytes(5 << 20), headers={"Content-Type": "application/fits"})
    assert answer.status_code == 413
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert value(telemetry.metrics, "albireo_requests_refused_total", code="too_large") == 1


def test_readiness_by_capability(
    client: TestClient, telemetry: Telemetry, readiness: Readiness, engine: object
) -> None:
    readiness.fresh_seconds = 0.0
    assert value(telemetry.metrics, "albireo_ready") == 1
    assert value(telemetry.metrics, "albireo_capability_ready", capability="embed") == 1
    assert value(telemetry.metrics, "albireo_capability_ready", capability="redis") is None
    engine.crash = True  # type: ignore[attr-defined]
    assert client.get("/readyz").status_code == 503
    assert value(telemetry.metrics, "albireo_ready") == 0
    assert value(telemetry.metrics, "albireo_capability_ready", capability="embed") == 0
    assert value(telemetry.metrics, "albireo_capability_ready", capability="search") == 1
    # A health check that says no is no request refused.
    assert value(telemetry.metrics, "albireo_requests_refused_total", code="not_ready") == 0


def test_what_this_is(client: TestClient) -> None:
    line = next(line for line in client.get("/metrics").text.splitlines() if line.startswith("albireo_build_info"))
    assert 'model="toy"' in line
    assert 'fingerprint="0123456789ab"' in line


def test_a_damaged_checkpoint_hides_no_other_metric() -> None:
    def broken() -> tuple[str, str]:
        raise OSError("disk")

    metrics = Metrics()
    metrics.about({"interactive": 7, "bulk": 5}.__getitem__, lambda: (False, {"embed": False}), broken)
    assert value(metrics, "albireo_ready") == 0
    assert value(metrics, "albireo_queue_tokens", priority="bulk") == 5
    assert value(metrics, "albireo_engine_errors_total") == 0


def test_requests_inside(client: TestClient, telemetry: Telemetry, engine: object, image: Callable[..., bytes]) -> None:
    gate: threading.Event = engine.gate  # type: ignore[attr-defined]
    gate.clear()
    content, headers = image("a"), {"Content-Type": "application/fits"}
    thread = threading.Thread(target=client.post, args=("/v1/embed",), kwargs={"content": content, "headers": headers})
    thread.start()
    try:
        deadline = time.monotonic() + 10
        inside = 0.0
        while not inside and time.monotonic() < deadline:
            families = telemetry.metrics._in_flight.collect()
            inside = sum(s.value for family in families for s in family.samples)
        assert inside == 1
    finally:
        gate.set()
        thread.join()
    assert value(telemetry.metrics, "albireo_requests_in_flight", door="rest") == 0


def test_the_header_of_timings(client: TestClient, image: Callable[..., bytes]) -> None:
    answer = client.post("/v1/embed", content=image("a"), headers={"Content-Type": "application/fits"})
    header = answer.headers["server-timing"]
    assert re.fullmatch(r"[a-z]+;dur=\d+\.\d{3}(, [a-z]+;dur=\d+\.\d{3})*", header)
    ms = {name: float(number) for name, number in re.findall(r"([a-z]+);dur=([\d.]+)", header)}
    assert {"tokenize", "queue", "encode", "total"} <= set(ms)
    assert sum(ms.values()) - ms["total"] <= ms["total"] + 0.01


# Doors of any kind


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RuntimeError("x"), "INTERNAL", "internal"),
        (asyncio.CancelledError(), "CANCELLED", "cancelled"),
        (BadInput("not_finite", "x"), "unknown", "not_finite"),
        (KeyError("answer"), "unknown", None),
    ],
)
def test_how_a_request_ends(telemetry: Telemetry, error: BaseException, status: str, code: str | None) -> None:
    with (  # noqa: PT012
        pytest.raises(type(error)),
        telemetry.request("grpc", answers=(KeyError,)) as mine,
    ):
        mine.operation = "embed"
        raise error
    assert value(telemetry.metrics, "albireo_requests_total", door="grpc", operation="embed", status=status) == 1
    assert mine.code == code
    assert value(telemetry.metrics, "albireo_requests_in_flight", door="grpc") == 0


def test_work_without_a_request_is_counted_nowhere() -> None:
    tally().count(3, ["not_finite"], 9)
    with tally().timings.stage("parse"):
        assert current() is None
    assert tally().objects == 0
