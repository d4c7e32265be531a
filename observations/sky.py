"""The simulated sky: galaxies, stars and quasars whose spectrum, photometry, image and catalogue come from one SED.

A small parametric sky, not a population-synthesis model: its purpose is a network that runs offline and tests whose
truth is known. Rest wavelengths are in vacuum; fluxes are raw, dimmed by the E(B-V) that is given beside them.

    simulate  full observations, redshift and class in `metadata`
    mixed     the same object with some of its modalities
    Truth     what an object is; `sed` is its noiseless spectrum, before Galactic dust
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from albireo.observations.modalities import FLUX_DENSITY, MODALITIES
from albireo.observations.observation import Convention, Image, Observation, Payload, Provenance, Scalar, Spectrum
from albireo.observations.sky_images import Shape, cutout

Doubles = NDArray[np.float64]

C_ANGSTROM = 2.99792458e18
NANOMAGGY = 3.631e-29
"""erg / (s cm2 Hz)."""

ABSORPTION = {
    "Ca K": 3934.78, "Ca H": 3969.59, "H delta": 4102.89, "G": 4305.61, "H gamma": 4341.68, "H beta": 4862.68,
    "Mg b": 5176.63, "Na D": 5895.60, "H alpha": 6564.61, "Ca II a": 8500.36, "Ca II b": 8544.44, "Ca II c": 8664.52,
}  # fmt: skip
BLEND = {
    "Ca K": 450.0, "Ca H": 450.0, "H delta": 600.0, "G": 800.0, "H gamma": 600.0, "H beta": 600.0, "Mg b": 700.0,
    "Na D": 250.0, "H alpha": 500.0, "Ca II a": 130.0, "Ca II b": 130.0, "Ca II c": 130.0,
}  # fmt: skip
"""Intrinsic width (sigma) in km/s: damping wings, and blends of several lines."""
EMISSION = {
    "[O II] a": (3727.09, 1.3), "[O II] b": (3729.88, 1.7), "H gamma": (4341.68, 0.45), "H beta": (4862.68, 1.0),
    "[O III] b": (4960.30, 0.33), "[O III] a": (5008.24, 1.0), "[N II] b": (6549.85, 0.33), "H alpha": (6564.61, 3.0),
    "[N II] a": (6585.27, 1.0), "[S II] a": (6718.29, 0.6), "[S II] b": (6732.67, 0.45),
}  # fmt: skip
"""Vacuum wavelength in Angstrom; strength relative to H beta."""
BROAD = {
    "Ly alpha": (1215.67, 80.0), "Si IV": (1399.8, 10.0), "C IV": (1549.5, 35.0), "C III]": (1908.7, 22.0),
    "Mg II": (2799.1, 32.0), "H gamma": (4341.68, 18.0), "H beta": (4862.68, 50.0), "H alpha": (6564.61, 220.0),
}  # fmt: skip
"""Vacuum wavelength; rest equivalent width in Angstrom."""

PASSBANDS = {
    "DES-G": (3990, 5480), "DES-R": (5660, 7160), "DES-I": (7050, 8530), "DES-Z": (8440, 10030), "W1": (28000, 38500),
    "W2": (40500, 52500), "HSC-G": (4000, 5450), "HSC-R": (5450, 7000), "HSC-I": (6950, 8500), "HSC-Z": (8520, 9330),
    "HSC-Y": (9300, 10250), "GAIA-G": (3900, 9300), "GAIA-BP": (3500, 6700), "GAIA-RP": (6300, 10400),
}  # fmt: skip
"""Half-power edges in Angstrom of smooth top-hat pass-bands."""

GAIA_ZERO_POINT = {"GAIA-G": 25.8010, "GAIA-BP": 25.3540, "GAIA-RP": 25.1040}
"""AB magnitude of 1 electron / s (Gaia DR3 documentation)."""

PHOTOMETRIC_GRID: Doubles = np.geomspace(3300.0, 56000.0, 4000).astype(np.float64)
DESI_GRID: Doubles = 3600.0 + 0.8 * np.arange(7781, dtype=np.float64)
SDSS_GRID: Doubles = 10.0 ** (3.5797 + 1e-4 * np.arange(3853, dtype=np.float64))
FOREST_GRID: Doubles = np.arange(600.0, 1217.0, 0.5)
"""Rest wavelengths of the Lyman-alpha clouds: the forest of an object is the same on every grid."""

RESOLUTION = 2500.0
"""Resolving power of the simulated spectra."""


@dataclass(frozen=True)
class Truth:
    """What one object is.

    kind      "GALAXY", "STAR" or "QSO"; `subclass` refines it
    z         redshift; for stars the velocity over c
    mag       AB magnitude in DES-R before Galactic dust
    colour    galaxies: log10 specific star formation rate / yr; stars: Teff / K; quasars: spectral index of f_lambda
    dust      internal optical depth at 5500 A (galaxies)
    lines     line-strength factor
    ebv       Galactic E(B-V) in mag
    seed      of the fine structure (forest, line ratios)
    """

    kind: str
    subclass: str
    z: float
    mag: float
    colour: float
    dust: float
    lines: float
    ebv: float
    seed: int


def extinction(wavelength: Doubles, ebv: float, r_v: float = 3.1) -> Doubles:
    """A(lambda) in mag of Cardelli, Clayton & Mathis (1989), optical and infrared; the edge is held beyond 3.3 / um."""
    x = np.clip(1e4 / wavelength, 0.3, 3.3)
    y = x - 1.82
    a = np.polyval([0.32999, -0.77530, 0.01979, 0.72085, -0.02427, -0.50447, 0.17699, 1.0], y)
    b = np.polyval([-2.09002, 5.30260, -0.62251, -5.38434, 1.07233, 2.28305, 1.41338, 0.0], y)
    infrared = x < 1.1
    a = np.where(infrared, 0.574 * x**1.61, a)
    b = np.where(infrared, -0.527 * x**1.61, b)
    out: Doubles = ebv * r_v * (a + b / r_v)
    return out


def draw(rng: np.random.Generator) -> Truth:
    """One object of the population."""
    kind = rng.choice(["GALAXY", "STAR", "QSO"], p=[0.6, 0.25, 0.15])
    ebv = float(np.clip(rng.lognormal(np.log(0.035), 0.6), 0.003, 0.4))
    seed = int(rng.integers(2**31))
    if kind == "GALAXY":
        z, mag = 0.0, 0.0
        while not (0.01 < z < 0.95 and 15.5 < mag < 21.5):
            z = float(rng.gamma(2.2, 0.13))
            distance_modulus = 43.18 + 5 * np.log10(z * (1 + 0.55 * z))
            mag = float(rng.normal(-21.2, 0.9) + distance_modulus + 1.2 * z)
        quiescent = rng.random() < 0.4
        ssfr = rng.normal(-11.8, 0.3) if quiescent else rng.normal(-10.0, 0.4)
        dust = abs(rng.normal(0, 0.1 if quiescent else 0.5))
        subclass = "quiescent" if quiescent else "star-forming"
        return Truth("GALAXY", subclass, z, mag, float(ssfr), dust, float(rng.lognormal(0, 0.4)), ebv, seed)
    if kind == "STAR":
        teff = float(np.clip(rng.choice([4200.0, 5600.0, 7200.0, 10500.0], p=[0.35, 0.4, 0.18, 0.07])
                             * rng.lognormal(0, 0.1), 3000, 15000))  # fmt: skip
        subclass = next(name for name, low in STELLAR_TYPES if teff >= low)
        return Truth("STAR", subclass, float(rng.normal(0, 1.5e-4)), float(rng.uniform(14.5, 20.5)), teff, 0.0,
                     float(rng.lognormal(0, 0.3)), ebv, seed)  # fmt: skip
    z = 0.0
    while not 0.15 < z < 3.6:
        z = float(rng.gamma(4.0, 0.4))
    return Truth("QSO", "broad-line", z, float(rng.uniform(17.0, 21.5)), float(rng.normal(-1.5, 0.25)), 0.0,
                 float(rng.lognormal(0, 0.3)), ebv, seed)  # fmt: skip


STELLAR_TYPES = (("B", 10000.0), ("A", 7500.0), ("F", 6000.0), ("G", 5200.0), ("K", 3900.0), ("M", 0.0))
"""Spectral type and the lowest Teff of each in K."""


def sed(truth: Truth, wavelength: Doubles) -> Doubles:
    """Relative f_lambda at observed vacuum wavelengths in Angstrom, without Galactic dust."""
    rest = wavelength / (1 + truth.z)
    return {"GALAXY": _galaxy, "STAR": _star, "QSO": _quasar}[truth.kind](truth, rest)


def _planck(wavelength: Doubles, temperature: float) -> Doubles:
    """f_lambda of a black body, 1 at 5500 A."""
    x = np.minimum(1.43877e8 / (wavelength * temperature), 300.0)
    at = 1.43877e8 / (5500.0 * temperature)
    out: Doubles = (5500.0 / wavelength) ** 5 * np.expm1(at) / np.expm1(x)
    return out


def _step(wavelength: Doubles, edge: float, width: float, depth: float) -> Doubles:
    """1 redward of an edge, `depth` blueward."""
    return depth + (1 - depth) / (1 + np.exp(np.clip(-(wavelength - edge) / width, -60, 60)))


def _line(rest: Doubles, centre: float, sigma_kms: float) -> tuple[slice, Doubles]:
    """Where a line is (rest must increase), and its profile there, of unit area in rest Angstrom."""
    sigma = centre * np.hypot(sigma_kms / 2.998e5, 1 / (2.355 * RESOLUTION))
    window = slice(*np.searchsorted(rest, [centre - 6 * sigma, centre + 6 * sigma]))
    profile = np.exp(-0.5 * ((rest[window] - centre) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    return window, profile


def _galaxy(truth: Truth, rest: Doubles) -> Doubles:
    young = 10 ** np.clip(truth.colour + 10.0, -3.0, 1.0)
    old = _planck(rest, 4600.0) * _step(rest, 4000.0, 60.0, 0.45) * _step(rest, 2900.0, 200.0, 0.25)
    middle = _planck(rest, 8200.0) * _step(rest, 3720.0, 50.0, 0.5)
    blue = (rest / 5500.0) ** -2.2 * _step(rest, 3680.0, 30.0, 0.85)
    flux = old + 0.35 * np.sqrt(young) * middle + 0.5 * young * blue
    flux *= _step(rest, 1216.0, 8.0, 0.05)
    age = 1.0 / (1.0 + 2.0 * young)
    rng = np.random.default_rng(truth.seed)
    depth = {"Ca K": 9 * age, "Ca H": 8 * age, "G": 6 * age, "Mg b": 5 * age, "Na D": 3 * age, "H delta": 5 * (1 - age),
             "H gamma": 4 * (1 - age), "Ca II b": 3.0, "Ca II c": 2.5, "Ca II a": 1.3}  # fmt: skip
    dispersion = rng.uniform(120, 280)
    for name, width in depth.items():
        window, profile = _line(rest, ABSORPTION[name], np.hypot(dispersion, BLEND[name]))
        flux[window] *= np.clip(1 - width * truth.lines**0.3 * profile, 0.05, None)
    strength = 25.0 * young * truth.lines * np.interp(5000.0, rest, flux, left=flux[0], right=flux[-1])
    oxygen, nitrogen = rng.lognormal(0, 0.6), rng.lognormal(-0.3, 0.4)
    for name, (centre, ratio) in EMISSION.items():
        ratio *= oxygen if name.startswith("[O III]") else nitrogen if name.startswith("[N II]") else 1.0
        window, profile = _line(rest, centre, 0.5 * dispersion)
        flux[window] += 0.2 * strength * ratio * profile
    out: Doubles = flux * np.exp(-truth.dust * (rest / 5500.0) ** -0.7)
    return out


def _star(truth: Truth, rest: Doubles) -> Doubles:
    teff = truth.colour
    cool = np.clip((6500.0 - teff) / 3000.0, 0.0, 1.0)
    flux = _planck(rest, teff) * _step(rest, 4000.0, 250.0, 1 - 0.5 * cool)
    if teff > 6500.0:
        flux *= _step(rest, 3700.0, 40.0, 1 - 0.6 * np.exp(-(((teff - 9500.0) / 3500.0) ** 2)))
    balmer = 14.0 * np.exp(-(((np.log(teff) - np.log(9500.0)) / 0.35) ** 2))
    metal = truth.lines * np.exp(-(((teff - 4800.0) / 1800.0) ** 2))
    widths = {"H alpha": 0.8 * balmer, "H beta": balmer, "H gamma": balmer, "H delta": balmer, "Ca K": 9 * metal,
              "Ca H": 8 * metal, "G": 6 * metal, "Mg b": 6 * metal, "Na D": 3 * metal * (0.4 + cool),
              "Ca II a": 1.5 * metal, "Ca II b": 3 * metal, "Ca II c": 2.5 * metal}  # fmt: skip
    for name, width in widths.items():
        window, profile = _line(rest, ABSORPTION[name], BLEND[name])
        flux[window] *= np.clip(1 - width * profile, 0.05, None)
    if teff < 4100.0:
        band = 0.7 * (4100.0 - teff) / 1100.0
        for head in (4955.0, 5448.0, 5847.0, 6159.0, 6651.0, 7054.0, 7589.0, 8432.0):
            inside = (rest > head) & (rest < head + 220.0)
            flux[inside] *= 1 - band * (1 - (rest[inside] - head) / 220.0)
    return flux


def _quasar(truth: Truth, rest: Doubles) -> Doubles:
    rng = np.random.default_rng(truth.seed)
    flux = (rest / 2500.0) ** truth.colour + 0.25 * (rest / 10000.0) ** 0.3
    width = rng.uniform(1800, 3500)
    bump = 0.12 * truth.lines
    flux *= 1 + bump * np.exp(-(((rest - 2500.0) / 220.0) ** 2)) + bump * np.exp(-(((rest - 4570.0) / 120.0) ** 2))
    for centre, equivalent in BROAD.values():
        level = (centre / 2500.0) ** truth.colour + 0.25 * (centre / 10000.0) ** 0.3
        window, profile = _line(rest, centre, width)
        flux[window] += level * equivalent * truth.lines * rng.lognormal(0, 0.2) * profile
    for name, equivalent in (("[O III] a", 12.0), ("[O III] b", 4.0), ("[O II] a", 1.5)):
        window, profile = _line(rest, EMISSION[name][0], 220.0)
        flux[window] += (5000.0 / 2500.0) ** truth.colour * equivalent * truth.lines * profile
    forest = rest < 1215.67
    if forest.any():
        absorbed = np.exp(-0.0045 * (rest[forest] * (1 + truth.z) / 1215.67) ** 3.3)
        clouds = np.interp(rest[forest], FOREST_GRID, rng.lognormal(-0.5, 1.0, len(FOREST_GRID)))
        flux[forest] *= absorbed ** np.clip(clouds, 0, 4)
        flux[rest < 912.0] *= 0.05
    return flux


def band_flux(flux: Doubles, band: str) -> float:
    """AB flux in nanomaggy of f_lambda (PHOTOMETRIC_GRID) in 1e-17 erg / (s cm2 A), photon-weighted."""
    low, high = PASSBANDS[band]
    edge = 0.02 * (high + low) / 2
    grid = PHOTOMETRIC_GRID
    window = slice(*np.searchsorted(grid, [low - 4 * edge, high + 4 * edge]))
    at = grid[window]
    through = 1 / (1 + np.exp(-(at - low) / (edge / 4))) / (1 + np.exp((at - high) / (edge / 4)))
    step = at * np.log(grid[1] / grid[0])
    f_nu = 1e-17 * (flux[window] * at * through * step).sum() / (C_ANGSTROM * through / at * step).sum()
    return float(f_nu / NANOMAGGY)


def simulate(n: int, rng: np.random.Generator, *, start: int = 0) -> Iterator[Observation]:
    """n objects with every modality that their kind can have, ids from "sim-000000" + start.

    About 6 in 10 have a DESI spectrum and 6 in 10 an SDSS one, a quarter HSC data; stars and quasars have Gaia fluxes.
    """
    for index in range(start, start + n):
        yield _observe(f"sim-{index:06d}", draw(rng), rng)


def _observe(name: str, truth: Truth, rng: np.random.Generator) -> Observation:
    grid_flux = sed(truth, PHOTOMETRIC_GRID)
    scale = 10 ** (-0.4 * (truth.mag - 22.5)) / band_flux(grid_flux, "DES-R")
    dimming = 10 ** (-0.4 * extinction(PHOTOMETRIC_GRID, truth.ebv))
    photometry = {band: band_flux(grid_flux * scale * dimming, band) for band in PASSBANDS}
    shape = _shape(truth, rng)
    data: dict[str, Payload] = {}
    data["tok_image"] = _image("tok_image", photometry, shape, rng)
    for band, key, sigma in (("DES-G", "g", 0.02), ("DES-R", "r", 0.03), ("DES-I", "i", 0.05), ("DES-Z", "z", 0.08),
                             ("W1", "w1", 0.5), ("W2", "w2", 1.5)):  # fmt: skip
        value = photometry[band]
        measured = float(value * (1 + 0.01 * rng.normal()) + sigma * rng.normal())
        convention = Convention("legacysurvey", band, "AB", "model", extinction_corrected=False)
        data[f"tok_flux_{key}"] = Scalar(measured, "nanomaggy", float(np.hypot(sigma, 0.01 * value)), convention)
    data["tok_ebv"] = Scalar(truth.ebv, "mag")
    for key, value in (("tok_shape_r", shape.radius), ("tok_shape_e1", shape.e1), ("tok_shape_e2", shape.e2)):
        noisy = value * (1 + 0.03 * rng.normal()) if shape.radius else 0.0
        data[key] = Scalar(float(noisy), MODALITIES[key].unit)
    if rng.random() < 0.6:
        data["tok_spectrum_desi"] = _spectrum(truth, scale, DESI_GRID, 1.0, shape, rng)
    if rng.random() < 0.6:
        data["tok_spectrum_sdss"] = _spectrum(truth, scale, SDSS_GRID, 2.2, shape, rng)
    if rng.random() < 0.25:
        data |= _hsc(truth, photometry, shape, rng)
    if truth.kind != "GALAXY" and photometry["GAIA-G"] > 10 ** (-0.4 * (20.7 - 22.5)):
        data |= _gaia(truth, photometry, rng)
    return Observation(
        id=name,
        data=data,
        ra=float(rng.uniform(0, 360)),
        dec=float(np.degrees(np.arcsin(rng.uniform(-0.3, 0.55)))),
        metadata={"redshift": truth.z, "class": truth.kind, "subclass": truth.subclass},
        provenance={key: Provenance("simulated", MODALITIES[key].survey) for key in data},
    )


def _shape(truth: Truth, rng: np.random.Generator) -> Shape:
    if truth.kind != "GALAXY":
        return Shape(0.0, 0.0, 0.0, 0.0)
    kpc = 10 ** rng.normal(0.55 if truth.subclass == "star-forming" else 0.45, 0.18)
    arcsec_per_kpc = 1 / (3.0 + 5.0 * np.sqrt(truth.z)) / min(1.0, truth.z / 0.12)
    radius = float(np.clip(kpc * arcsec_per_kpc, 0.25, 6.0))
    size = abs(rng.normal(0, 0.22 if truth.subclass == "star-forming" else 0.13))
    angle = rng.uniform(0, 2 * np.pi)
    size = min(size, 0.75)
    bulge = float(np.clip(rng.normal(0.75 if truth.subclass == "quiescent" else 0.2, 0.15), 0.0, 1.0))
    return Shape(radius, float(size * np.cos(angle)), float(size * np.sin(angle)), bulge)


def _image(key: str, photometry: dict[str, float], shape: Shape, rng: np.random.Generator) -> Image:
    row = MODALITIES[key]
    assert row.pixel_scale is not None
    fluxes = np.array([photometry[band] for band in row.bands])
    flux = cutout(row.survey, row.bands, fluxes, shape, row.pixel_scale, rng)
    conventions = tuple(Convention(row.survey, band, "AB", "model", extinction_corrected=False) for band in row.bands)
    zero_point = 27.0 if row.survey == "hsc" else 22.5
    flux = (flux * 10 ** (0.4 * (zero_point - 22.5))).astype(np.float32)
    return Image(flux, row.bands, row.pixel_scale, row.unit, zero_point, np.zeros(flux.shape, bool), conventions)


def _spectrum(
    truth: Truth, scale: float, grid: Doubles, noise: float, shape: Shape, rng: np.random.Generator
) -> Spectrum:
    fibre = rng.uniform(0.7, 0.95) if not shape.radius else 1 / (1 + 0.45 * shape.radius**1.2)
    flux = sed(truth, grid) * scale * fibre * 10 ** (-0.4 * extinction(grid, truth.ebv))
    sky = np.interp(grid, [3600, 4000, 6000, 8000, 9500, 10000], [0.9, 0.46, 0.19, 0.10, 0.13, 0.25])
    sigma = noise * rng.uniform(0.8, 1.6) * np.sqrt(sky**2 + 0.004 * np.abs(flux))
    measured = flux + sigma * rng.normal(size=len(grid))
    mask = rng.random(len(grid)) < 0.004
    ivar = np.where(mask, 0.0, 1 / sigma**2)
    return Spectrum(
        grid, measured.astype(np.float32), ivar.astype(np.float32), mask, FLUX_DENSITY, "heliocentric", "vacuum"
    )


def _hsc(truth: Truth, photometry: dict[str, float], shape: Shape, rng: np.random.Generator) -> dict[str, Payload]:
    data: dict[str, Payload] = {"tok_image_hsc": _image("tok_image_hsc", photometry, shape, rng)}
    for band in "grizy":
        name = f"HSC-{band.upper()}"
        magnitude = 22.5 - 2.5 * np.log10(max(photometry[name], 1e-3)) + 0.01 * rng.normal()
        low, high = PASSBANDS[name]
        convention = Convention("hsc", name, "AB", "cmodel", extinction_corrected=False)
        data[f"tok_mag_{band}"] = Scalar(float(magnitude), "mag", 0.01, convention)
        data[f"tok_a_{band}"] = Scalar(float(extinction(np.array([(low + high) / 2]), truth.ebv)[0]), "mag")
    moments = shape.covariance() + np.eye(2) * (0.7 / 2.355) ** 2
    for key, value in (("11", moments[0, 0]), ("12", moments[0, 1]), ("22", moments[1, 1])):
        data[f"tok_shape{key}"] = Scalar(float(value * (1 + 0.02 * rng.normal())), MODALITIES[f"tok_shape{key}"].unit)
    return data


def _gaia(truth: Truth, photometry: dict[str, float], rng: np.random.Generator) -> dict[str, Payload]:
    data: dict[str, Payload] = {}
    for band, key in (("GAIA-G", "g"), ("GAIA-BP", "bp"), ("GAIA-RP", "rp")):
        rate = photometry[band] * 10 ** (0.4 * (GAIA_ZERO_POINT[band] - 22.5))
        error = 0.5 * np.sqrt(rate) / 6
        convention = Convention("gaia", band, "Vega", "mean", extinction_corrected=False)
        value = float(max(rate + error * rng.normal(), 1e-3))
        data[f"tok_flux_{key}_gaia"] = Scalar(value, "electron / s", float(error), convention)
    true = 0.0
    if truth.kind == "STAR":
        absolute = np.interp(truth.colour, [3000, 3800, 5800, 8000, 15000], [11.5, 8.0, 4.6, 2.2, 0.2])
        true = 1000.0 / 10 ** ((truth.mag - absolute + 5) / 5)
    error = 0.03 * 10 ** (0.2 * max(truth.mag - 16, 0))
    data["tok_parallax"] = Scalar(float(true + error * rng.normal()), "mas", float(error))
    return data


MIXTURE = (
    (0.2, ("photometry",)), (0.15, ("image",)), (0.2, ("spectrum",)), (0.15, ("photometry", "image")),
    (0.1, ("photometry", "spectrum")), (0.05, ("image", "spectrum")),
    (0.15, ("photometry", "image", "spectrum", "gaia", "hsc")),
)  # fmt: skip
"""Share of objects, and the groups of modalities that they keep."""


def group(key: str) -> str:
    """The group of modalities that are observed together."""
    row = MODALITIES[key]
    if row.kind in ("image", "spectrum") and row.survey != "hsc":
        return row.kind
    return row.survey if row.survey in ("hsc", "gaia") else "photometry"


def mixed(observation: Observation, rng: np.random.Generator) -> Observation:
    """The object with a random part of its modalities, never none; the input is unchanged."""
    kept = MIXTURE[rng.choice(len(MIXTURE), p=[share for share, _ in MIXTURE])][1]
    data = {key: payload for key, payload in observation.data.items() if group(key) in kept}
    if not data:
        data = {key: payload for key, payload in observation.data.items() if group(key) == "photometry"}
    provenance = {key: observation.provenance[key] for key in data}
    return Observation(
        observation.id, data, observation.ra, observation.dec, metadata=observation.metadata, provenance=provenance
    )
