"""The metrics of one contender on the test objects of one question, each with its bootstrap interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.models import metrics
from albireo.models.heads import LEVELS, Answer
from albireo.observations.observation import Scalar
from benchmarks.labelled import Dataset
from benchmarks.questions import Question

DRAWS = 200
LEAST = 50
"""Objects of a bin whose coverage is told."""

LIGHT = 299_792.458
"""km / s"""

LISTED = 100
"""Failures that are kept of a contender."""

SHOWN = 4000
"""Objects of a picture."""

Doubles = NDArray[np.float64]
Judged = dict[str, dict[str, Any]]


def judged(question: Question, test: Dataset, told: Mapping[str, Any], seed: int) -> Judged:
    """Target -> metrics (name -> [value, low, high]), coverage by bin, and what a picture shows.

    told  {"answers": one of a head for each object, or None}, or target -> {"value": (N,)} of numbers, with
          "intervals" level -> (N, 2) if it has them, {"classes", "probability": (N, C)} of classes
    """
    out: Judged = {}
    answers: Sequence[Answer | None] | None = told.get("answers")
    for target in question.targets:
        labels = test.labels[target]
        there = labels != "" if labels.dtype.kind == "U" else np.isfinite(labels)
        if answers is not None:
            there &= np.array([one is not None for one in answers])
        at = np.flatnonzero(there)
        if len(at) < 2:
            continue
        groups = [test.groups[k] for k in at]
        drawn_by = None if len(set(groups)) == len(groups) else groups
        if question.task == "classification":
            said = told[target] if answers is None else _classes([answers[k] for k in at])
            probability = said["probability"] if answers is not None else np.asarray(said["probability"])[at]
            out[target] = _of_classes(labels[at], said["classes"], probability, drawn_by, seed)
        elif answers is None:
            value = np.asarray(told[target]["value"])[at]
            bounds = {level: ends[at] for level, ends in told[target].get("intervals", {}).items()}
            columns = _of_intervals(value, bounds, labels[at])
            out[target] = _of_numbers(question, value, labels[at], columns, drawn_by, seed)
        else:
            chosen = [one for k in at if (one := answers[k]) is not None]
            out[target] = _of_answers(question, target, chosen, test.subset(at), drawn_by, seed)
        out[target]["n"] = len(at)
        ids = [test.observations[k].id for k in at]
        out[target]["failed"] = [one | {"id": ids[one.pop("at")]} for one in out[target]["failed"]]
    return out


def _classes(answers: Sequence[Answer | None]) -> dict[str, Any]:
    names = tuple(sorted(answers[0].classes)) if answers[0] is not None else ()
    table = [[one.classes[name] for name in names] for one in answers if one is not None]
    return {"classes": names, "probability": np.array(table)}


def _of_classes(
    truth: NDArray[Any], names: Sequence[str], probability: Doubles, groups: Sequence[str] | None, seed: int
) -> dict[str, Any]:
    best = np.array(names)[probability.argmax(axis=1)]
    number = np.array([list(names).index(name) if name in names else -1 for name in truth.tolist()])

    def known(metric: Any) -> Any:
        """Of the classes that the contender knows: its probability of another is not defined."""
        return lambda b, t, p, k: metric(p[k >= 0], k[k >= 0]) if (k >= 0).any() else float("nan")

    wanted = {
        "balanced_accuracy": lambda b, t, p, k: metrics.balanced_accuracy(b, t),
        "macro_f1": lambda b, t, p, k: metrics.macro_f1(b, t),
        "calibration_error": known(metrics.calibration_error),
        "nll": known(metrics.nll),
    }
    of_class = {name: f"{int((best[truth == name] == name).sum())} of {int((truth == name).sum())}" for name in names}
    failed = [{"at": k, "label": str(truth[k]), "said": str(best[k])} for k in np.flatnonzero(best != truth).tolist()]
    measured = _sure(wanted, (best, truth, probability, number), groups, seed)
    return {"metrics": measured, "found": of_class, "failed": failed[:LISTED]}


def main_metrics(
    question: Question, test: Dataset, answers: Sequence[Answer | None], seed: int
) -> dict[str, list[float]]:
    """Target -> [value, low, high] of the question's main metric."""
    found = judged(question, test, {"answers": answers}, seed)
    return {target: one["metrics"][question.main] for target, one in found.items() if question.main in one["metrics"]}


def _of_answers(
    question: Question, target: str, answers: Sequence[Answer], test: Dataset, groups: Sequence[str] | None, seed: int
) -> dict[str, Any]:
    numbers = [next(one for one in answer.numbers if one.name == target) for answer in answers]
    value, truth = np.array([one.value for one in numbers]), test.labels[target]
    bounds = {level: np.array([one.intervals[level] for one in numbers]) for level in LEVELS}
    columns = _of_intervals(value, bounds, truth)
    if answers[0].density is not None:
        edges = answers[0].density.edges
        probability = np.array([one.density.probability for one in answers if one.density is not None])
        columns["crps"] = metrics.crps_of_cells(edges, probability, truth)
        columns["pit"] = metrics.pit_of_cells(edges, probability, truth)
    out = _of_numbers(question, value, truth, columns, groups, seed)
    bins = _bins(test, target)
    out["bins"] = {
        f"{level:.0%}": [vars(one) for one in metrics.coverage_by_bin(columns[f"covered_{level:.0%}"] > 0, bins, LEAST)]
        for level in LEVELS
    }
    out["flags"] = _counted(flag for answer in answers for flag in answer.flags)
    out["shown"] |= {"low": bounds[LEVELS[0]][:SHOWN, 0].tolist(), "high": bounds[LEVELS[0]][:SHOWN, 1].tolist()}
    out["pit"] = metrics.pit_histogram(columns["pit"]).tolist()
    return out


def _of_intervals(value: Doubles, bounds: Mapping[float, Doubles], truth: Doubles) -> dict[str, Doubles]:
    """Columns (N,) of medians with intervals, level -> (N, 2): what each covers, and CRPS and PIT if no level lacks.

    CRPS and PIT are those of a distribution with straight lines between the ends of the intervals.
    """
    columns = {
        f"covered_{level:.0%}": metrics.covered(ends[:, 0], ends[:, 1], truth).astype(np.float64)
        for level, ends in bounds.items()
    }
    if set(bounds) == set(LEVELS):
        levels = [0.5 - b / 2 for b in reversed(LEVELS)] + [0.5] + [0.5 + b / 2 for b in LEVELS]
        parts = [bounds[b][:, 0] for b in reversed(LEVELS)] + [value] + [bounds[b][:, 1] for b in LEVELS]
        # Levels are calibrated one by one, so that two may cross by little.
        quantiles = np.maximum.accumulate(np.stack(parts, axis=1), axis=1)
        columns["crps"] = metrics.crps_of_quantiles(levels, quantiles, truth)
        columns["pit"] = metrics.pit_of_quantiles(levels, quantiles, truth)
    return columns


def _of_numbers(
    question: Question,
    value: Doubles,
    truth: Doubles,
    more: Mapping[str, Doubles],
    groups: Sequence[str] | None,
    seed: int,
) -> dict[str, Any]:
    wanted: dict[str, Any]
    if question.task == "redshift":
        wanted = {
            "sigma_nmad": lambda v, t, *m: metrics.sigma_nmad(v, t),
            "bias": lambda v, t, *m: metrics.bias(v, t),
            "outliers_5%": lambda v, t, *m: metrics.outliers(v, t, 0.05),
            "outliers_15%": lambda v, t, *m: metrics.outliers(v, t, 0.15),
        }
    else:
        wanted = {
            "r2": lambda v, t, *m: metrics.r2(v, t),
            "rms": lambda v, t, *m: metrics.rms_scatter(v, t),
            "robust_scatter": lambda v, t, *m: metrics.robust_scatter(v, t),
        }
    failed: list[dict[str, Any]] = []
    if question.limit is not None:
        share = question.limit / LIGHT
        off = np.abs(metrics.redshift_error(value, truth)) > share
        wanted["within"] = lambda v, t, *m: 1.0 - metrics.outliers(v, t, share)
        failed = [
            {"at": k, "label": f"{truth[k]:.4f}", "said": f"{value[k]:.4f}", "redshift": float(truth[k])}
            for k in np.flatnonzero(off).tolist()
        ][:LISTED]
    for place, name in enumerate(more):
        metric = metrics.pit_ks if name == "pit" else lambda column: float(column.mean())
        wanted["pit_ks" if name == "pit" else name.replace("covered", "coverage")] = (
            lambda v, t, *m, place=place, metric=metric: metric(m[place])
        )
    shown = {"truth": truth[:SHOWN].tolist(), "value": value[:SHOWN].tolist()}
    return {"metrics": _sure(wanted, (value, truth, *more.values()), groups, seed), "shown": shown, "failed": failed}


def _sure(
    wanted: Mapping[str, Any], columns: Sequence[NDArray[Any]], groups: Sequence[str] | None, seed: int
) -> dict[str, list[float]]:
    found = {}
    for name, metric in wanted.items():
        one = metrics.bootstrap(metric, *columns, groups=groups, draws=DRAWS, seed=seed)
        if np.isfinite([one.value, one.low, one.high]).all():
            found[name] = [one.value, one.low, one.high]
    return found


def _bins(test: Dataset, target: str) -> dict[str, list[str]]:
    """Bins of each object by label, brightness, E(B-V) and modality set."""
    bins = {target: metrics.quantile_bins(test.labels[target]), "modality set": _sets(test)}
    for name, keys in (
        ("E(B-V)", ("tok_ebv",)),
        ("flux", ("flux_r_sdss", "tok_flux_r", "tok_flux_g_gaia", "tok_mag_i")),
    ):
        values = [_first(one.data, keys) for one in test.observations]
        if np.isfinite(values).any():
            bins[name] = metrics.quantile_bins(values)
    return bins


def _sets(test: Dataset) -> list[str]:
    return [" + ".join(sorted(key.removeprefix("tok_") for key in one.data)) for one in test.observations]


def _first(data: Mapping[str, Any], keys: Sequence[str]) -> float:
    return next((data[key].value for key in keys if isinstance(data.get(key), Scalar)), float("nan"))


def _counted(flags: Any) -> dict[str, int]:
    out: dict[str, int] = {}
    for flag in flags:
        out[flag] = out.get(flag, 0) + 1
    return dict(sorted(out.items()))
