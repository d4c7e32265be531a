"""The light of simulated stars: continua fitted to real Gaia XP spectra, with lines that XP does not resolve put in.

Between 3300 and 6700 K the continuum is what `fit_stars` found for these parameters; hotter stars follow a black body
with a Balmer jump from there. Lines and bands are those of the Sun, scaled with temperature, gravity and abundance by
simple laws: right in place, about right in strength, no model atmosphere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from albireo.observations.simulation.light import C_KMS, GRID, NO_LINES, OPTICAL_GRID, Light
from albireo.observations.wavelengths import air_to_vacuum

Doubles = NDArray[np.float64]

NODES: Doubles = np.concatenate([np.arange(3360.0, 10201.0, 20.0), [12350.0, 16620.0, 21590.0]])
"""Vacuum Angstrom: samples of XP, and J H K."""
LOW_RESOLUTION = 2500.0
"""km/s: sigma of Gaia XP, about."""
COOLEST, HOTTEST = 3300.0, 6700.0
"""K; between them the fit holds."""
FAINT_BLUE = (3650.0, 5800.0)
"""K and Angstrom: the fit does not hold for stars cooler than this, blueward of this."""

BALMER = {
    6564.61: 3.5,
    4862.68: 5.0,
    4341.68: 5.5,
    4102.89: 5.5,
    3971.20: 5.0,
    3890.15: 4.5,
    3836.47: 4.0,
    3798.98: 3.2,
}
"""Vacuum Angstrom, equivalent width in Angstrom at 9500 K over 2.5."""

# Air wavelength and equivalent width in Angstrom in the Sun (Moore, Minnaert & Houtgast 1966, rounded).
NEUTRAL = (
    (3719.9, 1.6), (3734.9, 2.9), (3737.1, 1.1), (3745.6, 1.2), (3749.5, 1.9), (3758.2, 1.6), (3763.8, 0.8),
    (3767.2, 0.8), (3815.8, 1.2), (3820.4, 1.7), (3825.9, 1.5), (3829.4, 0.9), (3832.3, 1.7), (3838.3, 1.9),
    (3859.9, 1.5), (3886.3, 0.9), (3922.9, 0.4), (3927.9, 0.4), (4030.8, 0.5), (4045.8, 1.2), (4063.6, 0.8),
    (4071.7, 0.7), (4132.1, 0.4), (4143.9, 0.5), (4226.7, 1.5), (4250.5, 0.35), (4254.3, 0.4), (4260.5, 0.6),
    (4271.8, 0.75), (4274.8, 0.35), (4289.7, 0.3), (4307.9, 0.7), (4325.8, 0.8), (4383.5, 1.0), (4404.8, 0.9),
    (4415.1, 0.4), (4528.6, 0.25), (4871.8, 0.18), (4891.5, 0.3), (4920.5, 0.43), (4957.6, 0.65), (5012.1, 0.25),
    (5041.4, 0.22), (5167.4, 1.2), (5172.7, 1.3), (5183.6, 1.6), (5191.5, 0.25), (5206.1, 0.3), (5208.4, 0.3),
    (5227.2, 0.35), (5232.9, 0.35), (5269.6, 0.5), (5328.1, 0.45), (5371.5, 0.3), (5397.1, 0.25), (5405.8, 0.27),
    (5429.7, 0.28), (5446.9, 0.25), (5455.6, 0.23), (5528.4, 0.29), (5615.7, 0.2), (5889.95, 0.75), (5895.92, 0.56),
    (6122.2, 0.22), (6136.6, 0.14), (6162.2, 0.26), (6191.6, 0.13), (6230.7, 0.14), (6336.8, 0.1), (6400.0, 0.15),
    (6439.1, 0.16), (6494.98, 0.17), (6678.0, 0.12), (7664.9, 0.2), (7699.0, 0.16), (8183.3, 0.2), (8194.8, 0.3),
    (8688.6, 0.25), (8806.8, 0.4),
)  # fmt: skip
ALPHA = frozenset({3829.4, 3832.3, 3838.3, 4226.7, 5167.4, 5172.7, 5183.6, 5528.4, 6122.2, 6162.2, 6439.1, 8806.8})
"""Lines of Mg and Ca, which follow [alpha/Fe] too."""
IONISED = ((3933.66, 19.0), (3968.47, 14.0), (4077.7, 0.4), (4215.5, 0.25), (4554.0, 0.16), (8498.02, 1.4),
           (8542.09, 3.6), (8662.14, 2.7))  # fmt: skip
SODIUM = frozenset({5889.95, 5895.92, 8183.3, 8194.8})

BANDS = ((3883.0, 60.0, 5400.0, 0.25), (4215.0, 60.0, 5000.0, 0.12), (4314.0, 32.0, 5800.0, 0.25),
         (5211.0, 110.0, 4300.0, 0.3), (6385.0, 40.0, 3600.0, 0.2), (7050.0, 100.0, 3700.0, 0.15))  # fmt: skip
"""Bands that begin at a red head and fade blueward: CN, CN, CH, MgH, CaH, CaH. Air Angstrom of the head, length, K
below which they grow, depth."""
TITANIUM_OXIDE = ((4761.0, 70.0), (4954.0, 110.0), (5167.0, 120.0), (5448.0, 120.0), (5759.0, 80.0), (5847.0, 120.0),
                  (6159.0, 140.0), (6651.0, 90.0), (7054.0, 150.0), (7126.0, 110.0), (7589.0, 120.0),
                  (8432.0, 90.0), (8859.0, 90.0))  # fmt: skip
"""Air Angstrom of blue heads, and the length over which they fade redward."""


@dataclass(frozen=True)
class Star:
    """teff (K), logg (cgs), fe_h, alpha_m (dex), velocity and rotation (km/s)."""

    teff: float
    logg: float
    fe_h: float
    alpha_m: float
    velocity: float
    rotation: float


def features(teff: Doubles, logg: Doubles, fe_h: Doubles, alpha_m: Doubles) -> Doubles:
    """(stars, terms): the polynomial of 5040 K / Teff, gravity and abundances whose coefficients stars.npz holds."""
    t = 5040.0 / np.asarray(teff, np.float64) - 1.0
    g, m, a = np.asarray(logg) - 3.5, np.asarray(fe_h) + 0.3, np.asarray(alpha_m)
    one = np.ones_like(t)
    terms = (
        one, t, t**2, t**3, t**4, g, g**2, t * g, t**2 * g, t * g**2, m, m**2, t * m, t**2 * m, t * m**2, g * m,
        t * g * m, t**3 * g, a, t * a, m * a,
    )  # fmt: skip
    return np.stack(terms, axis=-1)


@lru_cache(maxsize=1)
def _coefficients() -> Doubles:
    with np.load(Path(__file__).with_name("stars.npz")) as archive:
        out: Doubles = archive["coefficients"].astype(np.float64)
    return out


def _hot(wavelength: Doubles, teff: float) -> Doubles:
    """Black body with the Balmer jump, deepest at 9500 K."""
    x = np.minimum(1.43877e8 / (wavelength * teff), 500.0)
    jump = 0.62 * np.exp(-((np.log(teff / 9500.0) / 0.35) ** 2))
    step = 1 / (1 + np.exp(np.clip((wavelength - 3700.0) / 25.0, -60, 60)))
    out: Doubles = wavelength**-5 / np.expm1(x) * (1 - jump * step)
    return out


def _nodes(star: Star, teff: float) -> Doubles:
    """ln f_lambda at NODES."""
    row = features(*(np.array([one]) for one in (teff, np.clip(star.logg, 0.3, 5.1), star.fe_h, star.alpha_m)))
    out: Doubles = (row @ _coefficients())[0]
    return out


def continuum(star: Star) -> Doubles:
    """Relative f_lambda on GRID at the resolution of XP."""
    teff = float(np.clip(star.teff, COOLEST, HOTTEST))
    nodes = _nodes(star, teff)
    if teff < FAINT_BLUE[0]:
        # Too few photons there to fit: the blue of somewhat warmer stars, joined on.
        warm = _nodes(star, FAINT_BLUE[0])
        join = int(np.searchsorted(NODES, FAINT_BLUE[1]))
        nodes[:join] = warm[:join] - warm[join] + nodes[join]
    log = np.interp(np.log(GRID), np.log(NODES), nodes)
    # Outside of the nodes black bodies go on: bluer than 3360 A with the slope there, redder than K as lambda^-4.
    blue, red = NODES[0] > GRID, NODES[-1] < GRID
    log[blue] = nodes[0] + np.log(_hot(GRID[blue], teff) / _hot(NODES[:1], teff)[0])
    log[red] = nodes[-1] - 4 * np.log(GRID[red] / NODES[-1])
    flux = np.exp(log)
    if star.teff > HOTTEST:
        flux = flux * _hot(GRID, star.teff) / _hot(GRID, HOTTEST)
    out: Doubles = flux
    return out


def shine(star: Star) -> Light:
    """The light of a star as it arrives at the Galaxy, in relative units; its velocity shifts it."""
    flux = continuum(star)
    sharp = absorption(star)
    fine = slice(int(np.searchsorted(GRID, OPTICAL_GRID[0])), int(np.searchsorted(GRID, OPTICAL_GRID[-1])) + 1)
    # XP knows what is absorbed at its own resolution: only what is finer is put in, and what hotter stars have more.
    smooth = sharp if star.teff <= HOTTEST else absorption(replace(star, teff=HOTTEST))
    size = round(2 * LOW_RESOLUTION / (C_KMS * 6e-5))
    for _ in range(3):
        smooth = uniform_filter1d(smooth, size, mode="nearest")
    flux[fine] *= sharp / smooth
    shifted = np.interp(GRID / (1 + star.velocity / C_KMS), GRID, flux)
    return Light(shifted, NO_LINES, sigma=star.rotation)


def absorption(star: Star) -> Doubles:
    """Transmission (0 to 1) of lines and bands on OPTICAL_GRID, at rest."""
    out = np.ones(len(OPTICAL_GRID))
    theta = 5040.0 / star.teff
    m, a = star.fe_h, star.alpha_m
    neutral = 10 ** np.clip(2.2 * (theta - 0.873), -2.0, 0.9)
    for wavelength, width in NEUTRAL:
        strength = width * neutral * 10 ** (0.42 * (m + (a if wavelength in ALPHA else 0.0)))
        if wavelength in SODIUM:  # a mark of dwarfs among cool stars
            strength *= 10 ** (0.25 * (star.logg - 4.4) * np.clip(theta - 0.8, 0.0, 0.6))
        _absorb(out, wavelength, strength, 0.0)
    ionised = np.exp(-((max(star.teff - 5800.0, 0.0) / 2200.0) ** 2)) * 10 ** (0.1 * (theta - 0.873))
    for wavelength, width in IONISED:
        gravity = 10 ** (-0.08 * (star.logg - 4.4)) if wavelength > 8000 else 1.0
        _absorb(out, wavelength, width * ionised * gravity * 10 ** (0.35 * (m + a)), 0.0)
    dwarf = star.logg > 6.5
    hydrogen = np.exp(-((np.log(star.teff / 9500.0) / (0.55 if dwarf else 0.33)) ** 2))
    wings = 3.0 if dwarf else 10 ** (0.12 * (star.logg - 4.0) * float(star.teff > 7500))
    for vacuum, width in BALMER.items():
        _absorb(
            out, vacuum, 2.5 * width * hydrogen * wings + 0.4 * width * (star.teff < 6500) * (star.teff > 4300), 1.0
        )
    for head, length, below, depth in BANDS:
        cool = np.clip((below - star.teff) / 900.0, 0.0, 1.0) * 10 ** (0.3 * m)
        gravity = np.clip(1 + 0.4 * (star.logg - 4.5), 0.2, 1.4) if head in (5211.0, 6385.0, 7050.0) else 1.0
        _band(out, head, -length, min(depth * cool * gravity, 0.8))
    titanium = np.clip((4000.0 - star.teff) / 700.0, 0.0, 1.0) * 10 ** (0.25 * (m + a))
    for head, length in TITANIUM_OXIDE:
        _band(out, head, length, min(0.55 * titanium, 0.85))
    return out


def _vacuum(wavelength: float) -> float:
    return float(air_to_vacuum(np.array([wavelength]))[0])


@lru_cache(maxsize=512)
def _place(wavelength: float, vacuum: bool) -> float:
    return wavelength if vacuum else _vacuum(wavelength)


def _absorb(out: Doubles, wavelength: float, strength: float, hydrogen: float) -> None:
    """Multiply a line of this equivalent width (Angstrom) in: at most 85 % deep, wider if it must be; with wings if it
    is one of hydrogen, whose wavelengths are given in vacuum."""
    if strength < 1e-3:
        return
    centre = _place(wavelength, bool(hydrogen))
    narrow = centre * 6.0 / C_KMS  # thermal and turbulent motion
    depth = min(strength / (2.507 * narrow), 0.85 if not hydrogen else 0.7)
    width = strength / (2.507 * depth)
    reach = 8 * width
    window = slice(*np.searchsorted(OPTICAL_GRID, [centre - reach, centre + reach]))
    offset = (OPTICAL_GRID[window] - centre) / width
    profile = np.exp(-0.5 * offset**2)
    if hydrogen or strength > 3:
        profile = 0.55 * profile + 0.45 * (1 + (offset / 2.0) ** 2) ** -1.5
    out[window] *= 1 - depth * profile


def _band(out: Doubles, head: float, length: float, depth: float) -> None:
    """Multiply a molecular band in: sharp at its head, fading over `length` Angstrom (negative: blueward)."""
    if depth < 1e-3:
        return
    offset = (OPTICAL_GRID - _place(head, False)) * np.sign(length)
    inside = (offset > -3.0) & (offset < 4 * abs(length))
    rise = np.clip((offset[inside] + 3.0) / 3.0, 0.0, 1.0)
    out[inside] *= 1 - depth * rise * np.exp(-np.maximum(offset[inside], 0.0) / abs(length))


def draw_star(rng: np.random.Generator) -> Star:
    """A star of the field at high latitude: main sequence, subgiants, giants, blue horizontal branch, white dwarfs.

    Abundances of thin disc, thick disc and halo (e.g. Ivezic et al. 2008, ApJ 684, 287).
    """
    part = rng.choice(3, p=[0.5, 0.3, 0.2])
    fe_h = float(np.clip(rng.normal((-0.15, -0.55, -1.45)[part], (0.2, 0.25, 0.45)[part]), -2.5, 0.5))
    alpha_m = float(np.interp(fe_h, [-1.0, 0.2], [0.28, 0.0]) + (0.06 if part == 1 else 0.0) + rng.normal(0, 0.04))
    velocity = float(rng.normal(0, (35.0, 65.0, 150.0)[part]))
    form = rng.random()
    rotation = 4.0
    if form < 0.66:
        teff = float(np.clip(rng.choice([3500.0, 4300.0, 5300.0, 6000.0, 6700.0], p=[0.22, 0.22, 0.24, 0.24, 0.08])
                             + rng.normal(0, 350.0), COOLEST, 8000.0))  # fmt: skip
        logg = float(np.interp(teff, [3300, 4000, 5000, 5800, 6500, 8000], [4.95, 4.72, 4.58, 4.42, 4.2, 4.1]))
        logg += 0.05 * float(rng.normal())
        rotation = 60.0 if teff > 6800 else 4.0
    elif form < 0.78:
        teff, logg = float(rng.uniform(4900, 6300)), float(rng.uniform(3.4, 4.1))
    elif form < 0.93:
        logg = float(rng.choice([rng.normal(2.45, 0.08), rng.uniform(0.6, 3.3)]))
        teff = float(np.clip(4650 + 380 * (logg - 2.4) - 280 * fe_h + rng.normal(0, 70), 3500, 5500))
    elif form < 0.98:
        teff, logg, rotation = float(rng.uniform(7500, 14000)), float(rng.normal(3.9, 0.25)), 80.0
    else:
        teff, logg, fe_h, alpha_m = float(10 ** rng.uniform(3.85, 4.4)), float(rng.normal(8.0, 0.15)), -2.5, 0.0
    return Star(teff, logg, fe_h, alpha_m, velocity, rotation)


_CORRECTIONS = (
    [3300, 3600, 4000, 5000, 5800, 7000, 10000, 15000, 25000],
    [-2.0, -1.4, -0.9, -0.3, -0.1, 0.0, -0.35, -1.2, -2.4],
)
"""Teff in K, bolometric correction in r."""


def absolute_magnitude(star: Star) -> float:
    """In r, AB, from gravity, temperature and a mass: bolometric corrections rounded."""
    mass = 0.6 if star.logg > 6.5 else float(np.clip((star.teff / 5772) ** 1.8, 0.15, 2.5)) if star.logg > 4.0 else 1.0
    luminosity = np.log10(mass) + 4 * np.log10(star.teff / 5772) - (star.logg - 4.44)
    return float(4.74 - 2.5 * luminosity - np.interp(star.teff, *_CORRECTIONS))


SPECTRAL_TYPES = (
    ("O", 30000.0),
    ("B", 10000.0),
    ("A", 7500.0),
    ("F", 6000.0),
    ("G", 5200.0),
    ("K", 3900.0),
    ("M", 0.0),
)
"""Type and lowest Teff in K."""


def subclass(star: Star) -> str:
    """ "WD", or a spectral type with "giant" where it is one."""
    if star.logg > 6.5:
        return "WD"
    letter = next(name for name, low in SPECTRAL_TYPES if star.teff >= low)
    return f"{letter} giant" if star.logg < 3.6 else letter
