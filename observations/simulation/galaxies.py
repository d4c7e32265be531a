"""The light of simulated galaxies: star-formation history, metallicity, dust, gas and, in some, an active nucleus.

shine       a galaxy's Light and its labels
GalaxyDraw  galaxies of a magnitude-limited survey
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from albireo.observations.simulation.light import GRID, Light, Lines
from albireo.observations.simulation.photometry import Photometer
from albireo.observations.simulation.populations import (
    TYPES,
    Galaxy,
    Type,
    age_of_universe,
    draw_galaxy,
    luminosity_distance,
    main_sequence,
    mass_function,
    volume_element,
)
from albireo.observations.simulation.quasars import mean_forest
from albireo.observations.simulation.templates import IONISATIONS, METALLICITIES, templates, weights

Doubles = NDArray[np.float64]

SOLAR_AT_10_PC = 3.828e33 / (4 * np.pi * (3.0856776e24) ** 2) / 1e-17
"""Flux in 1e-17 erg / (s cm2) of one solar luminosity at 1 Mpc."""

CLOUDS_UNTIL = 1e7
"""yr: younger stars, and all nebular emission, are inside their birth clouds (Charlot & Fall 2000)."""

NUCLEUS = {
    3727.1: 0.12, 3729.9: 0.17, 3869.9: 0.09, 4364.4: 0.02, 4687.0: 0.025, 4862.7: 0.10, 4960.3: 0.335, 5008.24: 1.0,
    6302.0: 0.05, 6365.5: 0.017, 6549.9: 0.11, 6564.6: 0.33, 6585.3: 0.33, 6718.3: 0.11, 6732.7: 0.10, 9071.1: 0.04,
    9533.2: 0.10,
}  # fmt: skip
"""Narrow lines of a Seyfert nucleus: vacuum Angstrom, over [O III] 5008 (typical ratios, e.g. Kewley et al. 2006)."""


def history(galaxy: Galaxy) -> Doubles:
    """Share of all mass formed in each age bin of the templates: a delayed exponential, and its last Gyr.

    tau is what gives the drawn specific star-formation rate at this age; then come bursts, dips and sudden ends.
    """
    t = templates()
    rate = 10**galaxy.log_ssfr * galaxy.onset * 1e9 * 0.6  # per mass formed, of which 0.6 live
    tau = galaxy.onset * 1e9 / np.interp(-rate, *_rate_table())
    since = np.maximum(galaxy.onset * 1e9 - t.edges, 0.0) / tau
    formed = 1 - (1 + since) * np.exp(-since)
    share = formed[:-1] - formed[1:]
    recent = t.ages < galaxy.burst_age * 1e9
    share = np.where(recent, share * 10**galaxy.burst, share)
    if galaxy.quenched:
        share = np.where(t.ages < 0.4 * galaxy.burst_age * 1e9, share * 0.01, share)
    out: Doubles = share / share.sum()
    return out


@lru_cache(maxsize=1)
def _rate_table() -> tuple[Doubles, Doubles]:
    """-(rate times age) and age / tau of delayed exponentials, both increasing."""
    x = np.geomspace(1e-2, 40.0, 600)
    rate = x**2 * np.exp(-x) / (1 - (1 + x) * np.exp(-x))
    return -rate, x


def attenuation(wavelength: Doubles, slope: float) -> Doubles:
    """A(lambda) / A_V of Calzetti et al. (2000), times (lambda / 5500)^slope (Noll et al. 2009)."""
    um = np.clip(wavelength / 1e4, 0.0912, 2.2)
    blue = 2.659 * (-2.156 + 1.509 / um - 0.198 / um**2 + 0.011 / um**3) + 4.05
    red = 2.659 * (-1.857 + 1.040 / um) + 4.05
    law = np.where(um < 0.63, blue, red) / 4.05 * (np.maximum(wavelength, 22000.0) / 22000.0) ** -1.8
    out: Doubles = law * (wavelength / 5500.0) ** slope
    return out


@dataclass(frozen=True)
class Shining:
    """A galaxy's light, and what of it can be learnt: labels by name."""

    light: Light
    labels: dict[str, float]


def shine(galaxy: Galaxy) -> Shining:
    """The light of a galaxy as it arrives at the Galaxy, and its labels.

    log_mass  log10 of solar masses of living stars and remnants
    log_ssfr  log10 of the mean star-formation rate of the last 100 Myr over that mass, 1 / yr; not below -14
    age       mass-weighted, Gyr;  metallicity  log10 over solar;  a_v  mag, of old stars
    """
    t = templates()
    share = history(galaxy)
    low, high, part = weights(np.log10(METALLICITIES), galaxy.log_z)
    metals = ((low, 1 - part), (high, part))
    living = sum(w * float(share @ t.alive[m]) for m, w in metals)
    formed = 10**galaxy.log_mass / living
    inside = np.clip((CLOUDS_UNTIL - t.edges[:-1]) / np.diff(t.edges), 0.0, 1.0)
    young, old = (share * inside * formed).astype(np.float32), (share * (1 - inside) * formed).astype(np.float32)
    stars_young = sum(w * (young[: inside.argmin()] @ t.stars[m, : inside.argmin()]) for m, w in metals)
    stars_old = sum(w * (old @ t.stars[m]) for m, w in metals)
    ionised = young[: t.gas.shape[2]]
    u_low, u_high, u_part = weights(IONISATIONS, galaxy.log_u)
    gas, lines = np.zeros(len(t.wavelength)), np.zeros(len(t.line))
    for u, v in ((u_low, 1 - u_part), (u_high, u_part)):
        for m, w in metals:
            gas += v * w * (ionised @ t.gas[u, m])
            lines += v * w * (ionised @ t.lines[u, m])
    lyman = t.wavelength > 912.0
    bare_young, bare_old = (stars_young + gas) * lyman, stars_old * lyman
    law = attenuation(t.wavelength, galaxy.slope)
    old_seen = bare_old * 10 ** (-0.4 * galaxy.a_v * law)
    young_seen = bare_young * 10 ** (-0.4 * galaxy.a_v * galaxy.clouds * law)
    absorbed = float(np.trapezoid(bare_old + bare_young - old_seen - young_seen, t.wavelength))
    rest = old_seen + young_seen + absorbed * t.warm
    lines = lines * 10 ** (-0.4 * galaxy.a_v * galaxy.clouds * attenuation(t.line, galaxy.slope))
    light = _observed(galaxy, rest, t.line, lines)
    hundred = np.clip((1e8 - t.edges[:-1]) / np.diff(t.edges), 0.0, 1.0)
    rate = float((share * hundred).sum()) * formed / 1e8
    labels = {
        "log_mass": galaxy.log_mass,
        "log_ssfr": float(np.log10(max(rate / 10**galaxy.log_mass, 1e-14))),
        "age": float(share @ t.ages) / 1e9,
        "metallicity": galaxy.log_z,
        "a_v": galaxy.a_v,
    }
    return Shining(light, labels)


def _observed(galaxy: Galaxy, rest: Doubles, line: Doubles, luminosity: Doubles) -> Light:
    """Luminosities (solar / Angstrom and solar) at rest become fluxes at our distance, nucleus and forest included."""
    t = templates()
    factor = SOLAR_AT_10_PC / luminosity_distance(galaxy.z) ** 2
    stretch = 1 + galaxy.z
    wavelength = t.wavelength * stretch
    flux = np.interp(GRID, wavelength, rest) * factor / stretch
    seen, strength = line * stretch, luminosity * factor
    width = np.full(len(line), 0.75 * galaxy.sigma)
    if galaxy.nucleus:
        level = float(np.interp(5008.24, t.wavelength, rest)) * factor * galaxy.nucleus
        seen = np.concatenate([seen, np.array(list(NUCLEUS)) * stretch])
        strength = np.concatenate([strength, np.array(list(NUCLEUS.values())) * level])
        width = np.concatenate([width, np.full(len(NUCLEUS), max(1.3 * galaxy.sigma, 150.0))])
    kept = (seen > GRID[0]) & (seen < GRID[-1])
    if galaxy.z > 1.2:
        flux = flux * mean_forest(GRID, galaxy.z)
    return Light(
        flux,
        Lines(seen[kept], strength[kept], width[kept]),
        galaxy.sigma,
        np.interp(GRID, wavelength, t.resolution),
    )


class GalaxyDraw:
    """Galaxies of a survey that sees those brighter than `limit` (AB mag) in `band`, at redshifts up to z_max.

    Redshift and mass come from volume times mass function times the chance to be bright enough, which is tabulated for
    a typical galaxy of each type; what is drawn is kept if it really is.
    """

    def __init__(self, photometer: Photometer, band: str, limit: float, z_max: float = 3.0) -> None:
        self.photometer, self.band, self.limit = photometer, band, limit
        self.z: Doubles = np.geomspace(0.004, z_max, 70)
        self.mass: Doubles = np.linspace(7.5, 12.0, 91)
        z, mass = np.meshgrid(self.z, self.mass, indexing="ij")
        tables = []
        for kind in TYPES:
            bright = np.array([_typical(photometer, kind, float(one))[band] for one in self.z])
            mag = 22.5 - 2.5 * np.log10(np.maximum(bright, 1e-12))[:, None] - 2.5 * (mass - 10.0)
            seen = 1 / (1 + np.exp(np.clip((mag - limit) / 0.35, -50, 50)))
            tables.append(volume_element(z) * z * mass_function(kind, mass, z) * seen)
        table = np.stack(tables).ravel()
        self.cumulative: Doubles = np.cumsum(table) / table.sum()

    def __call__(self, rng: np.random.Generator) -> tuple[Galaxy, Shining, dict[str, float]]:
        """A galaxy, its light and labels, its fluxes in nanomaggies by band before Galactic dust."""
        while True:
            cell = int(np.searchsorted(self.cumulative, rng.random()))
            kind, i, j = np.unravel_index(cell, (len(TYPES), len(self.z), len(self.mass)))
            z = float(self.z[i] * (self.z[1] / self.z[0]) ** rng.uniform(-0.5, 0.5))
            mass = float(self.mass[j] + rng.uniform(-0.025, 0.025))
            galaxy = draw_galaxy(TYPES[kind], z, mass, rng)
            shining = shine(galaxy)
            fluxes = self.photometer(shining.light.total())
            if fluxes[self.band] > 10 ** (-0.4 * (self.limit - 22.5)) and fluxes[self.band] < 4e4:
                return galaxy, shining, fluxes


@lru_cache(maxsize=512)
def _typical(photometer: Photometer, kind: Type, z: float) -> dict[str, float]:
    """Fluxes in nanomaggies of a typical galaxy of 1e10 solar masses."""
    forming = kind == "star-forming"
    galaxy = Galaxy(
        kind=kind, z=z, log_mass=10.0, log_ssfr=main_sequence(10.0, z) if forming else -11.9,
        log_z=-0.3, a_v=0.4 if forming else 0.1, slope=-0.35, clouds=2.0, log_u=-3.0,
        onset=age_of_universe(z) * (0.7 if forming else 0.82), burst=0.0, burst_age=0.5, quenched=False, sigma=120.0,
        radius=3.0, bulge=0.3, tilt=0.6, nucleus=0.0,
    )  # fmt: skip
    light = shine(galaxy).light
    return photometer(light.total())
