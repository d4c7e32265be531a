"""Air and vacuum wavelengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def air_to_vacuum(wavelength: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vacuum wavelength in Angstrom of a wavelength in standard air in Angstrom.

    Ciddor (1996, Applied Optics 35, 1566) for dry air at 15 C, as SDSS does; below 2000 A the two are the same.
    Solved by fixed point, to below 1e-9 A.
    """
    vacuum = wavelength.astype(np.float64)
    for _ in range(5):
        vacuum = wavelength * _refraction(vacuum)
    return np.where(wavelength < 2000.0, wavelength, vacuum)


def vacuum_to_air(wavelength: NDArray[np.float64]) -> NDArray[np.float64]:
    """Wavelength in standard air in Angstrom of a vacuum wavelength in Angstrom."""
    return np.where(wavelength < 2000.0, wavelength, wavelength / _refraction(wavelength))


def _refraction(vacuum: NDArray[np.float64]) -> NDArray[np.float64]:
    sigma2 = (1e4 / vacuum) ** 2
    return 1.0 + 5.792105e-2 / (238.0185 - sigma2) + 1.67917e-3 / (57.362 - sigma2)
