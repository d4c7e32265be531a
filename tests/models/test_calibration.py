"""Conformal quantiles cover as often as they say; temperature lowers the loss and moves no choice."""

from __future__ import annotations

import math

import numpy as np
import pytest

from albireo.models.calibration import conformal_quantile, least, log_softmax, temperature


@pytest.mark.parametrize(("n", "level"), [(19, 0.95), (50, 0.68), (73, 0.95)])
def test_coverage_is_exactly_that_of_the_rank(n: int, level: float) -> None:
    """The score of a new object is below the k-th of n with probability k / (n + 1), whatever its distribution."""
    rng = np.random.default_rng(1)
    trials = 20_000
    scores = rng.exponential(size=(trials, n + 1)) ** 3
    covered = np.mean([row[-1] <= conformal_quantile(row[:-1], level) for row in scores])
    expected = math.ceil((n + 1) * level - 1e-9) / (n + 1)
    assert level <= expected <= level + 1 / (n + 1)
    assert abs(covered - expected) < 4 * math.sqrt(expected * (1 - expected) / trials)


def test_too_few_scores_promise_nothing() -> None:
    assert least(0.95) == 19
    assert least(0.68) == 3
    for level in (0.68, 0.95):
        assert math.isfinite(conformal_quantile(np.zeros(least(level)), level))
        assert conformal_quantile(np.zeros(least(level) - 1), level) == math.inf


def test_weights_count_as_objects_do() -> None:
    """An object of weight 2 among many is as good as two objects."""
    rng = np.random.default_rng(2)
    scores = rng.normal(size=4_000)
    weights = rng.integers(1, 3, size=4_000).astype(float)
    twice = np.repeat(scores, weights.astype(int))
    assert conformal_quantile(scores, 0.68, weights) == pytest.approx(conformal_quantile(twice, 0.68), abs=5e-3)
    assert conformal_quantile(scores, 0.68, np.full(4_000, 3.0)) == conformal_quantile(scores, 0.68)


def test_temperature_finds_how_much_too_sure_logits_are() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(5_000, 4)) * 2
    truth = np.array([rng.choice(4, p=p) for p in np.exp(log_softmax(logits))])
    found = temperature(logits * 3, truth)
    assert found == pytest.approx(3, rel=0.1)

    def loss(scaled: np.ndarray) -> float:
        return float(-log_softmax(scaled)[np.arange(len(truth)), truth].mean())

    assert loss(logits * 3 / found) < loss(logits * 3)
    np.testing.assert_array_equal((logits * 3 / found).argmax(axis=1), logits.argmax(axis=1))


def test_log_softmax_of_large_numbers() -> None:
    np.testing.assert_allclose(np.exp(log_softmax(np.array([[1e4, 1e4, -1e4]]))), [[0.5, 0.5, 0.0]])
