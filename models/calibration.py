"""Making what a head says agree with what is found: temperature, and split conformal prediction.

Everything here is fitted on a calibration part that neither training nor early stopping saw. Conformal intervals then
cover new objects of the same kind with at least the level asked for, whatever the head is worth (Vovk et al. 2005;
Lei et al. 2018; conformalised quantiles: Romano et al. 2019). That is a promise on average over objects, not for each.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

TEMPERATURES = (0.05, 20.0)


def least(level: float) -> int:
    """Calibration objects from which an interval of this level is finite: 3 for 0.68, 19 for 0.95."""
    return math.ceil(level / (1 - level) - 1e-9)


def conformal_quantile(scores: Doubles, level: float, weights: Doubles | None = None) -> float:
    """The number that the score of a new object stays below or at with probability `level` or more.

    scores   (n,) of calibration objects, higher = worse
    weights  (n,) of these; the new object is taken to have their mean (Tibshirani et al. 2019)
    It is the ceil((n + 1) level)-th smallest score, and infinite if there is none.
    """
    order = np.argsort(scores, kind="stable")
    share = np.ones(len(scores)) if weights is None else weights / weights.mean()
    below = np.cumsum(share[order]) / (len(scores) + 1)
    at = int(np.searchsorted(below, level - 1e-12))
    return float(scores[order[at]]) if at < len(scores) else math.inf


def temperature(logits: Doubles, truth: Integers, weights: Doubles | None = None) -> float:
    """By what the logits (n, C) must be divided that the true classes (n,) become most probable (Guo et al. 2017)."""
    weight = np.ones(len(truth)) if weights is None else weights

    def loss(log_t: float) -> float:
        return float(weight @ -log_softmax(logits / math.exp(log_t))[np.arange(len(truth)), truth])

    found = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded", options={"xatol": 1e-4})
    # Never worse than no temperature at all, on what it is fitted on.
    return math.exp(found.x) if found.fun < loss(0.0) else 1.0


def log_softmax(logits: Doubles) -> Doubles:
    """Logarithms of probabilities along the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    out: Doubles = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return out
