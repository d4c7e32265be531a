"""Which objects teach a head, choose, calibrate and test it: by groups, none of which is in two parts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.models.applicability import Facts
from albireo.observations.errors import BadInput
from albireo.observations.sky_cells import cells

PARTS = ("training", "validation", "calibration", "test")

SHARES = (0.7, 0.1, 0.1, 0.1)
CALIBRATION = 40
"""Objects that are wanted for calibration: with fewer, intervals cover what they say on average only."""


def shares_of(n: int) -> tuple[float, float, float, float]:
    """SHARES, but of few objects more for calibration, to a half of those for training."""
    training, validation, calibration, test = SHARES
    more = float(np.clip(CALIBRATION / max(n, 1), calibration, 0.3)) - calibration
    return training - more, validation, calibration + more, test


def groups_of(facts: Sequence[Facts], group: str, columns: Mapping[str, NDArray[Any]]) -> list[str]:
    """(n,) group of each object: itself, its cell of the sky, the surveys that saw it, or its value in a column."""
    if group == "object":
        return [one.id for one in facts]
    if group == "survey":
        return [one.surveys for one in facts]
    if group == "sky":
        return _cells(facts)
    return [str(value) for value in columns[group].tolist()]


def split(groups: Sequence[str], shares: Sequence[float], seed: int) -> NDArray[np.int64]:
    """(n,) number in PARTS of each object. It hangs on the seed and the name of its group alone: an object more or
    less in the data moves no other."""
    ends = np.cumsum(shares)
    part = {group: int(np.searchsorted(ends, _uniform(f"{seed}:{group}") * ends[-1], side="right")) for group in groups}
    return np.array([part[group] for group in groups], np.int64)


def _uniform(text: str) -> float:
    """A number in [0, 1) that looks random."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _cells(facts: Sequence[Facts]) -> list[str]:
    lost = next((one for one in facts if one.ra is None or one.dec is None), None)
    if lost is not None:
        raise BadInput(
            "value_missing", f"object {lost.id!r} has no position", field="ra, dec", fix="group by something else"
        )
    ra, dec = np.array([[one.ra, one.dec] for one in facts], np.float64).T
    return [str(cell) for cell in cells(ra, dec)]
