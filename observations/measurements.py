"""The columns of a scalar table become measurements: which column is what, in which unit, by which convention.

A column that a survey documents (aliases.MEASUREMENTS) brings its unit and convention along. A column that only names
a band (aliases.GENERIC) needs the survey, the unit, the system, how it was measured, and whether it is corrected for
Galactic extinction, from the name, the survey or the options. Nothing is assumed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from astropy import units
from numpy.typing import NDArray

from albireo.observations.aliases import (
    BAND_KEY,
    FLUX_ZERO_POINTS,
    GENERIC,
    HSC_BANDS,
    LEGACY_BANDS,
    MEASUREMENTS,
    MISSING_MAGNITUDES,
    MISSING_VALUES,
    NAMED_BAND_KEY,
    SIGNATURES,
    SURVEY_NAMES,
    UNDETECTED_MAGNITUDES,
    Form,
    Measurement,
    flux_unit,
    is_electron_rate,
    is_magnitude_unit,
    magnitude_unit,
)
from albireo.observations.bands import band_system, known_survey
from albireo.observations.columns import Column, Columns
from albireo.observations.errors import BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Bools, Convention, Doubles
from albireo.observations.options import ReadOptions
from albireo.observations.photometry import Measured, as_tokens

HSC_PIXEL = MODALITIES["tok_image_hsc"].pixel_scale


@dataclass
class Taken:
    """Which columns have been used, by lower-case name; what is left is reported, not dropped silently."""

    names: set[str]

    def take(self, column: Column | None) -> Column | None:
        if column is not None:
            self.names.add(column.name.lower())
        return column


def table_survey(table: Columns, options: ReadOptions) -> str | None:
    """Whose table it is: stated by option or metadata, or told by columns that only one survey's tables have."""
    present = table.present
    signed = [name for name, sets in SIGNATURES.items() if any(needed <= present for needed in sets)]
    stated = [survey_name(str(text)) for text in (options.survey, table.meta.get("survey")) if text]
    if len(set(stated)) > 1:
        raise BadInput("statement_conflict", f"survey {' and '.join(stated)}", field="survey", fix="state it once")
    if stated and signed and stated[0] not in signed:
        raise BadInput(
            "statement_conflict", f"survey {stated[0]}, but the columns are those of {', '.join(signed)}",
            field="survey", fix="leave the option out, or drop the columns of the other survey",
        )  # fmt: skip
    return stated[0] if stated else signed[0] if len(signed) == 1 else None


@lru_cache
def survey_name(text: str) -> str:
    """A survey in our spelling; one that no table names stands as stated, in lower case."""
    return SURVEY_NAMES.get(re.sub(r"[^a-z0-9]", "", text.lower()), text.strip().lower())


def measurements(table: Columns, options: ReadOptions, survey: str | None, taken: Taken) -> list[Measured]:
    """Every measurement of the table, in its order of columns; raises if a column's meaning is not fully stated."""
    stated = list(_mapped(table, options, survey, taken))
    others = [*_documented(table, options, survey, taken), *_generic(table, options, survey, taken)]
    found = as_tokens(stated, others)
    twice = {name for name, count in Counter(one.name for one in found).items() if count > 1}
    if twice:
        raise BadInput(
            "alias_ambiguous", f"several columns are {', '.join(sorted(twice))}", field=sorted(twice)[0],
            fix="say which with columns, or drop the others",
        )  # fmt: skip
    return found


# Documented columns


def _documented(table: Columns, options: ReadOptions, survey: str | None, taken: Taken) -> Iterator[Measured]:
    wanted = table.present - taken.names
    for row in MEASUREMENTS:
        if row.column not in wanted or not (row.sure or row.survey == survey):
            continue
        column = table.find(row.column)
        if column is None or (column.values.ndim == 2) != (row.index is not None):
            continue
        if row.index is not None and column.values.shape[1] != 5:
            continue
        yield _measured(row, column, table, options, taken, own=row.survey == survey)


def _measured(
    row: Measurement, column: Column, table: Columns, options: ReadOptions, taken: Taken, own: bool
) -> Measured:
    """A documented column in the unit of its row of MODALITIES, or in its own."""
    _contradiction(row, options, own)
    taken.take(column)
    part = _part(column, row.index)
    unit = column.unit or row.unit
    if own and row.form == "flux" and column.unit is None and options.unit and flux_unit(options.unit) != row.unit:
        raise BadInput(
            "statement_conflict", f"{column.name} of {row.survey} is in {row.unit}, the option says {options.unit}",
            field="unit", fix="leave the option out, or write the unit into the file",
        )  # fmt: skip
    factor = _factor(unit, row.unit, row.form, column)
    error = _errors(table, row.errors, row.index, taken)
    values, missing, undetected = _screened(part.numbers(), row.form)
    sigma = None
    if error is not None:
        sigma, unmeasured = error
        missing |= unmeasured & ~undetected
        sigma = sigma * factor
    elif row.survey == "legacysurvey" and row.form == "flux":
        missing |= values == 0.0  # bands that were not observed are filled with zeros
    convention = None
    if row.photometry is not None:
        p = row.photometry
        convention = Convention(row.survey, p.band, p.system, p.measure, p.corrected, options.release)
    return Measured(row.name, row.unit, values * factor, sigma, missing, undetected, convention)


def _contradiction(row: Measurement, options: ReadOptions, own: bool) -> None:
    if row.photometry is None or not own or (options.system is None and options.extinction_corrected is None):
        return
    for name, stated, documented in (
        ("system", options.system, row.photometry.system),
        ("extinction_corrected", options.extinction_corrected, row.photometry.corrected),
    ):
        if stated is not None and stated != documented:
            raise BadInput(
                "statement_conflict", f"{row.column} of {row.survey} has {name} {documented}, the option says {stated}",
                field=name, fix="leave the option out, or rename the column if it is another quantity",
            )  # fmt: skip


def _part(column: Column, index: int | None) -> Column:
    return column if index is None else replace(column, values=column.values[:, index])


def _factor(unit: str, wanted: str, form: Form, column: Column) -> float:
    """What the column's numbers are multiplied with."""
    if unit == wanted:
        return 1.0
    if form == "mag":
        if is_magnitude_unit(unit):
            return 1.0
    elif form == "flux":
        have = flux_unit(unit)
        if have is not None and wanted in FLUX_ZERO_POINTS:
            return float(10.0 ** (0.4 * (FLUX_ZERO_POINTS[wanted] - FLUX_ZERO_POINTS[have])))
    elif wanted == "electron / s":
        if is_electron_rate(unit):
            return 1.0
    elif wanted == "arcsec2" and unit.replace(" ", "") in ("pixel2", "pixel**2", "pixel^2", "pix2"):
        assert HSC_PIXEL is not None
        return HSC_PIXEL**2
    elif wanted == "mag" and is_magnitude_unit(unit):
        return 1.0
    else:
        try:
            return float(units.Unit(unit).to(units.Unit(wanted)))
        except (ValueError, TypeError, units.UnitConversionError):
            pass
    raise BadInput(
        "unit_unknown", f"{column.name!r} is in {unit!r}, which is not {wanted or 'a pure number'}", field=column.name,
        fix=f"give it in {wanted or 'no unit'}",
    )  # fmt: skip


def _errors(table: Columns, names: tuple[str, ...], index: int | None, taken: Taken) -> tuple[Doubles, Bools] | None:
    """Standard deviations (N,), NaN where there is none, and rows whose inverse variance of 0 says "no measurement"."""
    column = next((c for name in names if (c := table.find(name)) is not None), None)
    if column is None or column.values.dtype.kind not in "fiu" or (column.values.ndim == 2) != (index is not None):
        return None
    taken.take(column)
    numbers = _part(column, index).numbers()
    good = np.isfinite(numbers) & (numbers > 0)
    sigma = np.full(len(numbers), np.nan)
    if "ivar" in column.name.lower():
        sigma[good] = 1.0 / np.sqrt(numbers[good])
        return sigma, numbers == 0
    sigma[good] = numbers[good]
    sigma[np.isin(numbers, (*MISSING_MAGNITUDES, *UNDETECTED_MAGNITUDES))] = np.nan
    return sigma, np.zeros(len(numbers), bool)


def _screened(numbers: Doubles, form: Form) -> tuple[Doubles, Bools, Bools]:
    """values, missing, undetected: NaN and sentinels are missing; inf, and 99 of a magnitude, is not detected."""
    finite = np.isfinite(numbers)
    if finite.all():
        missing, undetected = np.zeros((2, len(numbers)), bool)
    else:
        undetected = np.isinf(numbers) & (form != "other")
        missing = ~finite & ~undetected
    if form == "mag":
        undetected |= _one_of(numbers, UNDETECTED_MAGNITUDES)
        missing |= _one_of(numbers, MISSING_MAGNITUDES) | (numbers == 0.0)
    else:
        missing |= _one_of(numbers, MISSING_VALUES)
    gone = missing | undetected
    return np.where(gone, np.nan, numbers) if gone.any() else numbers, missing, undetected


def _one_of(numbers: Doubles, values: tuple[float, ...]) -> Bools:
    """Equal as float32 too: -99.9 is stored as -99.9000015 there."""
    out: Bools = np.logical_or.reduce(numbers == _both(values), axis=0)
    return out


@lru_cache
def _both(values: tuple[float, ...]) -> Doubles:
    """(K, 1) the values, and what they are as float32."""
    return np.array(sorted({*values, *(float(np.float32(v)) for v in values)}))[:, np.newaxis]


# Columns that the user names


def _mapped(table: Columns, options: ReadOptions, survey: str | None, taken: Taken) -> Iterator[Measured]:
    """Entries of ReadOptions.columns that are measurements: a documented name, a band, or "<camera>-<band>"."""
    if not options.columns:
        return
    ours = [row for row in MEASUREMENTS if row.index is None and (row.name in MODALITIES or row.unit.endswith("mag"))]
    documented = {row.column: row for row in ours} | {row.name: row for row in ours if row.name in MODALITIES}
    for key, name in options.columns.items():
        lower = key.lower()
        if lower in ("id", "ra", "dec", "redshift", "class"):
            continue
        column = table.named(name)
        if lower in documented:
            row = documented[lower]
            yield _measured(row, column, table, options, taken, own=True)
        elif BAND_KEY.fullmatch(lower) or NAMED_BAND_KEY.fullmatch(key):
            form: Form | None = "mag" if "mag" in name.lower() else "flux" if "flux" in name.lower() else None
            band = key if NAMED_BAND_KEY.fullmatch(key) else lower
            yield _photometry(column, band, form, None, None, table, options, survey, taken)
        else:
            raise BadInput(
                "option_invalid", f"columns: {key!r} is no name of ours", field="columns",
                fix="use id, ra, dec, redshift, class, a band, <camera>-<band>, or " + ", ".join(sorted(documented)),
            )  # fmt: skip


# Columns that name a band


def _generic(table: Columns, options: ReadOptions, survey: str | None, taken: Taken) -> Iterator[Measured]:
    used_before = frozenset(taken.names)
    # "y" beside "x" is a pixel coordinate.
    pixel = {"y"} if table.find("x") is not None else set()
    for column in table.columns:
        name = column.name.lower()
        if name in used_before | pixel or column.values.ndim != 1 or column.values.dtype.kind not in "fiu":
            continue
        for pattern, form, measure, corrected in GENERIC:
            match = pattern.fullmatch(name)
            if match:
                yield _photometry(column, match[1], form, measure, corrected, table, options, survey, taken)
                break


def _photometry(
    column: Column,
    band: str,
    form: Form | None,
    measure: Any,
    corrected: bool | None,
    table: Columns,
    options: ReadOptions,
    survey: str | None,
    taken: Taken,
) -> Measured:
    """A flux or magnitude of which only the band is in the name."""
    taken.take(column)
    named = "-" in band
    if survey is None and not named:
        raise BadInput(
            "survey_missing", f"column {column.name!r} is a band of which survey?", field=column.name,
            fix="state survey, or map the column with columns",
        )  # fmt: skip
    owner = survey or band.split("-", 1)[0].lower()
    full = band if named else _survey_band(owner, band, column)
    unit = column.unit or options.unit or ("mag" if form == "mag" else None)
    if unit is None and options.zero_point is not None and form == "flux":
        unit = f"flux at zero point {options.zero_point:g}"
    if unit is None:
        raise BadInput(
            "unit_missing", f"column {column.name!r} has no unit: a magnitude or a flux?", field=column.name,
            fix="state unit, e.g. mag, nanomaggy or uJy",
        )  # fmt: skip
    kind: Form = "mag" if is_magnitude_unit(unit) else "flux"
    if (form == "mag") != (kind == "mag") and form is not None:
        raise BadInput("statement_conflict", f"{column.name!r} is in {unit!r}", field=column.name)
    if kind == "flux" and flux_unit(unit) is None and not unit.startswith("flux at zero point"):
        raise BadInput("unit_unknown", f"{column.name!r} is in {unit!r}", field=column.name, fix="use nanomaggy or uJy")
    convention = _convention(column, owner, full, measure, corrected, options)
    values, missing, undetected = _screened(column.numbers(), kind)
    error = _errors(table, _error_names(column.name.lower(), band), None, taken)
    sigma = None
    if error is not None:
        sigma, unmeasured = error
        missing = missing | (unmeasured & ~undetected)
    return Measured(
        f"{owner}.{band}", flux_unit(unit) or magnitude_unit(unit) or unit, values, sigma, missing, undetected,
        convention,
    )  # fmt: skip


def _survey_band(survey: str, band: str, column: Column) -> str:
    known = {"legacysurvey": LEGACY_BANDS, "hsc": HSC_BANDS}.get(survey)
    if known is None:
        filters = known_survey(survey)
        if filters is None:
            return f"{survey}-{band}"
        letters = {name.lower(): f"{filters.name}-{full}" for name, full in filters.bands.items()}
        known = letters
    if band not in known:
        raise BadInput(
            "band_unknown", f"{survey} has no band {band!r}", field=column.name,
            fix=f"its bands are {', '.join(known)}; map the column with columns if it is of another camera",
        )  # fmt: skip
    return known[band]


def _convention(
    column: Column, survey: str, band: str, measure: Any, corrected: bool | None, options: ReadOptions
) -> Convention:
    native = "AB" if survey in ("legacysurvey", "hsc") else band_system(band)
    if native and options.system and native != options.system:
        raise BadInput("statement_conflict", f"{survey} publishes in {native}", field="system")
    if measure and options.kind and measure != options.kind:
        raise BadInput("statement_conflict", f"the name {column.name!r} says {measure}", field="kind")
    if corrected is not None and options.extinction_corrected not in (None, corrected):
        raise BadInput("statement_conflict", f"the name {column.name!r} says corrected", field="extinction_corrected")
    system, how = native or options.system, measure or options.kind
    done = corrected if corrected is not None else options.extinction_corrected
    for name, value, fix in (
        ("system", system, "AB or Vega"),
        ("kind", how, "model, cmodel, psf, aperture or fibre"),
        ("extinction_corrected", done, "true or false"),
    ):
        if value is None:
            raise BadInput(
                "convention_missing", f"{name} of column {column.name!r} is not stated", field=name,
                fix=f"state {name}: {fix}",
            )  # fmt: skip
    assert system is not None
    assert how is not None
    assert done is not None
    return Convention(survey, band, system, how, done, options.release)


def _error_names(name: str, band: str) -> tuple[str, ...]:
    """What the error column of a column may be called."""
    names = [f"{name}_err", f"{name}err", f"{name}_error", f"e_{name}", f"e{name}", f"err_{name}", f"{name}_ivar",
             f"sigma_{name}", f"d{name}"]  # fmt: skip
    for word in ("mag", "flux"):
        if word in name:
            names += [name.replace(word, other, 1) for other in (f"{word}err", f"{word}_err", f"{word}_ivar")]
            names += [f"{name.replace(f'_{band}', '')}err_{band}", f"{name.replace(f'_{band}', '')}_err_{band}"]
    return tuple(n for n in dict.fromkeys(names) if n != name)


def rows_of(values: NDArray[Any]) -> list[Any]:
    """An array as Python values, fast to index."""
    out: list[Any] = values.tolist()
    return out
