"""Spectra from bare arrays: conventions stated, wavelengths to vacuum, fluxes to the unit of the modality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from astropy import units
from numpy.typing import NDArray

from albireo.observations.cutouts import Noise
from albireo.observations.errors import BadInput
from albireo.observations.image_conventions import agree
from albireo.observations.modalities import FLUX_DENSITY, MODALITIES, Modality
from albireo.observations.observation import Doubles, Spectrum
from albireo.observations.options import ReadOptions
from albireo.observations.wavelengths import air_to_vacuum

FRAMES = ("heliocentric", "barycentric", "observed", "rest")
SHORTEST_RED_END = 3000.0
"""Angstrom; no optical spectrum of a spectrum modality ends bluer, so smaller numbers are nm or micron."""

_ROWS = {row.survey: row for row in MODALITIES.values() if row.kind == "spectrum"}
_SAME_INSTRUMENT = {"boss": "sdss", "eboss": "sdss"}


@dataclass(frozen=True)
class Terms:
    """What all spectra of a file are in: modality, factor to its unit, medium and frame as stated."""

    row: Modality
    factor: float
    medium: Literal["vacuum", "air"]
    frame: str


def spectrum_terms(stated: Mapping[str, tuple[str, str] | None], options: ReadOptions) -> Terms:
    """The terms of a file; `stated` has (where, text) or None for survey, unit, medium and frame."""
    texts: dict[str, str] = {}
    for key, code, choices in (
        ("survey", "survey_missing", tuple(_ROWS)),
        ("unit", "unit_missing", (FLUX_DENSITY, "relative flux")),
        ("medium", "medium_missing", ("vacuum", "air")),
        ("frame", "frame_missing", FRAMES),
    ):
        statements = [found] if (found := stated[key]) else []
        if (option := getattr(options, key)) is not None:
            statements.append((f"the option {key}", option))
        text = agree(key, statements, lambda a, b: a.strip().lower() == b.strip().lower())
        if text is None:
            raise BadInput(
                code,
                f"the {key} of the spectra is not stated",
                field=key,
                fix=f"store a text array {key}, or give the option {key}, e.g. {' or '.join(choices)}",
            )
        texts[key] = text.strip() if key == "unit" else text.strip().lower()
    survey = _SAME_INSTRUMENT.get(texts["survey"], texts["survey"])
    if survey not in _ROWS:
        raise BadInput(
            "modality_unknown",
            f"no spectrum modality for the survey {texts['survey']!r}",
            field="survey",
            fix=f"spectra of {', '.join(_ROWS)} are read",
        )
    for key, allowed in (("medium", ("vacuum", "air")), ("frame", FRAMES)):
        if texts[key] not in allowed:
            raise BadInput("option_invalid", f"{key} {texts[key]!r}", field=key, fix=f"one of {', '.join(allowed)}")
    medium: Literal["vacuum", "air"] = "air" if texts["medium"] == "air" else "vacuum"
    return Terms(_ROWS[survey], _factor(texts["unit"], _ROWS[survey]), medium, texts["frame"])


def spectrum_of(
    wavelength: Doubles,
    flux: NDArray[Any],
    noise: NDArray[Any],
    noise_kind: Noise,
    mask: NDArray[Any] | None,
    terms: Terms,
) -> tuple[Spectrum, tuple[str, ...]]:
    """One spectrum of arrays (L,) and its QA flags; wavelength in Angstrom in `terms.medium`.

    Trailing pixels without a wavelength and without information are the padding of ragged batches; they are left
    out and flagged `padding_dropped`. Pixels with no finite flux or no positive ivar are masked, ivar 0 there.
    """
    flux = flux.astype(np.float64) * terms.factor
    noise = noise.astype(np.float64)
    finite = np.isfinite(flux)
    good = np.isfinite(noise) & (noise > 0)
    power = {"ivar": 1, "variance": -1, "error": -2}[noise_kind]
    ivar = np.where(good, np.where(good, noise, 1.0) ** power, 0.0) / terms.factor**2
    bad = ~(good & finite)
    flags = [] if finite.all() else ["nan_pixels"]
    if mask is not None:
        bad |= mask != 0
    placed = np.isfinite(wavelength) & (wavelength > 0)
    length = len(placed) - int(np.argmax(placed[::-1])) if placed.any() else 0
    if length < len(placed):
        if not bad[length:].all():
            raise BadInput(
                "wavelength_not_monotonic",
                f"good pixels without a wavelength from pixel {length} on",
                field="wavelength",
                fix="mask pixels that have no wavelength",
            )
        flags.append("padding_dropped")
    wavelength, flux, ivar, bad = wavelength[:length], flux[:length], ivar[:length], bad[:length]
    if bad.all():
        raise BadInput("no_coverage", "no pixel has a flux, a wavelength and a positive ivar", field="ivar")
    if not placed[:length].all() or not (np.diff(wavelength) > 0).all():
        where = int(np.argmin(np.diff(wavelength) > 0)) if placed[:length].all() else int(np.argmin(placed))
        raise BadInput(
            "wavelength_not_monotonic",
            f"wavelengths do not increase at pixel {where}",
            field="wavelength",
            fix="co-add overlapping cameras and sort by wavelength",
        )
    if wavelength[-1] < SHORTEST_RED_END:
        raise BadInput(
            "wavelength_unit",
            f"wavelengths end at {wavelength[-1]:g}, which cannot be Angstrom",
            field="wavelength",
            fix="store wavelengths in Angstrom (nm times 10, micron times 10000)",
        )
    if bad.any():
        flags.append("masked_pixels")
    spectrum = Spectrum(
        wavelength=air_to_vacuum(wavelength) if terms.medium == "air" else wavelength.copy(),
        flux=np.where(np.isfinite(flux), flux, 0.0).astype(np.float32),
        ivar=np.where(bad, 0.0, ivar).astype(np.float32),
        mask=bad,
        unit=terms.row.unit,
        frame=terms.frame,
        medium=terms.medium,
    )
    return spectrum, tuple(flags)


def _factor(text: str, row: Modality) -> float:
    """Factor from a stated unit to that of the modality."""
    if text.lower() == row.unit.lower():
        return 1.0
    try:
        factor = float(units.Unit(text).to(units.Unit(row.unit)))
    except (ValueError, TypeError) as error:
        raise BadInput(
            "unit_unknown", f"{text!r} cannot be converted to {row.unit!r}", field="unit", fix=f"store {row.unit}"
        ) from error
    return 1.0 if abs(factor - 1) < 1e-12 else factor
