"""Gaia XP coefficients of a sampled spectrum: the way back through the instrument model of GaiaXPy.

The archive gives 55 + 55 coefficients c of a source; GaiaXPy calibrates them to a flux F on wavelengths (nm),
F = c A with A = [D_bp w_bp, D_rp w_rp]: sampled bases of both photometers, each with its share of the flux (they meet
between 635 and 643 nm). Spectra that are published as F only are inverted here. A has 110 rows, of which a sampled flux
determines about 80, so a prior is needed: coefficients fall off like (k + 1)^-2 with their number, as real ones do.
Then 2 ten-thousandths of the flux are lost, and coefficients of the archive come back to 0.4 % of the first.
Needs the package gaiaxpy (extra `train`).
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

Doubles = NDArray[np.float64]

MEET = (635.0, 643.0)
"""nm between which the share of the flux that is BP's falls from 1 to 0, as GaiaXPy merges them."""

MODELS = {"bp": "v375wi", "rp": "v142r"}
"""Versions of the instrument model that belong to data release 3."""

SMALLEST_ERROR = 0.005
"""Least relative error of a sample: brighter than that nothing is gained, and few samples would decide everything."""

RIDGE = 1e-5
"""Weight of the prior, in units of the mean squared singular value."""

SCALE = 1e17
"""Fluxes are in W / (m2 nm), of the order of 1e-17."""


@dataclass(frozen=True)
class XpInversion:
    """wavelength (L,) nm; design (110, L): flux in W / (m2 nm) of one unit of each coefficient, BP's 55 first;
    inverse (L, 110): the way back."""

    wavelength: Doubles
    design: Doubles
    inverse: Doubles

    @classmethod
    def of(cls, wavelength: ArrayLike, relative_error: ArrayLike) -> XpInversion:
        """For spectra on these wavelengths (L,) nm with about these relative errors (L,)."""
        x = np.asarray(wavelength, np.float64)
        design = design_matrix(x)
        n = len(design) // 2
        weight = SCALE / np.maximum(np.asarray(relative_error, np.float64), SMALLEST_ERROR)
        prior = np.tile((np.arange(n) + 1.0) ** -2, 2)[:, None]
        basis = design * weight * prior
        gram = basis @ basis.T
        gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
        return cls(x, design, (prior * np.linalg.solve(gram, basis * weight)).T)

    def coefficients(self, flux: ArrayLike) -> Doubles:
        """(N, 110) in electron / s, BP's 55 first, of fluxes (N, L) in W / (m2 nm)."""
        return np.asarray(flux, np.float64) @ self.inverse

    def flux(self, coefficients: ArrayLike) -> Doubles:
        """(N, L) in W / (m2 nm) of coefficients (N, 110): what GaiaXPy's `calibrate` gives."""
        return np.asarray(coefficients, np.float64) @ self.design

    def loss(self, flux: ArrayLike) -> Doubles:
        """(N,) root mean square of what the way there and back changes, over the median flux."""
        given = np.asarray(flux, np.float64)
        changed = self.flux(self.coefficients(given)) - given
        return np.asarray(np.sqrt((changed**2).mean(axis=1)) / np.median(given, axis=1))


def design_matrix(wavelength: Doubles) -> Doubles:
    """(110, L) flux in W / (m2 nm) at `wavelength` (L,) nm of one unit of each coefficient, BP's 55 first."""
    import matplotlib

    # The package prints while it reads its files, and its import turns every picture of the process over to LaTeX.
    with contextlib.redirect_stdout(io.StringIO()), matplotlib.rc_context():
        from gaiaxpy.calibrator.external_instrument_model import ExternalInstrumentModel
        from gaiaxpy.config.paths import config_path
        from gaiaxpy.spectrum.sampled_basis_functions import SampledBasisFunctions

        share_of_rp = np.clip((wavelength - MEET[0]) / (MEET[1] - MEET[0]), 0.0, 1.0)
        parts = []
        for band, share in (("bp", 1.0 - share_of_rp), ("rp", share_of_rp)):
            files = (
                str(Path(config_path) / f"{band}C03_{MODELS[band]}_{what}.csv")
                for what in ("dispersion", "response", "bases")
            )
            model = ExternalInstrumentModel.from_config_csv(*files)
            sampled = SampledBasisFunctions.from_external_instrument_model(wavelength, share, model)
            parts.append(np.asarray(sampled.design_matrix, np.float64) * share)
    return np.vstack(parts)
