"""Fitting a head: labels and token states in, a calibrated head out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from albireo.models.applicability import RANGE, Coverage, Typicality
from albireo.models.calibration import least
from albireo.models.head_density import Density, grid
from albireo.models.head_network import HeadNetwork, n_kinds, run
from albireo.models.head_scores import scores
from albireo.models.head_splits import PARTS, groups_of, shares_of, split
from albireo.models.head_tasks import Classes, HeadTask, Quantiles, Sample
from albireo.models.head_training import Part, Trained, rows_of, start_from_ridge, train
from albireo.models.heads import LEVELS, NETWORKS, POOLINGS, TASKS, Card, Head, Network, Pooling, Task, own_keys
from albireo.models.token_states import TokenStates
from albireo.observations.errors import BadInput
from albireo.observations.modalities import MODALITIES

LEAST = {"training": 20, "validation": 5, "calibration": least(max(LEVELS))}
"""Labels of each target without which there is no fit, or no interval."""

SAME_AS = 8
"""Different values of a target from which its order along a measurement can be no accident."""

LEAST_OF_CLASS = 5
"""Training objects of a class."""

LOWEST_Z = -0.01
"""Redshifts from here to 0 are motions of near objects, and count as 0."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Labels:
    """A label table, matched to observations by id.

    ids      of its rows; no id twice
    columns  name -> one value a row: targets (numbers with NaN = missing, classes as strings with "" = missing),
             groups and weights
    sha256   of the file
    source   where it came from, for the card
    """

    ids: tuple[str, ...]
    columns: Mapping[str, NDArray[Any]]
    sha256: str
    source: str = ""


@dataclass(frozen=True)
class Plan:
    """What is to be fitted, and how.

    name       of the head
    targets    columns of the labels; one for a classification or a redshift
    units      target -> unit
    group      what may not be in two parts: "object", "sky" (HEALPix cell), "survey", or a column of the labels
    weights    column of selection weights, or None
    balanced   classification: classes count alike, however many objects each has
    interval   regression: "cqr" (conformalised quantiles, widths of their own) or "split" (one width for all)
    parts      shares of training, validation, calibration, test; the last may be 0. None: 70, 10, 10, 10 %, of few
               objects more for calibration
    z_max      redshift: end of the grid
    queries    attentive pooling: number of learned queries
    epochs     None: as many as the number of objects asks for; the best on the validation part is kept
    """

    task: Task
    targets: tuple[str, ...]
    name: str = "head"
    units: Mapping[str, str] = field(default_factory=dict)
    pooling: Pooling = "attentive"
    network: Network = "mlp"
    group: str = "object"
    weights: str | None = None
    balanced: bool = False
    interval: Literal["cqr", "split"] = "cqr"
    parts: tuple[float, float, float, float] | None = None
    z_max: float = 5.0
    queries: int = 8
    epochs: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("task", TASKS),
            ("pooling", POOLINGS),
            ("network", NETWORKS),
            ("interval", ("cqr", "split")),
        ):
            if getattr(self, name) not in choices:
                raise _invalid(name, repr(getattr(self, name)), f"one of {', '.join(choices)}")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise _invalid("targets", str(self.targets), "name each target once")
        if self.task != "regression" and len(self.targets) > 1:
            raise _invalid("targets", f"a {self.task} has one target", "fit a head for each")
        if unknown := self.units.keys() - set(self.targets):
            raise _invalid("units", f"{', '.join(sorted(unknown))} is no target", "name the unit of a target")
        shares = self.parts or shares_of(0)
        if len(shares) != len(PARTS) or min(shares) < 0 or not np.isclose(sum(shares), 1):
            raise _invalid("parts", str(self.parts), f"four shares that sum to 1: {', '.join(PARTS)}")
        if not 0 < self.z_max <= 20 or self.queries < 1:
            raise _invalid("z_max", f"{self.z_max}, {self.queries} queries", "a redshift up to 20; one query or more")


def _invalid(field: str, message: str, fix: str) -> BadInput:
    return BadInput("option_invalid", message, field=field, fix=fix)


@dataclass(frozen=True)
class Labelled:
    """Objects that have token states and a label.

    at       their places in the token states
    columns  the columns of the labels that are used, row by row of `at`
    weights  (n,) selection weights, 1 without a column of them
    groups   (n,) what may not be in two parts
    parts    (n,) part of each, a number in PARTS, or -1 for what shares no modality with any training object
    left_out objects without a label, labels without an object, objects of no part
    """

    at: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]
    weights: NDArray[np.float64]
    groups: list[str]
    parts: NDArray[np.int64]
    left_out: Mapping[str, int]


def fit(states: TokenStates, labels: Labels, plan: Plan, progress: Progress = lambda done, total: None) -> Head:
    """A head on token states of objects whose labels are known; `progress` is told epochs.

    The training part teaches; the validation part chooses, and then teaches too; the calibration part calibrates, and
    the test part does nothing but give the card its metrics. The same states, labels and plan give the same head, byte
    for byte.
    """
    data = _labelled(states, labels, plan)
    _no_leak(states, data, plan)
    classes = _classes(data, plan) if plan.task == "classification" else ()
    truth = _truth(data, plan, classes)
    of_part = [np.flatnonzero(data.parts == number) for number in range(len(PARTS))]
    training = of_part[0]
    held = [states.objects[i] for i in data.at]
    coverage = Coverage.of([held[i].facts for i in training], [held[i].keys for i in training], states.z_limit)
    known = list(coverage.modalities)
    parts = [
        Part(rows_of(states, data.at[rows], plan.pooling, known), truth[rows], _mean_one(data.weights[rows]))
        for rows in of_part
    ]
    task = _task(plan, parts[0], classes)
    kinds = n_kinds(plan.pooling, known)

    def build(learnt: Part, both: bool) -> HeadNetwork:
        network = HeadNetwork(plan.pooling, plan.network, states.dim, kinds, plan.queries, task.n_outputs)
        network.begin(learnt.rows)
        if not isinstance(task, Classes):
            start_from_ridge(network, task, parts[0], parts[1], both)
        return network

    trained = train(build, task, parts[0], parts[1], plan.epochs, plan.seed, progress)
    read = [run(trained.network, part.rows) if len(part) else None for part in parts]
    samples = [Sample(one[0], p.truth, p.weights) for one, p in zip(read, parts, strict=True) if one is not None]
    # Temperatures from validation objects by a network that they did not teach.
    task = task.calibrated(samples[2], samples[1]._replace(outputs=trained.validation))
    features = {number: one[1] for number, one in enumerate(read) if one is not None}
    others = [number for number in (2, 3) if number in features]
    typicality = Typicality.fit(
        np.concatenate([features[0], features[1]]),
        np.concatenate([features[number] for number in others]),
        [coverage.set_name(held[i].keys) for number in others for i in of_part[number]],
    )
    arrays: dict[str, NDArray[Any]] = {f"network.{k}": v.numpy() for k, v in trained.network.state_dict().items()}
    arrays |= {f"task.{k}": v for k, v in task.arrays().items()}
    arrays |= {f"typicality.{k}": v for k, v in typicality.arrays().items()}
    tested = {"test": _tested(plan, task, samples[3], data, of_part[3])} if len(samples) > 3 else {}
    return Head(_card(states, labels, plan, data, classes, coverage, trained, tested), arrays)


def _labelled(states: TokenStates, labels: Labels, plan: Plan) -> Labelled:
    """Objects with token states and at least one label, in the order of the states, and their parts."""
    if len(set(labels.ids)) < len(labels.ids):
        twice = next(name for name, count in Counter(labels.ids).items() if count > 1)
        raise BadInput("id_duplicate", f"labels have id {twice!r} more than once", field=twice)
    grouped = [plan.group] if plan.group not in ("object", "sky", "survey") else []
    wanted = [*plan.targets, *grouped, *([plan.weights] if plan.weights else [])]
    for name in wanted:
        if name not in labels.columns:
            raise BadInput(
                "column_missing",
                "the labels have no such column",
                field=name,
                fix=f"one of {', '.join(labels.columns)}",
            )
    row_of = {name: row for row, name in enumerate(labels.ids)}
    there = np.any([_given(labels.columns[target], target, plan.task) for target in plan.targets], axis=0)
    at = np.array([i for i, name in enumerate(states.ids) if name in row_of and there[row_of[name]]], np.int64)
    rows = np.array([row_of[states.objects[i].facts.id] for i in at], np.int64)
    columns = {name: labels.columns[name][rows] for name in wanted}
    weights = columns[plan.weights].astype(np.float64) if plan.weights else np.ones(len(at))
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise BadInput("value_out_of_range", "a weight is missing or not above 0", field=plan.weights)
    groups = groups_of([states.objects[i].facts for i in at], plan.group, columns)
    parts = split(groups, plan.parts or shares_of(len(at)), plan.seed)
    keys = [set(states.objects[i].keys) for i in at]
    taught = set().union(*(present for present, part in zip(keys, parts, strict=True) if part == 0))
    unlike = np.array([not present & taught for present in keys], bool)
    parts[unlike] = -1
    for target in plan.targets:
        _enough(_given(columns[target], target, plan.task), groups, parts, target)
    left_out = {
        "without_label": len(states) - len(at),
        "without_object": int(there.sum()) - len(at),
        "without_modality_in_training": int(unlike.sum()),
    }
    return Labelled(at, columns, weights, groups, parts, left_out)


def _enough(given: NDArray[np.bool_], groups: Sequence[str], parts: NDArray[np.int64], target: str) -> None:
    """There must be labels of a target in every part but the test part."""
    for name, wanted in LEAST.items():
        n = int((given & (parts == PARTS.index(name))).sum())
        if n < wanted:
            raise BadInput(
                "labels_too_few",
                f"{n} of {given.sum()} labels ({len(set(groups))} groups of objects) are for {name}; it takes {wanted}",
                field=target,
                fix="give more labels, other shares, or smaller groups",
            )


def _given(column: NDArray[Any], target: str, task: Task) -> NDArray[np.bool_]:
    """(n,) where a label is not missing."""
    if task == "classification":
        return np.asarray(column.astype(np.str_) != "")
    if column.dtype.kind not in "fiub":
        raise BadInput("request_invalid", "the labels are no numbers", field=target, fix="--task classification")
    numbers = column.astype(np.float64)
    if np.isinf(numbers).any():
        raise BadInput("not_finite", "a label is infinite", field=target)
    return np.isfinite(numbers)


def _no_leak(states: TokenStates, data: Labelled, plan: Plan) -> None:
    """Refuses token states in which the answer is among the inputs: by its name, or because its numbers are there."""
    held = [states.objects[i] for i in data.at]
    present = set().union(*(one.keys for one in held))
    leaks = set(own_keys(plan.task, plan.targets) & present)
    if plan.task != "classification":
        for key in present:
            values = np.array([one.facts.scalars.get(key, np.nan) for one in held])
            leaks |= {key for target in plan.targets if _tells(values, data.columns[target].astype(np.float64))}
    if leaks:
        raise BadInput(
            "label_given",
            f"the answer is among the inputs: {', '.join(MODALITIES[key].name for key in sorted(leaks))}",
            field=", ".join(plan.targets),
            fix="embed the objects without it",
        )


def _tells(values: NDArray[np.float64], labels: NDArray[np.float64]) -> bool:
    """True if a measurement gives the label away: it is the label, or the label follows from it alone."""
    both = np.isfinite(values) & np.isfinite(labels)
    return _same(values, labels) or _follows(values[both], labels[both])


def _follows(x: NDArray[np.float64], y: NDArray[np.float64]) -> bool:
    """True if y is a monotonic function of x, and has values enough for that to mean something.

    So a label is found in another unit, and as a magnitude of a flux, whatever it is called.
    """
    different = len(np.unique(y))
    if different < max(SAME_AS, len(y) // 2):
        return False
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    if (y[1:] != y[:-1])[x[1:] == x[:-1]].any():
        return False
    steps = np.diff(y)
    return bool((steps >= 0).all() or (steps <= 0).all())


def _same(values: NDArray[np.float64], labels: NDArray[np.float64]) -> bool:
    """True if most labels are the very numbers of an input, and these are not few numbers that many things have."""
    both = np.isfinite(values) & np.isfinite(labels)
    equal = both & (np.abs(values - labels) <= 1e-6 * np.abs(labels))
    return len(np.unique(labels[equal])) > 10 and 2 * equal.sum() > both.sum()


def _classes(data: Labelled, plan: Plan) -> tuple[str, ...]:
    """Names of the classes, sorted; each must be in the training part."""
    labels = data.columns[plan.targets[0]].astype(np.str_)
    counts = Counter(labels[data.parts == 0].tolist())
    names = sorted(set(labels.tolist()))
    if len(names) < 2:
        raise BadInput("labels_too_few", f"there is one class only: {names[0]!r}", field=plan.targets[0])
    rare = [name for name in names if counts[name] < LEAST_OF_CLASS]
    if rare:
        raise BadInput(
            "labels_too_few",
            f"fewer than {LEAST_OF_CLASS} training objects of {', '.join(rare)}",
            field=plan.targets[0],
            fix="give more of them, call them by the name of a larger class, or leave their labels empty",
        )
    return tuple(names)


def _truth(data: Labelled, plan: Plan, classes: Sequence[str]) -> NDArray[Any]:
    """Labels as the task reads them: (n, T) numbers, (n,) numbers of classes, or (n,) redshifts."""
    if plan.task == "classification":
        return np.searchsorted(np.array(classes), data.columns[plan.targets[0]].astype(np.str_)).astype(np.int64)
    numbers = np.stack([data.columns[target].astype(np.float64) for target in plan.targets], axis=1)
    if plan.task == "regression":
        return numbers
    z = numbers[:, 0]
    outside = (z < LOWEST_Z) | (z > plan.z_max)
    if outside.any():
        raise BadInput(
            "value_out_of_range",
            f"{outside.sum()} redshifts are not between {LOWEST_Z} and {plan.z_max:g}: {z[outside][0]:g}",
            field=plan.targets[0],
            fix="leave these labels empty, or set the end of the grid",
        )
    return np.maximum(z, 0.0)


def _task(plan: Plan, training: Part, classes: Sequence[str]) -> Quantiles | Classes | Density:
    if plan.task == "classification":
        return Classes.fit(classes, training.truth, training.weights, plan.balanced)
    if plan.task == "redshift":
        return Density.fit(grid(plan.z_max), training.truth, training.weights)
    units = [plan.units.get(target, "") for target in plan.targets]
    return Quantiles.fit(plan.targets, units, training.truth, training.weights, plan.interval == "cqr")


def _mean_one(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return weights / weights.mean() if len(weights) else weights


def _tested(plan: Plan, task: HeadTask, sample: Sample, data: Labelled, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Metrics of the test part, by target."""
    names = ("redshift",) if plan.task == "redshift" else plan.targets
    truth = {name: data.columns[target][rows] for name, target in zip(names, plan.targets, strict=True)}
    groups = None if plan.group == "object" else [data.groups[i] for i in rows]
    return scores(plan.task, task.told(sample.outputs, None), truth, groups, plan.seed)


def _card(
    states: TokenStates,
    labels: Labels,
    plan: Plan,
    data: Labelled,
    classes: tuple[str, ...],
    coverage: Coverage,
    trained: Trained,
    metrics: Mapping[str, Any],
) -> Card:
    surveys = Counter(states.objects[i].facts.surveys for i in data.at)
    card = Card(
        name=plan.name,
        task=plan.task,
        targets=("redshift",) if plan.task == "redshift" else plan.targets,
        units=("",) if plan.task == "redshift" else tuple(plan.units.get(target, "") for target in plan.targets),
        classes=classes,
        pooling=plan.pooling,
        network=plan.network,
        space=states.space,
        checkpoint=states.checkpoint,
        dim=states.dim,
        seed=plan.seed,
        plan=asdict(plan)
        | {
            "parts": plan.parts or shares_of(len(data.at)),
            "epochs": len(trained.curve),
            "best_epoch": trained.epoch,
            "weight_decay": trained.decay,
            "validation_loss": trained.loss,
        },
        data={
            "labels": labels.source,
            "objects": {name: int((data.parts == number).sum()) for number, name in enumerate(PARTS)},
            "groups": len(set(data.groups)),
            "surveys": dict(sorted(surveys.items())),
            **data.left_out,
        },
        labels=_statistics(plan, data),
        labels_sha256=labels.sha256,
        coverage=asdict(coverage),
        metrics=metrics,
        curve=trained.curve,
        versions={name: metadata.version(name) for name in ("albireo", "torch", "numpy")},
    )
    # As it is when it was read from a file: lists where JSON has no tuples.
    return Card.from_json(json.loads(json.dumps(card.as_json())))


def _statistics(plan: Plan, data: Labelled) -> dict[str, dict[str, float]]:
    """Of the training labels: of each target, or the number of each class."""
    columns = {target: data.columns[target][data.parts == 0] for target in plan.targets}
    if plan.task == "classification":
        counts = Counter(columns[plan.targets[0]].astype(np.str_).tolist())
        return {name: {"n": float(n)} for name, n in sorted(counts.items())}
    out = {}
    for target, column in columns.items():
        x = column.astype(np.float64)
        x = x[np.isfinite(x)]
        low, median, high = np.percentile(x, [RANGE[0], 50, RANGE[1]])
        about = {"mean": x.mean(), "std": x.std(), "min": x.min(), "low": low, "median": median, "high": high}
        name = "redshift" if plan.task == "redshift" else target
        out[name] = {"n": float(len(x)), **{key: float(value) for key, value in about.items()}, "max": float(x.max())}
    return out
