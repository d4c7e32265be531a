"""A labelled set of real or simulated objects, and how it is split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.observations.observation import Observation


@dataclass(frozen=True)
class Dataset:
    """One set of N objects.

    observations  (N,)
    labels        column -> (N,): numbers with NaN, or texts with "", where there is none
    groups        (N,): objects that must not be in two parts have the same
    test_only     nothing is fitted to it and nothing chosen by it
    note          what must be known of its conventions

    Labels never are among the observations' data.
    """

    name: str
    observations: tuple[Observation, ...]
    labels: Mapping[str, NDArray[Any]]
    groups: tuple[str, ...]
    test_only: bool
    note: str

    def __post_init__(self) -> None:
        n = len(self.observations)
        assert len(self.groups) == n, (self.name, n)
        assert all(len(column) == n for column in self.labels.values()), self.name
        assert len({one.id for one in self.observations}) == n, self.name

    def __len__(self) -> int:
        return len(self.observations)

    def subset(self, chosen: NDArray[Any]) -> Dataset:
        """The objects at these places, or where True."""
        rows = np.arange(len(self))[np.asarray(chosen)]
        return replace(
            self,
            observations=tuple(self.observations[k] for k in rows),
            labels={name: column[rows] for name, column in self.labels.items()},
            groups=tuple(self.groups[k] for k in rows),
        )


TEST_SHARE = 0.2


def held_out(groups: Iterable[str]) -> NDArray[np.bool_]:
    """Whether each object (N,) is for testing: by its group's name alone, a fifth of all groups.

    So an object is on the same side whatever else is asked, and what is pre-trained on can leave those out.
    """
    numbers = [int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) for name in groups]
    return np.array(numbers) < TEST_SHARE * 16**8


def split(groups: Iterable[str], shares: Mapping[str, float], seed: int) -> NDArray[np.str_]:
    """The part of each object (N,): groups are shuffled by the seed and dealt out whole, by `shares`."""
    names = np.array(list(groups), dtype=np.str_)
    unique = np.unique(names)
    order = np.random.default_rng(seed).permutation(len(unique))
    ends = np.round(np.cumsum(list(shares.values())) / sum(shares.values()) * len(unique)).astype(int)
    parts = np.empty(len(unique), dtype=f"<U{max(map(len, shares))}")
    begin = 0
    for part, end in zip(shares, ends, strict=True):
        parts[order[begin:end]] = part
        begin = end
    return parts[np.searchsorted(unique, names)]
