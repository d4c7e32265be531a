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

Ids = Mapping[str, NDArray[np.integer]]


@dataclass(frozen=True)
class Budget:
    """Most tokens shown and most tokens asked for, of one object."""

    inputs: int = 128
    targets: int = 64

    def draw(self, rng: np.random.Generator) -> Budget:
        """The budget of one batch: fewer inputs, so that small sets are seen often and padding stays small."""
        return Budget(int(rng.integers(4, self.inputs + 1)), self.targets)


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
        kinds = {key: _group(key) for key in here}
        groups = sorted(set(kinds.values()))
        kept = set(rng.choice(groups, size=rng.integers(1, len(groups) + 1), replace=False).tolist())
        here = [key for key in here if kinds[key] in kept]
    room = budget.inputs
    shown: dict[str, NDArray[np.int64]] = {}
    first = here[rng.integers(len(here))]
    n = min(int(rng.integers(1, len(ids[first]) + 1)), room)
    shown[first] = np.sort(rng.permutation(len(ids[first]))[:n])
    rest = [(key, at) for key in here if key != first for at in range(len(ids[key]))]
    for i in rng.permutation(len(rest))[: room - n]:
        key, at = rest[i]
        shown[key] = np.append(shown.get(key, np.empty(0, np.int64)), at)
    shown = {key: np.sort(at) for key, at in shown.items()}
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


def _group(key: str) -> str:
    """Modalities that come and go together."""
    if key.startswith(("tok_image", "tok_spectrum")):
        return key
    if key.startswith(("tok_mag_", "tok_a_", "tok_shape1", "tok_shape2")):
        return "hsc"
    return "gaia" if key.endswith("_gaia") or key == "tok_parallax" else "legacysurvey"
