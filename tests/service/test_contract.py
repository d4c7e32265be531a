"""The OpenAPI document and the problem documents as a whole."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from albireo.observations import errors
from albireo.observations.errors import CODES, AlbireoError, BadInput, Conflict, NotFound
from albireo.service import examples, problems, schemas
from albireo.service.protos.albireo.v1 import albireo_pb2 as pb

OPERATIONS = {
    "/livez": {"get"},
    "/startupz": {"get"},
    "/readyz": {"get"},
    "/v1/info": {"get"},
    "/v1/usage": {"get"},
    "/v1/models": {"get"},
    "/v1/models/{id}": {"get"},
    "/v1/modalities": {"get"},
    "/v1/formats": {"get"},
    "/v1/limits": {"get"},
    "/v1/validate": {"post"},
    "/v1/tokenize": {"post"},
    "/v1/detokenize": {"post"},
    "/v1/embed": {"post"},
    "/v1/generate": {"post"},
    "/v1/predict": {"post"},
    "/v1/predict/{head}": {"post"},
    "/v1/heads": {"get"},
    "/v1/collections": {"get"},
    "/v1/collections/{c}": {"get", "put"},
    "/v1/collections/{c}/objects": {"post"},
    "/v1/collections/{c}/search": {"post"},
    "/v2": {"get"},
    "/v2/health/live": {"get"},
    "/v2/health/ready": {"get"},
    "/v2/repository/index": {"post"},
    "/v2/models/{model}": {"get"},
    "/v2/models/{model}/ready": {"get"},
    "/v2/models/{model}/config": {"get"},
    "/v2/models/{model}/infer": {"post"},
    "/v2/models/{model}/versions/{version}": {"get"},
    "/v2/models/{model}/versions/{version}/ready": {"get"},
    "/v2/models/{model}/versions/{version}/config": {"get"},
    "/v2/models/{model}/versions/{version}/infer": {"post"},
}


def test_openapi_lists_what_there_is(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert {path: set(row) for path, row in document["paths"].items()} == OPERATIONS


def test_openapi_has_no_loose_reference(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    text = json.dumps(document)
    known = document["components"]["schemas"]
    used = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert used <= known.keys()
    assert "HTTPValidationError" not in text
    assert known.keys() <= used | {"EmbedRequest"}


def test_every_operation_says_what_it_does(client: TestClient) -> None:
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method, row in methods.items():
            assert row["summary"], (method, path)
            assert row["description"], (method, path)
            assert "200" in row["responses"]


def test_docs_are_served(client: TestClient) -> None:
    assert "swagger" in client.get("/docs").text.lower()
    page = client.get("/docs/errors").text
    assert all(f'id="{code}"' in page for code in CODES)


def test_every_error_class_has_a_status() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, AlbireoError)]
    assert set(classes) <= problems.STATUS.keys()
    assert problems.status_of(BadInput("unit_missing", "x")) == 422
    assert problems.status_of(NotFound("object_unknown", "x")) == 404
    assert problems.status_of(Conflict("space_mismatch", "x")) == 409


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/metrics"])
def test_probes_may_ask_for_the_status_alone(client: TestClient, engine, path: str) -> None:
    assert client.get("/readyz").status_code == 200
    assert client.head(path).status_code == client.get(path).status_code == 200
    engine.shift = 0.5
    assert client.head(path).status_code == client.get(path).status_code == (503 if path == "/readyz" else 200)
    assert client.head("/v1/info").status_code == 405


def test_what_is_not_there_yet_is_refused(client: TestClient) -> None:
    """docs/conventions.md lists it; whatever is served one day leaves the list."""
    page = (Path(__file__).parents[2] / "docs/conventions.md").read_text()
    listed = set(re.findall(r"`([^`\n]+)`", page.partition("## What is not there yet")[2]))
    request = examples.REQUESTS["EmbedRequest"]
    for name, value in (("precision", "bfloat16"), ("store_in", "c"), ("pooling", "attentive")):
        assert {name, value} & listed
        refused = client.post("/v1/embed", json=request | {"options": {name: value}})
        assert (refused.status_code, refused.json()["code"]) == (422, "request_invalid"), name
    assert client.post("/v1/embed", json=request).status_code == 200
    assert client.post("/v1/embeddings", json=request).status_code == 404
    for verb in (":load", ":unload", ":promote"):
        assert verb in listed
        assert client.post(f"/v1/models/toy{verb}").status_code == 405
    file = io.BytesIO()
    np.save(file, np.ones((4, 96, 96), np.float32))
    for content in (file.getvalue(), file.getvalue()[-4 * 96 * 96 * 4 :]):
        kind = {"Content-Type": "application/octet-stream"}
        assert client.post("/v1/embed", content=content, headers=kind).json()["code"] == "unknown_format"
    calls = {call.name for service in pb.DESCRIPTOR.services_by_name.values() for call in service.methods}
    assert {"Cone", "Crossmatch", "Delete", "Scroll", "Jobs"} <= listed - calls


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v9/nothing", 404, "route_unknown"),
        ("GET", "/v1/embed", 405, "method_not_allowed"),
        ("DELETE", "/v1/collections/c", 405, "method_not_allowed"),
    ],
)
def test_routing_errors_are_problems(client: TestClient, method: str, path: str, status: int, code: str) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert schemas.Problem.model_validate(answer.json()).code == code


def test_a_defect_tells_nothing_of_our_insides(client: TestClient, engine, image) -> None:
    engine.crash = True
    answer = client.post("/v1/embed", files=[("file", ("a.fits", image("A")))])
    assert answer.status_code == 500
    assert schemas.Problem.model_validate(answer.json()).code == "internal"
    assert "secret" not in answer.text


def test_info(client: TestClient) -> None:
    info = schemas.InfoReply.model_validate(client.get("/v1/info").json())
    assert info.model == "toy"
    assert info.spaces["mean"] == "toy@0123456789ab:mean"
    assert {row["modality"] for row in info.modalities} >= {"image.legacysurvey", "spectrum.sdss"}
    assert info.limits == {"max_body_bytes": 4 << 20, "max_items": 50}
    assert any(row["name"] == "fits_image" for row in info.formats)
