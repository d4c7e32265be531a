"""What survey files of spectra have in common: unit, medium and frame, wavelength solutions, bad pixels, positions.

What a survey documents of all its files (SDSS and DESI are in vacuum, in the frame of the Sun) counts as said by the
file, unless its header says otherwise. Options that contradict either are an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal

import numpy as np
from astropy import units
from numpy.typing import NDArray

from albireo.observations.cutouts import Noise
from albireo.observations.errors import BadInput
from albireo.observations.modalities import MODALITIES, Modality
from albireo.observations.observation import Doubles, Spectrum
from albireo.observations.options import ReadOptions
from albireo.observations.packed_spectra import FRAMES, Terms, spectrum_of

LOW_COVERAGE = 0.5
"""Share of good pixels below which a spectrum is flagged `low_coverage`."""
GRID_TOLERANCE = 0.01
"""Angstrom by which two wavelength solutions of one header may differ: a hundredth of a pixel, cards are rounded."""

_SAME_INSTRUMENT = {"boss": "sdss", "eboss": "sdss", "segue": "sdss"}


def survey_terms(
    key: str,
    options: ReadOptions,
    *,
    unit: tuple[str, str],
    medium: tuple[str, Literal["vacuum", "air"]],
    frame: tuple[str, str],
) -> Terms:
    """The terms of one survey's file; `unit`, `medium` and `frame` are (where it is said, what).

    Raises statement_conflict if the options say otherwise, unit_unknown.
    """
    row = MODALITIES[key]
    if options.survey is not None:
        given = options.survey.strip().lower()
        if _SAME_INSTRUMENT.get(given, given) != row.survey:
            raise _conflict("survey", ("the layout of the file", row.survey), options.survey)
    factor = density_factor(unit[1], row)
    if options.unit is not None and not math.isclose(density_factor(options.unit, row), factor, rel_tol=1e-9):
        raise _conflict("unit", unit, options.unit)
    if options.medium is not None and options.medium != medium[1]:
        raise _conflict("medium", medium, options.medium)
    if options.frame is not None and options.frame.strip().lower() != frame[1]:
        raise _conflict("frame", frame, options.frame)
    if frame[1] not in FRAMES:
        raise BadInput("option_invalid", f"frame {frame[1]!r}", field="frame", fix=f"one of {', '.join(FRAMES)}")
    return Terms(row, factor, medium[1], frame[1])


def _conflict(field: str, stated: tuple[str, str], option: str) -> BadInput:
    return BadInput(
        "statement_conflict",
        f"{stated[0]} says {stated[1]!r} and the option {field} says {option!r}",
        field=field,
        fix="leave the option out for this file, or correct the file",
    )


def density_factor(text: str, row: Modality) -> float:
    """Factor from a flux density's unit as written to that of the modality; raises unit_unknown."""
    if text.strip().lower() == row.unit.lower():
        return 1.0
    try:
        factor = float(parse_unit(text).to(units.Unit(row.unit)))
    except (ValueError, TypeError) as error:
        raise BadInput(
            "unit_unknown", f"{text!r} cannot be converted to {row.unit!r}", field="unit", fix=f"state {row.unit}"
        ) from error
    # Powers of ten that went through text and back are exact again.
    return round(factor, 12) if abs(factor - round(factor, 12)) < 1e-9 * factor else factor


def parse_unit(text: str) -> Any:
    """An astropy unit of a text as surveys write it: "Ang" and "A" are Angstrom (nothing here is in ampere)."""
    text = re.sub(r"\b(Ang|Angstroms|A)\b", "Angstrom", text.strip())
    text = re.sub(r"\b(microns)\b", "micron", text)
    first, *rest = text.split("/")
    if len(rest) > 1 and "(" not in text:
        text = f"{first}/({' '.join(rest)})"
    return units.Unit(text)


def solution(header: Mapping[str, Any], length: int) -> Doubles:
    """Wavelengths (length,) in Angstrom of pixels 0, 1, .. from a header.

    COEFF0, COEFF1 are log10 of Angstrom at pixel 0 and per pixel. CRVAL1, CD1_1 (or CDELT1) at CRPIX1 are log10 if
    DC-FLAG is 1 and Angstrom if it is 0. Raises column_missing, wavelength_unit, statement_conflict.
    """
    pixel = np.arange(length, dtype=np.float64)
    found: list[tuple[str, Doubles]] = []
    if "COEFF0" in header and "COEFF1" in header:
        found.append(("COEFF0, COEFF1", 10.0 ** (float(header["COEFF0"]) + float(header["COEFF1"]) * pixel)))
    step = header.get("CD1_1", header.get("CDELT1"))
    if "CRVAL1" in header and step is not None:
        linear = float(header["CRVAL1"]) + float(step) * (pixel + 1.0 - float(header.get("CRPIX1", 1.0)))
        if header.get("DC-FLAG") in (0, 1):
            found.append(("CRVAL1, CD1_1", 10.0**linear if header["DC-FLAG"] == 1 else linear))
        elif not found:
            raise BadInput(
                "wavelength_unit",
                f"whether CRVAL1 = {header['CRVAL1']} is a wavelength or its log10 is not stated",
                field="DC-FLAG",
                fix="set DC-FLAG to 1 for log10 of Angstrom, 0 for Angstrom",
            )
    if not found:
        raise BadInput(
            "column_missing",
            "the header has no wavelength solution",
            field="COEFF0",
            fix="state COEFF0 and COEFF1, or CRVAL1, CD1_1 and DC-FLAG",
        )
    if len(found) > 1 and not np.allclose(found[0][1], found[1][1], rtol=0, atol=GRID_TOLERANCE):
        raise BadInput(
            "statement_conflict",
            f"{found[0][0]} begin at {found[0][1][0]:.2f} A, {found[1][0]} at {found[1][1][0]:.2f} A",
            field="COEFF0",
            fix="correct the header cards that are wrong",
        )
    return found[0][1]


def measured(
    wavelength: Doubles,
    flux: NDArray[Any],
    noise: NDArray[Any],
    bad: NDArray[Any] | None,
    terms: Terms,
    noise_kind: Noise = "ivar",
) -> tuple[Spectrum, tuple[str, ...]]:
    """A spectrum of arrays (L,), wavelength in Angstrom in the file's medium, and its QA flags.

    Raises no_coverage if no pixel is good, wavelength_not_monotonic, wavelength_unit, shape_mismatch.
    """
    shapes = {array.shape for array in (wavelength, flux, noise, bad) if array is not None}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise BadInput(
            "shape_mismatch",
            f"wavelength, flux, {noise_kind} and mask have shapes {sorted(shapes)}",
            field="flux",
            fix="give arrays of one length",
        )
    good = np.isfinite(flux) & np.isfinite(noise) & (noise > 0)
    if not (good if bad is None else good & (bad == 0)).any():
        raise BadInput(
            "no_coverage",
            f"none of {len(flux)} pixels has a flux, a positive {noise_kind} and no mask",
            field="flux",
            fix="leave this spectrum out",
        )
    spectrum, flags = spectrum_of(wavelength, flux, noise, noise_kind, bad, terms)
    if spectrum.mask.mean() > 1 - LOW_COVERAGE:
        flags = (*flags, "low_coverage")
    return spectrum, flags


def position(ra: Any, dec: Any) -> tuple[float | None, float | None, tuple[str, ...]]:
    """ra and dec in degrees and flags: None if absent, flagged `position_invalid` if stated and impossible."""
    if ra is None or dec is None:
        return None, None, ()
    if not all(isinstance(angle, Real) for angle in (ra, dec)):
        return None, None, ("position_invalid",)
    if 0 <= ra <= 360 and -90 <= dec <= 90:
        return float(ra), float(dec), ()
    blank = math.isnan(ra) and math.isnan(dec)
    return None, None, () if blank else ("position_invalid",)


def whole(value: Any) -> int | None:
    """A whole number of a card or cell, which may be written as text; None if it is none."""
    try:
        return int(value)
    except (ValueError, TypeError, OverflowError):
        return None


def known(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Metadata: our name -> value of the column or card, without those absent, empty or not a number."""
    found = {ours: values.get(theirs) for ours, theirs in names.items()}
    return {
        name: value
        for name, value in found.items()
        if value is not None and value != "" and not (isinstance(value, float) and not math.isfinite(value))
    }
