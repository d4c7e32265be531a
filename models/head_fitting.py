"""Fitting a head: labels and token states in, a calibrated head out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from albireo.models.heads import Network, Pooling, Task


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
    parts      shares of training, validation, calibration, test
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
    parts: tuple[float, float, float, float] = (0.7, 0.1, 0.1, 0.1)
    z_max: float = 5.0
    queries: int = 8
    epochs: int | None = None
    seed: int = 0
