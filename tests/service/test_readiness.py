"""/readyz tells the truth: right answers, wrong answers, no answers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from albireo.index.collection import Collections
from albireo.observations.errors import BadCheckpoint
from albireo.service import batching
from albireo.service.app import create_app
from albireo.service.core import Core
from albireo.service.embedding_cache import EmbeddingCache
from albireo.service.readiness import KnownAnswer, Readiness, answer, probe
from albireo.service.settings import Settings
from albireo.service.subjects import Subject
from albireo.service.tickets import Ticket
from albireo.service.token_cache import with_token_cache
from albireo.service.watch import UNWATCHED


def test_ready_with_a_right_engine(client: TestClient) -> None:
    body = client.get("/readyz")
    assert body.status_code == 200, body.text
    capabilities = body.json()["capabilities"]
    assert {name: part["ok"] for name, part in capabilities.items()} == {
        "embed": True,
        "search": True,
        "write": True,
        "workers": True,
        "heads": True,
        "redis": None,
    }
    assert capabilities["heads"]["detail"] == "tok_z"


def test_started_says_what_is_awaited_and_stays(engine, core: Core, settings: Settings, tmp_path: Path) -> None:
    engine.shift = float("nan")
    app = create_app(core, settings, Readiness(core, tmp_path, fresh_seconds=0.0, wait_seconds=20.0))
    with TestClient(app) as client:
        client.get("/readyz")
        waiting = client.get("/startupz")
        assert waiting.status_code == 503
        assert "not finite" in waiting.json()["detail"]
        engine.shift = 0.0
        assert client.get("/readyz").status_code == 200
        assert client.get("/startupz").json() == {"status": "started"}
        engine.shift = 0.5
        assert client.get("/readyz").status_code == 503
        assert client.get("/startupz").status_code == 200


def test_keys_that_cannot_be_read_again_are_told(core: Core, tmp_path: Path) -> None:
    told = {"keys": lambda: (False, "the keys in use are those of before")}
    report = Readiness(core, tmp_path, beside=told, wait_seconds=20.0).report()
    assert report.ready
    assert report.capabilities["keys"]["ok"] is False
    assert "of before" in report.capabilities["keys"]["detail"]


@pytest.mark.parametrize("shift", [0.5, float("nan"), float("inf")])
def test_an_engine_that_turns_wrong_is_not_ready(client: TestClient, engine, shift: float) -> None:
    assert client.get("/readyz").status_code == 200
    engine.shift = shift
    wrong = client.get("/readyz")
    assert wrong.status_code == 503
    assert wrong.json()["code"] == "not_ready"
    assert wrong.json()["capabilities"]["embed"]["ok"] is False
    assert wrong.json()["capabilities"]["search"]["ok"] is True
    assert "retry-after" in wrong.headers
    assert client.get("/livez").status_code == 200
    engine.shift = 0.0
    assert client.get("/readyz").status_code == 200


def test_no_cache_answers_for_a_dead_engine(engine, settings: Settings, tmp_path: Path) -> None:
    """Neither embeddings nor tokens of the probe are those that were remembered."""
    cached = settings.model_copy(update={"token_cache": tmp_path / "tokens"})
    core = with_token_cache(Core(lambda: engine, lambda: Collections(settings.collections_file)), cached)
    core._results = EmbeddingCache(1 << 20)
    core.staff(settings.staffing, UNWATCHED)
    readiness = Readiness(core, tmp_path, fresh_seconds=0.0, wait_seconds=20.0)
    try:
        assert readiness.report().ready
        core.on(Ticket()).embed([Subject("probe", None, probe(engine.inputs))])
        tokenize, engine.tokenize = engine.tokenize, _fails
        assert not readiness.report().ready
        engine.tokenize, engine.crash = tokenize, True
        assert not readiness.report().ready
        engine.crash = False
        assert readiness.report().ready
    finally:
        core.close()


def _fails(*given: object) -> None:
    raise RuntimeError("no tokens")


def test_an_encoder_that_hangs_is_told_soon(
    engine, core: Core, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before the probe gives up, and not while a batch takes what batches take."""
    monkeypatch.setattr(batching, "STUCK", 0.2)
    core.staff(settings.staffing, UNWATCHED)
    readiness = Readiness(core, tmp_path, fresh_seconds=60.0, wait_seconds=20.0)
    assert readiness.report().ready
    engine.gate.clear()
    with ThreadPoolExecutor(1) as threads:
        begun = threads.submit(core.on(Ticket()).embed, [Subject("probe", None, probe(engine.inputs))])
        try:
            assert readiness.report().ready
            time.sleep(0.5)
            assert core.pipeline is not None
            while core.pipeline.stuck is None:
                time.sleep(0.1)
            report = readiness.report()
        finally:
            engine.gate.set()
        begun.result()
    assert not report.ready
    assert "a batch is in the encoder" in report.reason
    assert report.capabilities["embed"]["ok"] is False
    assert readiness.report().ready


def test_heads_that_cannot_be_opened_are_told(core: Core, settings: Settings, tmp_path: Path) -> None:
    folder = settings.data_folder / "heads"
    folder.mkdir(parents=True)
    (folder / "broken.safetensors").write_bytes(b"no head")
    report = Readiness(core, tmp_path, wait_seconds=20.0).report()
    assert report.ready
    assert report.capabilities["heads"]["ok"] is False
    assert "broken" in report.capabilities["heads"]["detail"]


def test_heads_are_asked_before_the_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    core = Core.local(Settings(data_folder=tmp_path))
    predict = Core.predict

    def seen(self: Core, subjects, heads, **more):
        asked.append(sorted(heads))
        assert not readiness.started
        return predict(self, subjects, heads, **more)

    monkeypatch.setattr(Core, "predict", seen)
    readiness = Readiness(core, tmp_path, fresh_seconds=0.0, wait_seconds=60.0)
    for _ in range(2):
        assert readiness.report().ready
    assert readiness.started
    assert asked == [["class", "galaxy", "redshift", "stellar"]]
    core.close()


def test_an_engine_that_starts_wrong_is_told_by_the_stored_answer(engine, core: Core, tmp_path: Path) -> None:
    right = answer(engine)
    engine.shift = 0.5
    readiness = Readiness(core, tmp_path, lambda: right, fresh_seconds=0.0, wait_seconds=20.0)
    assert not readiness.report().ready
    engine.shift = 0.0
    assert readiness.report().ready


def test_the_stored_answer_of_another_space(engine, core: Core, tmp_path: Path) -> None:
    stale = KnownAnswer("toy@ffff:mean", answer(engine).values)
    report = Readiness(core, tmp_path, lambda: stale, wait_seconds=20.0).report()
    assert not report.ready
    assert "toy@ffff" in report.reason


def test_the_known_answer_is_kept_exactly(engine, tmp_path: Path) -> None:
    assert KnownAnswer.read(tmp_path) is None
    right = answer(engine)
    right.write(tmp_path)
    back = KnownAnswer.read(tmp_path)
    assert back is not None
    np.testing.assert_array_equal(back.values, right.values)
    assert back.space == right.space
    (tmp_path / "known_answer.json").write_text("{}")
    with pytest.raises(BadCheckpoint):
        KnownAnswer.read(tmp_path)


def test_a_wedged_engine_does_not_wedge_the_probe(engine, core: Core, tmp_path: Path) -> None:
    engine.gate.clear()
    readiness = Readiness(core, tmp_path, fresh_seconds=0.0, wait_seconds=0.05)
    assert not readiness.report().ready
    engine.gate.set()
    readiness.start().join(20)
    assert readiness.report().ready


def test_redis_is_only_reported(core: Core, tmp_path: Path) -> None:
    readiness = Readiness(core, tmp_path, redis_url="redis://127.0.0.1:1/0", wait_seconds=20.0)
    report = readiness.report()
    assert report.ready
    assert report.capabilities["redis"]["ok"] is False


def test_a_damaged_collections_file_is_not_ready(engine, tmp_path: Path) -> None:
    path = tmp_path / "collections.sqlite"
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    core = Core(lambda: engine, lambda: Collections(path))
    report = Readiness(core, tmp_path, wait_seconds=20.0).report()
    assert not report.ready
    assert report.capabilities["embed"]["ok"] is True
    assert report.capabilities["search"]["ok"] is False


def test_a_checkpoint_that_cannot_be_opened(settings: Settings) -> None:
    def broken():
        raise BadCheckpoint("checkpoint_invalid", "no config.json", file="nowhere")

    core = Core(broken, lambda: Collections(settings.collections_file))
    readiness = Readiness(core, settings.data_folder, wait_seconds=20.0)
    with TestClient(create_app(core, settings, readiness)) as client:
        assert client.get("/livez").json() == {"status": "alive"}
        assert "no config.json" in client.get("/readyz").json()["detail"]
        info = client.get("/v1/info")
        assert (info.status_code, info.json()["code"]) == (500, "checkpoint_invalid")
