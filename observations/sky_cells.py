"""Cells of the sky, all of the same area: which objects are near each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from albireo.observations.errors import Unavailable

SIDE = 64
"""HEALPix divides the sky into 12 SIDE^2 cells: 0.9 degrees across."""


def cells(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.int64]:
    """(n,) number of the HEALPix cell (nested) of positions in degrees ICRS. Gorski et al. 2005."""
    try:
        from astropy_healpix.core import lonlat_to_healpix
    except ImportError as error:
        raise Unavailable(
            "dependency_missing", "cells of the sky need astropy-healpix", fix="pip install 'albireo[train]'"
        ) from error
    from astropy import units

    found: NDArray[np.int64] = lonlat_to_healpix(ra * units.deg, dec * units.deg, SIDE, order="nested")
    return found
