"""Streams of any length: in order, bad items alone, never more read than is computed; and what ends them."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from albireo.service.core import Core
from albireo.service.grpc_messages import array
from albireo.service.grpc_streams import WINDOW_BYTES, Ahead, in_order
from albireo.service.protos.albireo.v1 import albireo_pb2 as pb
from albireo.service.settings import Settings
from tests.service.conftest import ToyEngine
from tests.service.grpc_doors import Served, detail, embedded, of_file, of_fluxes, served
from tests.service.test_grpc_calls import eventually, refusal


@pytest.fixture
def door(core: Core, settings: Settings) -> Iterator[Served]:
    with served(core, settings) as made:
        yield made


# --- windows --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    n: int
    n_bytes: int = 1


async def messages(sizes: Sequence[int], read: list[int], pause: Callable[[int], bool]) -> AsyncIterator[Message]:
    for n, size in enumerate(sizes):
        if pause(n):
            await asyncio.sleep(0)
        read.append(n)
        yield Message(n, size)


@given(
    sizes=st.lists(st.integers(0, 12), max_size=60),
    pauses=st.sets(st.integers(0, 60)),
    slow=st.sets(st.integers(0, 60)),
    at_once=st.integers(1, 3),
)
def test_windows_are_in_order_and_bounded(sizes: list[int], pauses: set[int], slow: set[int], at_once: int) -> None:
    windows: list[list[Message]] = []
    computing = 0

    async def compute(window: list[Message]) -> list[int]:
        nonlocal computing
        computing += 1
        assert computing <= at_once
        windows.append(window)
        for _ in range(3 * (window[0].n in slow)):
            await asyncio.sleep(0)
        computing -= 1
        return [one.n for one in window]

    async def run() -> list[int]:
        read: list[int] = []
        return [n async for n in in_order(messages(sizes, read, pauses.__contains__), compute, at_once)]

    assert asyncio.run(run()) == list(range(len(sizes)))
    assert all(windows)


def test_a_window_is_bounded_by_count_and_bytes() -> None:
    async def taken(sizes: list[int]) -> list[list[int]]:
        windows = []
        async with Ahead(messages(sizes, [], lambda n: False), max_items=3, max_bytes=10) as ahead:
            await asyncio.sleep(0.01)
            while window := await ahead.window():
                windows.append([one.n_bytes for one in window])
                await asyncio.sleep(0.01)
        return windows

    assert asyncio.run(taken([1] * 7)) == [[1, 1, 1], [1, 1, 1], [1]]
    assert asyncio.run(taken([6, 4, 1, 25, 9, 2])) == [[6, 4], [1], [25], [9], [2]]


def test_what_is_not_taken_is_not_read() -> None:
    read: list[int] = []

    async def run() -> None:
        async with Ahead(messages([1] * 100, read, lambda n: False), max_items=3):
            await asyncio.sleep(0.02)

    asyncio.run(run())
    assert read == [0, 1, 2, 3]  # the fourth is held until there is room


def test_errors_end_a_stream_after_the_results_before_them() -> None:
    async def run(bad: int, seen: list[int]) -> None:
        async def compute(window: list[Message]) -> list[int]:
            if any(one.n == bad for one in window):
                raise ValueError(bad)
            return [one.n for one in window]

        async for n in in_order(messages([1] * 10, [], lambda n: True), compute):
            seen.append(n)

    seen: list[int] = []
    with pytest.raises(ValueError, match="5"):
        asyncio.run(run(5, seen))
    assert seen == list(range(len(seen)))

    async def broken() -> AsyncIterator[Message]:
        yield Message(0)
        raise ValueError("read")

    out: list[int] = []

    async def reading() -> None:
        async def compute(window: list[Message]) -> list[int]:
            return [one.n for one in window]

        async for n in in_order(broken(), compute):
            out.append(n)

    with pytest.raises(ValueError, match="read"):
        asyncio.run(reading())
    assert out == [0]


# --- EmbedStream ----------------------------------------------------------------------------------------------------


def test_a_thousand_items_some_of_them_bad(door: Served) -> None:
    def sent() -> Iterator[pb.Item]:
        for n in range(1000):
            if n % 100 == 7:
                yield of_file(b"torn", id=f"o{n}")
            elif n % 100 == 42:
                yield of_fluxes(f"o{n}", g=2e6)
            elif n % 100 == 77:
                yield pb.Item(id=f"o{n}")
            else:
                yield of_fluxes(f"o{n}", g=1.0 + n)

    results = list(door.embedding.EmbedStream(sent(), timeout=60))
    assert [one.item for one in results] == list(range(1000))
    assert [one.id for one in results] == [f"o{n}" for n in range(1000)]
    bad = {one.item: one.error.code for one in results if one.status == "error"}
    assert set(bad) == {n for n in range(1000) if n % 100 in (7, 42, 77)}
    assert set(bad.values()) == {"unknown_format", "value_out_of_range", "request_invalid"}
    alone = door.embedding.Embed(embedded(of_fluxes("o500", g=501.0))).items[0]
    assert results[500].embedding.data == alone.embedding.data
    assert results[500].space == alone.space
    assert (door.admission.requests, door.admission.bytes) == (0, 0)


class Sent:
    """A client that sends what it is told to, when it is told to."""

    def __init__(self) -> None:
        self._queue: queue.Queue[pb.Item | None] = queue.Queue()
        self.taken = 0

    def __iter__(self) -> Iterator[pb.Item]:
        while (item := self._queue.get()) is not None:
            self.taken += 1
            yield item

    def put(self, *items: pb.Item | None) -> None:
        for item in items:
            self._queue.put(item)


def test_a_client_that_waits_for_each_answer_gets_it(door: Served) -> None:
    sent = Sent()
    results = door.embedding.EmbedStream(iter(sent), timeout=20)
    for n in range(5):
        sent.put(of_fluxes(str(n)))
        assert next(results).id == str(n)
    sent.put(None)
    assert list(results) == []


def test_options_hold_from_the_item_that_states_them(door: Served, image: Callable[..., bytes]) -> None:
    content = image("a", SURVEY=None)
    items = [of_fluxes(str(n)) for n in range(4)] + [of_file(content), of_file(content)]
    items[1].embed.pooling = "tokens"
    items[3].embed.normalize = True
    items[5].embed.read.survey = "legacysurvey"
    results = list(door.embedding.EmbedStream(iter(items), timeout=20))
    assert [list(one.embedding.shape) for one in results] == [[16], [2, 16], [2, 16], [16], [], [16]]
    assert [one.space.endswith(":l2") for one in results] == [False, False, False, True, False, False]
    assert results[4].error.code == "survey_missing"


@pytest.mark.parametrize(
    "item",
    [
        of_fluxes("bad", embed=pb.EmbedOptions(pooling="max")),
        of_fluxes("bad", embed=pb.EmbedOptions(join=True)),
        of_fluxes("bad", predict=pb.PredictOptions(heads=["tok_z"])),
    ],
)
def test_options_that_cannot_be_end_the_stream(door: Served, item: pb.Item) -> None:
    results = door.embedding.EmbedStream(iter([of_fluxes("a"), item, of_fluxes("b")]), timeout=20)
    assert next(results).id == "a"
    error = refusal(lambda: next(results))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_several_objects_in_one_file(door: Served) -> None:
    table = "# %ECSV 1.0\n# ---\n# datatype:\n# - {name: id, datatype: string}\n"
    table += "".join(f"# - {{name: flux_{b}, unit: nmgy, datatype: float64}}\n" for b in "gr")
    table += "# schema: astropy-2.0\nid flux_g flux_r\n" + "".join(f"t{n} {n + 1}.0 2.0\n" for n in range(3))
    items = [of_fluxes("a"), pb.Item(inputs=[pb.Input(file=table.encode(), read=of_fluxes("").inputs[0].read)])]
    results = list(door.embedding.EmbedStream(iter([*items, of_fluxes("b")]), timeout=20))
    assert [(one.item, one.id) for one in results] == [(0, "a"), (1, "t0"), (1, "t1"), (1, "t2"), (2, "b")]


def test_a_client_that_does_not_read_is_not_read(door: Served) -> None:
    """Its own writes wait: the service holds a few windows of it, however much it has to send."""
    big = bytes(4 << 20)
    sent, total = Sent(), 40
    sent.put(*(of_file(big, id=str(n)) for n in range(total)), None)
    results = door.embedding.EmbedStream(iter(sent), timeout=60)
    door.admission.requests += door.admission.max_requests  # no window of it gets a place
    try:
        assert eventually(lambda: sent.taken >= WINDOW_BYTES / len(big))
        time.sleep(0.3)
        assert sent.taken < 30
    finally:
        door.admission.requests -= door.admission.max_requests
    assert [one.error.code for one in results] == ["unknown_format"] * total
    assert sent.taken == total


def test_a_stream_that_is_cancelled_computes_nothing_more(door: Served, engine: ToyEngine) -> None:
    sent = Sent()
    results = door.embedding.EmbedStream(iter(sent), timeout=30)
    sent.put(of_fluxes("a"))
    assert next(results).id == "a"
    engine.gate.clear()
    pipeline = door.core.pipeline
    assert pipeline is not None
    sent.put(*(of_fluxes(str(n)) for n in range(20)))
    assert eventually(lambda: door.admission.requests > 0 and pipeline.encoding.computing > 0)
    results.cancel()
    sent.put(None)
    assert eventually(lambda: door.admission.requests == 0 and pipeline.encoding.waiting == 0)
    engine.gate.set()
    assert eventually(lambda: door.door.calls.streams == 0)
    assert door.embedding.Embed(embedded(of_fluxes("b")), timeout=10).items[0].status == "ok"


def test_a_deadline_ends_a_stream(door: Served, engine: ToyEngine) -> None:
    engine.gate.clear()
    results = door.embedding.EmbedStream(iter([of_fluxes("a")]), timeout=0.3)
    assert refusal(lambda: next(results)).code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert eventually(lambda: door.admission.requests == 0)
    engine.gate.set()


def test_the_end_of_the_service_ends_a_stream(door: Served) -> None:
    sent = Sent()
    results = door.embedding.EmbedStream(iter(sent), timeout=20)
    sent.put(of_fluxes("a"))
    assert next(results).id == "a"
    door.admission.close()
    sent.put(of_fluxes("b"))
    error = refusal(lambda: next(results))
    sent.put(None)
    assert (error.code(), detail(error, "ErrorInfo").reason) == (grpc.StatusCode.UNAVAILABLE, "not_ready")
    assert refusal(lambda: next(door.embedding.EmbedStream(iter([]), timeout=20))).code() == grpc.StatusCode.UNAVAILABLE


def test_too_many_streams(core: Core, settings: Settings) -> None:
    with served(core, settings.model_copy(update={"max_requests": 2})) as door:
        many = [Sent() for _ in range(2)]
        streams = [door.embedding.EmbedStream(iter(sent), timeout=20) for sent in many]
        for sent, stream in zip(many, streams, strict=True):
            sent.put(of_fluxes("a"))
            assert next(stream).id == "a"
        error = refusal(lambda: next(door.embedding.EmbedStream(iter([of_fluxes("b")]), timeout=20)))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert door.embedding.Embed(embedded(of_fluxes("c"))).items[0].status == "ok"
        for sent, stream in zip(many, streams, strict=True):
            sent.put(None)
            assert list(stream) == []


def test_a_stream_is_bulk_unless_it_says_otherwise(core: Core, settings: Settings) -> None:
    tickets: list[Any] = []

    class Seen(Core):
        def on(self, ticket: Any) -> Core:
            tickets.append(ticket)
            return super().on(ticket)

    seen = Seen(lambda: core.engine, lambda: core.collections, shelf=lambda: core.shelf)
    with served(seen, settings) as door:
        list(door.embedding.EmbedStream(iter([of_fluxes("a")]), timeout=20))
        list(door.embedding.EmbedStream(iter([of_fluxes("a", embed=pb.EmbedOptions(priority="interactive"))])))
        door.embedding.Embed(embedded(of_fluxes("a"), priority="bulk"))
        door.embedding.Embed(embedded(of_fluxes("a")))
    assert [one.priority for one in tickets] == ["bulk"] * 2 + ["interactive"] * 2 + ["bulk", "interactive"]
    lefts = [one.deadline - time.monotonic() if one.deadline else None for one in tickets]
    assert [left is not None and left <= 20 for left in lefts] == [True, True, False, False, False, False]
    assert lefts[2] is None
    assert all(left is not None and left <= settings.deadline_seconds for left in lefts[4:])
    assert all(one.cancelled for one in (tickets[0], tickets[2], *tickets[4:]))


# --- PredictStream --------------------------------------------------------------------------------------------------


def test_heads_in_a_stream(door: Served) -> None:
    items = [of_fluxes(str(n), g=1.0 + n) for n in range(5)]
    items.insert(2, of_file(b"torn", id="bad"))
    items[0].predict.heads.append("tok_z")
    items[4].predict.CopyFrom(pb.PredictOptions(heads=["tok_z"], density=False))
    results = list(door.heads.PredictStream(iter(items), timeout=20))
    assert [(one.item, one.id, one.status) for one in results] == [
        (n, item.id, "error" if item.id == "bad" else "ok") for n, item in enumerate(items)
    ]
    assert [sorted(one.heads) for one in results] == [["tok_z"], [], [], [], ["tok_z"], []]
    edges, probability = (
        array(one, "x") for one in (results[0].heads["tok_z"].edges, results[0].answers["tok_z"].density.probability)
    )
    assert len(edges) == len(probability) + 1
    assert probability.sum() == pytest.approx(1)
    assert not results[4].answers["tok_z"].density.HasField("probability")
    request = pb.PredictRequest(items=[of_fluxes("1", g=2.0)], options=pb.PredictOptions(heads=["tok_z"]))
    assert results[1].answers["tok_z"] == door.heads.Predict(request).items[0].answers["tok_z"]


def test_a_stream_without_heads(door: Served) -> None:
    error = refusal(lambda: next(door.heads.PredictStream(iter([of_fluxes("a")]), timeout=20)))
    assert (error.code(), detail(error, "BadRequest").field_violations[0].field) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "heads",
    )
