"""Admission: what is refused, before its body is read, and when it is told to come back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from fastapi.testclient import TestClient

from albireo.observations.errors import Busy, TooLarge, Unavailable
from albireo.service.admission import LONGEST_RETRY, Admission, Place
from albireo.service.app import create_app
from albireo.service.core import Core
from albireo.service.settings import Settings
from tests.service.conftest import ToyEngine

FLUX = {
    "modality": "photometry",
    "values": {"flux_g": 12.5, "flux_g_unit": "nanomaggy"},
    "read": {
        "survey": "legacysurvey",
        "release": "dr10",
        "system": "AB",
        "kind": "model",
        "extinction_corrected": False,
    },
}
STAR = {"items": [{"id": "1", "inputs": [FLUX]}]}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_no_more_requests_than_there_are_places() -> None:
    admission = Admission(2, 100, 10)
    first, _ = admission.enter(), admission.enter()
    with pytest.raises(Busy) as refused:
        admission.enter()
    assert refused.value.retry_after >= 1
    first.leave()
    admission.enter()


def test_no_more_bytes_than_allowed_also_of_bodies_of_unknown_length() -> None:
    admission = Admission(9, 100, 10)
    stated, unknown = admission.enter(60), admission.enter()
    stated.read(60)
    unknown.read(40)
    with pytest.raises(Busy):
        unknown.read(1)
    with pytest.raises(Busy):
        admission.enter(1)
    with pytest.raises(TooLarge):
        admission.enter(101)
    stated.leave()
    unknown.leave()
    assert (admission.requests, admission.bytes) == (0, 0)


def test_a_body_of_unknown_length_alone_may_be_as_large_as_a_body_may_be() -> None:
    admission = Admission(9, 100, 10)
    alone = admission.enter()
    alone.read(150)
    alone.leave()
    assert admission.bytes == 0


def test_what_would_wait_too_long_is_told_when_to_come_back() -> None:
    clock = Clock()
    admission = Admission(1000, 1 << 30, 10.0, clock=clock)
    places = [admission.enter() for _ in range(30)]
    for place in places[:20]:
        clock.now += 0.5  # two a second
        place.leave()
    places = places[20:]
    while admission.delay <= 10:
        places.append(admission.enter())
    assert 20 <= len(places) <= 22
    with pytest.raises(Busy) as refused:
        admission.enter()
    assert 1 <= refused.value.retry_after < 2
    while admission.delay > 10:
        clock.now += 0.5
        places.pop().leave()
    admission.enter()


def test_one_that_was_slow_alone_says_nothing_of_many_that_are_computed_together() -> None:
    clock = Clock()
    admission = Admission(1000, 1 << 30, 20.0, clock=clock)
    places = [admission.enter() for _ in range(64)]
    clock.now += 0.5
    places.pop().leave()  # alone in its batch
    places.append(admission.enter())  # every client comes again at once
    for _ in range(5):
        clock.now += 3.0
        for n, place in enumerate(places):  # the others in the next one
            place.leave()
            places[n] = admission.enter()
    assert 2 < admission.delay < 4


@pytest.mark.parametrize("together", [1, 4])
def test_how_long_one_would_wait_is_learnt_under_load(together: int) -> None:
    """So many are done at a time, six a second, and ever more come: 4 seconds are 24 of them."""
    clock = Clock()
    admission = Admission(1000, 1 << 30, 4.0, clock=clock)
    inside: list[Place] = []
    for _ in range(60 // together):
        for _ in range(5 * together):
            with suppress(Busy):
                inside.append(admission.enter())
        clock.now += together / 6
        for place in inside[:together]:
            place.leave()
        inside = inside[together:]
    assert 20 <= len(inside) <= 30


def test_requests_that_failed_say_nothing_of_how_fast_work_is_done() -> None:
    clock = Clock()
    admission = Admission(1000, 1 << 30, 10.0, clock=clock)
    admission.enter()
    for _ in range(100):
        clock.now += 0.001
        admission.enter().leave(worked=False)
    assert admission.delay == 0.0


def test_the_backlog_of_the_pipeline_counts() -> None:
    waiting = [0.0]
    admission = Admission(1000, 1 << 30, 10.0, lambda: waiting[0])
    admission.enter()
    waiting[0] = 25.0
    with pytest.raises(Busy) as refused:
        admission.enter()
    assert refused.value.retry_after == pytest.approx(15.0)
    waiting[0] = 1e9
    with pytest.raises(Busy) as refused:
        admission.enter()
    assert refused.value.retry_after == LONGEST_RETRY


def test_nobody_is_let_in_after_the_end_began() -> None:
    admission = Admission(2, 100, 10)
    admission.close()
    with pytest.raises(Unavailable):
        admission.enter()


@pytest.fixture
def narrow(core: Core, settings: Settings) -> Iterator[TestClient]:
    """A service with one place."""
    with TestClient(create_app(core, settings.model_copy(update={"max_requests": 1}))) as client:
        yield client


def test_over_http(narrow: TestClient, engine: ToyEngine) -> None:
    assert narrow.post("/v1/embed", json=STAR).status_code == 200
    engine.gate.clear()
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(narrow.post, "/v1/embed", json=STAR)
        time.sleep(0.2)
        began = time.monotonic()
        refused = narrow.post("/v1/embed", content=b"never parsed", headers={"content-type": "application/json"})
        took = time.monotonic() - began
        assert narrow.get("/v1/info").status_code == 200, "what makes no work is always answered"
        assert time.monotonic() - began < 10
        engine.gate.set()
        slow.result(10)
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["code"] == "overloaded"
    assert int(refused.headers["retry-after"]) >= 1
    assert took < 1.0
    assert narrow.post("/v1/embed", json=STAR).status_code == 200


def test_a_deadline_of_a_request(client: TestClient, engine: ToyEngine) -> None:
    engine.gate.clear()
    body = {**STAR, "options": {"deadline_ms": 50}}
    began = time.monotonic()
    answer = client.post("/v1/embed", json=body)
    assert answer.status_code == 504, json.dumps(answer.json())
    assert answer.json()["code"] == "deadline_exceeded"
    assert time.monotonic() - began < 5
    engine.gate.set()


def test_draining(core: Core, settings: Settings, engine: ToyEngine) -> None:
    app = create_app(core, settings)
    with TestClient(app) as client:
        engine.gate.clear()
        with ThreadPoolExecutor(1) as threads:
            begun = threads.submit(client.post, "/v1/embed", json=STAR)
            time.sleep(0.2)
            app.state.drain()
            assert client.post("/v1/embed", json=STAR).status_code == 503
            ready = client.get("/readyz")
            assert ready.status_code == 503
            assert "shutting down" in ready.json()["detail"]
            threading.Timer(0.1, engine.gate.set).start()
            assert begun.result(10).status_code == 200
