"""Gaia XP continuous spectra: 55 basis coefficients of BP and 55 of RP for each source.

Read from CSV, ECSV, FITS, VOTable, Parquet or Arrow. The photometers are told by column name, never by order:
bp_coefficients, bp_coefficient_errors, rp_coefficients, rp_coefficient_errors. Arrays may be arrays, or text such as
"(1.0, 2.0, ..)" or "[1.0, 2.0, ..]". source_id is a 64-bit integer and becomes text digit by digit. Coefficients are in
electron / s, as the archive documents. Mean fluxes and the parallax, if they are there, become scalars; magnitudes
become extras (Vega, not corrected for extinction).
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from astropy import units

from albireo.observations.columns import Column, Columns, load_columns, lower_names, table_kind
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.fits_cells import plain
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Coefficients, Convention, Doubles, Observation, Scalar
from albireo.observations.options import ReadOptions
from albireo.observations.positions import identifier, of_row
from albireo.observations.source import Source
from albireo.observations.spectral_terms import position

BASES = 55
"""Coefficients of one photometer in Gaia DR3 and its predecessors of the same basis."""
PHOTOMETERS = {"bp": "tok_xp_bp", "rp": "tok_xp_rp"}
ARRAYS = tuple(f"{xp}_{what}" for xp in PHOTOMETERS for what in ("coefficients", "coefficient_errors"))
FLUXES = {"g": "G", "bp": "BP", "rp": "RP"}

_COUNTS = tuple(f"{xp}_{what}" for xp in PHOTOMETERS for what in ("n_relevant_bases", "n_measurements"))
_NUMBERS = tuple(
    f"{xp}_{what}" for xp in PHOTOMETERS for what in ("relative_shrinking", "standard_deviation", "chi_squared")
)
_ELECTRONS = re.compile(r"'?(electrons?|e-)'?\s*(/\s*s|[.* ]\s*s(\*\*|\^)?-1)", re.IGNORECASE)


def sniff_xp(source: Source) -> bool:
    """True for a table with coefficients of a photometer."""
    return bool(lower_names(source) & {"bp_coefficients", "rp_coefficients"})


def read_xp(source: Source, options: ReadOptions, companions: Sequence[Source]) -> list[Observation | AlbireoError]:
    """One object per row, or the error of that row."""
    if options.survey is not None and options.survey.strip().lower() != "gaia":
        raise BadInput(
            "statement_conflict",
            f"the columns are Gaia's, the option survey says {options.survey!r}",
            field="survey",
            fix="leave the option out for this file",
        )
    readable = _without_nulls(source) if table_kind(source) == "ecsv" else source
    table = load_columns(readable, text=(*ARRAYS, "source_id", "solution_id"))
    ids = table.named(options.columns["source_id"]) if "source_id" in options.columns else table.find("source_id")
    if ids is None:
        raise BadInput(
            "column_missing",
            "no column source_id",
            field="source_id",
            fix="add it, or name it in the option columns: source_id=<column>",
        )
    columns = {column.name.lower(): column for column in table.columns}
    for xp in PHOTOMETERS:
        _check_unit(columns.get(f"{xp}_coefficients"))
    factors = _scalar_factors(columns)
    source.make(table.rows)
    items: list[Observation | AlbireoError] = []
    for number in range(table.rows):
        try:
            if ids.missing[number]:
                raise BadInput("value_missing", "the row has no source_id", field="source_id", fix="name every source")
            items.append(_observe(source, options, table, columns, factors, identifier(ids.values[number]), number))
        except AlbireoError as error:
            items.append(of_row(error, source.name, f"row {source.first_row + number}"))
    return items


def _without_nulls(source: Source) -> Source:
    """The same table with empty cells where the archive's ECSV says null, a word that astropy takes for a value."""
    lines = source.text().splitlines()
    start = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    if not any(line.replace(" ", "") == "#delimiter:','" for line in lines[:start]):
        return source
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for cells in csv.reader(lines[start:]):
        writer.writerow(["" if cell == "null" else cell for cell in cells])
    return Source(source.name, ("\n".join(lines[:start]) + "\n" + out.getvalue()).encode(), source.limit)


def _observe(
    source: Source,
    options: ReadOptions,
    table: Columns,
    columns: Mapping[str, Column],
    factors: Mapping[str, float],
    name: str,
    number: int,
) -> Observation:
    data: dict[str, Any] = {}
    flags: list[str] = []
    for xp, key in PHOTOMETERS.items():
        values = _array(columns.get(f"{xp}_coefficients"), number)
        if values is None:
            flags.append(f"missing_{xp}")
            continue
        errors = _array(columns.get(f"{xp}_coefficient_errors"), number)
        if errors is not None and (errors < 0).any():
            raise BadInput(
                "value_out_of_range",
                f"an error of {errors.min():g}",
                field=f"{xp}_coefficient_errors",
                fix="fetch the row again",
            )
        data[key] = Coefficients(
            values.astype(np.float32), MODALITIES[key].unit, None if errors is None else errors.astype(np.float32)
        )
    if not data:
        raise BadInput(
            "value_missing",
            f"source {name} has neither BP nor RP coefficients",
            field="bp_coefficients",
            fix="leave sources without XP spectra out",
        )
    cells = {key: _number_of(columns[key], number) for key in columns}
    scalars, extras = _photometry(cells, factors, options.release)
    ra, dec, lost = position(cells.get("ra"), cells.get("dec"))
    metadata: dict[str, Any] = {key: int(value) for key in _COUNTS if (value := cells.get(key)) is not None}
    # float32 in the archive: text and binary files shall say the same.
    metadata |= {key: float(np.float32(value)) for key in _NUMBERS if (value := cells.get(key)) is not None}
    if "solution_id" in columns and not columns["solution_id"].missing[number]:
        metadata["solution_id"] = str(columns["solution_id"].values[number])
    here = source.provenance("gaia_xp", survey="gaia", release=options.release, hdu=table.hdu, row=number)
    return Observation(
        id=name,
        data={**data, **scalars},
        ra=ra,
        dec=dec,
        extras=extras,
        metadata=metadata,
        provenance=dict.fromkeys((*data, *scalars), here),
        flags=(*flags, *lost),
    )


def _array(column: Column | None, number: int) -> Doubles | None:
    """The coefficients of a cell, None if it is empty; raises shape_mismatch, not_finite, value_out_of_range."""
    if column is None or column.missing[number]:
        return None
    cell = column.values[number]
    if isinstance(cell, (str, np.str_)):
        cell = _numbers(str(cell), column.name)
    values = np.asarray(np.ma.filled(np.ma.asarray(cell, np.float64), np.nan))
    if values.size == 0 or (values.shape == () and not np.isfinite(values)):
        return None
    if values.shape != (BASES,):
        raise BadInput(
            "shape_mismatch",
            f"{values.size} numbers, {BASES} coefficients are needed",
            field=column.name,
            fix="fetch XP_CONTINUOUS in the RAW format, which does not truncate",
        )
    if not np.isfinite(values).all():
        raise BadInput(
            "not_finite",
            f"coefficient {int(np.argmin(np.isfinite(values)))} is not finite",
            field=column.name,
            fix="fetch the row again, or leave it out",
        )
    return values


def _numbers(text: str, field: str) -> list[float]:
    """Numbers of a text "(1.0, 2.0)", "[1.0, 2.0]" or "1.0 2.0"; null is NaN."""
    body = text.strip()
    if body[:1] + body[-1:] in ("()", "[]", "{}"):
        body = body[1:-1]
    words = body.replace(",", " ").split()
    try:
        return [math.nan if word.lower() in ("null", "none", "--") else float(word) for word in words]
    except ValueError as error:
        raise BadInput(
            "value_out_of_range", f"no list of numbers: {error}", field=field, fix='write "(1.0, 2.0, ..)"'
        ) from error


def _number_of(column: Column, row: int) -> float | None:
    """A numeric cell, None if it is missing, NaN, text or an array."""
    if column.missing[row] or column.values.ndim != 1 or column.values.dtype.kind not in "fiu":
        return None
    value = float(plain(column.values[row]))
    return value if math.isfinite(value) else None


# Scalars


def _photometry(
    cells: Mapping[str, float | None], factors: Mapping[str, float], release: str | None
) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
    """(scalars by token key, extras by column name)."""
    scalars: dict[str, Scalar] = {}
    extras: dict[str, Scalar] = {}
    for short, band in FLUXES.items():
        convention = Convention("gaia", band, "Vega", "mean", extinction_corrected=False, release=release)
        flux, error = (cells.get(f"phot_{short}_mean_flux{end}") for end in ("", "_error"))
        if flux is not None:
            scalars[f"tok_flux_{short}_gaia"] = Scalar(flux, "electron / s", error, convention)
        magnitude = cells.get(f"phot_{short}_mean_mag")
        if magnitude is not None:
            extras[f"phot_{short}_mean_mag"] = Scalar(magnitude, "mag", None, convention)
    parallax, error = cells.get("parallax"), cells.get("parallax_error")
    if parallax is not None:
        factor = factors["parallax"]
        scalars["tok_parallax"] = Scalar(parallax * factor, "mas", None if error is None else error * factor)
    return scalars, extras


def _scalar_factors(columns: Mapping[str, Column]) -> dict[str, float]:
    """Factor of the parallax to mas; units of all scalar columns are checked. Raises unit_unknown."""
    for short in FLUXES:
        _check_unit(columns.get(f"phot_{short}_mean_flux"))
    for name in ("ra", "dec"):
        column = columns.get(name)
        if column is not None and column.unit and _convert(column, "deg") != 1.0:
            raise BadInput("unit_unknown", f"{column.unit!r}", field=column.name, fix="give degrees")
    parallax = columns.get("parallax")
    return {"parallax": 1.0 if parallax is None or not parallax.unit else _convert(parallax, "mas")}


def _check_unit(column: Column | None) -> None:
    if column is not None and column.unit and not _ELECTRONS.fullmatch(column.unit.strip()):
        raise BadInput(
            "unit_unknown", f"{column.unit!r} is not electron / s", field=column.name, fix="fetch it from the archive"
        )


def _convert(column: Column, unit: str) -> float:
    try:
        return float(units.Unit(column.unit).to(unit))
    except (ValueError, TypeError) as error:
        raise BadInput(
            "unit_unknown", f"{column.unit!r} is not {unit}", field=column.name, fix=f"give {unit}"
        ) from error


FORMATS: tuple[tuple[Any, ...], ...] = (
    ("gaia_xp", "Gaia XP continuous coefficients (CSV, ECSV, FITS, VOTable, Parquet, Arrow)", sniff_xp, read_xp),
)
