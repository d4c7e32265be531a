"""A list of positions that comes with a mosaic: one object per row, columns id, ra, dec.

Read from CSV, ECSV or the first table of a FITS file; `ReadOptions.columns` maps "id", "ra", "dec" to other names.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy import units
from astropy.io import fits
from astropy.table import Table

from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source

ALIASES: dict[str, tuple[str, ...]] = {
    "id": ("id", "objid", "object_id", "objectid", "targetid", "source_id", "name"),
    "ra": ("ra", "ra_deg", "raj2000", "ra_icrs", "target_ra"),
    "dec": ("dec", "decl", "dec_deg", "dej2000", "decj2000", "de_icrs", "target_dec"),
}


@dataclass(frozen=True)
class Position:
    """One row: its number from 0, a string id, degrees ICRS."""

    row: int
    id: str
    ra: float
    dec: float


def read_positions(source: Source, options: ReadOptions) -> list[Position | AlbireoError]:
    """One position per row, or the error of that row; raises if the table or a column cannot be read."""
    columns = _columns(source)
    names = {key: _find(key, list(columns), options.columns, source.name) for key in ALIASES}
    to_degree = {key: _degrees(columns[names[key]][1], names[key], source.name) for key in ("ra", "dec")}
    rows: list[Position | AlbireoError] = []
    for i, cells in enumerate(zip(*(columns[names[key]][0] for key in ALIASES), strict=True)):
        try:
            rows.append(
                Position(
                    i,
                    identifier(cells[0]),
                    _angle(cells[1], to_degree["ra"], (0.0, 360.0)),
                    _angle(cells[2], to_degree["dec"], (-90.0, 90.0)),
                )
            )
        except AlbireoError as error:
            rows.append(of_row(error, source.name, f"row {i}"))
    if not rows:
        raise BadInput("empty_file", "the table of positions has no row", file=source.name)
    return rows


def of_row(error: AlbireoError, file: str, row: str) -> AlbireoError:
    """The same error, told which of a file's objects it concerns, before the field; returns it."""
    error.file = error.file or file
    error.field = f"{row}, {error.field}" if error.field else row
    return error


def identifier(value: Any) -> str:
    """An id as text, digit by digit; a float is refused where it cannot hold the integer it stands for."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, (float, np.floating)):
        value = float(value)
        if not np.isfinite(value) or value != int(value) or abs(value) >= 2**53:
            raise BadInput(
                "value_out_of_range", f"the id {value!r} is a floating-point number", fix="store ids as text"
            )
        value = int(value)
    text = "" if value is None or value is np.ma.masked else str(value).strip()
    if not text:
        raise BadInput("value_missing", "the id is empty", fix="give each row an id")
    return text


def _columns(source: Source) -> dict[str, tuple[Sequence[Any], str | None]]:
    """Name -> (cells, unit text or None)."""
    if source.is_fits:
        with source.fits() as hdus:
            tables = [hdu for hdu in hdus if isinstance(hdu, (fits.BinTableHDU, fits.TableHDU))]
            if not tables:
                raise BadInput("column_missing", "the FITS file of positions has no table", file=source.name)
            data, units_of = tables[0].data, {column.name: column.unit for column in tables[0].columns}
            return {name: (list(data[name]), units_of[name]) for name in units_of}
    text = source.text()
    try:
        if text.startswith("# %ECSV"):
            table = Table.read(text.splitlines(), format="ascii.ecsv")
            return {name: (list(table[name]), str(table[name].unit or "") or None) for name in table.colnames}
        header, *lines = [line for line in csv.reader(io.StringIO(text), strict=True) if line]
        short = next((number for number, line in enumerate(lines) if len(line) != len(header)), None)
        if short is not None:
            raise BadInput(
                "damaged_file", f"row {short} has {len(lines[short])} cells, the header {len(header)}", file=source.name
            )
    except (ValueError, csv.Error) as error:
        raise BadInput(
            "damaged_file", f"no table of positions: {error}", file=source.name, fix="give CSV, ECSV or a FITS table"
        ) from error
    # Cells stay text: an id with leading zeros or 19 digits is not a number.
    return {name.strip(): ([line[i] for line in lines], None) for i, name in enumerate(header)}


def _find(key: str, names: Sequence[str], overrides: Mapping[str, str], file: str) -> str:
    """The column that holds `key`."""
    if key in overrides:
        if overrides[key] not in names:
            raise BadInput(
                "column_unknown",
                f"there is no column {overrides[key]!r}",
                file=file,
                field=key,
                fix=f"columns: {', '.join(names)}",
            )
        return overrides[key]
    found = [name for alias in ALIASES[key] for name in names if name.lower() == alias]
    if not found:
        raise BadInput(
            "column_missing",
            f"none of {', '.join(ALIASES[key])} among {', '.join(names)}",
            file=file,
            field=key,
            fix=f"name the column in the option columns: {key}=<column>",
        )
    if len(found) > 1:
        raise BadInput(
            "alias_ambiguous",
            f"{' and '.join(found)} can both be the {key}",
            file=file,
            field=key,
            fix=f"name the column in the option columns: {key}=<column>",
        )
    return found[0]


def _degrees(text: str | None, column: str, file: str) -> float:
    """Factor from the column's unit to degrees; a column without unit is in degrees."""
    if not text:
        return 1.0
    try:
        return float(units.Unit(text).to(units.deg))
    except (ValueError, TypeError) as error:
        raise BadInput("unit_unknown", f"{text!r} is no angle", file=file, field=column, fix="degrees") from error


def _angle(value: Any, factor: float, span: tuple[float, float]) -> float:
    if value is np.ma.masked:
        raise BadInput("value_missing", "the position is empty")
    try:
        angle = float(value) * factor
    except ValueError as error:
        raise BadInput(
            "value_out_of_range", f"{value!r} is no number", fix="positions are decimal degrees ICRS"
        ) from error
    if not span[0] <= angle <= span[1]:
        raise BadInput("value_out_of_range", f"{angle} is outside {span[0]:g} to {span[1]:g} degrees")
    return angle
