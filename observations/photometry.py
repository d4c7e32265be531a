"""Measurements as columns, and which of them is which row of MODALITIES: how a magnitude becomes that row's flux.

Magnitudes come in three kinds. "log mag" is Pogson's; "asinh mag" is SDSS's (Lupton, Gunn and Szalay 1999), equal to it
for bright objects and finite for negative fluxes; "mag" is whichever the survey publishes: where a survey's own are
asinh, a plain "mag" might be either and is not converted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from albireo.observations.aliases import FLUX_ZERO_POINTS, is_magnitude_unit
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Bools, Convention, Doubles

NANOMAGGY = FLUX_ZERO_POINTS["nanomaggy"]

ASINH_SOFTENING = {"SDSS-u": 1.4e-10, "SDSS-g": 0.9e-10, "SDSS-r": 1.2e-10, "SDSS-i": 1.8e-10, "SDSS-z": 7.4e-10}
"""Softening b of asinh magnitudes, in maggies: https://www.sdss.org/dr17/algorithms/magnitudes/ (asinh magnitudes)."""

VEGA_ZERO_POINTS = {"2MASS-J": 1594.0, "2MASS-H": 1024.0, "2MASS-K": 666.7}
"""Jy of magnitude 0 in the Vega system: Cohen, Wheaton and Megeath (2003), AJ 126, 1090, table 2; good to 2 %."""

_JANSKY = 10.0 ** (0.4 * (NANOMAGGY - FLUX_ZERO_POINTS["Jy"]))
"""Nanomaggies of 1 Jy."""

_POGSON = 2.5 / np.log(10.0)

ROWS: dict[tuple[str, str, str], str] = (
    {("legacysurvey", f"DES-{b.upper()}", "model"): f"tok_flux_{b}" for b in "griz"}
    | {("legacysurvey", f"W{k}", "model"): f"tok_flux_w{k}" for k in (1, 2, 3, 4)}
    | {("hsc", f"HSC-{b.upper()}", "cmodel"): f"tok_mag_{b}" for b in "grizy"}
    | {("sdss", f"SDSS-{b}", "model"): f"flux_{b}_sdss" for b in "ugriz"}
    | {("2mass", f"2MASS-{b.upper()}", kind): f"flux_{b}_2mass" for b in "jhk" for kind in ("psf", "aperture")}
)
"""(survey, band, how measured) -> token key. Of 2MASS both the fitted point source and the extrapolated total of an
extended one are the object's whole flux."""


@dataclass(frozen=True)
class Measured:
    """One quantity of all rows: values, errors (N,) in `unit`; missing, undetected (N,)."""

    name: str
    unit: str
    values: Doubles
    errors: Doubles | None
    missing: Bools
    undetected: Bools
    convention: Convention | None
    flags: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name as part of a flag."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.removeprefix("tok_").lower())


def as_tokens(stated: list[Measured], others: list[Measured]) -> list[Measured]:
    """Each measurement under its row of MODALITIES if it is that quantity exactly, else as it is.

    Where a row has its number from a column that the user named, or one that needs no conversion, a magnitude of the
    same quantity stays as it is beside it.
    """
    own = [_as_token(one) for one in stated]
    given = {one.name for one in (*own, *others)}
    return own + [one if row_of(one.convention) in given else _as_token(one) for one in others]


def _as_token(plain: Measured) -> Measured:
    """The measurement in the unit of its row of MODALITIES and under its key, if what is known of it allows that."""
    c, key = plain.convention, row_of(plain.convention)
    if c is None or key is None or key == plain.name:
        return plain
    if is_magnitude_unit(plain.unit):
        numbers = in_unit_of(key, plain.values, plain.errors, plain.unit, c)
        if numbers is None:
            return plain
        (values, errors), unit = numbers, MODALITIES[key].unit
        if unit == "mag":
            return replace(plain, name=key, unit=unit)
        flux = replace(c, system="AB")
        return replace(plain, name=key, unit=unit, values=values, errors=errors, convention=flux,
                       flags=("from_magnitude",))  # fmt: skip
    # A maggy is a flux of the AB system; a jansky is one whatever the system of the survey's magnitudes.
    if plain.unit not in FLUX_ZERO_POINTS or (c.system != "AB" and not plain.unit.endswith("Jy")):
        return plain
    if MODALITIES[key].unit != "nanomaggy":
        return plain
    factor = 10.0 ** (0.4 * (NANOMAGGY - FLUX_ZERO_POINTS[plain.unit]))
    errors = None if plain.errors is None else plain.errors * factor
    return replace(plain, name=key, unit="nanomaggy", values=plain.values * factor, errors=errors,
                   convention=replace(c, system="AB"))  # fmt: skip


def row_of(convention: Convention | None) -> str | None:
    """The token key whose quantity a measurement is, up to its unit; None if there is none: corrected fluxes never."""
    if convention is None or convention.extinction_corrected:
        return None
    return ROWS.get((convention.survey, convention.band, convention.kind))


def in_unit_of(
    key: str, values: Doubles, errors: Doubles | None, unit: str, convention: Convention
) -> tuple[Doubles, Doubles | None] | None:
    """Magnitudes (N,) and their errors as the row `key` has them; None if `unit` does not say enough for that.

    unit  "mag", "log mag" or "asinh mag"; NaN stays NaN
    """
    if MODALITIES[key].unit == "mag":
        return (values, errors) if unit in ("mag", "log mag") and convention.system == "AB" else None
    if unit == "asinh mag":
        softening = ASINH_SOFTENING.get(convention.band)
        return None if softening is None or convention.system != "AB" else _of_asinh(values, errors, softening)
    if unit == "mag" and convention.band in ASINH_SOFTENING:
        return None
    if convention.system == "AB":
        return _of_log(values, errors, 10.0 ** (0.4 * NANOMAGGY))
    zero_point = VEGA_ZERO_POINTS.get(convention.band)
    return None if zero_point is None else _of_log(values, errors, zero_point * _JANSKY)


def _of_log(values: Doubles, errors: Doubles | None, zero: float) -> tuple[Doubles, Doubles | None]:
    """Pogson's magnitudes to fluxes: `zero` is the flux of magnitude 0."""
    flux = zero * 10.0 ** (-0.4 * values)
    return flux, None if errors is None else flux * errors / _POGSON


def _of_asinh(values: Doubles, errors: Doubles | None, b: float) -> tuple[Doubles, Doubles | None]:
    """m = -2.5 / ln 10 (asinh(f / 2b) + ln b) with f in maggies, to nanomaggies."""
    x = np.sinh(-values / _POGSON - np.log(b))
    scale = 2e9 * b
    return scale * x, None if errors is None else scale * np.sqrt(1.0 + x**2) * errors / _POGSON
