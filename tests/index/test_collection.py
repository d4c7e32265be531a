"""Collections: what is written is there, bit by bit, and what is asked is refused when it does not fit."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from albireo.index import storage
from albireo.index.collection import Collection, Collections, StoredObject
from albireo.observations.errors import AlbireoError, BadInput, Conflict, Full, NotFound, Unavailable

SPACE = "toy@000000000000:mean"
DIM = 8


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "collections.sqlite"


@pytest.fixture
def collections(file: Path) -> Iterator[Collections]:
    opened = Collections(file)
    yield opened
    opened.close()


@pytest.fixture
def sky(collections: Collections) -> Collection:
    return collections.create("sky", SPACE, DIM)


def objects(n: int, seed: int = 0, prefix: str = "o") -> list[StoredObject]:
    vectors = np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)
    return [StoredObject(f"{prefix}{i:04d}", vector) for i, vector in enumerate(vectors)]


def test_same_bytes_after_reopening(file: Path) -> None:
    """Odd floats too: denormals, minus zero, and numbers that a round trip through text would change."""
    vector = np.array([1e-42, -0.0, 0.1, 3.4e38, -1e-45, 1 / 3, 16777217.0, 1], np.float32)
    big_endian = StoredObject("b", vector.astype(">f4"))
    stored = StoredObject(
        "45121627560013211",
        vector,
        ra=359.99999999999994,
        dec=-1e-17,
        metadata={"z": 0.1 + 0.2, "source_id": 45121627560013211, "name": "Å ☉", "n": np.float64(2.5)},
        modalities=("tok_image", "tok_z"),
    )
    first = Collections(file)
    first.create("sky", SPACE, DIM, "l2").upsert([stored, big_endian])
    first.close()
    again = Collections(file)
    found, other = again.get("sky").fetch(["45121627560013211", "b"])
    assert found.vector.tobytes() == other.vector.tobytes() == vector.tobytes()
    assert (found.id, found.ra, found.dec, found.modalities) == (stored.id, stored.ra, stored.dec, stored.modalities)
    assert found.metadata == {"z": 0.1 + 0.2, "source_id": 45121627560013211, "name": "Å ☉", "n": 2.5}
    assert (other.ra, other.dec, other.metadata, other.modalities) == (None, None, {}, ())
    assert again.get("sky").metric == "l2"
    again.close()


def test_an_upsert_replaces(sky: Collection) -> None:
    first, second = objects(2)
    sky.upsert([first, second])
    assert sky.search(first.vector[None], 1, space=SPACE)[0][0].id == first.id
    replaced = StoredObject(first.id, -first.vector, metadata={"new": True})
    assert sky.upsert([replaced]) == 1
    assert sky.count == 2
    assert sky.fetch([first.id])[0].metadata == {"new": True}
    hits = {hit.id: hit for hit in sky.search(first.vector[None], 2, space=SPACE)[0]}
    assert hits[first.id].score == pytest.approx(-1.0)
    assert hits[first.id].metadata == {"new": True}


def test_deleted_objects_stay_deleted(file: Path) -> None:
    some = objects(20)
    first = Collections(file)
    sky = first.create("sky", SPACE, DIM)
    sky.upsert(some)
    query = some[3].vector[None]
    sky.search(query, 1, space=SPACE)
    assert sky.delete([some[3].id, some[19].id, "never there", some[3].id]) == 2
    for collection in (sky, Collections(file).get("sky")):
        assert collection.count == 18
        assert {hit.id for hit in collection.search(query, 50, space=SPACE)[0]} == {
            stored.id for i, stored in enumerate(some) if i not in (3, 19)
        }
        with pytest.raises(NotFound, match="object_unknown"):
            collection.fetch([some[3].id])


def test_all_or_nothing(sky: Collection) -> None:
    """One bad object leaves nothing of its batch, in the file or in memory."""
    good = objects(3)
    sky.upsert(good[:1])
    sky.search(good[0].vector[None], 1, space=SPACE)
    nan = np.full(DIM, np.nan, np.float32)
    with pytest.raises(BadInput, match="not_finite"):
        sky.upsert([good[1], StoredObject("bad", nan), good[2]])
    assert sky.count == 1
    assert [hit.id for hit in sky.search(good[0].vector[None], 9, space=SPACE)[0]] == [good[0].id]


@pytest.mark.parametrize(
    ("stored", "code"),
    [
        (StoredObject("x", np.full(DIM, np.inf, np.float32)), "not_finite"),
        (StoredObject("x", np.zeros(DIM, np.float32)), "value_out_of_range"),
        (StoredObject("x", np.ones(DIM + 1, np.float32)), "dimension_mismatch"),
        (StoredObject("x", np.ones((1, DIM), np.float32)), "shape_mismatch"),
        (StoredObject("", np.ones(DIM, np.float32)), "request_invalid"),
        (StoredObject("a\x00b", np.ones(DIM, np.float32)), "request_invalid"),
        (StoredObject("x" * 513, np.ones(DIM, np.float32)), "request_invalid"),
        (StoredObject("x", np.ones(DIM, np.float32), ra=-1.0), "value_out_of_range"),
        (StoredObject("x", np.ones(DIM, np.float32), ra=10.0, dec=float("nan")), "value_out_of_range"),
        (StoredObject("x", np.ones(DIM, np.float32), metadata={"z": float("nan")}), "request_invalid"),
        (StoredObject("x", np.ones(DIM, np.float32), metadata={"z": object()}), "request_invalid"),
    ],
)
def test_what_cannot_be_kept_is_refused(sky: Collection, stored: StoredObject, code: str) -> None:
    with pytest.raises(AlbireoError) as caught:
        sky.upsert([stored])
    assert caught.value.code == code
    assert sky.count == 0


def test_an_id_twice_in_one_batch_is_refused(sky: Collection) -> None:
    first, _ = objects(2)
    with pytest.raises(BadInput, match="given twice"):
        sky.upsert([first, StoredObject(first.id, -first.vector)])
    assert sky.count == 0


def test_queries_that_do_not_fit_are_refused(sky: Collection) -> None:
    sky.upsert(objects(3))
    query = np.ones((1, DIM), np.float32)
    with pytest.raises(Conflict, match="space_mismatch"):
        sky.search(query, 1, space="toy@111111111111:mean")
    with pytest.raises(Conflict, match="dimension_mismatch"):
        sky.search(np.ones((1, DIM - 1), np.float32), 1, space=SPACE)
    with pytest.raises(BadInput, match="shape_mismatch"):
        sky.search(query[0], 1, space=SPACE)
    with pytest.raises(BadInput, match="not_finite"):
        sky.search(np.full((1, DIM), np.nan, np.float32), 1, space=SPACE)
    with pytest.raises(BadInput, match="value_out_of_range"):
        sky.search(np.zeros((1, DIM), np.float32), 1, space=SPACE)
    with pytest.raises(BadInput, match="request_invalid"):
        sky.search(query, 0, space=SPACE)
    with pytest.raises(BadInput, match="shape_mismatch"):
        sky.search(query, 1, space=SPACE, exclude=["a", "b"])


def test_creating_again_is_the_same_collection(collections: Collections, sky: Collection) -> None:
    sky.upsert(objects(1))
    assert collections.create("sky", SPACE, DIM).count == 1
    with pytest.raises(Conflict, match="space_mismatch"):
        collections.create("sky", "other", DIM)
    with pytest.raises(Conflict, match="dimension_mismatch"):
        collections.create("sky", SPACE, DIM + 1)
    with pytest.raises(Conflict, match="collection_invalid"):
        collections.create("sky", SPACE, DIM, "l2")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "x" * 129, "é", "a\n"])
def test_bad_names(collections: Collections, name: str) -> None:
    with pytest.raises(BadInput, match="collection_invalid"):
        collections.create(name, SPACE, DIM)
    assert collections.names() == []


def test_bad_definitions(collections: Collections) -> None:
    for space, dim, metric in (("", DIM, "l2"), (SPACE, 0, "l2"), (SPACE, DIM, "dot")):
        with pytest.raises(BadInput, match="collection_invalid"):
            collections.create("sky", space, dim, metric)  # type: ignore[arg-type]
    assert collections.names() == []


def test_collections_do_not_mix(collections: Collections) -> None:
    collections.create("b", SPACE, DIM).upsert(objects(3, seed=1))
    collections.create("a", SPACE, DIM).upsert(objects(5, seed=2))
    assert collections.names() == ["a", "b"]
    assert len(collections.get("b").search(np.ones((1, DIM), np.float32), 9, space=SPACE)[0]) == 3
    collections.delete("a")
    assert collections.names() == ["b"]
    assert collections.get("b").count == 3
    for gone in (collections.get, collections.delete):
        with pytest.raises(NotFound, match="collection_unknown"):
            gone("a")


def test_a_handle_of_a_deleted_collection_is_not_its_successor(collections: Collections, sky: Collection) -> None:
    sky.upsert(objects(2))
    collections.delete("sky")
    successor = collections.create("sky", SPACE, DIM)
    assert successor.count == 0
    with pytest.raises(NotFound, match="collection_unknown"):
        sky.upsert(objects(1))
    assert successor.count == 0


def test_two_openings_see_each_other(file: Path) -> None:
    """As two processes would: memory of one follows the writes of the other, also deletion and a new one."""
    one, two = Collections(file), Collections(file)
    here = one.create("sky", SPACE, DIM)
    some = objects(4)
    here.upsert(some[:2])
    query = some[2].vector[None]
    there = two.get("sky")
    assert len(there.search(query, 9, space=SPACE)[0]) == 2
    here.upsert(some[2:])
    assert there.search(query, 9, space=SPACE)[0][0].id == some[2].id
    there.delete([some[2].id])
    assert some[2].id not in {hit.id for hit in here.search(query, 9, space=SPACE)[0]}
    one.delete("sky")
    with pytest.raises(NotFound, match="collection_unknown"):
        there.search(query, 9, space=SPACE)
    one.create("sky", "another space", DIM)
    assert two.get("sky").space == "another space"
    one.close()
    two.close()


def test_closed(collections: Collections, sky: Collection) -> None:
    collections.close()
    with pytest.raises(Unavailable, match="not_ready"):
        sky.fetch(["a"])
    with pytest.raises(Unavailable, match="not_ready"):
        collections.names()


def test_inputs_are_unchanged_and_not_shared(sky: Collection) -> None:
    stored = objects(1)[0]
    before = stored.vector.tobytes()
    query = np.full((1, DIM), 2.0, np.float32)
    sky.search(query, 1, space=SPACE)
    sky.upsert([stored])
    score = sky.search(query, 1, space=SPACE)[0][0].score
    assert stored.vector.tobytes() == before
    assert (query == 2.0).all()
    stored.vector[:] = 0
    sky.fetch([stored.id])[0].vector[:] = 0
    assert sky.search(query, 1, space=SPACE)[0][0].score == score


def test_upserts_and_searches_at_once(sky: Collection) -> None:
    """Every search sees whole batches: after k acknowledged batches of 10, at least 10 k and a multiple of 10."""
    batches = [objects(10, seed=i, prefix=f"b{i:02d}-") for i in range(20)]
    acknowledged = 0
    failures: list[str] = []

    def write() -> None:
        nonlocal acknowledged
        for batch in batches:
            sky.upsert(batch)
            acknowledged += 1

    def read() -> None:
        query = np.ones((1, DIM), np.float32)
        while acknowledged < len(batches) and not failures:
            least = 10 * acknowledged
            found = sky.search(query, 1000, space=SPACE)[0]
            if len(found) % 10 or len(found) < least:
                failures.append(f"{len(found)} found after {least}")

    threads = [threading.Thread(target=write), *(threading.Thread(target=read) for _ in range(3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert acknowledged == len(batches)
    assert sky.count == 200


def test_damage_in_the_header(file: Path) -> None:
    file.parent.mkdir()
    for content in (b"not a database, but long enough to have a header" * 9, b"SQLite format 3\x00" + bytes(4080)):
        file.write_bytes(content)
        with pytest.raises(Unavailable, match="collection_damaged"):
            Collections(file)
        assert file.read_bytes() == content


def test_damage_in_a_page(file: Path) -> None:
    opened = Collections(file)
    opened.create("sky", SPACE, DIM).upsert(objects(400))
    opened.close()
    content = bytearray(file.read_bytes())
    content[4096 * 5 : 4096 * 6] = b"\xff" * 4096
    file.write_bytes(content)
    with pytest.raises(Unavailable, match="collection_damaged"):
        Collections(file)


def test_damage_in_a_vector(file: Path) -> None:
    """SQLite cannot see a flipped bit inside a blob; the checksum of the row does."""
    stored = objects(1)[0]
    opened = Collections(file)
    opened.create("sky", SPACE, DIM).upsert([stored])
    opened.close()
    content = file.read_bytes()
    pattern = stored.vector.tobytes()
    assert content.count(pattern) == 1
    flipped = bytes([pattern[0] ^ 1]) + pattern[1:]
    file.write_bytes(content.replace(pattern, flipped))
    again = Collections(file)
    with pytest.raises(Unavailable, match="collection_damaged"):
        again.get("sky").search(stored.vector[None], 1, space=SPACE)
    with pytest.raises(Unavailable, match="collection_damaged"):
        again.get("sky").fetch([stored.id])
    again.close()


def test_files_of_others_are_left_alone(file: Path) -> None:
    file.parent.mkdir()
    other = sqlite3.connect(file)
    other.execute("CREATE TABLE theirs (x)")
    other.commit()
    other.close()
    before = file.read_bytes()
    with pytest.raises(Unavailable, match="another program"):
        Collections(file)
    assert file.read_bytes() == before


def test_a_newer_schema_is_refused(file: Path) -> None:
    Collections(file).close()
    newer = sqlite3.connect(file)
    newer.execute("PRAGMA user_version = 2")
    newer.close()
    with pytest.raises(Unavailable, match="schema version 2"):
        Collections(file)


def test_durable_settings(file: Path) -> None:
    opened = Collections(file)
    connection = opened.create("sky", SPACE, DIM)._connection
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    opened.close()


def test_a_full_disk_leaves_what_was_there(sky: Collection) -> None:
    """Simulated by SQLite's own limit of pages: nothing of the batch is kept, searching goes on."""
    some = objects(500)
    sky.upsert(some[:10])
    query = some[3].vector[None]
    before = sky.search(query, 100, space=SPACE)
    (pages,) = sky._connection.execute("PRAGMA page_count").fetchone()
    sky._connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(Full, match="storage_full"):
        sky.upsert(some)
    assert sky.search(query, 100, space=SPACE) == before
    sky._connection.execute("PRAGMA max_page_count = 1000000")
    assert sky.upsert(some) == 500
    assert sky.search(query, 1, space=SPACE)[0][0].id == some[3].id


def test_another_writer_that_does_not_end(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "BUSY_SECONDS", 0.1)
    opened = Collections(file)
    sky = opened.create("sky", SPACE, DIM)
    sky.upsert(objects(2))
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="storage_unavailable"):
        sky.upsert(objects(1))
    assert len(sky.search(np.ones((1, DIM), np.float32), 9, space=SPACE)[0]) == 2
    other.rollback()
    other.close()
    assert sky.upsert(objects(1)) == 1
    opened.close()
