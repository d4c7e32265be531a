"""What the service tells of its work: of the whole process to a `Watch`, of one request in its `Tally`.

Watch      hears what the pipeline does: `telemetry.Metrics` counts it, `Unwatched` does nothing
Timings    where the time of one request went
Tally      what the log, the metrics and the traces say of one request when it is over
tally()    the one of the request that this thread works for
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

Stage = Literal["parse", "tokenize", "queue", "encode", "predict", "search", "serialize"]
STAGES: tuple[Stage, ...] = ("parse", "tokenize", "queue", "encode", "predict", "search", "serialize")

EMBEDS: tuple[Stage, ...] = ("parse", "tokenize", "queue", "encode", "serialize")
"""Stages of every request that embeds, also where one took no time."""

Door = Literal["rest", "grpc", "worker"]

BROKEN = frozenset(
    {"internal", "checkpoint_invalid", "collection_damaged", "storage_unavailable", "storage_full", "not_ready"}
)
"""Codes of errors that whoever asked can do nothing about."""


class Watch(Protocol):
    """Hears of the work of a process. Every method may be called from any thread, and takes microseconds."""

    def stage(self, name: Stage, seconds: float, modality: str | None = None) -> None:
        """A unit of work took so long: a file parsed, parts of objects tokenized, a batch encoded; or `queue`, what a
        request waited in sum, which its door says. `modality` is a kind (`image`), a public name or a token key."""

    def processed(self, modality: str, tokens: int, objects: int) -> None:
        """So many tokens of a modality, of so many objects, went through the encoder."""

    def batch(self, tokens: int, budget: int, objects: int) -> None:
        """A batch went to the encoder; `budget` is the most tokens that it could have had."""

    def engine_error(self) -> None:
        """The engine raised what is no fault of the objects given to it."""

    def refused(self, code: str) -> None:
        """A request is answered with an error as a whole. Counted once a request, however often it is said."""

    def failed(self, code: str, objects: int = 1) -> None:
        """So many objects failed alone. The door that answers says it, from the request's tally."""


class Unwatched:
    """A Watch that does nothing."""

    def stage(self, name: Stage, seconds: float, modality: str | None = None) -> None: ...

    def processed(self, modality: str, tokens: int, objects: int) -> None: ...

    def batch(self, tokens: int, budget: int, objects: int) -> None: ...

    def engine_error(self) -> None: ...

    def refused(self, code: str) -> None: ...

    def failed(self, code: str, objects: int = 1) -> None: ...


UNWATCHED = Unwatched()


class Interval(NamedTuple):
    """A stage from `began` to `ended`, by time.monotonic()."""

    began: float
    ended: float
    stage: Stage


class Timings:
    """Where the time of one request went. Stages may run in several threads, inside each other, and at once.

    Every moment counts to one stage, so that the sum is never more than the time that passed: to the one that began
    last of those that run, and to `queue` only while nothing of the request is computed. What is measured is therefore
    what computes, and never a wait for other stages.
    """

    def __init__(self, watch: Watch = UNWATCHED) -> None:
        self._watch = watch
        self._lock = threading.Lock()
        self._intervals: list[Interval] = []
        self._open: dict[object, tuple[float, Stage]] = {}

    @contextmanager
    def stage(self, name: Stage, modality: str | None = None) -> Iterator[None]:
        """What runs inside is of this stage; the watch hears of it too."""
        began, place = time.monotonic(), object()
        with self._lock:
            self._open[place] = began, name
        try:
            yield
        finally:
            ended = time.monotonic()
            with self._lock:
                del self._open[place]
                self._intervals.append(Interval(began, ended, name))
            self._watch.stage(name, ended - began, modality)

    def add(self, name: Stage, began: float, ended: float) -> None:
        """A stage that ran elsewhere from `began` to `ended`, by time.monotonic(): a batch, a wait in the queue."""
        with self._lock:
            self._intervals.append(Interval(began, ended, name))

    @property
    def intervals(self) -> list[Interval]:
        """All of them, in the order in which they began."""
        with self._lock:
            return sorted(self._intervals)

    def seconds(self, *stages: Stage) -> dict[Stage, float]:
        """Seconds by stage, of the stages that there were and of `stages`, in the order of `STAGES`.

        A stage that still runs counts until now: an answer tells how long it was written until it said so.
        """
        with self._lock:
            now = time.monotonic()
            running_now = [Interval(began, now, name) for began, name in self._open.values()]
            intervals = sorted([*self._intervals, *running_now])
        edges = sorted({edge for one in intervals for edge in (one.began, one.ended)})
        sums: dict[Stage, float] = dict.fromkeys([*stages, *(one.stage for one in intervals)], 0.0)
        running: list[tuple[bool, float, float, Stage]] = []
        next_one = 0
        for start, end in pairwise(edges):
            while next_one < len(intervals) and intervals[next_one].began <= start:
                one = intervals[next_one]
                heapq.heappush(running, (one.stage == "queue", -one.began, one.ended, one.stage))
                next_one += 1
            while running and running[0][2] <= start:
                heapq.heappop(running)
            if running:
                sums[running[0][3]] += end - start
        return {name: sums[name] for name in STAGES if name in sums}

    def milliseconds(self, *stages: Stage) -> dict[str, float]:
        """The same in ms, as `timings_ms` of an answer."""
        return {name: round(value * 1e3, 3) for name, value in self.seconds(*stages).items()}


@dataclass(eq=False)
class Tally:
    """What is told of one request when it is over. Doors and verbs fill it from any thread.

    operation  a name from a short list: never an address or an id
    status     what was answered: an HTTP status, or the name of a gRPC one
    code       of the error that answered the whole request
    objects    that the request was about; `failed` counts those that failed, by their code
    key        name of the API key, never the key
    probe      True for a health check, which machines ask every few seconds
    trace      W3C trace context (`traceparent`, `tracestate`), which calls to other services carry on
    """

    request_id: str = ""
    door: Door = "rest"
    client: str = ""
    probe: bool = False
    timings: Timings = field(default_factory=Timings)
    operation: str = "unknown"
    status: str = ""
    code: str | None = None
    key: str | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    objects: int = 0
    tokens: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    trace: dict[str, str] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, objects: int = 0, failed: Iterable[str] = (), tokens: int = 0) -> None:
        """Add objects, the codes of those of them that failed, and tokens."""
        with self._lock:
            self.objects += objects
            self.tokens += tokens
            self.failed.update(failed)

    @property
    def n_failed(self) -> int:
        return sum(self.failed.values())

    @property
    def trace_id(self) -> str | None:
        """Of the trace that the request is part of, 32 hexadecimal digits; None if it is in none."""
        return self.trace["traceparent"].split("-")[1] if "traceparent" in self.trace else None

    @property
    def broken(self) -> bool:
        """True if the request failed by a fault of the service."""
        return self.code in BROKEN


_CURRENT: ContextVar[Tally | None] = ContextVar("albireo_tally", default=None)


def tally() -> Tally:
    """Of the request that this thread or task works for. Without a request, one that nobody will read."""
    return _CURRENT.get() or Tally()


def current() -> Tally | None:
    """The same, None without a request."""
    return _CURRENT.get()


@contextmanager
def working_for(request: Tally | None) -> Iterator[None]:
    """What runs inside works for a request: this task or thread, and the threads that anyio starts from it."""
    token = _CURRENT.set(request)
    try:
        yield
    finally:
        with suppress(ValueError):  # a stream that nobody reads any more is closed by another task
            _CURRENT.reset(token)
