"""The engine of a service: its work is done by threads of its own, for all requests together.

    Pipeline  tokenizer workers for each kind of modality, a queue of tokens, and the threads that run the encoder
    Lane      the pipeline as the Engine of one request: what it is asked goes through the queues, under its ticket

An object's modalities are tokenized beside each other, each kind by workers of its own: a slow image does not delay
photometry. Its tokens then wait for a batch of the encoder. Whoever asked waits in its own thread for the answer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.models.engine import Embedding, Engine, Pooling, Tokens
from albireo.observations.errors import AlbireoError
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Observation
from albireo.service.batching import Batcher, Together, Work
from albireo.service.engine_around import EngineAround, uncached
from albireo.service.tickets import Ticket, under
from albireo.service.watch import UNWATCHED, Stage, Watch, tally, working_for

log = logging.getLogger("albireo.pipeline")

POOLS: dict[str, tuple[str, ...]] = {
    "image": ("image", "segmentation"),
    "spectrum": ("spectrum",),
    "numbers": ("scalar", "coefficients", "catalog"),
}
"""Pool of workers -> the kinds of modalities that they tokenize."""

POOL_OF = {kind: pool for pool, kinds in POOLS.items() for kind in kinds}
KINDS = tuple(dict.fromkeys(str(row.kind) for row in MODALITIES.values() if row.kind in POOL_OF))
"""In the table's order."""

AT_ONCE = {"image": 1, "spectrum": 1, "numbers": 256}
"""Objects that a worker takes at a time: networks run one object at a time, numbers are cheaper together."""

Part = tuple[Observation, str, bool]
"""An object, the kind of its modalities that is to be tokenized, and whether that is done anew, without a cache."""

Asked = tuple[Tokens, Pooling]


@dataclass(frozen=True)
class Staffing:
    """How many threads do what.

    workers       tokenizer threads by pool
    encoders      batches that are encoded at a time
    batch_tokens  tokens of a batch
    max_wait      seconds that a batch which is not full waits for more
    """

    workers: Mapping[str, int]
    encoders: int
    batch_tokens: int
    max_wait: float = 0.0


class Pipeline:
    """Threads around an engine. `on` gives the Engine of a request; `close` computes what waits, then ends."""

    def __init__(self, engine: Engine, staffing: Staffing, watch: Watch = UNWATCHED) -> None:
        self.engine = engine
        self.watch = watch
        largest = sum(spec.n_tokens for spec in engine.inputs.values())
        self.encoding: Batcher[Asked, Embedding] = Batcher(
            max(staffing.batch_tokens, largest), staffing.max_wait, staffing.encoders
        )
        self.tokenizing: dict[str, Batcher[Part, Tokens]] = {
            pool: Batcher(AT_ONCE[pool], parallel=n) for pool, n in staffing.workers.items()
        }
        self._threads = [
            threading.Thread(target=self._serve, args=(self.encoding, self._encode), name=f"encoder-{n}", daemon=True)
            for n in range(staffing.encoders)
        ] + [
            threading.Thread(
                target=self._serve,
                args=(self.tokenizing[pool], self._tokenize),
                name=f"tokenizer-{pool}-{n}",
                daemon=True,
            )
            for pool, count in staffing.workers.items()
            for n in range(count)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def _batchers(self) -> list[Batcher[Any, Any]]:
        return [*self.tokenizing.values(), self.encoding]

    def on(self, ticket: Ticket) -> Lane:
        """The engine of a request."""
        return Lane(self, ticket)

    @property
    def dead(self) -> list[str]:
        """Names of the threads that should run and do not."""
        return [thread.name for thread in self._threads if not thread.is_alive()]

    @property
    def staff(self) -> str:
        """Who computes, here and elsewhere, for people."""
        here = [f"{len(self._threads) - len(self.dead)} threads"]
        ended = [f"ended: {', '.join(self.dead)}"] if self.dead else []
        return "; ".join(here + ended + list(getattr(self.engine, "elsewhere", ())))

    @property
    def waits(self) -> dict[str, float]:
        """Stage -> seconds that its oldest work waits; stages where nothing waits are left out."""
        stages: dict[str, Batcher[Any, Any]] = {"encoder": self.encoding, **self.tokenizing}
        found = {name: batcher.oldest() for name, batcher in stages.items()}
        return {name: seconds for name, seconds in found.items() if seconds is not None}

    @property
    def stuck(self) -> float | None:
        """Seconds for which the encoder computes a batch that should have been done long ago, None if it does not."""
        return self.encoding.stuck()

    @property
    def seconds_to_drain(self) -> float:
        """How long what waits will take, as fast as it went lately; stages share the cores, so their times add."""
        return sum(batcher.seconds for batcher in self._batchers)

    def close(self, seconds: float = 30.0) -> None:
        """Take no more work, and wait until what was taken is computed, so long at most."""
        until = time.monotonic() + seconds
        for batcher in self._batchers:
            batcher.close()
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _serve(
        self, batcher: Batcher[Any, Any], compute: Callable[[Sequence[Work[Any, Any]]], Sequence[Any | AlbireoError]]
    ) -> None:
        """What a worker does all day."""
        while batch := batcher.take():
            try:
                results = self._computed(batch, compute)
            finally:
                batcher.done(batch)
            ended = time.monotonic()
            for work, result in zip(batch, results, strict=True):
                work.ended = ended
                work.settle(result)

    def _computed(
        self,
        batch: Sequence[Work[Any, Any]],
        compute: Callable[[Sequence[Work[Any, Any]]], Sequence[Any | AlbireoError]],
    ) -> list[Any | AlbireoError]:
        """What comes of each; where the batch fails as a whole, each is tried alone, and fails alone."""
        try:
            if len(batch) > 1:
                return list(compute(batch))
            with working_for(batch[0].request), under(batch[0].ticket):
                return list(compute(batch))
        except AlbireoError as error:
            if len(batch) == 1:
                return [error]
        except BaseException:
            self.watch.engine_error()
            if len(batch) == 1:
                with working_for(batch[0].request):
                    log.exception("a defect of the engine")
                return [AlbireoError("internal", "the service failed on this object")]
        return [result for work in batch for result in self._computed([work], compute)]

    def _tokenize(self, batch: Sequence[Work[Part, Tokens]]) -> list[Tokens | AlbireoError]:
        results: list[Tokens | AlbireoError | None] = [None] * len(batch)
        for kind, anew in dict.fromkeys(work.given[1:] for work in batch):
            at = [i for i, work in enumerate(batch) if work.given[1:] == (kind, anew)]
            engine = uncached(self.engine) if anew else self.engine
            began = time.monotonic()
            for i, result in zip(at, engine.tokenize([batch[i].given[0] for i in at], {kind}), strict=True):
                results[i] = result
            self.watch.stage("tokenize", time.monotonic() - began, kind)
        return [result for result in results if result is not None]

    def _encode(self, batch: Sequence[Work[Asked, Embedding]]) -> list[Embedding | AlbireoError]:
        self.watch.batch(sum(work.cost for work in batch), self.encoding.budget, len(batch))
        began = time.monotonic()
        out = self.engine.embed_each([work.given[0] for work in batch], [work.given[1] for work in batch])
        self.watch.stage("encode", time.monotonic() - began)
        self._count(batch)
        return out

    def _count(self, batch: Sequence[Work[Asked, Embedding]]) -> None:
        """Tell the watch of tokens and objects by modality."""
        counts: dict[str, list[int]] = {}
        for work in batch:
            for key, ids in work.given[0].ids.items():
                row = counts.setdefault(key, [0, 0])
                row[0] += len(ids)
                row[1] += 1
        for key, (tokens, objects) in counts.items():
            self.watch.processed(key, tokens, objects)


class Lane(EngineAround):
    """The Engine (see models/engine.py) of one request. The error of its ticket when that ends before the answer."""

    def __init__(self, pipeline: Pipeline, ticket: Ticket, anew: bool = False) -> None:
        super().__init__(uncached(pipeline.engine) if anew else pipeline.engine)
        self.pipeline = pipeline
        self.ticket = ticket
        self.anew = anew

    @property
    def uncached(self) -> Engine:
        return Lane(self.pipeline, self.ticket, anew=True)

    def tokenize(
        self, observations: Sequence[Observation], kinds: Collection[str] | None = None
    ) -> list[Tokens | AlbireoError]:
        """Each kind of modality of each object by a worker of its pool."""
        together: Together[Part, Tokens] = Together(self.ticket)
        places: list[list[int]] = []
        queued: dict[str, list[Work[Part, Tokens]]] = {}
        for observation in observations:
            there = {MODALITIES[key].kind for key in observation.data}
            mine = [kind for kind in KINDS if kind in there and (kinds is None or kind in kinds)]
            if there - set(KINDS):
                mine = []  # the engine says what is wrong with it
            places.append([])
            for kind in mine:
                places[-1].append(len(together.works))
                queued.setdefault(POOL_OF[kind], []).append(together.work((observation, kind, self.anew), 1))
        for pool, works in queued.items():
            self.pipeline.tokenizing[pool].put(works)
        results = together.wait()
        _timed(together, "tokenize")
        return [
            _merged([results[i] for i in mine]) if mine else self.engine.tokenize([observation], kinds)[0]
            for observation, mine in zip(observations, places, strict=True)
        ]

    def embed_each(
        self, tokens: Sequence[Tokens], pooling: Pooling | Sequence[Pooling] = "mean"
    ) -> list[Embedding | AlbireoError]:
        """Each object in the next batch that has room."""
        poolings = [pooling] * len(tokens) if isinstance(pooling, str) else pooling
        together: Together[Asked, Embedding] = Together(self.ticket)
        self.pipeline.encoding.put(
            [together.work((one, how), max(1, one.n_tokens)) for one, how in zip(tokens, poolings, strict=True)]
        )
        results = together.wait()
        _timed(together, "encode")
        return results

    def logits(
        self,
        tokens: Sequence[Tokens],
        targets: Sequence[str] | Sequence[Mapping[str, NDArray[np.int64]]],
        attention: str | None = None,
    ) -> list[dict[str, NDArray[np.float32]]]:
        """In the thread of the request: every answer asks for other tokens, which makes no batches."""
        self.ticket.check()
        return self.engine.logits(tokens, targets, attention)

    def values(self, key: str, ids: NDArray[np.int64], **target: Any) -> NDArray[np.float32]:
        self.ticket.check()
        return self.engine.values(key, ids, **target)


def _merged(parts: Sequence[Tokens | AlbireoError]) -> Tokens | AlbireoError:
    """The parts of an object, in the table's order, as one; the first error if there is one."""
    whole: list[Tokens] = []
    for part in parts:
        if isinstance(part, AlbireoError):
            return part
        whole.append(part)
    if len(whole) == 1:
        return whole[0]
    found = {key: ids for part in whole for key, ids in part.ids.items()}
    flags = dict.fromkeys(flag for part in whole for flag in part.flags)
    return replace(whole[0], ids={key: found[key] for key in MODALITIES if key in found}, flags=tuple(flags))


def _timed(together: Together[Any, Any], stage: Stage) -> None:
    """Tell the request where its time went: waits in the queue, and what computed it."""
    timings = tally().timings
    done = [work for work in together.works if work.ended]
    for began, ended in {(work.since, work.taken) for work in done}:
        timings.add("queue", began, ended)
    for began, ended in {(work.taken, work.ended) for work in done}:
        timings.add(stage, began, ended)
