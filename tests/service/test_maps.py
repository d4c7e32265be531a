"""Segmentation maps and catalogs through the doors: what validate says of them, and how a request states them."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from albireo.observations.catalogs import check_catalog
from albireo.observations.errors import BadInput
from albireo.observations.modalities import AION_KEYS, MODALITIES
from albireo.observations.observation import Catalog, Observation, SegmentationMap
from albireo.observations.segmentation import check_segmentation_map
from albireo.service.descriptions import describe
from albireo.service.printing import validation_text
from albireo.service.readiness import probe
from albireo.service.reading_flags import read_options
from albireo.service.subjects import Subject
from albireo.tokenizers.checkpoint import TokenSpec

AION = {"tok_segmap": TokenSpec(144, 1000), "catalog": TokenSpec(50, 3468)}
TABLE: dict[str, list[float | None]] = {"X": [48, 60], "Y": [47, 40], "SHAPE_E1": [0.1, 0.0], "SHAPE_E2": [-0.2, 0.0],
                                        "SHAPE_R": [1.5, 0.0]}  # fmt: skip


def catalog(n: int) -> Catalog:
    zeros = np.zeros(n, np.float32)
    return Catalog(np.arange(48, 48 + n), np.full(n, 47), zeros, zeros, zeros)


def described(**data: Any) -> dict[str, Any]:
    return describe(Subject("A", "a.npz", Observation("A", data)), AION)


def test_a_map_is_described() -> None:
    field = np.zeros((96, 96), np.float32)
    field[:24] = 0.2
    item = described(tok_segmap=SegmentationMap(field, 0.262, kept_fraction=0.36))
    (row,) = item["detected"]["modalities"]
    assert (row["modality"], row["kind"], row["n_tokens"]) == ("segmentation.legacysurvey", "segmentation", 144)
    assert row["shape"] == [96, 96]
    assert row["covered_fraction"] == pytest.approx(0.25)
    assert row["most_common_values"] == pytest.approx([0.0, 0.2])
    assert "objects on 25.0% of the pixels" in text_of(item)
    assert "96 x 96 px of 0.262 arcsec, kept 36.0%" in text_of(item)


def text_of(item: dict[str, Any]) -> str:
    file = {"file": "a.npz", "format": "npz", "recognised": True, "n_objects": 1, "n_failed": 0, "companion_of": None,
            "error": None}  # fmt: skip
    return validation_text({"files": [file], "items": [item], "usage": {"tokens": 0}}, ["a.npz"])


def test_a_catalog_costs_five_tokens_an_object() -> None:
    item = described(catalog=catalog(3))
    (row,) = item["detected"]["modalities"]
    assert row["n_tokens"] == item["detected"]["n_tokens"] == 15
    assert (row["n_objects"], row["nearest"]) == (3, [48, 47, 0.0, 0.0, 0.0])
    assert item["usable"]
    assert "3 objects, the nearest to the centre at X 48, Y 47" in text_of(item)


def test_a_catalog_that_the_model_cannot_read_is_told_before_it_is_tokenized() -> None:
    item = described(catalog=catalog(11))
    assert (item["usable"], item["errors"][0]["code"]) == (False, "too_many_tokens")
    assert "nearest=10" in item["errors"][0]["fix"]


def test_a_request_states_a_catalog_as_a_table(client: TestClient) -> None:
    given = {"modality": "catalog.legacysurvey", "table": TABLE}
    answer = client.post("/v1/validate", json={"items": [{"id": "N", "inputs": [given]}]}).json()
    (item,) = answer["items"]
    assert item["id"] == "N"
    (row,) = item["detected"]["modalities"]
    assert (row["modality"], row["n_objects"], row["in_checkpoint"]) == ("catalog.legacysurvey", 2, False)
    shorter = {**given, "read": {"nearest": 1}}
    (item,) = client.post("/v1/validate", json={"items": [{"id": "N", "inputs": [shorter]}]}).json()["items"]
    assert item["detected"]["modalities"][0]["n_objects"] == 1
    assert "catalog_shortened" in item["qa_flags"]


def test_a_request_states_a_map_as_an_archive(client: TestClient) -> None:
    stream = io.BytesIO()
    np.savez(stream, segmentation_map=np.zeros((96, 96), np.float32), pixel_scale=0.262)
    given = {"modality": "segmentation.legacysurvey", "b64": base64.b64encode(stream.getvalue()).decode()}
    (item,) = client.post("/v1/validate", json={"items": [{"id": "N", "inputs": [given]}]}).json()["items"]
    assert item["detected"]["modalities"][0]["key"] == "tok_segmap"


def test_the_option_is_a_whole_number() -> None:
    assert read_options({"nearest": "10"}).nearest == 10
    for wrong in ("0", "-1", "ten", "2.5"):
        with pytest.raises(BadInput) as caught:
            read_options({"nearest": wrong})
        assert caught.value.code == "option_invalid"


def test_the_probe_has_a_payload_of_every_modality_of_aion_1() -> None:
    data = probe(AION_KEYS).data
    assert list(data) == [key for key in MODALITIES if key in AION_KEYS]
    given, objects = data["tok_segmap"], data["catalog"]
    assert isinstance(given, SegmentationMap)
    assert isinstance(objects, Catalog)
    check_segmentation_map(given)
    check_catalog(objects)
