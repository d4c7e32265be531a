"""Photometry of simulated objects: AB fluxes through the response curves of speclite, and what surveys measure of them.

Photometer  nanomaggies of f_lambda on GRID in every band
measured    payloads of a survey's photometry, with its errors; fluxes are raw, E(B-V) stands beside them
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Convention, Payload, Scalar
from albireo.observations.simulation.light import GRID

Doubles = NDArray[np.float64]

BANDS = {
    **{f"tok_flux_{b}": f"decam2014-{b}" for b in "griz"}, "tok_flux_w1": "wise2010-W1", "tok_flux_w2": "wise2010-W2",
    **{f"tok_mag_{b}": f"hsc2017-{b}" for b in "grizy"}, **{f"flux_{b}_sdss": f"sdss2010-{b}" for b in "ugriz"},
    **{f"flux_{b}_2mass": f"twomass-{b.upper() if b != 'k' else 'Ks'}" for b in "jhk"},
    "tok_flux_g_gaia": "gaiadr3-G", "tok_flux_bp_gaia": "gaiadr3-BP", "tok_flux_rp_gaia": "gaiadr3-RP",
}  # fmt: skip
"""Token key -> response curve of speclite."""

NANOMAGGY = 3.631e-29
"""erg / (s cm2 Hz)."""
C_ANGSTROM = 2.99792458e18

GAIA_ZERO_POINTS = {"g": 25.8010, "bp": 25.3540, "rp": 25.1040}
"""AB magnitude of 1 electron / s (Gaia DR3 documentation, 5.4.1)."""


class Photometer:
    """AB fluxes in nanomaggies, by token key, of f_lambda on GRID in 1e-17 erg / (s cm2 Angstrom)."""

    def __init__(self) -> None:
        import speclite.filters

        self.keys = tuple(BANDS)
        rows = []
        steps = np.gradient(GRID)
        for name in BANDS.values():
            curve = speclite.filters.load_filter(name)
            response = np.interp(GRID, np.asarray(curve.wavelength), np.asarray(curve.response), left=0.0, right=0.0)
            norm = C_ANGSTROM * (response / GRID * steps).sum()
            rows.append(1e-17 * response * GRID * steps / norm / NANOMAGGY)
        self.matrix: Doubles = np.stack(rows)

    def __call__(self, flux: Doubles) -> dict[str, float]:
        return dict(zip(self.keys, (self.matrix @ flux).tolist(), strict=True))


@lru_cache(maxsize=1)
def photometer() -> Photometer:
    """The response curves, read once a process."""
    return Photometer()


@dataclass(frozen=True)
class Depth:
    """What a survey's photometry of a point is uncertain by: sigma in nanomaggy by key, and a share of the flux."""

    sigma: dict[str, float]
    share: float


DEPTHS = {
    "legacysurvey": Depth({"tok_flux_g": 0.03, "tok_flux_r": 0.05, "tok_flux_i": 0.09, "tok_flux_z": 0.15,
                           "tok_flux_w1": 0.5, "tok_flux_w2": 1.6}, 0.012),
    "hsc": Depth({"tok_mag_g": 0.006, "tok_mag_r": 0.01, "tok_mag_i": 0.013, "tok_mag_z": 0.03,
                  "tok_mag_y": 0.06}, 0.01),
    "sdss": Depth({"flux_u_sdss": 0.32, "flux_g_sdss": 0.20, "flux_r_sdss": 0.25, "flux_i_sdss": 0.40,
                   "flux_z_sdss": 1.3}, 0.015),
    "2mass": Depth({"flux_j_2mass": 18.0, "flux_h_2mass": 24.0, "flux_k_2mass": 30.0}, 0.02),
}  # fmt: skip
"""Legacy Surveys DR10, HSC wide, SDSS and 2MASS: published 5-sigma depths, rounded."""

_KINDS = {"legacysurvey": "model", "hsc": "cmodel", "sdss": "model", "2mass": "psf"}
_HSC_COEFFICIENTS = {"g": 3.240, "r": 2.276, "i": 1.633, "z": 1.263, "y": 1.075}
"""A(band) / E(B-V) that HSC's catalogues state as a_g .. a_y."""


def band_name(key: str) -> str:
    """As conventions name it: "DES-G", "W1", "HSC-I", "SDSS-u", "2MASS-J"."""
    letter = key.split("_")[2] if key.startswith("tok_") else key.split("_")[1]
    survey = MODALITIES[key].survey
    if survey == "legacysurvey":
        return letter.upper() if letter.startswith("w") else f"DES-{letter.upper()}"
    return {"hsc": f"HSC-{letter.upper()}", "sdss": f"SDSS-{letter}", "2mass": f"2MASS-{letter.upper()}",
            "gaia": f"GAIA-{letter.upper()}"}[survey]  # fmt: skip


def measured(
    survey: str, fluxes: dict[str, float], spread: float, ebv: float, rng: np.random.Generator
) -> dict[str, Payload]:
    """Photometry of a survey; `fluxes` true, dimmed by the Galaxy; `spread` noise over that of a point source.

    A band of HSC whose flux comes out below 3 sigma has no magnitude; fluxes in nanomaggies may be negative.
    """
    depth = DEPTHS[survey]
    data: dict[str, Payload] = {}
    quality = float(rng.lognormal(0.0, 0.15))
    for key, sigma in depth.sigma.items():
        noise = sigma * quality * (spread if key[-2:] not in ("w1", "w2") else 1.0)
        error = float(np.hypot(noise, depth.share * fluxes[key]))
        value = float(fluxes[key] + error * rng.normal())
        convention = Convention(survey, band_name(key), "AB", _KINDS[survey], False)  # type: ignore[arg-type]
        if survey == "hsc":
            if value > 3 * error:
                magnitude = 22.5 - 2.5 * np.log10(value)
                data[key] = Scalar(float(magnitude), "mag", float(2.5 / np.log(10) * error / value), convention)
        elif survey != "2mass" or value > 4 * error:  # 2MASS lists what it detects
            data[key] = Scalar(value, MODALITIES[key].unit, error, convention)
    if survey == "hsc":
        for band, coefficient in _HSC_COEFFICIENTS.items():
            data[f"tok_a_{band}"] = Scalar(coefficient * ebv, "mag")
    return data


def gaia(fluxes: dict[str, float], parallax: float, rng: np.random.Generator) -> dict[str, Payload]:
    """Gaia's mean fluxes in electron / s and its parallax in mas, if G < 20.7 mag; errors as Gaia DR3's at that G."""
    g = 22.5 - 2.5 * np.log10(max(fluxes["tok_flux_g_gaia"], 1e-9))
    if g > 20.7:
        return {}
    data: dict[str, Payload] = {}
    for band, point in GAIA_ZERO_POINTS.items():
        key = f"tok_flux_{band}_gaia"
        rate = fluxes[key] * 10 ** (0.4 * (point - 22.5))
        # Some 200 transits of 4.4 s, and a floor of a few millimag; BP and RP see more sky than G.
        sky = 15.0 if band == "g" else 60.0
        error = float(np.hypot(np.sqrt(max(rate, 0.0) + sky) / np.sqrt(200 * 4.4), 0.002 * rate))
        convention = Convention("gaia", band_name(key), "Vega", "mean", False)
        data[key] = Scalar(max(float(rate + error * rng.normal()), 1e-3), MODALITIES[key].unit, error, convention)
    error = float(np.interp(g, [13, 15, 17, 18, 19, 20, 20.7], [0.014, 0.025, 0.07, 0.12, 0.22, 0.5, 1.0]))
    error *= float(rng.lognormal(0, 0.15))
    data["tok_parallax"] = Scalar(float(parallax + error * rng.normal()), "mas", error)
    return data
