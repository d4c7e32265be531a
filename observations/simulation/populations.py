"""Distances and ages of a flat universe, and what galaxies are: mass, star formation, dust, size, by redshift.

Published relations, rounded: a population like the real one, not a fit to it. H0 = 70 km/s/Mpc, Omega_m = 0.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

HUBBLE, MATTER = 70.0, 0.3
_Z: Doubles = np.concatenate([[0.0], np.geomspace(1e-4, 8.0, 4000)])
_E: Doubles = np.sqrt(MATTER * (1 + _Z) ** 3 + 1 - MATTER)
_COMOVING: Doubles = np.concatenate(
    [[0.0], np.cumsum(np.diff(_Z) * 0.5 * (1 / _E[1:] + 1 / _E[:-1]))]
) * (299792.458 / HUBBLE)  # fmt: skip


def luminosity_distance(z: float) -> float:
    """Mpc."""
    return float(np.interp(z, _Z, _COMOVING) * (1 + z))


def arcsec_per_kpc(z: float) -> float:
    """Proper size: arcsec that one kpc at redshift z covers."""
    return float(206.264806 * (1 + z) / np.interp(z, _Z, _COMOVING))


def age_of_universe(z: float) -> float:
    """Gyr at redshift z."""
    root = np.sqrt((1 - MATTER) / MATTER) * (1 + z) ** -1.5
    return float(2 / (3 * np.sqrt(1 - MATTER)) * np.arcsinh(root) * 977.792 / HUBBLE)


def volume_element(z: Doubles) -> Doubles:
    """Comoving volume per redshift, in arbitrary units."""
    distance = np.interp(z, _Z, _COMOVING)
    out: Doubles = distance**2 / np.interp(z, _Z, _E)
    return out


Type = Literal["star-forming", "quiescent"]
TYPES: tuple[Type, ...] = ("star-forming", "quiescent")


@dataclass(frozen=True)
class Galaxy:
    """What one galaxy is.

    z, log_mass (of living stars and remnants, solar masses), log_ssfr (1 / yr, drawn; the label is measured from the
    history), log_z (stellar and gas metallicity, log10 of solar), a_v (mag, of old stars), slope (of the dust law,
    added to Calzetti's), clouds (A_V of stars below 10 Myr over a_v), log_u (ionisation), onset (Gyr since star
    formation began), burst (log10 of what the last `burst_age` Gyr formed over the smooth history; `quenched`: it
    was followed by an end), sigma (km/s), radius (half light, kpc), bulge (share of light in r), tilt (axis ratio of
    the disc), nucleus (equivalent width of [O III] 5008 of an active nucleus, Angstrom; 0 = none).
    """

    kind: Type
    z: float
    log_mass: float
    log_ssfr: float
    log_z: float
    a_v: float
    slope: float
    clouds: float
    log_u: float
    onset: float
    burst: float
    burst_age: float
    quenched: bool
    sigma: float
    radius: float
    bulge: float
    tilt: float
    nucleus: float


def mass_function(kind: Type, log_mass: Doubles, z: Doubles) -> Doubles:
    """Galaxies per Mpc3 and dex: Schechter functions, after Baldry et al. (2012, MNRAS 421, 621) at z = 0.

    Their numbers fall towards high redshift roughly as Ilbert et al. (2013, A&A 556, A55) find: quiescent ones as
    (1 + z)^-2.2, star-forming ones as (1 + z)^-0.7.
    """
    turn, faint, density, fall = (
        (10.62, -1.35, 1.1e-3, -0.7) if kind == "star-forming" else (10.75, -0.45, 3.0e-3, -2.2)
    )
    ratio = 10.0 ** (log_mass - turn)
    out: Doubles = np.log(10) * density * (1 + z) ** fall * ratio ** (faint + 1) * np.exp(-ratio)
    return out


def main_sequence(log_mass: float, z: float) -> float:
    """log10 of the specific star-formation rate / yr of Speagle et al. (2014, ApJS 214, 15)."""
    age = age_of_universe(z)
    return (0.84 - 0.026 * age) * log_mass - (6.51 - 0.11 * age) - log_mass


_METALLICITY = (
    np.array([8.91, 9.31, 9.72, 9.91, 10.11, 10.31, 10.51, 10.72, 10.91, 11.11, 11.51]),
    np.array([-0.60, -0.65, -0.52, -0.41, -0.23, -0.11, -0.01, 0.04, 0.07, 0.10, 0.13]),
)
"""Stellar mass, and median metallicity over solar: Gallazzi et al. (2005, MNRAS 362, 41)."""

_SIZES = {
    "star-forming": (np.array([0.86, 0.78, 0.70, 0.65, 0.55]), 0.22, 0.17),
    "quiescent": (np.array([0.60, 0.42, 0.22, 0.09, -0.05]), 0.72, 0.12),
}
"""log10 of half-light kpc at log mass 10.7 for z = 0.25, 0.75 .. 2.25; slope; scatter: van der Wel et al. (2014)."""


def draw_galaxy(kind: Type, z: float, log_mass: float, rng: np.random.Generator) -> Galaxy:
    """A galaxy of this type, redshift and mass."""
    forming = kind == "star-forming"
    if forming:
        log_ssfr = main_sequence(log_mass, z) + rng.normal(0, 0.3)
    else:  # a tenth of them in the green valley
        log_ssfr = rng.normal(-11.0, 0.3) if rng.random() < 0.1 else rng.normal(-12.2, 0.45)
    # Disc orientation: randomly inclined, of intrinsic thickness 0.2.
    tilt = float(np.sqrt(rng.uniform(0, 1) ** 2 * (1 - 0.2**2) + 0.2**2))
    if forming:
        # Grows with mass as in Garn & Best (2010, MNRAS 409, 421), and edge-on.
        a_v = 0.48 * 10 ** (0.32 * (log_mass - 10) + rng.normal(0, 0.27)) * tilt**-0.35
    else:
        a_v = rng.exponential(0.12)
    a_v = float(np.clip(a_v, 0.0, 3.5))
    # Steeper laws where there is little dust: Salim et al. (2018, ApJ 859, 11).
    slope = float(np.clip(-0.35 + 0.45 * np.log10(max(a_v, 0.03) / 0.4) + rng.normal(0, 0.15), -1.2, 0.3))
    log_z = float(np.interp(log_mass, *_METALLICITY) + rng.normal(0, 0.2 if forming else 0.12) - 0.1 * min(z, 3.0))
    centre, steepness, scatter = _SIZES[kind]
    size = np.interp(z, [0.25, 0.75, 1.25, 1.75, 2.25], centre) + steepness * (max(log_mass, 9.8) - 10.7)
    if log_mass < 9.8:  # low-mass galaxies of both types follow the flat relation
        size += 0.2 * (log_mass - 9.8)
    bulge = rng.normal(0.68, 0.2) if not forming else rng.normal(0.12 + 0.2 * (log_mass - 10.0), 0.15)
    special = rng.random()
    quenched = bool(special < 0.03)
    return Galaxy(
        kind=kind,
        z=z,
        log_mass=log_mass,
        log_ssfr=float(np.clip(log_ssfr, -13.5, -7.8)),
        log_z=float(np.clip(log_z, -1.6, 0.39)),
        a_v=a_v,
        slope=slope,
        clouds=float(np.clip(rng.normal(2.0, 0.4), 1.0, 3.0)),
        log_u=float(np.clip(rng.normal(-3.0 - 0.3 * log_z, 0.2), -3.9, -1.8)),
        onset=float(age_of_universe(z) * rng.uniform(*((0.45, 0.93) if forming else (0.55, 0.9)))),
        burst=float(rng.uniform(0.6, 1.3) if quenched else rng.normal(0, 0.3) if special < 0.3 else 0.0),
        burst_age=float(10 ** rng.uniform(-0.9, 0.0)),
        quenched=quenched,
        sigma=float(np.clip(200 * 10 ** (0.29 * (log_mass - 11.0) + rng.normal(0, 0.07)), 35, 400)),
        radius=float(10 ** (size + rng.normal(0, scatter))),
        bulge=float(np.clip(bulge, 0.0, 1.0)),
        tilt=tilt,
        nucleus=float(rng.lognormal(2.3, 0.8)) if log_mass > 9.8 and rng.random() < 0.05 else 0.0,
    )
