"""Do neighbours in the embedding belong together? The encoder beside itself untrained, PCA of the inputs, and chance.

Of every object the ten nearest others by cosine are asked for: the share of its class, nDCG@10 with the same class as
relevance, the share within 0.05 in redshift / (1 + z), and, where objects differ in their modalities, how much likelier
than by chance a neighbour has the same set of them. An embedding is the mean of the token states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.models import metrics, rivals
from benchmarks.labelled import Dataset
from benchmarks.science_runs import ENCODER, UNTRAINED, Encoder, Records, means

NEIGHBOURS = 10
NEAR = 0.05
SETS = ("sdss_boss_spectra", "simulated_mix")
PCA, CHANCE = "PCA", "chance"
ROWS = (CHANCE, PCA, UNTRAINED, ENCODER)

Matrix = NDArray[np.float32]


def question(name: str) -> str:
    """The name under which the record of a set is kept."""
    return f"neighbours_{name}"


def measure(dataset: Dataset, encoders: Mapping[str, Encoder], records: Records, seed: int) -> None:
    """The record of every row that is not there; objects that the checkpoint cannot read are left out."""
    name = question(dataset.name)
    missing = [who for who in ROWS if records.read(name, who, None) is None]
    inputs = encoders[ENCODER].engine.inputs
    readable = dataset.subset(np.array([bool(set(one.data) & set(inputs)) for one in dataset.observations]))
    if not missing or len(readable) <= NEIGHBOURS:
        return
    states = {who: encoders[who].states(readable) for who in (ENCODER, UNTRAINED)}
    both = set(states[ENCODER].ids) & set(states[UNTRAINED].ids)
    kept = readable.subset(np.array([one.id in both for one in readable.observations]))
    order = [one.id for one in kept.observations]
    for who in missing:
        if who in states:
            place = {known: k for k, known in enumerate(states[who].ids)}
            vectors = means(states[who])[[place[one] for one in order]]
        elif who == PCA:
            vectors = principal(kept, encoders[ENCODER].engine.dim, seed)
        else:
            vectors = np.random.default_rng(seed).normal(size=(len(kept), 64)).astype(np.float32)
        records.write(name, who, None, {"metrics": scores(kept, vectors, seed), "objects": len(kept)})
        print(f"{name}: {who}")


def scores(dataset: Dataset, vectors: Matrix, seed: int) -> dict[str, list[float]]:
    """Metric -> [value, low, high]."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    similarity = (unit @ unit.T).astype(np.float64)
    own = np.arange(len(unit))
    classes = np.asarray(dataset.labels["class"], np.str_)
    same = (classes[:, None] == classes[None]).astype(np.float64)
    gain = metrics.ndcg(same, similarity, NEIGHBOURS, own)
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS]
    z = np.asarray(dataset.labels["redshift"], np.float64)
    sets = np.array(["+".join(sorted(one.data)) for one in dataset.observations])
    alike = sets[nearest] == sets[:, None]
    counts = {name: int((sets == name).sum()) for name in set(sets.tolist())}
    base = np.array([(counts[name] - 1) / (len(sets) - 1) for name in sets.tolist()])
    columns = {
        "class": (classes[nearest] == classes[:, None]).mean(axis=1),
        "ndcg": gain,
        "redshift": (np.abs(z[nearest] - z[:, None]) < NEAR * (1 + z[:, None])).mean(axis=1),
    }
    out = {name: _sure(lambda x: float(np.nanmean(x)), seed, column) for name, column in columns.items()}
    if len(counts) > 1:
        share = alike.mean(axis=1)
        out["same set over chance"] = _sure(lambda a, b: float(a.mean() / max(b.mean(), 1e-12)), seed, share, base)
    return out


def _sure(metric: Any, seed: int, *columns: NDArray[np.float64]) -> list[float]:
    one = metrics.bootstrap(metric, *columns, draws=300, seed=seed)
    return [one.value, one.low, one.high]


def principal(dataset: Dataset, dim: int, seed: int) -> Matrix:
    """PCA (N, dim or fewer) of the rivals' features, standardised, missing ones at their mean."""
    from sklearn.decomposition import PCA as Components

    table, _ = rivals.features(dataset.observations)
    with np.errstate(invalid="ignore"):
        there = np.isfinite(table)
        count = np.maximum(there.sum(axis=0), 1)
        mean = np.where(there, table, 0.0).sum(axis=0) / count
        spread = np.sqrt(np.where(there, (table - mean) ** 2, 0.0).sum(axis=0) / count)
    scaled = np.where(there, (table - mean) / np.where(spread > 0, spread, 1.0), 0.0).clip(-10, 10)
    n = min(dim, *scaled.shape)
    fitted = Components(n_components=n, svd_solver="randomized", random_state=seed).fit_transform(scaled)
    return np.asarray(fitted, np.float32)
