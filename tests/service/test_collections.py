"""Collections over HTTP: definition, objects, and search by id, vector and file."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from albireo.service import schemas

Make = Callable[..., bytes]
SPACE = "toy@0123456789ab:mean"


def files(*pairs: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", pair) for pair in pairs]


@pytest.fixture
def filled(client: TestClient, image: Make) -> TestClient:
    """A client with a collection `c` of the images A to F."""
    assert client.put("/v1/collections/c", json={}).status_code == 200
    sent = files(*((f"{name}.fits", image(name, seed)) for seed, name in enumerate("ABCDEF")))
    answer = client.post("/v1/collections/c/objects", files=sent)
    assert answer.status_code == 200, answer.text
    body = schemas.ObjectsReply.model_validate(answer.json())
    assert (body.indexed, body.count, len(body.items)) == (6, 6, 6)
    return client


def search(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/collections/c/search", json=body)
    assert answer.status_code == 200, answer.text
    return schemas.SearchReply.model_validate(answer.json()).model_dump()


def test_put_is_idempotent_and_refuses_another_definition(client: TestClient) -> None:
    first = client.put("/v1/collections/c", json={})
    assert first.json() == {"name": "c", "space": SPACE, "dim": 16, "metric": "cosine", "count": 0}
    assert client.put("/v1/collections/c", json={"space": SPACE, "dim": 16}).json() == first.json()
    other = client.put("/v1/collections/c", json={"space": "other@1:mean", "dim": 16})
    assert (other.status_code, other.json()["code"]) == (409, "space_mismatch")
    narrow = client.put("/v1/collections/c", json={"dim": 8})
    assert (narrow.status_code, narrow.json()["code"]) == (409, "dimension_mismatch")
    assert client.put("/v1/collections/bad name", json={}).status_code == 422
    assert (
        client.put("/v1/collections/c", content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
    )
    assert [row["name"] for row in client.get("/v1/collections").json()["collections"]] == ["c"]
    assert client.get("/v1/collections/c").json() == first.json()
    assert client.get("/v1/collections/d").json()["code"] == "collection_unknown"


def test_search_by_id_leaves_the_query_out(filled: TestClient) -> None:
    body = search(filled, query={"id": "A"}, k=3)
    (result,) = body["results"]
    assert body["exact"] is True
    assert body["space"] == SPACE
    assert result["k_returned"] == 3
    assert result["short_reason"] is None
    assert "A" not in [hit["id"] for hit in result["hits"]]
    scores = [hit["score"] for hit in result["hits"]]
    assert scores == sorted(scores, reverse=True)


def test_search_by_vector_finds_its_object(filled: TestClient, image: Make) -> None:
    embedded = filled.post("/v1/embed", files=files(("b.fits", image("B", 1)))).json()
    values = embedded["items"][0]["embedding"]
    packed = base64.b64encode(np.array(values, "<f4").tobytes()).decode()
    for vector in ({"values": values}, {"b64": packed}):
        body = search(filled, query={"vector": vector | {"space": embedded["space"]}}, k=2)
        best = body["results"][0]["hits"][0]
        assert best["id"] == "B"
        assert best["score"] == pytest.approx(1.0, abs=1e-6)


def test_search_by_file_leaves_its_own_id_out(filled: TestClient, image: Make) -> None:
    same = filled.post("/v1/collections/c/search?k=2", files=files(("b.fits", image("B", 1)))).json()
    assert "B" not in [hit["id"] for hit in same["results"][0]["hits"]]
    renamed = filled.post("/v1/collections/c/search?k=2", files=files(("x.fits", image("X", 1)))).json()
    assert renamed["results"][0]["hits"][0]["id"] == "B"
    assert renamed["results"][0]["query"]["id"] == "X"
    assert renamed["k"] == 2
    kind = {"Content-Type": "application/fits"}
    bare = filled.post("/v1/collections/c/search?k=2", content=image("X", 1), headers=kind).json()
    assert bare["results"][0]["hits"] == renamed["results"][0]["hits"]
    inputs = [{"b64": base64.b64encode(image("X", 1)).decode()}]
    assert search(filled, query={"inputs": inputs}, k=2)["results"][0]["hits"] == renamed["results"][0]["hits"]


def test_several_query_files_one_of_them_bad(filled: TestClient, image: Make, jpeg: bytes) -> None:
    answer = filled.post("/v1/collections/c/search", files=files(("x.fits", image("X", 1)), ("y.jpg", jpeg)))
    assert answer.headers["x-items-failed"] == "1"
    good, bad = answer.json()["results"]
    assert good["hits"][0]["id"] == "B"
    assert bad["hits"] == []
    assert bad["query"]["error"]["code"] == "not_photometric"
    assert filled.post("/v1/collections/c/search", files=files(("y.jpg", jpeg))).status_code == 422


def test_fewer_neighbours_than_asked_for_are_explained(filled: TestClient) -> None:
    (result,) = search(filled, query={"id": "A"}, k=50)["results"]
    assert result["k_returned"] == 5
    assert result["short_reason"]


def test_the_same_file_twice_changes_nothing(filled: TestClient, image: Make) -> None:
    before = search(filled, query={"id": "A"}, k=5)["results"]
    again = filled.post("/v1/collections/c/objects", files=files(("B.fits", image("B", 1)), ("B2.fits", image("B", 1))))
    assert again.json()["count"] == 6
    assert again.json()["indexed"] == 1
    after = search(filled, query={"id": "A"}, k=5)["results"]
    assert [(h["id"], h["score"]) for h in after[0]["hits"]] == [(h["id"], h["score"]) for h in before[0]["hits"]]


def test_one_id_with_two_measurements_in_a_request(filled: TestClient, image: Make) -> None:
    answer = filled.post(
        "/v1/collections/c/objects", files=files(("g.fits", image("G", 7)), ("g2.fits", image("G", 8)))
    )
    first, second = answer.json()["items"]
    assert (first["status"], second["status"]) == ("ok", "error")
    assert second["error"]["field"] == "id"
    assert answer.json()["count"] == 7


def test_what_is_kept_of_an_object(filled: TestClient, spectrum: Make) -> None:
    filled.post("/v1/collections/c/objects", files=files(("s.fits", spectrum(7))))
    hits = search(filled, query={"id": "A"}, k=6)["results"][0]["hits"]
    (kept,) = [hit for hit in hits if hit["modalities"] == ["spectrum.sdss"]]
    assert kept["ra"] == pytest.approx(146.7)
    assert kept["metadata"]["file"] == "s.fits"
    assert len(kept["metadata"]["sha256"]) == 64
    assert kept["metadata"]["redshift"] == pytest.approx(0.1)


def test_ready_vectors_need_their_space(client: TestClient) -> None:
    client.put("/v1/collections/c", json={})
    rows = [{"id": str(n), "vector": list(np.eye(16)[n])} for n in range(3)]
    path = "/v1/collections/c/objects"
    assert client.post(path, json={"objects": rows}).json()["field"] == "space"
    other = client.post(path, json={"objects": rows, "space": "other@1:mean"})
    assert (other.status_code, other.json()["code"]) == (409, "space_mismatch")
    good = client.post(path, json={"objects": rows, "space": SPACE})
    assert good.json()["count"] == 3
    mixed = [{"id": "8", "vector": [1.0] * 16}, {"id": "9", "vector": [1.0] * 15}]
    answer = client.post(path, json={"objects": mixed, "space": SPACE})
    assert [item["status"] for item in answer.json()["items"]] == ["ok", "error"]
    assert answer.json()["items"][1]["error"]["code"] == "dimension_mismatch"
    assert (answer.json()["indexed"], answer.json()["count"]) == (1, 4)
    alone = client.post(path, json={"objects": mixed[1:], "space": SPACE})
    assert (alone.status_code, alone.json()["code"]) == (409, "dimension_mismatch")


def test_a_collection_of_another_space_is_never_searched(client: TestClient, image: Make) -> None:
    client.put("/v1/collections/old", json={"space": "toy@ffff:mean", "dim": 16})
    for path in ("objects", "search"):
        answer = client.post(f"/v1/collections/old/{path}", files=files(("a.fits", image("A"))))
        assert (answer.status_code, answer.json()["code"]) == (409, "space_mismatch")
    vector = {"values": [1.0] * 16, "space": SPACE}
    answer = client.post("/v1/collections/old/search", json={"query": {"vector": vector}})
    assert (answer.status_code, answer.json()["code"]) == (409, "space_mismatch")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"query": {"id": "Z"}}, 404, "object_unknown"),
        ({"query": {"id": "A", "vector": {"values": [1.0], "space": SPACE}}}, 422, "request_invalid"),
        ({"query": {}}, 422, "request_invalid"),
        ({}, 422, "request_invalid"),
        ({"query": {"id": "A"}, "k": 0}, 422, "request_invalid"),
        ({"query": {"vector": {"values": [1.0] * 16}}}, 422, "request_invalid"),
        ({"query": {"vector": {"values": [1.0] * 4, "space": SPACE}}}, 409, "dimension_mismatch"),
        ({"query": {"id": "A"}, "options": {"pooling": "tokens"}}, 422, "option_invalid"),
    ],
)
def test_searches_that_cannot_be(filled: TestClient, body: dict[str, Any], status: int, code: str) -> None:
    answer = filled.post("/v1/collections/c/search", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_no_such_collection(client: TestClient, image: Make) -> None:
    for path in ("objects", "search"):
        answer = client.post(f"/v1/collections/none/{path}", files=files(("a.fits", image("A"))))
        assert (answer.status_code, answer.json()["code"]) == (404, "collection_unknown")
