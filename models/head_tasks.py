"""What the outputs of a head mean: quantiles of numbers, probabilities of classes.

Each task says how many outputs it takes, what a wrong one costs, how it is calibrated, and what it tells of an object.

Quantiles  of each target: the median, and steps from it to the others that are never negative, so that none cross;
           pinball loss on standardised labels (Koenker and Bassett 1978)
Classes    logits of the classes; cross entropy

The third task is in models/head_density.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as nnf

from albireo.models.applicability import RANGE
from albireo.models.calibration import conformal_quantile, log_softmax, temperature
from albireo.models.head_arrays import taken
from albireo.models.heads import LEVELS, Card, Number, Prior
from albireo.models.redshift import Posterior
from albireo.observations.errors import BadInput

FRACTIONS = (0.025, 0.16, 0.5, 0.84, 0.975)
"""Quantiles of a regression: those of LEVELS, and the median."""

Doubles = NDArray[np.float64]
Array = NDArray[Any]


class Sample(NamedTuple):
    """Objects: outputs (n, O) of the network, truth (n, ...) and weights (n,), mean 1."""

    outputs: Doubles
    truth: Array
    weights: Doubles


class Told(NamedTuple):
    """What a task tells of one object; the fields of `heads.Answer`."""

    numbers: tuple[Number, ...] = ()
    classes: Mapping[str, float] = {}
    density: Posterior | None = None
    flags: tuple[str, ...] = ()


class Line(NamedTuple):
    """Regression of a standardised label: slopes (F,) of the features, value without them, what is left over, and the
    penalty of the slopes."""

    slopes: Doubles
    middle: float
    spread: float
    penalty: float


class HeadTask(Protocol):
    """What `fit` and `predict` need of a task."""

    @property
    def n_outputs(self) -> int: ...

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """(B,) cost of outputs (B, O)."""

    def calibrated(self, calibration: Sample, validation: Sample) -> HeadTask:
        """The same task, which agrees with what is found in the calibration part."""

    def told(self, outputs: Doubles, prior: Prior | None) -> list[Told]:
        """Of objects, by their outputs (n, O)."""

    def arrays(self) -> dict[str, Array]:
        """What a head file must keep of it."""


@dataclass(frozen=True)
class Quantiles:
    """Regression of T targets.

    centre, spread  (T,) of the training labels
    low, high       (T,) RANGE of the training labels
    conformalised   True: quantiles are moved apart until they cover; False: one width around the median
    widths          (T, levels) by how much, in units of `spread`
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    centre: Doubles
    spread: Doubles
    low: Doubles
    high: Doubles
    conformalised: bool
    widths: Doubles

    @classmethod
    def fit(
        cls, names: Sequence[str], units: Sequence[str], truth: Doubles, weights: Doubles, conformalised: bool
    ) -> Quantiles:
        """For training labels (n, T) with NaN = missing."""
        there = np.isfinite(truth)
        total = (there * weights[:, None]).sum(axis=0)
        centre = np.where(there, truth, 0.0).T @ weights / total
        spread = np.sqrt(np.where(there, (truth - centre) ** 2, 0.0).T @ weights / total)
        for name, width, middle in zip(names, spread, centre, strict=True):
            if width <= 1e-9 * abs(middle):
                raise BadInput("value_out_of_range", f"every label {name} is the same", field=name)
        low, high = np.nanpercentile(truth, RANGE, axis=0)
        widths = np.zeros((len(names), len(LEVELS)))
        return cls(tuple(names), tuple(units), centre, spread, low, high, conformalised, widths)

    @classmethod
    def restore(cls, card: Card, arrays: Mapping[str, Array]) -> Quantiles:
        conformalised = card.plan["interval"] == "cqr"
        n = len(card.targets)
        centre, spread, low, high = (taken(arrays, name, n) for name in ("centre", "spread", "low", "high"))
        widths = taken(arrays, "widths", n, len(LEVELS))
        return cls(card.targets, card.units, centre, spread, low, high, conformalised, widths)

    @property
    def n_outputs(self) -> int:
        return len(self.names) * len(FRACTIONS)

    def scaled(self, truth: Doubles) -> Doubles:
        """Labels (n, T) in units of `spread` from `centre`."""
        return (truth - self.centre) / self.spread

    def start(self, lines: Sequence[Line]) -> tuple[Doubles, Doubles]:
        """Read-out (O, F) and bias (O,) that give the quantiles of a normal distribution around each line."""
        steps = len(FRACTIONS) - 1
        weight = np.concatenate([[line.slopes, *[np.zeros_like(line.slopes)] * steps] for line in lines])
        bias = np.concatenate([[line.middle, *[np.log(np.expm1(line.spread))] * steps] for line in lines])
        return weight, bias

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        scaled = (truth - torch.from_numpy(self.centre)) / torch.from_numpy(self.spread)
        there = scaled.isfinite()
        off = (torch.where(there, scaled, 0.0)[..., None] - self._quantiles(outputs)).float()
        fractions = torch.tensor(FRACTIONS)
        pinball = torch.maximum(fractions * off, (fractions - 1) * off).sum(dim=-1)
        return (pinball * there).mean(dim=-1)

    def _quantiles(self, outputs: Tensor) -> Tensor:
        """(B, T, 5) quantiles in units of `spread`, ascending."""
        median, *steps = outputs.unflatten(-1, (len(self.names), len(FRACTIONS))).unbind(dim=-1)
        below, far_below, above, far_above = (nnf.softplus(step) for step in steps)
        low, high = median - below, median + above
        return torch.stack([low - far_below, low, median, high, high + far_above], dim=-1)

    def calibrated(self, calibration: Sample, validation: Sample) -> Quantiles:
        quantiles = self._quantiles(torch.from_numpy(calibration.outputs)).numpy()
        scaled = self.scaled(calibration.truth)
        widths = np.zeros_like(self.widths)
        for t in range(len(self.names)):
            there = np.isfinite(scaled[:, t])
            y, q = scaled[there, t], quantiles[there, t]
            for k, level in enumerate(LEVELS):
                low, high = self._pair(q, k)
                scores = np.maximum(low - y, y - high) if self.conformalised else np.abs(y - q[:, 2])
                widths[t, k] = conformal_quantile(scores, level, calibration.weights[there])
        return replace(self, widths=widths)

    @staticmethod
    def _pair(quantiles: Array, level: int) -> tuple[Array, Array]:
        """The two quantiles (...) between which LEVELS[level] should lie."""
        return quantiles[..., 1 - level], quantiles[..., 3 + level]

    def told(self, outputs: Doubles, prior: Prior | None) -> list[Told]:
        q = self._quantiles(torch.from_numpy(outputs)).numpy()
        median = q[..., 2]
        low, high = median[..., None].repeat(len(LEVELS), axis=-1), median[..., None].repeat(len(LEVELS), axis=-1)
        for k in range(len(LEVELS)):
            below, above = self._pair(q, k) if self.conformalised else (median, median)
            # An interval has its median, and the narrower intervals, inside: that only makes it wider.
            inner = max(k - 1, 0)
            low[..., k] = np.minimum(below - self.widths[:, k], low[..., inner])
            high[..., k] = np.maximum(above + self.widths[:, k], high[..., inner])
        scale, shift = self.spread[:, None], self.centre[:, None]
        value, low, high = median * self.spread + self.centre, low * scale + shift, high * scale + shift
        outside = np.any((low[..., 0] < self.low) | (high[..., 0] > self.high), axis=1)
        return [
            Told(
                tuple(
                    Number(name, unit, float(value[i, t]), _intervals(low[i, t], high[i, t]))
                    for t, (name, unit) in enumerate(zip(self.names, self.units, strict=True))
                ),
                flags=("outside_label_range",) if outside[i] else (),
            )
            for i in range(len(outputs))
        ]

    def arrays(self) -> dict[str, Array]:
        return {name: getattr(self, name) for name in ("centre", "spread", "low", "high", "widths")}


@dataclass(frozen=True)
class Classes:
    """Classification.

    weights      (C,) by which a class counts, 1 unless classes are to count alike
    temperature  by which logits are divided
    """

    names: tuple[str, ...]
    weights: Doubles
    temperature: float = 1.0

    @classmethod
    def fit(cls, names: Sequence[str], truth: NDArray[np.int64], weights: Doubles, balanced: bool) -> Classes:
        """For training labels (n,), numbers of the classes."""
        counts = np.bincount(truth, weights, minlength=len(names))
        return cls(tuple(names), counts.sum() / (len(names) * counts) if balanced else np.ones(len(names)))

    @classmethod
    def restore(cls, card: Card, arrays: Mapping[str, Array]) -> Classes:
        weights = taken(arrays, "weights", len(card.classes))
        return cls(card.classes, weights, float(taken(arrays, "temperature", 1)[0]))

    @property
    def n_outputs(self) -> int:
        return len(self.names)

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        return nnf.cross_entropy(outputs, truth, torch.from_numpy(self.weights).to(outputs), reduction="none")

    def calibrated(self, calibration: Sample, validation: Sample) -> Classes:
        weights = calibration.weights * self.weights[calibration.truth]
        return replace(self, temperature=temperature(calibration.outputs, calibration.truth, weights))

    def told(self, outputs: Doubles, prior: Prior | None) -> list[Told]:
        probabilities = np.exp(log_softmax(outputs / self.temperature))
        return [
            Told(classes={self.names[c]: float(row[c]) for c in np.argsort(-row, kind="stable")})
            for row in probabilities
        ]

    def arrays(self) -> dict[str, Array]:
        return {"weights": self.weights, "temperature": np.array([self.temperature])}


def _intervals(low: Doubles, high: Doubles) -> dict[float, tuple[float, float]]:
    return {level: (float(low[k]), float(high[k])) for k, level in enumerate(LEVELS)}
