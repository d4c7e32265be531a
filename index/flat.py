"""Exact nearest neighbours among vectors in memory: FAISS proposes, double precision decides.

FAISS works in float32, so its order of near-equal scores depends on how many queries came together. Here its
candidates are scored again in float64, each row by itself, and more are fetched until no row left out could still
belong among the best k. Answers are therefore the same for a query alone or in a batch, and ties go by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from albireo.observations.errors import Unavailable

Metric = Literal["cosine", "l2"]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

SPARE = 16
"""Candidates fetched beyond k at first."""

LARGEST = 1e18
"""Beyond this length float32 squares overflow, and FAISS is not asked."""

BLOCK = 1 << 22
"""Numbers scored at once, to bound memory."""


class FlatIndex:
    """Rows (n, D) float32 and their ids; cosine rows are kept at unit length. Not thread-safe.

    Scores grow with nearness: the cosine, or minus the Euclidean distance.
    """

    def __init__(self, dim: int, metric: Metric, capacity: int = 1024) -> None:
        self.dim = dim
        self.metric = metric
        self.ids: list[str] = []
        self._position: dict[str, int] = {}
        self._rows: Floats = np.empty((max(capacity, 1), dim), np.float32)
        self._longest = 1.0 if metric == "cosine" else 0.0

    def __len__(self) -> int:
        return len(self.ids)

    def put(self, ids: Sequence[str], vectors: Floats) -> None:
        """Add rows (n, D), or replace those whose id is known."""
        rows = self._prepared(vectors)
        if self.metric == "l2" and len(rows):
            self._longest = max(self._longest, float(_lengths(rows).max()))
        for name, row in zip(ids, rows, strict=True):
            at = self._position.get(name)
            if at is None:
                at = len(self.ids)
                if at == len(self._rows):
                    self._grow()
                self.ids.append(name)
                self._position[name] = at
            self._rows[at] = row

    def drop(self, ids: Sequence[str]) -> None:
        """Remove rows; ids that are not there are passed over. The last row moves into the gap."""
        for name in ids:
            at = self._position.pop(name, None)
            if at is None:
                continue
            last = self.ids.pop()
            if last != name:
                self.ids[at] = last
                self._position[last] = at
                self._rows[at] = self._rows[len(self.ids)]

    def search(self, vectors: Floats, k: int, exclude: Sequence[str | None]) -> list[list[tuple[str, float]]]:
        """The k best (id, score) of each query (Q, D), best first, without exclude[q]; fewer if there are fewer."""
        queries = self._prepared(vectors)
        skip = [None if name is None else self._position.get(name) for name in exclude]
        found: list[list[tuple[str, float]]] = [[] for _ in queries]
        open_queries = list(range(len(queries)))
        n_fetch = k + 1 + SPARE
        while open_queries and len(self):
            n_fetch = min(n_fetch, len(self))
            proposals = self._propose(queries[open_queries], n_fetch)
            unsettled = []
            for q, (candidates, best_outside) in zip(open_queries, proposals, strict=True):
                ranked = self._rank(
                    queries[q], candidates[candidates != skip[q]] if skip[q] is not None else candidates
                )
                if len(candidates) == len(self) or (len(ranked) >= k and ranked[k - 1][1] > best_outside):
                    found[q] = ranked[:k]
                else:
                    unsettled.append(q)
            open_queries, n_fetch = unsettled, n_fetch * 4
        return found

    def _propose(self, queries: Floats, n_fetch: int) -> list[tuple[NDArray[np.int64], float]]:
        """For each query, positions that may hold the best, and a score that no other position can pass."""
        longest = self._longest + _lengths(queries)
        if n_fetch == len(self) or longest.max() > LARGEST:
            everything = np.arange(len(self))
            return [(everything, -np.inf)] * len(queries)
        faiss = _faiss()
        kind = faiss.METRIC_INNER_PRODUCT if self.metric == "cosine" else faiss.METRIC_L2
        values, positions = faiss.knn(queries, self._rows[: len(self)], n_fetch, metric=kind)
        # A float32 sum of D products in at least four lanes is off by at most this fraction of its scale.
        slack = (self.dim / 4 + 8) * np.finfo(np.float32).eps * longest**2
        last = values[:, -1].astype(np.float64)
        outside = last + slack if self.metric == "cosine" else -np.sqrt(np.maximum(last - slack, 0.0))
        return list(zip(positions, outside.tolist(), strict=True))

    def _rank(self, query: Floats, positions: NDArray[np.int64]) -> list[tuple[str, float]]:
        """(id, score) of the rows at `positions`, best first, ties by id."""
        scores = np.concatenate([np.empty(0), *(self._scores(query, part) for part in self._blocks(positions))])
        pairs = [(self.ids[at], score) for at, score in zip(positions.tolist(), scores.tolist(), strict=True)]
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))

    def _blocks(self, positions: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        step = max(BLOCK // self.dim, 1)
        return [positions[start : start + step] for start in range(0, len(positions), step)]

    def _scores(self, query: Floats, positions: NDArray[np.int64]) -> Doubles:
        # Summed row by row and not by a matrix product, whose rounding depends on the row's place.
        rows, wide = self._rows[positions].astype(np.float64), query.astype(np.float64)
        if self.metric == "cosine":
            # Unit rows are so to float32 only; the best of near-equal rows would be the one rounded up most.
            cosine: Doubles = (rows * wide).sum(axis=1) / (_lengths(rows) * _lengths(wide[None]))
            return np.clip(cosine, -1.0, 1.0)
        distance: Doubles = np.sqrt(((rows - wide) ** 2).sum(axis=1))
        return -distance

    def _prepared(self, vectors: Floats) -> Floats:
        """A contiguous copy, at unit length for the cosine."""
        if self.metric == "l2":
            return np.ascontiguousarray(vectors, np.float32)
        unit: Floats = (vectors / _lengths(vectors)[:, None]).astype(np.float32)
        return unit

    def _grow(self) -> None:
        rows = np.empty((2 * len(self._rows), self.dim), np.float32)
        rows[: len(self._rows)] = self._rows
        self._rows = rows


def _lengths(vectors: Floats | Doubles) -> Doubles:
    """Euclidean lengths (n,) of rows (n, D), in float64."""
    lengths: Doubles = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1))
    return lengths


def _faiss() -> Any:
    """FAISS, imported at the first search: it is heavy, and comes with one of two extras."""
    try:
        import faiss
    except ImportError as error:
        raise Unavailable(
            "dependency_missing",
            "similarity search needs FAISS, which is not installed",
            fix='pip install "albireo[cpu]" (or "albireo[gpu]" where there is a GPU; never both)',
        ) from error
    return faiss
