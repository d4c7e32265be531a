"""How good are predictions: numbers with their formulas, and how sure each number is.

`N` objects. Redshift errors are dz = (z_predicted - z) / (1 + z). Densities come as probabilities of cells, uniform
inside a cell, or as quantiles, with straight lines between them. Nothing here knows heads or encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]

GAUSSIAN = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


def _pair(predicted: ArrayLike, truth: ArrayLike) -> tuple[Doubles, Doubles]:
    """Both as float64 (N,) of the same length, at least 1, all finite."""
    a, b = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    assert a.ndim == 1, a.shape
    assert len(a) > 0, "a metric of no object"
    assert np.isfinite(a).all(), "predictions are not all finite"
    assert np.isfinite(b).all(), "labels are not all finite"
    return a, b


# Redshifts


def redshift_error(predicted: ArrayLike, truth: ArrayLike) -> Doubles:
    """dz (N,) = (z_predicted - z) / (1 + z), without unit."""
    a, b = _pair(predicted, truth)
    return (a - b) / (1.0 + b)


def sigma_nmad(predicted: ArrayLike, truth: ArrayLike) -> float:
    """Robust scatter of redshifts, without unit: 1.4826 median(|dz - median(dz)|)."""
    return robust_scatter(redshift_error(predicted, truth), 0.0)


def bias(predicted: ArrayLike, truth: ArrayLike) -> float:
    """Median of dz, without unit."""
    return float(np.median(redshift_error(predicted, truth)))


def outliers(predicted: ArrayLike, truth: ArrayLike, limit: float = 0.15) -> float:
    """Fraction of objects with |dz| > limit."""
    return float(np.mean(np.abs(redshift_error(predicted, truth)) > limit))


# Numbers in their own unit


def r2(predicted: ArrayLike, truth: ArrayLike) -> float:
    """Share of the labels' variance that is explained: 1 - sum (p - t)^2 / sum (t - mean t)^2. NaN of equal labels."""
    a, b = _pair(predicted, truth)
    total = float(np.sum((b - b.mean()) ** 2))
    return 1.0 - float(np.sum((a - b) ** 2)) / total if total > 0 else float("nan")


def rms_scatter(predicted: ArrayLike, truth: ArrayLike) -> float:
    """Root mean square of p - t, in the unit of the labels."""
    a, b = _pair(predicted, truth)
    return float(np.sqrt(np.mean((a - b) ** 2)))


def robust_scatter(predicted: ArrayLike, truth: ArrayLike) -> float:
    """1.4826 median(|d - median(d)|) of d = p - t, in the unit of the labels. `truth` may be one number for all."""
    a, b = _pair(predicted, np.broadcast_to(np.asarray(truth, np.float64), np.shape(predicted)))
    return float(GAUSSIAN * np.median(np.abs((a - b) - np.median(a - b))))


# Densities


def pit_of_cells(edges: ArrayLike, probability: ArrayLike, truth: ArrayLike) -> Doubles:
    """Probability integral transform (N,): the probability below the truth. Uniform on [0, 1] if densities are true.

    edges (V + 1,) increasing; probability (N, V), each row sums to 1; truth (N,)
    """
    x, f = _nodes(edges, probability)
    return _cdf(x, f, np.asarray(truth, np.float64))


def pit_of_quantiles(levels: ArrayLike, quantiles: ArrayLike, truth: ArrayLike) -> Doubles:
    """Probability integral transform (N,) of quantiles (N, Q) at levels (Q,): straight between them, 0 and 1 beyond."""
    q, f = _quantile_nodes(levels, quantiles)
    t = np.asarray(truth, np.float64)
    inside = _cdf(q, f, t)
    return np.where(t < q[:, 0], 0.0, np.where(t > q[:, -1], 1.0, inside))


def pit_histogram(pit: ArrayLike, bins: int = 10) -> Doubles:
    """Fractions (bins,) of objects in equal bins of [0, 1]; each is 1 / bins if densities are true."""
    counts, _ = np.histogram(np.asarray(pit, np.float64), bins=bins, range=(0.0, 1.0))
    return counts / max(int(counts.sum()), 1)


def pit_ks(pit: ArrayLike) -> float:
    """Kolmogorov-Smirnov distance of PIT values (N,) from the uniform distribution: 0 is perfect, 1 the worst."""
    return float(stats.kstest(np.asarray(pit, np.float64), "uniform").statistic)


def crps_of_cells(edges: ArrayLike, probability: ArrayLike, truth: ArrayLike) -> Doubles:
    """Continuous ranked probability score (N,), in the unit of the edges: integral of (F(x) - [x >= t])^2 dx.

    edges (V + 1,) increasing; probability (N, V), each row sums to 1; truth (N,), also outside the edges.
    Gneiting and Raftery (2007), JASA 102, 359.
    """
    x, f = _nodes(edges, probability)
    return _crps(x, f, np.asarray(truth, np.float64))


def crps_of_quantiles(levels: ArrayLike, quantiles: ArrayLike, truth: ArrayLike) -> Doubles:
    """Continuous ranked probability score (N,), in the unit of the quantiles (N, Q), which are at levels (Q,).

    The distribution has straight lines between its quantiles, and what lies beyond the outer levels sits on them.
    """
    q, f = _quantile_nodes(levels, quantiles)
    return _crps(q, f, np.asarray(truth, np.float64))


def _nodes(edges: ArrayLike, probability: ArrayLike) -> tuple[Doubles, Doubles]:
    """Edges and cumulative probability there, both (N, V + 1)."""
    x, p = np.asarray(edges, np.float64), np.atleast_2d(np.asarray(probability, np.float64))
    assert p.shape[1] == len(x) - 1, (p.shape, x.shape)
    assert (np.diff(x) >= 0).all(), "edges must not decrease"
    assert np.allclose(p.sum(axis=1), 1.0, atol=1e-6), "probabilities sum to 1"
    f = np.concatenate([np.zeros((len(p), 1)), np.cumsum(p, axis=1)], axis=1)
    return np.broadcast_to(x, f.shape), np.minimum(f, 1.0)


def _quantile_nodes(levels: ArrayLike, quantiles: ArrayLike) -> tuple[Doubles, Doubles]:
    """Quantiles and their levels, both (N, Q)."""
    q, a = np.atleast_2d(np.asarray(quantiles, np.float64)), np.asarray(levels, np.float64)
    assert q.shape[1] == len(a), (q.shape, a.shape)
    assert ((a > 0) & (a < 1)).all(), "levels lie between 0 and 1"
    assert (np.diff(a) > 0).all(), "levels increase"
    assert (np.diff(q, axis=1) >= 0).all(), "quantiles cross"
    return q, np.broadcast_to(a, q.shape)


def _cdf(x: Doubles, f: Doubles, t: Doubles) -> Doubles:
    """F(t) (N,) of distributions with nodes x, f (N, M)."""
    return np.array([np.interp(at, xs, fs) for at, xs, fs in zip(t, x, f, strict=True)])


def _crps(x: Doubles, f: Doubles, t: Doubles) -> Doubles:
    """Exact integral for F that is linear between nodes x, f (N, M), 0 before the first and 1 after the last."""
    assert t.shape == (len(x),), (t.shape, x.shape)
    a, b, fa, fb = x[:, :-1], x[:, 1:], f[:, :-1], f[:, 1:]
    cut = np.clip(t[:, None], a, b)
    with np.errstate(invalid="ignore", divide="ignore"):
        fc = np.where(b > a, fa + (fb - fa) * (cut - a) / (b - a), fb)
    below = (cut - a) * (fa**2 + fa * fc + fc**2) / 3.0
    above = (b - cut) * ((fc - 1) ** 2 + (fc - 1) * (fb - 1) + (fb - 1) ** 2) / 3.0
    outside = np.maximum(x[:, 0] - t, 0.0) + np.maximum(t - x[:, -1], 0.0)
    return np.asarray((below + above).sum(axis=1) + outside)


# Intervals


def covered(low: ArrayLike, high: ArrayLike, truth: ArrayLike) -> Bools:
    """Whether each truth lies in its interval (N,), ends included."""
    a, b, t = (np.asarray(one, np.float64) for one in (low, high, truth))
    assert (a <= b).all(), "an interval ends before it begins"
    return np.asarray((a <= t) & (t <= b))


def coverage(low: ArrayLike, high: ArrayLike, truth: ArrayLike) -> float:
    """Fraction of objects whose truth lies in their interval."""
    return float(covered(low, high, truth).mean())


@dataclass(frozen=True)
class Bin:
    """Coverage in one bin: of which variable, which bin, how many objects, the fraction covered."""

    variable: str
    bin: str
    objects: int
    coverage: float


def coverage_by_bin(inside: ArrayLike, bins: Mapping[str, Sequence[str]], least: int = 50) -> list[Bin]:
    """Coverage in every bin that has `least` objects or more.

    inside  (N,) from `covered`
    bins    variable ("magnitude", "modality set") -> the bin of each object (N,); "" = of none
    """
    hit = np.asarray(inside, np.bool_)
    out = []
    for variable, given in bins.items():
        labels = np.asarray(given, dtype=np.str_)
        assert labels.shape == hit.shape, (variable, labels.shape)
        for name in sorted(set(labels.tolist()) - {""}):
            chosen = labels == name
            if chosen.sum() >= least:
                out.append(Bin(variable, name, int(chosen.sum()), float(hit[chosen].mean())))
    return out


def worst_bin(found: Sequence[Bin], nominal: float) -> Bin | None:
    """The bin whose coverage is farthest from the nominal one, None if there is no bin."""
    return max(found, key=lambda one: abs(one.coverage - nominal), default=None)


def quantile_bins(values: ArrayLike, n: int = 5, digits: int = 3) -> list[str]:
    """The bin of each value (N,) among n of about equal numbers, as "low to high"; "" where the value is not finite."""
    v = np.asarray(values, np.float64)
    good = np.isfinite(v)
    if not good.any():
        return [""] * len(v)
    edges = np.unique(np.quantile(v[good], np.linspace(0.0, 1.0, n + 1)))
    if len(edges) == 1:
        return [f"{edges[0]:.{digits}g}" if ok else "" for ok in good]
    place = np.clip(np.searchsorted(edges, v, side="right") - 1, 0, len(edges) - 2)
    names = [f"{low:.{digits}g} to {high:.{digits}g}" for low, high in pairwise(edges)]
    return [names[k] if ok else "" for k, ok in zip(place, good, strict=True)]


# Classes


def _confusion(predicted: Sequence[Any], truth: Sequence[Any]) -> NDArray[np.int64]:
    """Counts (C, C): row the true class, column the predicted, over classes that occur in either."""
    assert len(predicted) == len(truth) > 0, (len(predicted), len(truth))
    names = sorted({*map(str, predicted), *map(str, truth)})
    index = {name: k for k, name in enumerate(names)}
    table = np.zeros((len(names), len(names)), np.int64)
    np.add.at(table, ([index[str(t)] for t in truth], [index[str(p)] for p in predicted]), 1)
    return table


def balanced_accuracy(predicted: Sequence[Any], truth: Sequence[Any]) -> float:
    """Mean over true classes of the fraction of their objects that is found; chance is 1 / number of classes."""
    table = _confusion(predicted, truth)
    there = table.sum(axis=1) > 0
    return float((np.diag(table)[there] / table.sum(axis=1)[there]).mean())


def macro_f1(predicted: Sequence[Any], truth: Sequence[Any]) -> float:
    """Mean over classes, true or predicted, of F1 = 2 TP / (2 TP + FP + FN)."""
    table = _confusion(predicted, truth)
    return float((2 * np.diag(table) / (table.sum(axis=0) + table.sum(axis=1))).mean())


@dataclass(frozen=True)
class Reliability:
    """Confidence against success, in equal bins of the largest probability.

    edges (K + 1,); objects (K,); confidence, accuracy (K,) means in the bin, NaN where it is empty
    error  expected calibration error: sum objects / N |accuracy - confidence|
    """

    edges: Doubles
    objects: NDArray[np.int64]
    confidence: Doubles
    accuracy: Doubles

    @property
    def error(self) -> float:
        there = self.objects > 0
        gap = np.abs(self.accuracy[there] - self.confidence[there])
        return float((self.objects[there] * gap).sum() / self.objects.sum())


def reliability(probability: ArrayLike, truth: ArrayLike, bins: int = 10) -> Reliability:
    """How probability (N, C) compares with success; truth (N,) column numbers. Guo et al. (2017), arXiv 1706.04599."""
    p, t = _probabilities(probability, truth)
    best, sure = p.argmax(axis=1), p.max(axis=1)
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    objects = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, weights=sure, minlength=bins) / objects
        accuracy = np.bincount(place, weights=best == t, minlength=bins) / objects
    return Reliability(edges, objects.astype(np.int64), confidence, accuracy)


def calibration_error(probability: ArrayLike, truth: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error of the most probable class: see Reliability.error. 0 is best."""
    return reliability(probability, truth, bins).error


def nll(probability: ArrayLike, truth: ArrayLike) -> float:
    """Mean of -ln p(true class), in nats; probability (N, C), truth (N,) column numbers. 0 counts as 1e-12."""
    p, t = _probabilities(probability, truth)
    return float(-np.log(np.maximum(p[np.arange(len(t)), t], 1e-12)).mean())


def _probabilities(probability: ArrayLike, truth: ArrayLike) -> tuple[Doubles, NDArray[np.int64]]:
    p, t = np.asarray(probability, np.float64), np.asarray(truth, np.int64)
    assert p.ndim == 2, p.shape
    assert t.shape == (len(p),), (p.shape, t.shape)
    assert len(t) > 0, "a metric of no object"
    assert np.allclose(p.sum(axis=1), 1.0, atol=1e-5), "probabilities sum to 1"
    return p, t


# Retrieval


def ndcg(relevance: ArrayLike, score: ArrayLike, k: int = 10, own: ArrayLike | None = None) -> Doubles:
    """Normalised discounted cumulative gain (Q,) of the k best: sum_i r_i / log2(i + 1) over that of the ideal order.

    relevance, score  (Q, N) of every candidate for every query, relevance >= 0, larger scores are nearer
    own               (Q,) which candidate is the query itself: it is left out of both orders; None = not among them
    NaN for a query without a relevant candidate. Candidates of equal score keep their order.
    """
    r, s = np.array(relevance, np.float64), np.array(score, np.float64)
    assert r.shape == s.shape, (r.shape, s.shape)
    assert (r >= 0).all(), "relevance is not negative"
    n = r.shape[1]
    if own is not None:
        rows = np.arange(len(r))
        r[rows, np.asarray(own, np.int64)] = 0.0
        s[rows, np.asarray(own, np.int64)] = -np.inf
        n -= 1
    k = min(k, n)
    discount = 1.0 / np.log2(np.arange(k) + 2.0)
    order = np.argsort(-s, axis=1, kind="stable")[:, :k]
    gained = (np.take_along_axis(r, order, axis=1) * discount).sum(axis=1)
    ideal = (-np.sort(-r, axis=1)[:, :k] * discount).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(ideal > 0, gained / ideal, np.nan)


# How sure


@dataclass(frozen=True)
class Estimate:
    """A metric's value and the ends of its bootstrap interval."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def bootstrap(
    metric: Callable[..., float],
    *columns: ArrayLike,
    groups: Sequence[Any] | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """metric(*columns), with the percentile interval from resampled objects. Efron (1979).

    columns  arrays whose first axis is the objects (N, ...)
    groups   (N,): whole groups are drawn, because objects of one group are not independent
    Draws for which the metric is not finite (one class only) are left out of the interval.
    """
    arrays = [np.asarray(column) for column in columns]
    n = len(arrays[0])
    assert all(len(one) == n for one in arrays), [len(one) for one in arrays]
    rng = np.random.default_rng(seed)
    members = None if groups is None else _members(groups)
    count = n if members is None else len(members)
    values = []
    for _ in range(draws):
        drawn = rng.integers(0, count, count)
        rows = drawn if members is None else np.concatenate([members[k] for k in drawn])
        values.append(metric(*(one[rows] for one in arrays)))
    good = np.array(values)[np.isfinite(values)]
    value = float(metric(*arrays))
    if not len(good):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(good, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


def _members(groups: Sequence[Any]) -> list[NDArray[np.int64]]:
    """Row numbers of each group, in the order in which groups first occur."""
    found: dict[str, list[int]] = {}
    for k, name in enumerate(groups):
        found.setdefault(str(name), []).append(k)
    return [np.array(rows) for rows in found.values()]
