"""Masked modelling over modalities: which tokens of an object are shown and which are asked for.

After AION-1 (arXiv 2510.17960): one modality is chosen and a uniformly random number of its tokens is shown, the rest
of a random budget is filled uniformly from what is left; targets are drawn per modality with a count from a Beta
distribution skewed to zero, among tokens not shown. Ours: the input budget is itself random, so that small sets of
inputs (photometry only) are seen often, and single-token targets are always asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from albireo.observations.modalities import MODALITIES

Ids = Mapping[str, NDArray[np.integer]]


@dataclass(frozen=True)
class Budget:
    """Most tokens shown and most tokens asked for, of one object."""

    inputs: int = 288
    targets: int = 48

    def draw(self, rng: np.random.Generator) -> Budget:
        """The budget of one batch: fewer inputs, so that small sets are seen often and padding stays small."""
        return Budget(round(np.exp(rng.uniform(np.log(4), np.log(self.inputs)))), self.targets)


@dataclass(frozen=True)
class Split:
    """Positions shown and asked for, by token key; a position is never in both."""

    shown: dict[str, NDArray[np.int64]]
    asked: dict[str, NDArray[np.int64]]


def split(ids: Ids, inputs: Sequence[str], outputs: Sequence[str], budget: Budget, rng: np.random.Generator) -> Split:
    """Draw what is shown and what is asked for of one object that has the tokens `ids`."""
    here = [key for key in inputs if key in ids]
    # Half of the time whole modalities are absent, as they are in use.
    if rng.random() < 0.5 and len(here) > 1:
        kinds = {key: group_of(key) for key in here}
        groups = sorted(set(kinds.values()))
        kept = set(rng.choice(groups, size=rng.integers(1, len(groups) + 1), replace=False).tolist())
        here = [key for key in here if kinds[key] in kept]
    first = int(rng.integers(len(here)))
    sizes = np.array([len(ids[key]) for key in here])
    of = np.repeat(np.arange(len(here)), sizes)
    room = budget.inputs
    if len(of) <= room and len(of) > 1 and not any(key in ids for key in outputs if key not in inputs):
        room = int(rng.integers(1, len(of)))  # something must be left to ask for
    n = min(int(rng.integers(1, sizes[first] + 1)), room)
    rest = np.flatnonzero(of != first)
    start = int(sizes[:first].sum())
    more = rng.choice(rest, min(room - n, len(rest)), replace=False)
    taken = np.zeros(len(of), bool)
    taken[start + rng.permutation(sizes[first])[:n]] = True
    taken[more] = True
    parts = np.split(taken, np.cumsum(sizes)[:-1])
    shown = {key: np.flatnonzero(part) for key, part in zip(here, parts, strict=True) if part.any()}
    return Split(shown, _targets(ids, shown, outputs, budget.targets, rng))


def _targets(
    ids: Ids, shown: Mapping[str, NDArray[np.int64]], outputs: Sequence[str], room: int, rng: np.random.Generator
) -> dict[str, NDArray[np.int64]]:
    asked: dict[str, NDArray[np.int64]] = {}
    free = {
        key: np.setdiff1d(np.arange(len(ids[key])), shown.get(key, np.empty(0, np.int64)))
        for key in outputs
        if key in ids
    }
    for key in sorted((key for key in free if len(free[key])), key=lambda key: len(free[key])):
        if room <= 0:
            break
        n = 1 if len(free[key]) == 1 else max(1, round(rng.beta(0.3, 1.0) * len(free[key])))
        asked[key] = np.sort(rng.choice(free[key], size=min(n, room), replace=False))
        room -= len(asked[key])
    return asked


def group_of(key: str) -> str:
    """Modalities that come and go together: the numbers of a survey; images and spectra by themselves."""
    row = MODALITIES[key]
    return key if row.kind in ("image", "spectrum") else f"{row.survey} {row.kind}"
