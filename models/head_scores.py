"""How good is a head on objects whose labels are known: the metrics of its task, each with a bootstrap interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.models import metrics
from albireo.models.head_tasks import Told
from albireo.models.heads import LEVELS, Answer, Task

DRAWS = 300

Scores = dict[str, tuple[float, float, float]]
"""Metric -> (value, low, high), low and high of a 95 % bootstrap interval."""


def scores(
    task: Task,
    answers: Sequence[Told | Answer],
    truth: Mapping[str, NDArray[Any]],
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Scores]:
    """Target -> metric -> (value, low, high).

    truth   target -> labels of the same objects (n,): numbers with NaN = missing, or classes with "" = missing.
            Of a redshift head the target is "redshift"
    groups  (n,) what is drawn as a whole; None = objects
    Metrics that are not finite, and targets without 2 labels, are left out.
    """
    of = _classes if task == "classification" else _numbers
    out = {}
    for target, labels in truth.items():
        there = labels != "" if labels.dtype.kind in "UO" else np.isfinite(labels.astype(np.float64))
        at: list[int] = np.flatnonzero(there).tolist()
        if len(at) < 2:
            continue
        columns, wanted = of(task, target, [answers[i] for i in at], labels[at])
        drawn_by = None if groups is None else [groups[i] for i in at]
        found: Scores = {"n": (float(len(at)),) * 3}
        for name, metric in wanted.items():
            one = metrics.bootstrap(metric, *columns, groups=drawn_by, draws=DRAWS, seed=seed)
            if np.isfinite([one.value, one.low, one.high]).all():
                found[name] = (one.value, one.low, one.high)
        out[target] = found
    return out


Metric = Callable[..., float]


def _numbers(
    task: Task, target: str, answers: Sequence[Told | Answer], labels: NDArray[Any]
) -> tuple[tuple[NDArray[Any], ...], dict[str, Metric]]:
    """Columns (value, label, then low and high of each level), and metrics of them."""
    said = [next(one for one in answer.numbers if one.name == target) for answer in answers]
    value = np.array([one.value for one in said])
    bounds = [np.array([one.intervals[level][end] for one in said]) for level in LEVELS for end in (0, 1)]
    wanted: dict[str, Metric] = {
        f"coverage_{level:.0%}": lambda v, t, *b, k=k: metrics.coverage(b[2 * k], b[2 * k + 1], t)
        for k, level in enumerate(LEVELS)
    }
    if task == "redshift":
        wanted |= {
            "sigma_nmad": lambda v, t, *b: metrics.sigma_nmad(v, t),
            "bias": lambda v, t, *b: metrics.bias(v, t),
            "outliers_15%": lambda v, t, *b: metrics.outliers(v, t, 0.15),
        }
    else:
        wanted |= {
            "r2": lambda v, t, *b: metrics.r2(v, t),
            "rms": lambda v, t, *b: metrics.rms_scatter(v, t),
            "robust_scatter": lambda v, t, *b: metrics.robust_scatter(v, t),
        }
    return (value, labels.astype(np.float64), *bounds), wanted


def _classes(
    task: Task, target: str, answers: Sequence[Told | Answer], labels: NDArray[Any]
) -> tuple[tuple[NDArray[Any], ...], dict[str, Metric]]:
    """Columns (most probable class, label, probabilities of the classes, number of the label's), and metrics of them.

    A class that the head does not know is an error in every metric but the last two, which are of known classes only.
    """
    names = sorted(answers[0].classes)
    best = np.array([next(iter(answer.classes)) for answer in answers])
    probability = np.array([[answer.classes[name] for name in names] for answer in answers])
    truth = labels.astype(np.str_)
    number = np.array([names.index(name) if name in names else -1 for name in truth.tolist()])

    def of_known(metric: Metric) -> Metric:
        def measured(b: Any, t: Any, p: NDArray[Any], k: NDArray[Any]) -> float:
            known = k >= 0
            return metric(p[known], k[known]) if known.any() else float("nan")

        return measured

    return (best, truth, probability, number), {
        "accuracy": lambda b, t, p, k: float((b == t).mean()),
        "balanced_accuracy": lambda b, t, p, k: metrics.balanced_accuracy(b, t),
        "macro_f1": lambda b, t, p, k: metrics.macro_f1(b, t),
        "nll": of_known(metrics.nll),
        "calibration_error": of_known(metrics.calibration_error),
    }
