"""Which bits of a survey's pixel mask make a pixel bad, band by band.

A mask plane says many things of a pixel ("part of a detected source", "in the primary region") of which few make
its value unusable; taking every non-zero pixel as bad would mask the objects themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.observations.errors import BadInput
from albireo.observations.observation import Bools

# Legacy Surveys DR8-DR10, https://www.legacysurvey.org/dr10/bitmasks/: SATUR_x and ALLMASK_x, by band.
_MASKBITS_SATURATED = {"DES-G": 1 << 2, "DES-R": 1 << 3, "DES-Z": 1 << 4, "DES-I": 1 << 14}
_MASKBITS_ALLMASK = {"DES-G": 1 << 5, "DES-R": 1 << 6, "DES-Z": 1 << 7, "DES-I": 1 << 15}
_MASKBITS_BAILOUT = 1 << 10

# Default planes of the LSST pipeline (lsst::afw::image::Mask), which hscPipe keeps; a header with MP_ cards decides.
_AFW_PLANES = {"BAD": 0, "SAT": 1, "INTRP": 2, "CR": 3, "NO_DATA": 8}
_AFW_BAD = ("BAD", "SAT", "INTRP", "CR", "NO_DATA", "UNMASKEDNAN")


@dataclass(frozen=True)
class BadBits:
    """bad: bits that make a pixel unusable, None = any non-zero value does; saturated: those that say saturation."""

    bad: int | None = None
    saturated: int = 0

    def of(self, mask: NDArray[Any]) -> tuple[Bools, Bools]:
        """(bad, saturated) pixels of a mask of any real type and any shape."""
        if mask.dtype.kind == "f":
            if not np.array_equal(mask, np.rint(mask)):
                raise BadInput("value_out_of_range", "mask values are no integers", field="mask", fix="0 good, 1 bad")
            mask = mask.astype(np.int64)
        if mask.dtype.kind == "b":
            mask = mask.astype(np.uint8)
        # Bits are compared as unsigned: bit 31 of an int32 mask is its sign.
        bits = mask.astype(np.int64)
        bad = bits != 0 if self.bad is None else (bits & self.bad) != 0
        return bad, (bits & self.saturated) != 0


def maskbits(band: str) -> BadBits:
    """Bits of a Legacy Surveys MASKBITS image that concern `band`."""
    saturated = _MASKBITS_SATURATED[band]
    return BadBits(saturated | _MASKBITS_ALLMASK[band] | _MASKBITS_BAILOUT, saturated)


def afw_planes(cards: Mapping[str, Any]) -> BadBits:
    """Bits of an HSC mask; `cards` is its header, whose MP_<plane> cards give bit numbers (or is empty)."""
    named = {key[3:]: int(value) for key, value in cards.items() if key.startswith("MP_")}
    planes = named or _AFW_PLANES
    bad = sum(1 << planes[name] for name in _AFW_BAD if name in planes)
    return BadBits(bad, 1 << planes["SAT"] if "SAT" in planes else 0)
