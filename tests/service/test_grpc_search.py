"""albireo.v1.Search by a stock client: rows in, acknowledged when they are on disk; neighbours out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest

from albireo.service.core import Core
from albireo.service.grpc_messages import array, tensor
from albireo.service.protos.albireo.v1 import albireo_pb2 as pb
from albireo.service.settings import Settings
from tests.service.conftest import DIM
from tests.service.grpc_doors import Served, detail, embedded, of_file, of_fluxes, served

SPACE = "toy@0123456789ab:mean"


@pytest.fixture
def door(core: Core, settings: Settings) -> Iterator[Served]:
    with served(core, settings) as made:
        made.search.CreateCollection(pb.CreateCollectionRequest(name="sky"))
        yield made


def with_vector(id: str, seed: int, space: str = SPACE, dim: int = DIM, **more: object) -> pb.StoredObject:
    values = np.random.default_rng(seed).normal(size=dim).astype(np.float32)
    return pb.StoredObject(id=id, vector=pb.Vector(values=tensor(values), space=space), **more)


def upsert(door: Served, *rows: pb.ObjectRow) -> list[pb.Ack]:
    return list(door.search.Upsert(iter(rows)))


def test_collections(door: Served) -> None:
    create, listed = door.search.CreateCollection, door.search.ListCollections(pb.ListCollectionsRequest())
    (sky,) = listed.collections
    assert (sky.name, sky.space, sky.dim, sky.metric, sky.count) == ("sky", SPACE, DIM, "cosine", 0)
    assert create(pb.CreateCollectionRequest(name="sky", dim=DIM)).name == "sky"
    assert create(pb.CreateCollectionRequest(name="other", space="aion@1:mean", dim=3, metric="l2")).dim == 3
    for request, status in (
        (pb.CreateCollectionRequest(name="sky", metric="l2"), grpc.StatusCode.FAILED_PRECONDITION),
        (pb.CreateCollectionRequest(name="no/name"), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.CreateCollectionRequest(name="new", space="aion@1:mean"), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.CreateCollectionRequest(name="new", metric="cubic"), grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            create(request)
        assert caught.value.code() == status  # type: ignore[attr-defined]


def test_measurements_are_embedded_and_kept(door: Served, image: Callable[..., bytes]) -> None:
    rows = [pb.ObjectRow(collection="sky", item=of_file(image(name, seed), id=name)) for seed, name in enumerate("abc")]
    rows[0].item.labels.update({"class": "GALAXY"})
    rows.insert(2, pb.ObjectRow(collection="sky", item=of_file(b"torn", id="bad")))
    acks = upsert(door, *rows)
    assert [(one.row, one.id, one.status, one.durable, one.error.code) for one in acks] == [
        (0, "a", "ok", True, ""),
        (1, "b", "ok", True, ""),
        (2, "bad", "error", False, "unknown_format"),
        (3, "c", "ok", True, ""),
    ]
    got = door.search.Get(pb.GetRequest(collection="sky", ids=["c", "nobody", "a"])).results
    assert [(one.id, one.error.code) for one in got] == [("c", ""), ("nobody", "object_unknown"), ("a", "")]
    assert dict(got[2].object.metadata)["class"] == "GALAXY"
    assert (got[2].object.pos.ra, got[2].object.vector.space) == (150.1, SPACE)
    embedding = door.embedding.Embed(embedded(rows[0].item)).items[0].embedding
    assert got[2].object.vector.values.data == embedding.data

    found = door.search.Search(pb.SearchRequest(collection="sky", query=pb.Query(item=rows[0].item), k=5))
    (result,) = found.results
    # The item is the object "a" of the collection, which is therefore left out.
    assert [hit.id for hit in result.hits] == [hit.id for hit in sorted(result.hits, key=lambda one: -one.score)]
    assert {hit.id for hit in result.hits} == {"b", "c"}
    assert result.short_reason
    assert (result.read.id, result.read.status, result.read.embedding.data) == ("a", "ok", b"")
    assert (found.space, found.metric, found.exact, found.k) == (SPACE, "cosine", True, 5)


def test_vectors_are_kept_as_they_are(door: Served) -> None:
    given = with_vector("a", 1, pos=pb.SkyPos(ra=10.5, dec=-3), modalities=["image.hsc"])
    given.metadata.update({"z": 0.5, "name": "NGC 1", "flags": ["x"]})
    acks = upsert(
        door,
        pb.ObjectRow(collection="sky", object=given),
        pb.ObjectRow(collection="sky", object=with_vector("b", 2, space="aion@1:mean")),
        pb.ObjectRow(collection="sky", object=with_vector("c", 3, dim=5)),
        pb.ObjectRow(collection="sky", object=with_vector("d", 4, space="")),
        pb.ObjectRow(collection="sky", object=with_vector("", 5)),
        pb.ObjectRow(collection="sky", object=with_vector("f", 6, pos=pb.SkyPos(ra=400, dec=0))),
        pb.ObjectRow(collection="sky"),
        pb.ObjectRow(collection="nowhere", object=with_vector("h", 8)),
        pb.ObjectRow(collection="sky", object=with_vector("i", 9)),
    )
    assert [(one.row, one.durable) for one in acks] == [(0, True), *((n, False) for n in range(1, 8)), (8, True)]
    assert [one.error.code for one in acks][1:4] == ["space_mismatch", "dimension_mismatch", "request_invalid"]
    assert [one.error.code for one in acks][6:8] == ["request_invalid", "collection_unknown"]
    (got,) = door.search.Get(pb.GetRequest(collection="sky", ids=["a"])).results
    assert got.object == given


def test_the_last_row_of_an_id_stays(door: Served) -> None:
    """In whatever windows the rows came."""
    rows = [pb.ObjectRow(collection="sky", item=of_fluxes("a", g=g)) for g in (1.0, 2.0, 3.0)]
    rows += [pb.ObjectRow(collection="sky", object=with_vector("b", seed)) for seed in (1, 2, 3)]
    acks = upsert(door, *rows)
    assert [(one.id, one.durable) for one in acks] == [("a", True)] * 3 + [("b", True)] * 3
    got = door.search.Get(pb.GetRequest(collection="sky", ids=["a", "b"])).results
    last = door.embedding.Embed(embedded(of_fluxes("a", g=3.0))).items[0]
    assert got[0].object.vector.values.data == last.embedding.data
    assert got[1].object.vector == with_vector("b", 3).vector


def test_queries(door: Served) -> None:
    objects = [with_vector(str(n), n) for n in range(8)]
    upsert(door, *(pb.ObjectRow(collection="sky", object=one) for one in objects))
    stored = np.stack([array(one.vector.values, "v") for one in objects]).astype(np.float64)
    unit = stored / np.linalg.norm(stored, axis=1, keepdims=True)

    queries = [
        pb.Query(id="3"),
        pb.Query(vector=objects[5].vector),
        pb.Query(id="nobody"),
        pb.Query(item=of_fluxes("new")),
        pb.Query(vector=pb.Vector(values=objects[0].vector.values, space="aion@1:mean")),
        pb.Query(vector=with_vector("", 0, dim=4).vector),
        pb.Query(item=of_file(b"torn")),
        pb.Query(),
    ]
    found = door.search.SearchBatch(pb.SearchBatchRequest(collection="sky", queries=queries, k=3))
    codes = ["", "", "object_unknown", "", "space_mismatch", "dimension_mismatch", "unknown_format", "request_invalid"]
    assert [(one.query, one.error.code) for one in found.results] == list(enumerate(codes))
    near = [n for n in np.argsort(-unit @ unit[3]) if n != 3][:3]
    assert [hit.id for hit in found.results[0].hits] == [str(n) for n in near]
    assert [hit.score for hit in found.results[0].hits] == pytest.approx([unit[n] @ unit[3] for n in near], abs=1e-5)
    assert found.results[1].hits[0].id == "5"
    assert len(found.results[3].hits) == 3

    for query, result in zip(queries, found.results, strict=True):
        request = pb.SearchRequest(collection="sky", query=query, k=3)
        if not result.error.code:
            (alone,) = door.search.Search(request).results
            alone.query = result.query
            if result.HasField("read"):
                alone.read.file = result.read.file  # it has the number of the query
            assert alone == result
        else:
            with pytest.raises(grpc.RpcError) as caught:
                door.search.Search(request)
            assert detail(caught.value, "ErrorInfo").reason == result.error.code


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        ({"collection": "nowhere"}, grpc.StatusCode.NOT_FOUND, "collection_unknown"),
        ({"k": -1}, grpc.StatusCode.INVALID_ARGUMENT, "request_invalid"),
        ({"k": 10_001}, grpc.StatusCode.INVALID_ARGUMENT, "request_invalid"),
        ({"model": "other"}, grpc.StatusCode.NOT_FOUND, "model_unknown"),
        ({"query": pb.Query(id="nobody")}, grpc.StatusCode.NOT_FOUND, "object_unknown"),
        (
            {"query": pb.Query(vector=with_vector("", 1, space="aion@1:mean").vector)},
            grpc.StatusCode.FAILED_PRECONDITION,
            "space_mismatch",
        ),
    ],
)
def test_searches_that_cannot_be(door: Served, more: dict[str, object], status: grpc.StatusCode, code: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door.search.Search(
            pb.SearchRequest(**{"collection": "sky", "query": pb.Query(item=of_fluxes("a"))} | more)  # type: ignore[arg-type]
        )
    assert caught.value.code() == status  # type: ignore[attr-defined]
    assert detail(caught.value, "ErrorInfo").reason == code


def test_measurements_in_a_collection_of_another_space(door: Served) -> None:
    door.search.CreateCollection(pb.CreateCollectionRequest(name="other", space="aion@1:mean", dim=3))
    (ack,) = upsert(door, pb.ObjectRow(collection="other", item=of_fluxes("a")))
    assert (ack.durable, ack.error.code) == (False, "space_mismatch")
    queries = [pb.Query(item=of_fluxes("a")), pb.Query(id="x")]
    found = door.search.SearchBatch(pb.SearchBatchRequest(collection="other", queries=queries))
    assert [one.error.code for one in found.results] == ["space_mismatch", "object_unknown"]
    with pytest.raises(grpc.RpcError) as caught:
        door.search.Search(pb.SearchRequest(collection="other", query=queries[0]))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION  # type: ignore[attr-defined]


def test_many_ids_or_queries(door: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door.search.Get(pb.GetRequest(collection="sky", ids=[str(n) for n in range(51)]))
    assert detail(caught.value, "ErrorInfo").reason == "too_large"
    with pytest.raises(grpc.RpcError) as caught:
        door.search.SearchBatch(pb.SearchBatchRequest(collection="sky", queries=[pb.Query(id="a")] * 51))
    assert detail(caught.value, "ErrorInfo").reason == "too_large"
    with pytest.raises(grpc.RpcError) as caught:
        door.search.SearchBatch(pb.SearchBatchRequest(collection="sky"))
    assert detail(caught.value, "ErrorInfo").reason == "request_invalid"
