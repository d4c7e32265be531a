"""Task heads: what a small network, fitted on somebody's labels, makes of the token states of a frozen encoder.

Number, Answer   what a head says of one object
Prior            a distribution of redshift that can take the place of the one a head was fitted on
Card             what a person must know of a head; JSON in the metadata of its file
Head             one safetensors file, opened; torch is loaded when it first predicts
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from albireo.models.redshift import Posterior
from albireo.observations.errors import BadInput

Task = Literal["regression", "classification", "redshift"]
Pooling = Literal["mean", "mean_per_modality", "attentive"]
Network = Literal["linear", "mlp"]

LEVELS = (0.68, 0.95)
"""Coverage of the intervals that every number carries."""

FORMAT = "albireo-head-1"

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Number:
    """One target of a regression, or the redshift: the median of what the head believes, in `unit`.

    intervals  level -> (low, high), each calibrated by conformal prediction
    """

    name: str
    unit: str
    value: float
    intervals: Mapping[float, tuple[float, float]]


@dataclass(frozen=True)
class Answer:
    """Of one head for one object.

    numbers     regression: one a target; redshift: one, named "redshift"; classification: none
    classes     classification: probability by class, most probable first; else empty
    density     redshift: probabilities of the cells of the head's grid; else None
    modalities  public names of what it rests on
    flags       why it may not apply (models/applicability.py)
    typicality  share of held-out training objects that lie farther from the training set than this one:
                0.00-0.01 = unlike anything that the head was fitted on
    """

    numbers: tuple[Number, ...]
    classes: Mapping[str, float]
    density: Posterior | None
    modalities: tuple[str, ...]
    flags: tuple[str, ...]
    typicality: float


@dataclass(frozen=True)
class Card:
    """What a person must know of a head.

    targets        label columns; ("redshift",) for a redshift
    units          of each target, "" = dimensionless
    classes        of a classification, in the order of its outputs
    space          of the token states it was fitted on, `engine.space("tokens")`; `checkpoint` is the engine's name
    plan           every choice that was made for the fit
    data           objects in each part, where they and their labels came from, what was left out
    labels         target -> n, mean, std, min, low (0.1 %), median, high (99.9 %), max; class -> n
    labels_sha256  of the label table
    coverage       of the inputs (see `applicability.Coverage`)
    metrics        part -> target -> metric -> (value, low, high): low and high from a bootstrap, 95 %
    curve          loss of the training and of the validation part after each epoch
    versions       of the software
    """

    name: str
    task: Task
    targets: tuple[str, ...]
    units: tuple[str, ...]
    classes: tuple[str, ...]
    pooling: Pooling
    network: Network
    space: str
    checkpoint: str
    dim: int
    seed: int
    plan: Mapping[str, Any]
    data: Mapping[str, Any]
    labels: Mapping[str, Mapping[str, float]]
    labels_sha256: str
    coverage: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Mapping[str, tuple[float, float, float]]]]
    curve: tuple[tuple[float, float], ...]
    versions: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Prior:
    """A distribution of redshift: edges (V + 1,) increasing, probability (V,) of the cells, sums to 1."""

    edges: Doubles
    probability: Doubles

    def __post_init__(self) -> None:
        edges, probability = self.edges, self.probability
        fits = edges.ndim == 1 and probability.shape == (len(edges) - 1,) and bool((np.diff(edges) > 0).all())
        if not fits or not (probability >= 0).all() or not 0 < probability.sum() < np.inf:
            raise BadInput(
                "option_invalid",
                "not a distribution of redshift",
                field="prior",
                fix="edges that increase, and for each cell between them a probability of at least 0",
            )
        object.__setattr__(self, "probability", probability / probability.sum())

    @classmethod
    def flat(cls, low: float = 0.0, high: float = 5.0) -> Prior:
        """Every redshift from low to high alike."""
        return cls(np.array([low, high]), np.ones(1))

    def on(self, edges: Doubles) -> Doubles:
        """(V,) probabilities of other cells; what lies outside of them is left out. Uniform inside a cell."""
        if np.array_equal(edges, self.edges):
            return self.probability
        below = np.interp(edges, self.edges, np.concatenate([[0.0], np.cumsum(self.probability)]))
        return np.diff(below)
