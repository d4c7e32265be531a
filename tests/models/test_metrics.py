"""Metrics against independent libraries and against cases that are computed by hand."""

from __future__ import annotations

import math

import numpy as np
import properscoring
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as theirs

from albireo.models import metrics


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Redshifts


def test_redshift_metrics_by_hand() -> None:
    truth = np.array([0.0, 1.0, 1.0, 3.0, 0.25])
    predicted = np.array([0.1, 1.0, 1.4, 2.0, 0.25])
    assert metrics.redshift_error(predicted, truth) == pytest.approx([0.1, 0.0, 0.2, -0.25, 0.0])
    assert metrics.bias(predicted, truth) == 0.0
    assert metrics.sigma_nmad(predicted, truth) == pytest.approx(1.4826 * 0.1)
    assert metrics.outliers(predicted, truth, 0.15) == 0.4
    assert metrics.outliers(predicted, truth, 0.05) == 0.6


def test_robust_scatter_of_a_normal_is_its_sigma() -> None:
    truth = rng().uniform(0, 5, 200_000)
    predicted = truth + 0.7 + 0.2 * rng(1).normal(size=len(truth))
    assert metrics.robust_scatter(predicted, truth) == pytest.approx(0.2, rel=0.01)
    assert metrics.robust_scatter(predicted, truth) == pytest.approx(
        stats.median_abs_deviation(predicted - truth, scale="normal"), rel=1e-4
    )
    assert metrics.rms_scatter(predicted, truth) == pytest.approx(math.hypot(0.7, 0.2), rel=0.01)


def test_r2_is_scikit_learns() -> None:
    truth, noise = rng().normal(size=100), rng(1).normal(size=100)
    assert metrics.r2(truth + noise, truth) == pytest.approx(theirs.r2_score(truth, truth + noise))
    assert math.isnan(metrics.r2([1.0, 2.0], [3.0, 3.0]))


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [np.inf, 1.0]])
def test_what_is_not_a_number_is_refused(bad: list[float]) -> None:
    for one in (metrics.r2, metrics.sigma_nmad, metrics.rms_scatter, metrics.robust_scatter, metrics.bias):
        with pytest.raises(AssertionError):
            one(bad, [0.5, 0.5])
        with pytest.raises(AssertionError):
            one([0.5, 0.5], bad)
    with pytest.raises(AssertionError):
        metrics.r2([], [])


# Densities


def normal_cells(mean: np.ndarray, sigma: float, edges: np.ndarray) -> np.ndarray:
    """Probabilities of cells of normal distributions (N, V)."""
    cdf = stats.norm.cdf(edges[None], mean[:, None], sigma)
    cdf[:, 0], cdf[:, -1] = 0.0, 1.0
    return np.diff(cdf, axis=1)


def test_crps_of_a_normal_is_properscorings() -> None:
    mean, truth = rng().normal(size=50), 2.0 * rng(1).normal(size=50)
    edges = np.linspace(-8.0, 8.0, 4001)
    ours = metrics.crps_of_cells(edges, normal_cells(mean, 0.5, edges), truth)
    assert ours == pytest.approx(properscoring.crps_gaussian(truth, mean, 0.5), abs=2e-5)
    levels = np.linspace(0.0005, 0.9995, 1000)
    quantiles = stats.norm.ppf(levels[None], mean[:, None], 0.5)
    assert metrics.crps_of_quantiles(levels, quantiles, truth) == pytest.approx(
        properscoring.crps_gaussian(truth, mean, 0.5), abs=2e-3
    )


def test_crps_of_coarse_cells_is_that_of_many_draws() -> None:
    """A case where cells are as wide as the density, uneven, with the truth inside, on an edge and outside."""
    edges = np.array([0.0, 0.5, 0.6, 2.0])
    probability = np.array([[0.2, 0.5, 0.3]] * 5)
    truth = np.array([0.55, 0.6, 1.7, -1.0, 4.0])
    u = (np.arange(2000) + 0.5) / 2000
    draws = np.interp(u, np.concatenate([[0.0], np.cumsum(probability[0])]), edges)
    expected = [properscoring.crps_ensemble(t, draws) for t in truth]
    assert metrics.crps_of_cells(edges, probability, truth) == pytest.approx(expected, abs=1e-4)


def test_crps_of_one_value_is_the_absolute_error() -> None:
    got = metrics.crps_of_quantiles([0.16, 0.5, 0.84], [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]], [5.0, 1.5])
    assert got == pytest.approx([3.0, 0.5])
    few = metrics.crps_of_quantiles([0.1, 0.5, 0.9], [[0.0, 1.0, 3.0]], [1.2])
    # By hand: F = 0.1 + 0.4 x to 1, 0.5 + 0.2 (x - 1) to 3, and (F - 1) from 1.2 on.
    x = np.linspace(0.0, 3.0, 300_001)
    f = np.interp(x, [0.0, 1.0, 3.0], [0.1, 0.5, 0.9]) - (x >= 1.2)
    assert few == pytest.approx([np.sum(f[:-1] ** 2) * (x[1] - x[0])], abs=1e-4)


def test_pit_of_true_densities_is_uniform_and_of_wrong_ones_is_not() -> None:
    mean = rng().normal(size=4000)
    truth = mean + 0.5 * rng(1).normal(size=4000)
    edges = np.linspace(-8.0, 8.0, 2001)
    good = metrics.pit_of_cells(edges, normal_cells(mean, 0.5, edges), truth)
    narrow = metrics.pit_of_cells(edges, normal_cells(mean, 0.25, edges), truth)
    assert metrics.pit_ks(good) < 1.95 / math.sqrt(4000), "the 0.1 % point of Kolmogorov's distribution"
    assert metrics.pit_ks(narrow) > 0.1
    assert metrics.pit_histogram(good).sum() == pytest.approx(1.0)
    assert np.abs(metrics.pit_histogram(good) - 0.1).max() < 0.02
    assert metrics.pit_histogram(narrow)[[0, -1]].min() > 0.15, "too narrow: truths in the tails"
    assert good == pytest.approx(stats.norm.cdf(truth, mean, 0.5), abs=1e-4)
    levels = np.linspace(0.005, 0.995, 199)
    by_quantiles = metrics.pit_of_quantiles(levels, stats.norm.ppf(levels[None], mean[:, None], 0.5), truth)
    inside = (by_quantiles > 0) & (by_quantiles < 1)
    assert by_quantiles[inside] == pytest.approx(good[inside], abs=2e-3)
    assert set(by_quantiles[~inside]) == {0.0, 1.0}


def test_densities_that_are_none_are_refused() -> None:
    with pytest.raises(AssertionError):
        metrics.crps_of_cells([0.0, 1.0, 2.0], [[0.5, 0.4]], [0.5])
    with pytest.raises(AssertionError):
        metrics.crps_of_cells([0.0, 1.0], [[0.5, 0.5]], [0.5])
    with pytest.raises(AssertionError):
        metrics.crps_of_quantiles([0.2, 0.8], [[1.0, 0.0]], [0.5])


# Intervals


def test_coverage_and_its_worst_bin() -> None:
    low, high, truth = np.zeros(300), np.ones(300), np.full(300, 0.5)
    truth[:30] = 2.0
    truth[100] = 1.0
    assert metrics.coverage(low, high, truth) == pytest.approx(0.9)
    inside = metrics.covered(low, high, truth)
    sets = ["photometry"] * 100 + ["image"] * 190 + ["rare"] * 10
    found = metrics.coverage_by_bin(inside, {"set": sets, "half": ["a"] * 150 + ["b"] * 150}, least=50)
    assert {(one.variable, one.bin): (one.objects, one.coverage) for one in found} == {
        ("set", "photometry"): (100, pytest.approx(0.7)), ("set", "image"): (190, 1.0),
        ("half", "a"): (150, pytest.approx(0.8)), ("half", "b"): (150, 1.0),
    }  # fmt: skip
    worst = metrics.worst_bin(found, 0.95)
    assert worst is not None
    assert (worst.variable, worst.bin) == ("set", "photometry")
    assert metrics.worst_bin([], 0.68) is None


def test_quantile_bins() -> None:
    values = np.concatenate([np.arange(100.0), [np.nan]])
    bins = metrics.quantile_bins(values, 4)
    assert bins[-1] == ""
    names, counts = np.unique(bins[:-1], return_counts=True)
    assert len(names) == 4
    assert counts.min() >= 24
    assert set(metrics.quantile_bins([1.0, 1.0, np.inf])) == {"1", ""}
    assert metrics.quantile_bins([np.nan]) == [""]


# Classes


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=40))
@settings(deadline=None)
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_scores_of_classes_are_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    predicted, truth = [p for p, _ in pairs], [t for _, t in pairs]
    recall = theirs.recall_score(truth, predicted, average=None, labels=sorted(set(truth)), zero_division=0.0)
    assert metrics.balanced_accuracy(predicted, truth) == pytest.approx(recall.mean())
    assert metrics.macro_f1(predicted, truth) == pytest.approx(theirs.f1_score(truth, predicted, average="macro"))


def test_nll_is_scikit_learns() -> None:
    p = rng().dirichlet([1.0, 2.0, 0.5], 60)
    t = rng(1).integers(0, 3, 60)
    assert metrics.nll(p, t) == pytest.approx(theirs.log_loss(t, p, labels=[0, 1, 2]))


def test_calibration_error() -> None:
    p = np.array([[0.95, 0.05]] * 10 + [[0.65, 0.35]] * 10)
    truth = np.array([0] * 9 + [1] + [0] * 3 + [1] * 7)
    found = metrics.reliability(p, truth)
    assert found.objects.sum() == 20
    assert found.accuracy[[6, 9]] == pytest.approx([0.3, 0.9])
    assert metrics.calibration_error(p, truth) == pytest.approx(0.5 * 0.05 + 0.5 * 0.35)
    drawn = rng().dirichlet([1.0, 1.0, 1.0], 40_000)
    labels = (drawn.cumsum(axis=1) < rng(2).uniform(size=(40_000, 1))).sum(axis=1)
    assert metrics.calibration_error(drawn, labels) < 0.01
    assert metrics.calibration_error(np.eye(3)[[0, 1, 2]], [0, 1, 2]) == 0.0


# Retrieval


def test_ndcg_is_scikit_learns_without_the_query() -> None:
    n = 40
    relevance = rng().uniform(size=(n, n)) * (rng(1).uniform(size=(n, n)) < 0.3)
    score = rng(2).normal(size=(n, n))
    got = metrics.ndcg(relevance, score, 10, own=np.arange(n))
    others = [np.delete(np.arange(n), k) for k in range(n)]
    expected = [theirs.ndcg_score(relevance[[k]][:, o], score[[k]][:, o], k=10) for k, o in enumerate(others)]
    assert got == pytest.approx(expected)
    assert metrics.ndcg(relevance, score, 10) == pytest.approx(
        [theirs.ndcg_score(relevance[[k]], score[[k]], k=10) for k in range(n)]
    )
    assert metrics.ndcg(relevance, relevance, 10) == pytest.approx(1.0)


def test_ndcg_by_hand_and_without_anything_relevant() -> None:
    got = metrics.ndcg([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [5.0, 0.0, 0.0]], [[3.0, 2.0, 1.0]] * 3, own=[2, 2, 0])
    assert got[0] == pytest.approx(1.0 / math.log2(3))
    assert np.isnan(got[1])
    assert np.isnan(got[2]), "the query itself is no find"


def test_ndcg_changes_nothing() -> None:
    relevance, score = rng().uniform(size=(4, 6)), rng(1).uniform(size=(4, 6))
    before = relevance.copy(), score.copy()
    metrics.ndcg(relevance, score, own=[0, 1, 2, 3])
    assert (relevance == before[0]).all()
    assert (score == before[1]).all()


# How sure


def test_bootstrap_interval_of_a_mean() -> None:
    values = rng().normal(3.0, 2.0, 400)
    got = metrics.bootstrap(lambda x: float(x.mean()), values, draws=2000, seed=4)
    assert got.value == values.mean()
    half = 1.96 * values.std() / math.sqrt(400)
    assert got.high - got.value == pytest.approx(half, rel=0.12)
    assert got.value - got.low == pytest.approx(half, rel=0.12)
    assert metrics.bootstrap(lambda x: float(x.mean()), values, draws=50, seed=4) == metrics.bootstrap(
        lambda x: float(x.mean()), values, draws=50, seed=4
    )
    assert f"{metrics.Estimate(1.0, 0.5, 1.25):.2f}" == "1.00 (0.50 to 1.25)"


def test_bootstrap_of_groups_is_wider() -> None:
    """Ten copies of each of 40 objects are 40 objects, not 400."""
    values = np.repeat(rng().normal(size=40), 10)
    groups = np.repeat(np.arange(40), 10)
    alone = metrics.bootstrap(lambda x: float(x.mean()), values)
    grouped = metrics.bootstrap(lambda x: float(x.mean()), values, groups=groups.tolist())
    assert (grouped.high - grouped.low) / (alone.high - alone.low) == pytest.approx(math.sqrt(10), rel=0.25)


def test_bootstrap_leaves_draws_out_that_are_not_finite() -> None:
    got = metrics.bootstrap(metrics.r2, [0.0, 1.0], [0.0, 1.0], draws=100)
    assert (got.value, got.low, got.high) == (1.0, 1.0, 1.0)
