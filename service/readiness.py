"""Readiness that means something: a known observation just got its known embedding, and searching finds its object.

    probe         the observation: made by formula, one payload for every modality of the checkpoint
    KnownAnswer   the embedding it must get, kept beside a shipped checkpoint in known_answer.json
    Readiness     the report by capability; `embed` and `search` decide, the others are only told

`python -m albireo.service.readiness FOLDER` computes the known answer of a checkpoint and writes it there.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.index.collection import Collections, StoredObject
from albireo.models.engine import Engine
from albireo.observations.errors import AlbireoError, BadCheckpoint
from albireo.observations.modalities import IMAGE_SIZE, MODALITIES, Modality
from albireo.observations.observation import (
    Catalog,
    Coefficients,
    Image,
    Observation,
    Payload,
    Scalar,
    SegmentationMap,
    Spectrum,
)
from albireo.observations.spaces import same_space
from albireo.service.core import Core
from albireo.service.engine_around import uncached
from albireo.service.subjects import Subject
from albireo.service.tickets import Ticket

PROBE = "probe-1"
"""Name of the probe's formula; another formula gets another name."""

KNOWN_ANSWER = "known_answer.json"
TOLERANCE = 0.01
"""Relative distance |a - b| / |b| allowed to the stored answer: another processor may round a token the other way."""

ROUNDED = 0.05
"""The same for weights kept in a shorter type than the stored answer was computed with."""

DRIFT = 1e-3
"""Relative distance allowed to the answer at start, which the same machine computed."""

FRESH_SECONDS = 3.0
"""How long a report is given again without computing."""

WAIT_SECONDS = 2.0
"""How long a caller waits for the probes; health checks time out soon."""

BUSY_SECONDS = 60.0
"""How old the last report may be when the probes do not come back, because the engine is busy with other work."""

SPARE_BYTES = 64 << 20
"""Free disk below which writing is reported as broken."""


def probe(keys: Iterable[str]) -> Observation:
    """The observation with one payload for each of the modalities `keys`."""
    return Observation(PROBE, {key: _payload(MODALITIES[key]) for key in MODALITIES if key in set(keys)})


def _payload(row: Modality) -> Payload:
    if row.kind == "image":
        return _image(row)
    if row.kind == "spectrum":
        wavelength = np.arange(3600.0, 9800.0, 2.0)
        line = 4.0 * np.exp(-0.5 * ((wavelength - 6800.0) / 12.0) ** 2)
        flux = (3.0 + (wavelength - 6700.0) / 3100.0 + line).astype(np.float32)
        ivar = np.full(flux.shape, 16.0, np.float32)
        return Spectrum(wavelength, flux, ivar, np.zeros(flux.shape, np.bool_), row.unit, "heliocentric")
    if row.kind == "coefficients":
        (n,) = row.shape
        order = np.arange(n or 1)
        return Coefficients((800.0 * np.exp(-order / 6.0) * np.cos(order)).astype(np.float32), row.unit)
    if row.kind == "scalar":
        return Scalar(
            {"mag": 0.5, "nanomaggy": 20.0, "arcsec": 1.5, "electron / s": 900.0}.get(row.unit, 0.1), row.unit
        )
    if row.kind == "segmentation":
        y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
        field = np.where(np.hypot(x - 47.5, y - 47.5) < 12, 0.6, np.where(np.hypot(x - 20, y - 70) < 4, 0.2, 0.0))
        return SegmentationMap(field.astype(np.float32), row.pixel_scale or 1.0)
    if row.kind == "catalog":
        e1, e2, r = np.array([[0.2, 0.0], [-0.1, 0.0], [3.1, 0.0]], np.float32)
        return Catalog(np.array([48, 20]), np.array([47, 70]), e1, e2, r)
    raise AssertionError(row.kind)


def _image(row: Modality) -> Image:
    _, height, width = row.shape
    y, x = np.mgrid[: height or 1, : width or 1]
    radius2 = ((x - 47.5) / 9.0) ** 2 + ((y - 47.5) / 5.0) ** 2
    planes = [0.05 + (n + 1) * np.exp(-np.sqrt(radius2)) for n in range(len(row.bands))]
    flux = np.stack(planes).astype(np.float32)
    zero_point = 22.5 if row.unit == "nanomaggy" else 27.0
    return Image(flux, row.bands, row.pixel_scale or 1.0, row.unit, zero_point, np.zeros(flux.shape, np.bool_), ())


@dataclass(frozen=True)
class KnownAnswer:
    """The mean embedding (D,) of the probe in embedding space `space`, and the relative distance allowed."""

    space: str
    values: NDArray[np.float32]
    tolerance: float = TOLERANCE

    @classmethod
    def read(cls, folder: Path) -> KnownAnswer | None:
        """The answer kept in a checkpoint folder; None if there is none. Raises BadCheckpoint if it is damaged."""
        path = folder / KNOWN_ANSWER
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text())
            if content["observation"] != PROBE:
                raise ValueError(f"observation {content['observation']!r}, this version knows {PROBE!r}")
            values = np.frombuffer(base64.b64decode(content["embedding"], validate=True), "<f4").astype(np.float32)
            return cls(str(content["space"]), values, float(content["tolerance"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadCheckpoint("checkpoint_invalid", f"known answer: {error}", file=str(path)) from error

    def write(self, folder: Path) -> None:
        """Keep the answer in a checkpoint folder."""
        content = {
            "observation": PROBE,
            "space": self.space,
            "tolerance": self.tolerance,
            "embedding": base64.b64encode(self.values.astype("<f4").tobytes()).decode(),
        }
        (folder / KNOWN_ANSWER).write_text(json.dumps(content, indent=1) + "\n")


def answer(engine: Engine) -> KnownAnswer:
    """The embedding that `engine` gives the probe now."""
    (tokens,) = engine.tokenize([probe(engine.inputs)])
    if isinstance(tokens, AlbireoError):
        raise tokens
    (embedding,) = engine.embed([tokens], "mean")
    return KnownAnswer(engine.space("mean"), embedding.values)


@dataclass(frozen=True)
class Report:
    """`capabilities` name -> {ok, detail, ...}; `reason` says why it is not ready."""

    ready: bool
    reason: str
    capabilities: dict[str, dict[str, Any]]


class Readiness:
    """Probes of one service. They run in a thread of their own, so that a wedged engine blocks nobody.

    known   gives the stored answer of the checkpoint, or None
    beside  further capabilities that are only told: name -> whether it works, and how
    """

    def __init__(
        self,
        core: Core,
        data_folder: Path,
        known: Callable[[], KnownAnswer | None] = lambda: None,
        redis_url: str | None = None,
        beside: Mapping[str, Callable[[], tuple[bool, str]]] | None = None,
        fresh_seconds: float = FRESH_SECONDS,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self.core = core
        self.data_folder = data_folder
        self.known = known
        self.redis_url = redis_url
        self.beside = beside or {}
        self.fresh_seconds = fresh_seconds
        self.wait_seconds = wait_seconds
        self._lock = threading.Lock()
        self._running: threading.Thread | None = None
        self._last: Report | None = None
        self._last_time = 0.0
        self._first: KnownAnswer | None = None
        self._warm = False
        self._draining = False

    def drain(self) -> None:
        """From now on the service is not ready: it answers what it has begun, and is given nothing new."""
        self._draining = True

    @property
    def started(self) -> bool:
        """Whether the first probes came back good: what is needed is loaded, and computes."""
        return self._first is not None and self._last is not None

    @property
    def starting(self) -> str:
        """What a service that has not `started` is doing, or why it cannot."""
        if self._last is not None and not self._last.ready:
            return self._last.reason
        return "the first known-answer embedding is being computed" if self.core.loaded else "the model is being loaded"

    def start(self) -> threading.Thread:
        """Let the probes run, unless they are running; returns at once."""
        with self._lock:
            if self._running is None or not self._running.is_alive():
                self._running = threading.Thread(target=self._run, name="readiness", daemon=True)
                self._running.start()
            return self._running

    def report(self) -> Report:
        """The state of every capability. Waits at most `wait_seconds`; then the last report counts for a while."""
        if self._draining:
            return Report(False, "the service is shutting down", self._last.capabilities if self._last else {})
        if self._last is None or time.monotonic() - self._last_time > self.fresh_seconds:
            self.start().join(self.wait_seconds)
        last, age = self._last, time.monotonic() - self._last_time
        if last is None:
            return Report(False, "the first known-answer embedding is still being computed", {})
        stuck = self.core.pipeline.stuck if self.core.pipeline is not None else None
        if stuck is not None:
            detail = f"a batch is in the encoder for {stuck:.0f} s, far longer than batches take"
            return Report(False, f"embed: {detail}", {**last.capabilities, "embed": {"ok": False, "detail": detail}})
        if age > BUSY_SECONDS + self.fresh_seconds:
            return Report(False, f"the probes have not come back for {age:.0f} s", last.capabilities)
        return last

    def _run(self) -> None:
        report = self._probe()
        self._last, self._last_time = report, time.monotonic()

    def _probe(self) -> Report:
        capabilities = {
            "embed": _told(self._embed),
            "search": _told(self._search),
            "write": _told(self._write),
            "workers": _told(self._workers),
            "heads": _told(self._heads),
            "redis": _told(self._redis) if self.redis_url else {"ok": None, "detail": "not configured"},
        } | {name: _told(partial(_passed_on, check)) for name, check in self.beside.items()}
        broken = [name for name in ("embed", "search") if not capabilities[name]["ok"]]
        reason = "; ".join(f"{name}: {capabilities[name]['detail']}" for name in broken)
        return Report(not broken, reason, capabilities)

    def _embed(self) -> str:
        # Through the queues, like everything else: workers that do not work are seen.
        # Anew: a cache remembers what an engine computed that is dead by now.
        now = answer(uncached(self.core.on(Ticket.within(BUSY_SECONDS)).engine))
        if self.core.pipeline is not None and self.core.pipeline.dead:
            raise WrongAnswer(f"workers have ended: {', '.join(self.core.pipeline.dead)}")
        if not np.isfinite(now.values).all() or not now.values.any():
            raise WrongAnswer("the probe's embedding is not finite or is zero")
        known = self.known()
        if known is not None:
            if not same_space(known.space, now.space):
                raise WrongAnswer(f"the stored answer is of space {known.space}, the engine computes {now.space}")
            exact = self.core.engine.numerics.dtype == "float32"
            _compare(now, known, known.tolerance if exact else ROUNDED, "the stored answer")
        # Compared with the stored answer before it becomes the reference: a wrong start is never the measure.
        self._first = self._first or now
        _compare(now, self._first, DRIFT, "the answer at start")
        return "the probe got its known embedding" + ("" if known else " (none is stored: that of the start)")

    def _search(self) -> str:
        names = self.core.collections.names()
        for name in names:
            _ = self.core.collections.get(name).count
        with tempfile.TemporaryDirectory(prefix="albireo-probe-") as folder:
            probes = Collections(Path(folder) / "probe.sqlite")
            try:
                collection = probes.create("probe", "probe", 2)
                vectors = np.eye(2, dtype=np.float32)
                collection.upsert([StoredObject(str(n), vector) for n, vector in enumerate(vectors)])
                found = [hits[0].id for hits in collection.search(vectors, 1, space="probe")]
            finally:
                probes.close()
        if found != ["0", "1"]:
            raise WrongAnswer(f"a search for two known vectors found {found}")
        return f"{len(names)} collection(s); a search for known vectors found them"

    def _write(self) -> str:
        self.data_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.data_folder) as stream:
            stream.write(b"probe")
            stream.flush()
        free = shutil.disk_usage(self.data_folder).free
        if free < SPARE_BYTES:
            raise WrongAnswer(f"only {free} bytes are free")
        return f"{free >> 20} MiB free"

    def _workers(self) -> str:
        if self.core.pipeline is None:
            return "the threads of requests compute"
        waits = self.core.pipeline.waits
        return "; ".join(
            [self.core.pipeline.staff, *(f"{stage}: waiting for {wait:.1f} s" for stage, wait in waits.items())]
        )

    def _heads(self) -> str:
        """Heads are opened, and those with a file asked once at the start, so that nobody waits until they are warm."""
        found = list(self.core.shelf.all())
        heads = {one.name: one for one in found if not isinstance(one, AlbireoError)}
        if not self._warm and self._first is not None:
            model = self.core.described
            fitting = {name: one for name, one in heads.items() if one.path and one.about(model)["fits"]}
            if fitting:
                subject = Subject(PROBE, None, probe(self.core.inputs))
                self.core.on(Ticket.within(BUSY_SECONDS)).predict([subject], fitting)
            self._warm = True
        if bad := [str(one) for one in found if isinstance(one, AlbireoError)]:
            raise WrongAnswer("; ".join(bad))
        return ", ".join(heads)

    def _redis(self) -> str:
        from redis import Redis  # optional in a deployment: loaded only where it is configured

        assert self.redis_url is not None
        with Redis.from_url(self.redis_url, socket_timeout=1, socket_connect_timeout=1) as client:
            client.ping()
        return "answers"


class WrongAnswer(Exception):
    """A probe that ran and gave what it must not give."""


def _compare(now: KnownAnswer, known: KnownAnswer, tolerance: float, what: str) -> None:
    if now.values.shape != known.values.shape:
        raise WrongAnswer(f"the embedding has shape {now.values.shape}, {what} {known.values.shape}")
    off = float(np.linalg.norm(now.values - known.values) / np.linalg.norm(known.values))
    if not off <= tolerance:
        raise WrongAnswer(f"the probe's embedding is off {what} by {off:.3g} (allowed {tolerance:g})")


def _passed_on(check: Callable[[], tuple[bool, str]]) -> str:
    """What a check of another part of the service says."""
    ok, detail = check()
    if not ok:
        raise WrongAnswer(detail)
    return detail


def _told(check: Callable[[], str]) -> dict[str, Any]:
    """What a check found. Whatever goes wrong in it is its finding, so that the others are still told."""
    began = time.perf_counter()
    try:
        ok, detail = True, check()
    except Exception as error:
        ok, detail = False, str(error) or type(error).__name__
    return {"ok": ok, "detail": detail, "ms": round((time.perf_counter() - began) * 1e3, 1)}


def main(folder: str) -> None:
    """Compute and keep the known answer of the checkpoint in `folder`."""
    from albireo.models.torch_engine import TorchEngine

    answer(TorchEngine.open(folder)).write(Path(folder))


if __name__ == "__main__":
    main(sys.argv[1])
