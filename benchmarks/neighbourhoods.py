"""Do neighbours in the embedding belong together? The encoder beside itself untrained, PCA of the inputs, and chance.

Of every object the ten nearest others by cosine are asked for: the share of its class, nDCG@10 with the same class as
relevance, and the share within 0.05 in redshift / (1 + z). An embedding is the mean of the token states.
Of what an object is, the modalities it was seen in should say nothing. That is asked of objects that have everything
and are given by lot as photometry, image, spectrum or some of these: how much likelier than by chance has a neighbour
the same ones? `centred` takes the mean of objects with the same modalities away and divides by their scatter. `aligned`
is a regression for each set of modalities on what the full embedding of the same objects varies most in, with the same
mean and covariance for every set: it is learnt, without labels, on a reference half of the objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.models import metrics, rivals
from albireo.models.head_tasks import Line
from albireo.models.head_training import ridge
from albireo.models.token_states import TokenStates
from benchmarks.encoding import Encoder
from benchmarks.labelled import Dataset
from benchmarks.questions import EBV, IMAGES, LEGACY, SHAPE, SPECTRA
from benchmarks.science_runs import ENCODER, PCA, UNTRAINED, Records

NEIGHBOURS = 10
NEAR = 0.05
SETS = ("sdss_boss_spectra", "simulated_mix")
CHANCE = "chance"
ROWS = (CHANCE, PCA, UNTRAINED, ENCODER)

ACROSS = "simulated_mix"
"""The set whose objects are given by lot."""
LARGEST, LOT_OBJECTS = 1000, 480
"""Objects of a set that are compared; of those given by lot, reference and tested ones together."""
PHOTOMETRY = (*LEGACY, *SHAPE, *EBV)
LOTS: dict[str, tuple[str, ...]] = {
    "photometry": PHOTOMETRY,
    "image": IMAGES,
    "spectrum": SPECTRA,
    "photometry and image": (*PHOTOMETRY, *IMAGES),
    "photometry and spectrum": (*PHOTOMETRY, *SPECTRA),
    "all": (*PHOTOMETRY, *IMAGES, *SPECTRA),
}
MEAN, CENTRED, ALIGNED = "mean", "centred", "aligned"
POOLINGS = (MEAN, CENTRED, ALIGNED)
HELD = 0.98
"""Share of the variance of the full embedding in the principal components that `aligned` regresses on."""
FOLDS = 5

Matrix = NDArray[np.float32]
Doubles = NDArray[np.float64]


def question(name: str) -> str:
    """The name under which the record of a set is kept."""
    return f"neighbours_{name}"


def row(who: str, pooling: str) -> str:
    """The name of an encoder with a pooling, among objects that are given by lot."""
    return f"{who} {pooling}"


def measure(dataset: Dataset, encoders: Mapping[str, Encoder], records: Records, seed: int) -> None:
    """The record of every row that is not there; objects that the checkpoint cannot read are left out."""
    name = question(dataset.name)
    missing = [who for who in ROWS if records.read(name, who, None) is None]
    inputs = encoders[ENCODER].engine.inputs
    readable = dataset.subset(np.array([bool(set(one.data) & set(inputs)) for one in dataset.observations]))
    readable = readable.subset(np.arange(min(len(readable), LARGEST)))
    if not missing or len(readable) <= NEIGHBOURS:
        return
    states = {who: encoders[who].states(readable, tuple(inputs)) for who in (ENCODER, UNTRAINED)}
    both = set(states[ENCODER].ids) & set(states[UNTRAINED].ids)
    kept = readable.subset(np.array([one.id in both for one in readable.observations]))
    for who in missing:
        if who in states:
            vectors = means(states[who], kept)
        elif who == PCA:
            vectors = rivals.principal(kept.observations, encoders[ENCODER].engine.dim, seed)
        else:
            vectors = np.random.default_rng(seed).normal(size=(len(kept), 64)).astype(np.float32)
        records.write(name, who, None, {"metrics": scores(kept, vectors, seed), "objects": len(kept)})
        print(f"{name}: {who}")


def measure_across(dataset: Dataset, encoders: Mapping[str, Encoder], records: Records, seed: int) -> None:
    """The record of every encoder and pooling that is not there, of objects that are given by lot."""
    name = question("across")
    read = encoders[ENCODER].engine.inputs.keys()
    parts = (LEGACY, IMAGES, SPECTRA)
    there = [all(set(part) & one.data.keys() & read for part in parts) for one in dataset.observations]
    rng = np.random.default_rng([seed, 2])
    chosen = rng.permutation(np.flatnonzero(there))[:LOT_OBJECTS]
    reference, tested = dataset.subset(np.sort(chosen[::2])), dataset.subset(np.sort(chosen[1::2]))
    drawn = np.array(list(LOTS))[rng.permutation(len(tested)) % len(LOTS)]
    for who in (UNTRAINED, ENCODER):
        missing = [pooling for pooling in POOLINGS if records.read(name, row(who, pooling), None) is None]
        if not missing or len(tested) < 4 * NEIGHBOURS:
            continue
        encoder = encoders[who]
        references = {lot: means(encoder.states(reference, keys), reference) for lot, keys in LOTS.items()}
        vectors = np.empty((len(tested), encoder.engine.dim), np.float32)
        for lot, keys in LOTS.items():
            some = tested.subset(drawn == lot)
            vectors[drawn == lot] = means(encoder.states(some, keys), some)
        for pooling in missing:
            found = {lot: pooled(references, lot, vectors[drawn == lot], pooling) for lot in LOTS}
            table = np.empty((len(tested), next(iter(found.values())).shape[1]), np.float32)
            for lot, part in found.items():
                table[drawn == lot] = part
            told = {"metrics": scores(tested, table, seed, drawn), "objects": len(tested)}
            records.write(name, row(who, pooling), None, told)
            print(f"{name}: {row(who, pooling)}")


def pooled(references: Mapping[str, Matrix], lot: str, vectors: Matrix, pooling: str) -> Matrix:
    """What is compared in the place of mean embeddings (n, D) of objects of one lot.

    references  lot -> mean embeddings (m, D) of the same reference objects
    """
    known = references[lot]
    if pooling == CENTRED:
        return (vectors - known.mean(axis=0)) / np.maximum(known.std(axis=0), 1e-6)
    if pooling == ALIGNED:
        aims = _directions(references["all"])
        told = {one: _crossed(_standardised(x, x), aims) for one, x in references.items()}
        # How much a direction counts is alike for all lots, so that none is told by it.
        shares = np.mean([np.maximum(1 - ((said - aims) ** 2).mean(axis=0), 0.0) for said, _ in told.values()], axis=0)
        said, lines = told[lot]
        values, axes = np.linalg.eigh(np.cov(said.T))
        root = axes @ np.diag(1 / np.sqrt(np.maximum(values, 1e-3 * values.max()))) @ axes.T
        new = _standardised(vectors, known)
        found = np.mean([_along(new, fold) for fold in lines], axis=0)
        return np.asarray((found - said.mean(axis=0)) @ root * shares, np.float32)
    return vectors


def _directions(full: Matrix) -> Doubles:
    """(m, T) principal components of embeddings (m, D), as many as hold HELD of their variance, each of variance 1."""
    centred = full.astype(np.float64) - full.mean(axis=0, dtype=np.float64)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    count = int(np.searchsorted(np.cumsum(sizes**2) / (sizes**2).sum(), HELD)) + 1
    along = centred @ axes[: max(count, 2)].T
    return np.asarray(along / along.std(axis=0))


def _standardised(vectors: Matrix, known: Matrix) -> Doubles:
    x = known.astype(np.float64)
    return np.asarray((vectors - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-6))


def _crossed(x: Doubles, aims: Doubles) -> tuple[Doubles, list[list[Line]]]:
    """What regressions on x (m, D) say of aims (m, T), each object by one that it has not taught, and all of them."""
    fold = np.arange(len(x)) % FOLDS
    equal = np.ones(len(x))
    lines = [
        ridge(x[fold != k], aims[fold != k], equal[fold != k], x[fold == k], aims[fold == k]) for k in range(FOLDS)
    ]
    said = np.empty_like(aims)
    for k in range(FOLDS):
        said[fold == k] = _along(x[fold == k], lines[k])
    return said, lines


def _along(x: Doubles, lines: Sequence[Line]) -> Doubles:
    return np.stack([x @ line.slopes + line.middle for line in lines], axis=1)


def means(states: TokenStates, dataset: Dataset) -> Matrix:
    """Mean embedding (N, D) of every object of a set."""
    place = {known: k for k, known in enumerate(states.ids)}
    return np.stack([states.rows(place[one.id])[0].mean(axis=0) for one in dataset.observations])


def scores(dataset: Dataset, vectors: Matrix, seed: int, sets: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Metric -> [value, low, high]; `sets` (N,) are the modalities in which objects were given."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    similarity = (unit @ unit.T).astype(np.float64)
    own = np.arange(len(unit))
    classes = np.asarray(dataset.labels["class"], np.str_)
    same = (classes[:, None] == classes[None]).astype(np.float64)
    gain = metrics.ndcg(same, similarity, NEIGHBOURS, own)
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS]
    z = np.asarray(dataset.labels["redshift"], np.float64)
    columns = {
        "class": (classes[nearest] == classes[:, None]).mean(axis=1),
        "ndcg": gain,
        "redshift": (np.abs(z[nearest] - z[:, None]) < NEAR * (1 + z[:, None])).mean(axis=1),
    }
    out = {name: _sure(lambda x: float(np.nanmean(x)), seed, column) for name, column in columns.items()}
    if sets is not None:
        given = np.asarray(sets)
        share = (given[nearest] == given[:, None]).mean(axis=1)
        base = ((given[:, None] == given[None]).sum(axis=1) - 1) / (len(given) - 1)
        out["same set over chance"] = _sure(lambda a, b: float(a.mean() / max(b.mean(), 1e-12)), seed, share, base)
    return out


def _sure(metric: Any, seed: int, *columns: NDArray[np.float64]) -> list[float]:
    one = metrics.bootstrap(metric, *columns, draws=300, seed=seed)
    return [one.value, one.low, one.high]
