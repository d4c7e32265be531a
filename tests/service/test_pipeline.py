"""The pipeline: the same answers as the engine alone, batches across requests, and faults that stay where they are."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from albireo.models.engine import Embedding, Pooling, Tokens
from albireo.models.torch_engine import TorchEngine
from albireo.observations.errors import AlbireoError, Gone, Late
from albireo.observations.observation import Image, Observation, Scalar
from albireo.observations.sky import simulate
from albireo.service.pipeline import Pipeline, Staffing
from albireo.service.tickets import Ticket
from albireo.tokenizers.checkpoint import MINI
from tests.service.conftest import ToyEngine

WORKERS = {"image": 1, "spectrum": 1, "numbers": 1}


@pytest.fixture(scope="module")
def mini() -> TorchEngine:
    return TorchEngine.open(MINI)


@pytest.fixture
def engine() -> SlowEngine:
    return SlowEngine()


@pytest.fixture
def pipeline(engine: SlowEngine) -> Iterator[Pipeline]:
    made = Pipeline(engine, Staffing(WORKERS, 1, 64))
    yield made
    engine.gate.set()
    engine.images.set()
    made.close(5)
    assert made.dead == [thread.name for thread in made._threads], "a thread did not end"


class SlowEngine(ToyEngine):
    """Counts batches; a closed `images` holds images up, `poison` is the flux that breaks the engine."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.images = threading.Event()
        self.images.set()
        self.poison: np.int64 | None = None

    def tokenize(self, observations: Sequence[Observation], kinds: object = None) -> list[Tokens | AlbireoError]:
        if kinds == {"image"}:
            assert self.images.wait(30)
        return super().tokenize(observations, kinds)  # type: ignore[arg-type]

    def embed(self, tokens: Sequence[Tokens], pooling: Pooling | Sequence[Pooling] = "mean") -> list[Embedding]:
        if self.poison is not None and any(self.poison in ids for one in tokens for ids in one.ids.values()):
            raise RuntimeError("the device fell off the bus")
        out = super().embed(tokens, pooling)
        self.batches.append(len(tokens))
        return out


def star(n: int) -> Observation:
    return Observation(
        str(n), {"tok_flux_g": Scalar(float(n + 1), "nanomaggy"), "tok_flux_r": Scalar(2.0, "nanomaggy")}
    )


def tokens_of(engine: ToyEngine, observations: Sequence[Observation]) -> list[Tokens]:
    out = engine.tokenize(observations)
    assert all(isinstance(one, Tokens) for one in out)
    return [one for one in out if isinstance(one, Tokens)]


def test_the_same_tokens_and_embeddings_as_the_engine_alone(mini: TorchEngine) -> None:
    observations = [
        Observation(str(i), {key: payload for key, payload in one.data.items() if key in mini.inputs}, flags=one.flags)
        for i, one in enumerate(simulate(12, np.random.default_rng(3)))
    ]
    pipeline = Pipeline(mini, Staffing(WORKERS, 2, 2048))
    try:
        lane = pipeline.on(Ticket())
        alone, through = mini.tokenize(observations), lane.tokenize(observations)
        for one, other in zip(alone, through, strict=True):
            assert isinstance(one, Tokens)
            assert isinstance(other, Tokens)
            assert list(one.ids) == list(other.ids)
            assert one.flags == other.flags
            assert all((one.ids[key] == other.ids[key]).all() for key in one.ids)
        tokens = [one for one in alone if isinstance(one, Tokens)]
        for pooling in ("mean", "tokens"):
            for one, other in zip(mini.embed(tokens, pooling), lane.embed(tokens, pooling), strict=True):
                off = np.linalg.norm(one.values - other.values) / np.linalg.norm(one.values)
                assert off < 1e-5
    finally:
        pipeline.close()


def test_an_object_without_a_modality_is_told_as_by_the_engine(mini: TorchEngine) -> None:
    pipeline = Pipeline(mini, Staffing(WORKERS, 1, 64))
    try:
        (alone,), (through,) = (one.tokenize([Observation("empty", {})]) for one in (mini, pipeline.on(Ticket())))
        assert isinstance(alone, AlbireoError)
        assert isinstance(through, AlbireoError)
        assert alone.as_dict() == through.as_dict()
    finally:
        pipeline.close()


def test_requests_that_come_together_are_computed_together(pipeline: Pipeline, engine: SlowEngine) -> None:
    engine.gate.clear()
    with ThreadPoolExecutor(20) as threads:
        first = threads.submit(pipeline.on(Ticket()).embed, tokens_of(engine, [star(0)]))
        while pipeline.encoding.computing == 0:
            time.sleep(0.001)
        waiting = [threads.submit(pipeline.on(Ticket()).embed, tokens_of(engine, [star(n)])) for n in range(1, 20)]
        while pipeline.encoding.waiting < 38:
            time.sleep(0.001)
        engine.gate.set()
        found = [future.result(10)[0].values for future in (first, *waiting)]
    assert engine.batches == [1, 19]
    for n, values in enumerate(found):
        assert (values == engine.embed(tokens_of(engine, [star(n)]))[0].values).all()


def test_each_request_gets_its_own_pooling(pipeline: Pipeline, engine: SlowEngine) -> None:
    poolings: list[Pooling] = ["mean", "tokens", "mean_per_modality"]
    out = pipeline.on(Ticket()).embed(tokens_of(engine, [star(n) for n in range(3)]), poolings)
    assert [one.pooling for one in out] == poolings


def test_a_slow_image_does_not_delay_photometry(pipeline: Pipeline, engine: SlowEngine) -> None:
    engine.images.clear()
    pixels = np.ones((4, 96, 96), np.float32)
    image = Image(pixels, ("g", "r", "i", "z"), 0.262, "nanomaggy", 22.5, np.zeros(pixels.shape, bool), ())
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(pipeline.on(Ticket()).tokenize, [Observation("slow", {"tok_image": image})])
        began = time.monotonic()
        assert isinstance(pipeline.on(Ticket()).tokenize([star(1)])[0], Tokens)
        assert time.monotonic() - began < 5
        assert not slow.done()
        engine.images.set()
        assert isinstance(slow.result(10)[0], Tokens)


def test_a_poisonous_object_fails_alone(pipeline: Pipeline, engine: SlowEngine) -> None:
    tokens = tokens_of(engine, [star(n) for n in range(16)])
    want = engine.embed(tokens)
    engine.poison = tokens[7].ids["tok_flux_g"][0]
    found = pipeline.on(Ticket()).embed_each(tokens)
    bad = found.pop(7)
    assert isinstance(bad, AlbireoError)
    assert bad.code == "internal"
    assert "bus" not in str(bad)
    for one, other in zip(found, want[:7] + want[8:], strict=True):
        assert isinstance(one, Embedding)
        assert (one.values == other.values).all()


def test_a_request_taken_back_is_not_computed(pipeline: Pipeline, engine: SlowEngine) -> None:
    engine.gate.clear()
    ticket = Ticket()
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(pipeline.on(Ticket()).embed, tokens_of(engine, [star(0)]))
        while pipeline.encoding.computing == 0:
            time.sleep(0.001)
        gone = threads.submit(pipeline.on(ticket).embed, tokens_of(engine, [star(n) for n in range(1, 9)]))
        while pipeline.encoding.waiting == 0:
            time.sleep(0.001)
        ticket.cancel()
        with pytest.raises(Gone):
            gone.result(5)
        assert pipeline.encoding.waiting == 0
        engine.gate.set()
        running.result(5)
    assert engine.batches == [1]


def test_a_deadline_ends_the_wait(pipeline: Pipeline, engine: SlowEngine) -> None:
    engine.gate.clear()
    with pytest.raises(Late):
        pipeline.on(Ticket.within(0.05)).embed(tokens_of(engine, [star(0)]))


def test_what_waits_is_computed_before_the_end(engine: SlowEngine) -> None:
    pipeline = Pipeline(engine, Staffing(WORKERS, 1, 64))
    engine.gate.clear()
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(pipeline.on(Ticket()).embed, tokens_of(engine, [star(n) for n in range(40)]))
        while pipeline.encoding.computing == 0:
            time.sleep(0.001)
        closing = threading.Thread(target=pipeline.close)
        closing.start()
        engine.gate.set()
        assert len(future.result(10)) == 40
        closing.join(10)
    assert len(pipeline.dead) == 4
