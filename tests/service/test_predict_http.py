"""/v1/predict and /v1/heads: answers, what several heads cost, errors by item and by request."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from albireo.service import schemas
from albireo.service.prediction_schemas import HeadsReply, PredictReply
from albireo.service.settings import Settings
from tests.service.conftest import TellingEngine
from tests.service.heads import fit, runner, write_objects

PHOTOMETRY = {"FLUX_G": 12.0, "FLUX_R": 3.0, "FLUX_G_unit": "nanomaggy", "FLUX_R_unit": "nanomaggy"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the heads `far` (redshift), `kind` (classes) and `galaxy` (mass)."""
    folder = tmp_path_factory.mktemp("http")
    run, table = runner(TellingEngine(), folder), write_objects(folder / "objects.ecsv")
    for name, task in (("far", "redshift"), ("kind", "classification"), ("galaxy", "regression")):
        done = fit(run, name, table, folder, task)
        assert done.exit_code == 0, done.output
    return folder / "heads"


@pytest.fixture
def engine() -> TellingEngine:
    return TellingEngine()


@pytest.fixture(autouse=True)
def shelved(made: Path, settings: Settings) -> Path:
    """The heads, where the service looks for them."""
    return Path(shutil.copytree(made, settings.data_folder / "heads"))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_objects(tmp_path / "new.ecsv", 4, seed=1)


def sent(client: TestClient, path: str, table: Path, content: dict[str, Any] | None = None) -> Any:
    files: list[Any] = [("file", (table.name, table.read_bytes()))]
    if content is not None:
        files.append(("request", (None, json.dumps(content), "application/json")))
    return client.post(path, files=files)


def test_one_head(client: TestClient, table: Path) -> None:
    answer = sent(client, "/v1/predict/far", table)
    assert answer.status_code == 200, answer.text
    reply = PredictReply.model_validate(answer.json())
    assert reply.space == "toy@0123456789ab:tokens"
    edges = np.array(reply.heads["far"].edges)
    assert [item.id for item in reply.items] == [f"o1-{i}" for i in range(4)]
    for item in reply.items:
        said = item.predictions["far"]
        (number,) = said.numbers
        assert number.name == "redshift"
        inner, outer = number.intervals
        assert (inner.level, outer.level) == (0.68, 0.95)
        assert outer.low <= inner.low <= number.value <= inner.high <= outer.high
        assert said.density is not None
        assert said.density.probability is not None
        assert len(said.density.probability) == len(edges) - 1
        assert sum(said.density.probability) == pytest.approx(1)
        assert said.typicality is not None
        assert item.modalities_used == ["legacysurvey.flux_g", "legacysurvey.flux_r"]
        assert item.status == "ok"
    assert set(answer.json()["timings_ms"]) == {*("parse", "tokenize", "queue", "encode", "predict", "serialize")}


def test_several_heads_cost_one_pass(client: TestClient, engine: TellingEngine, table: Path) -> None:
    assert client.get("/readyz").status_code == 200  # heads were asked once by then
    engine.passes = 0
    answer = sent(client, "/v1/predict", table, {"heads": ["far", "kind", "galaxy"], "options": {"density": False}})
    assert answer.status_code == 200, answer.text
    assert engine.passes == 4
    reply = PredictReply.model_validate(answer.json())
    assert reply.heads["galaxy"].units == ["dex(solMass)"]
    assert reply.heads["far"].edges is None
    for item, row in zip(reply.items, answer.json()["items"], strict=True):
        assert set(item.predictions) == {"far", "kind", "galaxy"}
        assert item.predictions["far"].density is not None
        assert item.predictions["far"].density.probability is None
        classes = item.predictions["kind"].classes
        assert sum(classes.values()) == pytest.approx(1)
        assert row["predictions"]["kind"]["class"] == max(classes, key=classes.__getitem__)
        assert item.predictions["galaxy"].numbers[0].unit == "dex(solMass)"
    alone = PredictReply.model_validate(sent(client, "/v1/predict/galaxy", table).json())
    for one, other in zip(reply.items, alone.items, strict=True):
        assert one.predictions["galaxy"] == other.predictions["galaxy"]


def test_every_form_of_a_body_says_the_same(client: TestClient, table: Path) -> None:
    by_form = sent(client, "/v1/predict", table, {"heads": ["kind"]}).json()["items"]
    by_query = client.post("/v1/predict?heads=kind&density=false", files=[("file", ("new.ecsv", table.read_bytes()))])
    assert by_query.json()["items"] == by_form
    kinds = {"Content-Type": "application/octet-stream"}
    bare = client.post("/v1/predict/kind?filename=new.ecsv", content=table.read_bytes(), headers=kinds)
    assert bare.json()["items"] == by_form
    read = {"survey": "legacysurvey"}
    items = [{"id": "x", "inputs": [{"modality": "photometry", "values": PHOTOMETRY, "read": read}]}]
    one = client.post("/v1/predict/kind", json={"items": items})
    assert one.status_code == 200, one.text
    assert one.json()["items"][0]["predictions"]["kind"]["class"] == "blue"


def test_labels_sent_along_change_nothing(client: TestClient) -> None:
    inputs = [{"values": PHOTOMETRY, "read": {"survey": "legacysurvey"}}]
    meta = {"ra": 10.0, "dec": -5.0, "labels": {"redshift": 3.0, "class": "red", "z_spec": 3.0, "mass": 1.0}}
    said = []
    for about in ({}, meta):
        items = [{"id": "x", "inputs": inputs, "meta": about}]
        answer = client.post("/v1/predict", json={"heads": ["far", "kind", "galaxy"], "items": items})
        assert answer.status_code == 200, answer.text
        said.append(answer.json()["items"][0]["predictions"])
    assert said[0] == said[1]


def test_the_prior_is_stated_as_a_word_or_as_cells(client: TestClient, table: Path) -> None:
    def values(prior: Any) -> list[float]:
        answer = sent(client, "/v1/predict", table, {"heads": ["far"], "options": {"prior": prior}})
        assert answer.status_code == 200, answer.text
        return [item["predictions"]["far"]["numbers"][0]["value"] for item in answer.json()["items"]]

    assert values("flat") != values("training")
    assert max(values({"edges": [0, 0.2, 0.25], "n": [1, 3]})) <= 0.25
    for wrong in ({"edges": [0, 1], "n": [1, 2]}, {"edges": [1, 0], "n": [1]}, "narrow"):
        assert sent(client, "/v1/predict", table, {"heads": ["far"], "options": {"prior": wrong}}).status_code == 422


def test_a_bad_object_fails_alone(client: TestClient, table: Path, image: Callable[..., bytes]) -> None:
    files = [("file", (table.name, table.read_bytes())), ("file", ("a.fits", image("A", level=1e7)))]
    answer = client.post("/v1/predict/kind", files=files)
    assert answer.status_code == 200
    assert answer.headers["x-items-failed"] == "1"
    *good, bad = answer.json()["items"]
    assert all(item["status"] == "ok" for item in good)
    assert (bad["status"], bad["error"]["code"], bad["predictions"]) == ("error", "value_out_of_range", {})
    alone = client.post("/v1/predict/kind", files=files[1:])
    assert alone.status_code == 422
    assert schemas.Problem.model_validate(alone.json()).code == "value_out_of_range"


def test_a_head_that_cannot_read_an_object_refuses_it_alone(client: TestClient, image: Callable[..., bytes]) -> None:
    """An image, of which these heads know nothing; the model's own token does."""
    answer = client.post("/v1/predict?heads=kind,tok_z", files=[("file", ("a.fits", image("A")))])
    assert answer.status_code == 200, answer.text
    (item,) = answer.json()["items"]
    assert item["status"] == "degraded"
    assert item["predictions"]["kind"]["error"]["code"] == "nothing_to_embed"
    assert item["predictions"]["tok_z"]["error"] is None
    assert item["predictions"]["tok_z"]["numbers"][0]["name"] == "redshift"
    assert client.post("/v1/predict/kind", files=[("file", ("a.fits", image("A")))]).status_code == 422


def test_unknown_heads_and_heads_of_another_model(client: TestClient, engine: TellingEngine, table: Path) -> None:
    for path in ("/v1/predict/farther", "/v1/predict/far.safetensors", "/v1/predict?heads=far,farther"):
        answer = sent(client, path, table)
        assert answer.status_code == 404
        problem = schemas.Problem.model_validate(answer.json())
        assert problem.code == "head_unknown"
        assert "far, galaxy, kind, tok_z" in (problem.fix or "")
    engine.space = lambda pooling, normalize=False: f"other@ba9876543210:{pooling}"  # type: ignore[method-assign]
    answer = sent(client, "/v1/predict/far", table)
    assert answer.status_code == 409
    assert schemas.Problem.model_validate(answer.json()).code == "space_mismatch"
    assert sent(client, "/v1/predict", table, {"heads": []}).status_code == 422


def test_cards(client: TestClient, shelved: Path) -> None:
    (shelved / "broken.safetensors").write_bytes(b"no head")
    reply = HeadsReply.model_validate(client.get("/v1/heads").json())
    assert [(head.name, head.origin, head.fits) for head in reply.heads] == [
        ("far", "own", True), ("galaxy", "own", True), ("kind", "own", True), ("tok_z", "built in", True),
    ]  # fmt: skip
    assert [error.code for error in reply.errors] == ["head_invalid"]
    card = reply.heads[2].card
    assert card is not None
    assert card["classes"] == ["blue", "red"]
    assert card["metrics"]["test"]["kind"]["accuracy"][0] > 0.8
    assert reply.heads[3].card is None
