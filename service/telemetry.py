"""Metrics for Prometheus: what a service counts of itself, and GET /metrics.

Every service has a registry of its own, so several can live in one process. Labels take values from short lists only
(names of operations, codes, modalities), never addresses, ids or what a client wrote: a label costs memory for ever.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from albireo.observations.errors import CODES
from albireo.observations.modalities import MODALITIES
from albireo.service.tickets import PRIORITIES, Priority
from albireo.service.watch import Door, Stage, Tally, current

REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
STAGE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
FILL = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
OBJECTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

OF_THE_SERVICE = ("overloaded", "deadline_exceeded", "not_ready", "internal")
"""Codes that alerts watch. Their counters begin with 0: of one that begins with 1, no increase would be seen."""

OTHER = "other"
"""The label of what is in no list."""

KINDS = frozenset(row.kind for row in MODALITIES.values())
_LABELS = {row.key: row.name for row in MODALITIES.values()} | {row.name: row.name for row in MODALITIES.values()}
_LABELS |= {kind: kind for kind in KINDS} | {"": ""}
"""Token key, public name or kind -> the label of a modality."""

Ready = Callable[[], tuple[bool, Mapping[str, bool | None]]]
"""Whether the service takes traffic, and capability -> whether it works, None where it is not configured."""


class Metrics:
    """A `Watch` that counts for Prometheus, and counts requests from their tallies."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> _Numbers:
            return _Numbers(CounterMetricFamily, name, text, labels, registry)

        def gauge(name: str, text: str, *labels: str) -> _Numbers:
            return _Numbers(GaugeMetricFamily, name, text, labels, registry)

        def histogram(name: str, text: str, bounds: Sequence[float], *labels: str) -> _Spread:
            return _Spread(name, text, bounds, labels, registry)

        self._requests = counter("albireo_requests", "Requests answered.", "door", "operation", "status")
        self._in_flight = gauge("albireo_requests_in_flight", "Requests being answered.", "door")
        seconds = "From a request's first line to the last byte of its answer."
        self._seconds = histogram("albireo_request_seconds", seconds, REQUEST_SECONDS, "door", "operation")
        self._received = counter("albireo_received_bytes", "Bytes of request bodies.", "door")
        self._sent = counter("albireo_sent_bytes", "Bytes of answers' bodies.", "door")
        refused = "Requests answered with an error as a whole, by its code."
        self._refused = counter("albireo_requests_refused", refused, "code")
        for code in OF_THE_SERVICE:
            self._refused.add((code,), 0)
        self._failed = counter("albireo_objects_failed", "Objects that failed alone, by code.", "code")
        stages = "Units of work by stage, and by modality where they have one."
        self._stages = histogram("albireo_stage_seconds", stages, STAGE_SECONDS, "stage", "modality")
        self._tokens = counter("albireo_tokens", "Tokens that went through the encoder.", "modality")
        objects = "Objects with this modality that went through the encoder."
        self._objects = counter("albireo_objects", objects, "modality")
        self._fill = histogram("albireo_batch_fill_ratio", "Tokens of a batch by the most it could have had.", FILL)
        self._batch = histogram("albireo_batch_objects", "Objects of a batch.", OBJECTS)
        self._engine_errors = counter("albireo_engine_errors", "Errors of the engine that are no fault of an object.")
        self._engine_errors.add((), 0)

    def stage(self, name: Stage, seconds: float, modality: str | None = None) -> None:
        self._stages.observe((name, _LABELS.get(modality or "", OTHER)), seconds)

    def processed(self, modality: str, tokens: int, objects: int) -> None:
        label = (_LABELS.get(modality, OTHER),)
        self._tokens.add(label, tokens)
        self._objects.add(label, objects)

    def batch(self, tokens: int, budget: int, objects: int) -> None:
        self._fill.observe((), tokens / budget)
        self._batch.observe((), objects)

    def engine_error(self) -> None:
        self._engine_errors.add(())

    def refused(self, code: str) -> None:
        """Of a request that is observed it is noted, and counted once when the request is over."""
        request = current()
        if request is not None:
            request.code = code
        else:
            self._refused.add(_code(code))

    def failed(self, code: str, objects: int = 1) -> None:
        self._failed.add(_code(code), objects)

    def began(self, door: Door) -> None:
        """A request came in."""
        self._in_flight.add((door,))

    def over(self, tally: Tally, seconds: float) -> None:
        """A request is answered."""
        door = (tally.door,)
        self._in_flight.add(door, -1)
        self._requests.add((tally.door, tally.operation, tally.status or "unknown"))
        self._seconds.observe((tally.door, tally.operation), seconds)
        self._received.add(door, tally.bytes_in)
        self._sent.add(door, tally.bytes_out)
        if tally.code is not None and not tally.probe:
            self._refused.add(_code(tally.code))
        for code, objects in tally.failed.items():
            self.failed(code, objects)

    def about(self, queue: Callable[[Priority], int], ready: Ready, model: Callable[[], tuple[str, str]]) -> None:
        """Also tell how a service is, which is asked whenever somebody looks.

        queue  tokens of a priority that wait for the encoder
        ready  whether it takes traffic, and which capabilities work
        model  the model's name and fingerprint
        """
        self.registry.register(_Service(queue, ready, model))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics, and their content type: OpenMetrics if the Accept header asks for it, else Prometheus' text."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


def _code(code: str) -> tuple[str]:
    return (code if code in CODES else OTHER,)


class _Numbers:
    """Numbers by the values of their labels. Counting here takes a third of what the library's own classes take."""

    def __init__(
        self,
        family: type[CounterMetricFamily | GaugeMetricFamily],
        name: str,
        text: str,
        labels: Sequence[str],
        registry: CollectorRegistry,
    ) -> None:
        self._family, self._about = family, (name, text)
        self._labels = labels
        self._values: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()
        registry.register(self)

    def add(self, labels: tuple[str, ...], amount: float = 1) -> None:
        with self._lock:
            self._values[labels] = self._values.get(labels, 0.0) + amount

    def describe(self) -> Iterable[Metric]:
        return [self._empty()]

    def collect(self) -> Iterable[Metric]:
        family = self._empty()
        with self._lock:
            values = dict(self._values)
        for labels, value in values.items():
            family.add_metric(labels, value)
        return [family]

    def _empty(self) -> CounterMetricFamily | GaugeMetricFamily:
        return self._family(*self._about, labels=self._labels)


class _Spread:
    """Histograms by the values of their labels: how many numbers are at most each of `bounds`, and their sum."""

    def __init__(
        self, name: str, text: str, bounds: Sequence[float], labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._about = (name, text)
        self._labels = labels
        self._bounds = tuple(map(float, bounds))
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()
        if not labels:
            self._new(())
        registry.register(self)

    def observe(self, labels: tuple[str, ...], number: float) -> None:
        with self._lock:
            counts = self._counts.get(labels) or self._new(labels)
            counts[bisect_left(self._bounds, number)] += 1
            self._sums[labels] += number

    def describe(self) -> Iterable[Metric]:
        return [self._empty()]

    def collect(self) -> Iterable[Metric]:
        family = self._empty()
        with self._lock:
            rows = [(labels, list(counts), self._sums[labels]) for labels, counts in self._counts.items()]
        upper = [*map(floatToGoString, self._bounds), "+Inf"]
        for labels, counts, total in rows:
            family.add_metric(labels, list(zip(upper, accumulate(counts), strict=True)), total)
        return [family]

    def _empty(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(*self._about, labels=self._labels)

    def _new(self, labels: tuple[str, ...]) -> list[int]:
        self._sums[labels] = 0.0
        return self._counts.setdefault(labels, [0] * (len(self._bounds) + 1))


class _Service:
    """What is asked for at every look."""

    def __init__(self, queue: Callable[[Priority], int], ready: Ready, model: Callable[[], tuple[str, str]]) -> None:
        self._queue = queue
        self._ready = ready
        self._model = model

    def describe(self) -> Iterable[Metric]:
        """Names only: registering must not start the engine."""
        return self._families()

    def collect(self) -> Iterable[Metric]:
        queue, ready, capability, build = families = self._families()
        for priority in PRIORITIES:  # before readiness, whose probes wait in the queue too
            queue.add_metric([priority], self._queue(priority))
        takes_traffic, capabilities = self._ready()
        ready.add_metric([], float(takes_traffic))
        for name, works in capabilities.items():
            if works is not None:
                capability.add_metric([name], float(works))
        try:
            model, fingerprint = self._model()
        except Exception:  # a damaged checkpoint is told by readiness; the other metrics must still be seen
            model = fingerprint = ""
        build.add_metric([], {"version": version("albireo"), "model": model, "fingerprint": fingerprint})
        return families

    def _families(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily, InfoMetricFamily]:
        return (
            GaugeMetricFamily("albireo_queue_tokens", "Tokens waiting for the encoder.", labels=("priority",)),
            GaugeMetricFamily("albireo_ready", "1 if the service takes traffic."),
            GaugeMetricFamily("albireo_capability_ready", "1 if a capability works.", labels=("capability",)),
            InfoMetricFamily("albireo_build", "Version of the service, name and fingerprint of the model."),
        )


def install(app: FastAPI, metrics: Metrics) -> None:
    """Serve the metrics of an app."""
    looking = CapacityLimiter(1)

    @app.api_route("/metrics", methods=["GET", "HEAD"], include_in_schema=False, name="metrics")
    async def look(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        content, content_type = await anyio.to_thread.run_sync(metrics.exposition, accept, limiter=looking)
        return Response(content, headers={"Content-Type": content_type})
