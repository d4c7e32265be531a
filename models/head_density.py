"""Redshift as a density on a grid: a mixture of logistic distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor
from torch.nn import functional as nnf

from albireo.models.applicability import RANGE
from albireo.models.calibration import conformal_quantile, log_softmax, temperature
from albireo.models.head_arrays import taken
from albireo.models.head_tasks import Line, Sample, Told
from albireo.models.heads import LEVELS, Card, Number, Prior
from albireo.models.redshift import Posterior
from albireo.observations.errors import BadInput

Doubles = NDArray[np.float64]
Array = NDArray[Any]

COMPONENTS = 8
FIRST_BACKGROUND = 0.02
"""Share of the training n(z) in the mixture, over that of another component, before the first step."""

FLOOR = 1e-3
"""Share of the training n(z) that is spread evenly over the grid, so that it is nowhere zero."""

PRIOR_OUTSIDE = 0.01
"""Share of a new prior where there were no training objects, from which answers are flagged."""


@dataclass(frozen=True)
class Density:
    """Redshift, as a density on the V cells of `edges`, which are alike in u = ln(1 + z).

    A mixture of COMPONENTS logistic distributions, each where and as wide as the network says, cut off at the ends of
    the grid. One component more is the training n(z) itself, for when nothing else is known. So a density is as fine as
    a spectrum makes it (a cell is 600 km/s, the narrowest component about as wide), and as few as 300 labels make it
    smooth: there is no weight that belongs to one cell, and none that only objects of one redshift could teach.

    edges           (V + 1,) redshift
    centre, spread  of the training u: mean and standard deviation
    prior           (V,) n(z) of the training objects, nowhere zero
    low, high       RANGE of the training redshifts
    temperature     by which logarithms of probabilities are divided
    levels          (levels,) what central share of the density covers LEVELS of objects
    """

    edges: Doubles
    centre: float
    spread: float
    prior: Doubles
    low: float
    high: float
    temperature: float = 1.0
    levels: Doubles = field(default_factory=lambda: np.array(LEVELS))

    @classmethod
    def fit(cls, edges: Doubles, truth: Doubles, weights: Doubles) -> Density:
        """For training redshifts (n,), all inside the grid."""
        u, cells = np.log1p(truth), np.log1p(edges)
        centre = float(np.average(u, weights=weights))
        spread = float(np.sqrt(np.average((u - centre) ** 2, weights=weights)))
        low, high = np.percentile(truth, RANGE)
        prior = _smooth(cells, u, weights)
        return cls(edges, centre, max(spread, float(cells[1])), prior, float(low), float(high))

    @classmethod
    def restore(cls, card: Card, arrays: Mapping[str, Array]) -> Density:
        centre, spread, low, high, temper = taken(arrays, "scalars", 5).tolist()
        edges, levels = taken(arrays, "edges", None), taken(arrays, "levels", len(LEVELS))
        prior = taken(arrays, "prior", len(edges) - 1)
        if not (np.diff(edges) > 0).all() or edges[0] <= -1:
            raise ValueError("edges of redshift that do not increase")
        return cls(edges, centre, spread, prior, low, high, temper, levels)

    def arrays(self) -> dict[str, Array]:
        scalars = np.array([self.centre, self.spread, self.low, self.high, self.temperature])
        return {"edges": self.edges, "prior": self.prior, "levels": self.levels, "scalars": scalars}

    @property
    def n_outputs(self) -> int:
        return 3 * COMPONENTS + 1

    def scaled(self, truth: Doubles) -> Doubles:
        """(n, 1) u of redshifts (n,) in units of `spread` from `centre`."""
        return (np.log1p(truth[:, None]) - self.centre) / self.spread

    def start(self, lines: Sequence[Line]) -> tuple[Doubles, Doubles]:
        """Read-out (O, F) and bias (O,) that give a normal distribution around the regression line of `scaled`."""
        (line,) = lines
        c = COMPONENTS
        weight, bias = np.zeros((self.n_outputs, len(line.slopes))), np.zeros(self.n_outputs)
        bias[c] = np.log(FIRST_BACKGROUND)
        weight[c + 1 : 2 * c + 1] = line.slopes
        # Variances add up: 0.8^2 of the places, and (0.35 pi)^2 / 3 of a logistic distribution.
        bias[c + 1 : 2 * c + 1] = line.middle + 0.8 * line.spread * norm.ppf((np.arange(c) + 0.5) / c)
        bias[2 * c + 1 :] = np.log(0.35 * line.spread)
        return weight, bias

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Minus the logarithm of the density in a cell's width: cross entropy in the limit of narrow cells."""
        u = torch.log1p(truth).to(outputs)[:, None]
        log_share, at, width = self._mixture(outputs)
        off = (u - at) / width
        log_density = -off - 2 * nnf.softplus(-off) - width.log() - self._inside(at, width).log()
        cell = np.searchsorted(self.edges, truth.numpy(), side="right").clip(1, len(self.prior)) - 1
        background = torch.from_numpy(np.log(self.prior[cell])).to(outputs)[:, None]
        parts = torch.cat([log_density + np.log(self._cell), background], dim=1)
        return -(log_share + parts).logsumexp(dim=1)

    @property
    def _cell(self) -> float:
        """Width of a cell in u."""
        return float(np.log1p(self.edges[-1]) - np.log1p(self.edges[0])) / len(self.prior)

    def _mixture(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms of the shares (B, C + 1), the background's last; places and widths (B, C), in u."""
        c = COMPONENTS
        low, high = float(np.log1p(self.edges[0])), float(np.log1p(self.edges[-1]))
        share, at, width = outputs.split([c + 1, c, c], dim=1)
        at = self.centre + self.spread * at
        # At an end of the grid a component still feels where it should be.
        at = at + (at.clamp(low, high) - at).detach()
        # A logistic distribution of this least width has a standard deviation of 0.9 cells.
        return share.log_softmax(dim=1), at, self._cell / 2 + self.spread * torch.exp(width.clamp(-9, 3))

    def _inside(self, at: Tensor, width: Tensor) -> Tensor:
        """(B, C) how much of each component is inside the grid: half of it or more if it is narrow."""
        low, high = float(np.log1p(self.edges[0])), float(np.log1p(self.edges[-1]))
        return torch.sigmoid((high - at) / width) - torch.sigmoid((low - at) / width)

    def _cells(self, outputs: Doubles) -> Doubles:
        """(n, V) probabilities of the cells, before the temperature."""
        edges = torch.from_numpy(np.log1p(self.edges))[None, :, None]
        out = np.empty((len(outputs), len(self.prior)))
        for start in range(0, len(outputs), 32):
            log_share, at, width = self._mixture(torch.from_numpy(outputs[start : start + 32]))
            share = log_share.exp()
            below = torch.sigmoid((edges - at[:, None]) / width[:, None])
            summed = (below @ (share[:, :-1] / self._inside(at, width))[..., None])[..., 0]
            out[start : start + 32] = summed.diff(dim=1).clamp(min=0) + share[:, -1:] * torch.from_numpy(self.prior)
        out /= out.sum(axis=1, keepdims=True)
        return out

    def _tempered(self, outputs: Doubles) -> Doubles:
        out: Doubles = np.exp(log_softmax(np.log(self._cells(outputs)) / self.temperature))
        return out

    def calibrated(self, calibration: Sample, validation: Sample) -> Density:
        # The temperature from the validation part: then the calibration part is untouched when levels are measured.
        cells = np.searchsorted(self.edges, validation.truth, side="right").clip(1, len(self.prior)) - 1
        logs = np.log(self._cells(validation.outputs))
        made = replace(self, temperature=temperature(logs, cells, validation.weights))
        below = [
            np.interp(z, self.edges, np.concatenate([[0.0], np.cumsum(p)]))
            for z, p in zip(calibration.truth, made._tempered(calibration.outputs), strict=True)
        ]
        central = np.abs(2 * np.array(below) - 1)
        levels = [min(conformal_quantile(central, level, calibration.weights), 1.0) for level in LEVELS]
        return replace(made, levels=np.array(levels))

    def told(self, outputs: Doubles, prior: Prior | None) -> list[Told]:
        probabilities = self._tempered(outputs)
        swapped: tuple[str, ...] = ()
        new = self.prior if prior is None else prior.on(self.edges)
        if not np.array_equal(new, self.prior):
            if new.sum() == 0:
                raise BadInput("option_invalid", "the prior has nothing inside the head's grid", field="prior")
            probabilities = probabilities * (new / self.prior)
            probabilities /= probabilities.sum(axis=1, keepdims=True)
            unseen = 1 - new[self.prior > 2 * FLOOR / len(new)].sum()
            swapped = ("prior_replaced", "prior_outside_training")[: 2 if unseen > PRIOR_OUTSIDE else 1]
        return [self._told(p, swapped) for p in probabilities]

    def _told(self, probability: Doubles, swapped: tuple[str, ...]) -> Told:
        density = Posterior(self.edges, probability)
        bounds = [(density.quantile((1 - level) / 2), density.quantile((1 + level) / 2)) for level in self.levels]
        number = Number("redshift", "", density.quantile(0.5), dict(zip(LEVELS, bounds, strict=True)))
        outside = bounds[0][0] < self.low or bounds[0][1] > self.high
        return Told((number,), density=density, flags=swapped + ("outside_label_range",) * outside)


def grid(z_max: float) -> Doubles:
    """(V + 1,) edges of cells from redshift 0 to z_max, alike in ln(1 + z): 0.002 or a little less, 600 km/s.

    Redshifts of spectra are to be right to 1,000 km/s, 0.0033 in ln(1 + z).
    """
    end = np.log1p(z_max)
    edges: Doubles = np.expm1(np.linspace(0, end, int(np.ceil(end / 0.002)) + 1))
    edges[-1] = z_max
    return edges


def _smooth(cells: Doubles, u: Doubles, weights: Doubles) -> Doubles:
    """(V,) shares of the cells: a histogram under a Gaussian of Silverman's width, and FLOOR."""
    width = 0.9 * min(u.std(), np.subtract(*np.percentile(u, [75, 25])) / 1.34) * len(u) ** -0.2
    step = cells[1] - cells[0]
    sigma = max(width / step, 2.0)
    half = min(int(4 * sigma) + 1, len(cells) - 1)
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    counts = np.histogram(u, cells, weights=weights)[0]
    # What is smeared over an end is folded back.
    padded = np.pad(counts, half, mode="constant")
    smeared = np.convolve(padded, kernel, mode="same")
    inside = smeared[half:-half]
    inside[:half] += smeared[:half][::-1]
    inside[-half:] += smeared[-half:][::-1]
    share = (1 - FLOOR) * inside / inside.sum() + FLOOR / len(inside)
    out: Doubles = share / share.sum()
    return out
