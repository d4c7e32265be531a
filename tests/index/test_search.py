"""Search against a slow obvious implementation, on random collections that change."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from albireo.index import flat
from albireo.index.collection import Collections, StoredObject
from albireo.index.flat import FlatIndex

Metric = Literal["cosine", "l2"]
SPACE = "toy@000000000000:mean"


def brute_force(
    vectors: dict[str, NDArray[np.float32]], query: NDArray[np.float32], k: int, metric: Metric, exclude: str | None
) -> list[tuple[str, float]]:
    """All pairs in float64, one by one."""
    scored = []
    for name, vector in vectors.items():
        a, b = vector.astype(np.float64), query.astype(np.float64)
        score = a @ b / np.sqrt((a @ a) * (b @ b)) if metric == "cosine" else -np.linalg.norm(a - b)
        if name != exclude:
            scored.append((name, float(score)))
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:k]


def assert_same(found: list[tuple[str, float]], wanted: list[tuple[str, float]], tolerance: float) -> None:
    """The same ids; those whose scores differ by rounding only may stand in another order."""
    assert len(found) == len(wanted)
    np.testing.assert_allclose([s for _, s in found], [s for _, s in wanted], rtol=0, atol=tolerance)
    scores = dict(wanted)
    edge = wanted[-1][1] if wanted else 0.0
    for name, score in found:
        assert abs(scores.get(name, edge) - score) <= tolerance, name


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dim=st.sampled_from([1, 2, 3, 16, 65]),
    metric=st.sampled_from(["cosine", "l2"]),
    changes=st.lists(st.tuples(st.sampled_from(["upsert", "delete", "search"]), st.integers(1, 60)), max_size=8),
    k=st.integers(1, 80),
    n_queries=st.integers(1, 25),
)
def test_against_brute_force(
    seed: int, dim: int, metric: Metric, changes: list[tuple[str, int]], k: int, n_queries: int
) -> None:
    """After any sequence of changes, in memory as in a file opened again."""
    rng = np.random.default_rng(seed)
    truth: dict[str, NDArray[np.float32]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "c.sqlite"
        collections = Collections(file)
        collection = collections.create("c", SPACE, dim, metric)
        for change, n in changes:
            names = [str(name) for name in rng.choice(100, size=n, replace=False)]
            if change == "upsert":
                vectors = rng.normal(size=(n, dim)).astype(np.float32)
                collection.upsert([StoredObject(*pair) for pair in zip(names, vectors, strict=True)])
                truth.update(zip(names, vectors, strict=True))
            elif change == "delete":
                assert collection.delete(names) == len(truth.keys() & set(names))
                truth = {name: vector for name, vector in truth.items() if name not in names}
            else:
                collection.search(rng.normal(size=(1, dim)).astype(np.float32), 1, space=SPACE)
        queries = rng.normal(size=(n_queries, dim)).astype(np.float32)
        exclude = [str(name) if name < 100 else None for name in rng.integers(0, 150, size=n_queries)]
        again = Collections(file)
        for opened in (collection, again.get("c")):
            assert opened.count == len(truth)
            hits = opened.search(queries, k, space=SPACE, exclude=exclude)
            for q in range(n_queries):
                wanted = brute_force(truth, queries[q], k, metric, exclude[q])
                assert_same([(hit.id, hit.score) for hit in hits[q]], wanted, 1e-6)
        again.close()
        collections.close()


def index_of(vectors: NDArray[np.float32], metric: Metric) -> FlatIndex:
    index = FlatIndex(vectors.shape[1], metric)
    index.put([f"{i:05d}" for i in range(len(vectors))], vectors)
    return index


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_ties_go_by_id(metric: Metric) -> None:
    """Many more equal vectors than are asked for, given in a shuffled order."""
    rng = np.random.default_rng(1)
    same, other = rng.normal(size=(2, 33)).astype(np.float32)
    index = FlatIndex(33, metric)
    names = [f"{i:04d}" for i in rng.permutation(700)]
    index.put(names, np.stack([same if int(name) % 7 else other for name in names]))
    wanted = [f"{i:04d}" for i in range(700) if i % 7][:40]
    assert [name for name, _ in index.search(same[None], 40, [None])[0]] == wanted


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_the_batch_does_not_matter(metric: Metric) -> None:
    """The same query alone and among others: the same ids and the same scores, bit by bit."""
    rng = np.random.default_rng(2)
    vectors = (rng.normal(size=(3000, 96)) * 0.01 + 1.0).astype(np.float32)
    queries = (rng.normal(size=(64, 96)) * 0.01 + 1.0).astype(np.float32)
    index = index_of(vectors, metric)
    together = index.search(queries, 10, [None] * 64)
    assert [index.search(query[None], 10, [None])[0] for query in queries] == together


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_near_equal_scores_are_told_apart(metric: Metric) -> None:
    """Rows closer together than float32 sums can see: each finds itself first, then what float64 says."""
    rng = np.random.default_rng(3)
    base = rng.normal(size=64) * 10 + 50
    vectors = (base + rng.normal(size=(2000, 64)) * 1e-3).astype(np.float32)
    truth = {f"{i:05d}": vector for i, vector in enumerate(vectors)}
    found = index_of(vectors, metric).search(vectors[:20], 10, [None] * 20)
    assert [row[0][0] for row in found] == [f"{i:05d}" for i in range(20)]
    for q in range(20):
        # A unit row is rounded to float32, which turns it by up to 6e-8; the scores here differ by about 1e-9.
        assert_same(found[q], brute_force(truth, vectors[q], 10, metric, None), 1e-11 if metric == "cosine" else 1e-12)


def test_huge_vectors_do_not_overflow() -> None:
    vectors = np.array([[3e38, 0], [0, 3e38], [-3e38, 0], *([[1, 1]] * 50)], np.float32)
    found = index_of(vectors, "l2").search(np.array([[2e38, 0]], np.float32), 1, [None])[0]
    assert found == [("00000", pytest.approx(-1e38, rel=1e-6))]


def test_the_excluded_never_comes_back_and_takes_no_place() -> None:
    vectors = np.random.default_rng(4).normal(size=(100, 8)).astype(np.float32)
    index = index_of(vectors, "cosine")
    (with_self,) = index.search(vectors[5:6], 11, [None])
    (without,) = index.search(vectors[5:6], 10, ["00005"])
    assert with_self[0][0] == "00005"
    assert without == with_self[1:]


def test_scores_are_cosines() -> None:
    vectors = np.array([[2, 0], [0, 5], [-1, 0], [3, 3]], np.float32)
    found = index_of(vectors, "cosine").search(np.array([[7, 0]], np.float32), 4, [None])[0]
    assert found == [("00000", 1.0), ("00003", pytest.approx(0.5**0.5)), ("00001", 0.0), ("00002", -1.0)]


def test_blocks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(5).normal(size=(50, 8)).astype(np.float32)
    index = index_of(vectors, "l2")
    whole = index.search(vectors[:3], 50, [None] * 3)
    monkeypatch.setattr(flat, "BLOCK", 7 * 8)
    assert index.search(vectors[:3], 50, [None] * 3) == whole
