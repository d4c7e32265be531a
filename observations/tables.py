"""Scalar tables: CSV, ECSV, FITS binary tables, Parquet, Arrow and VOTable, one object per row.

Measurements become tokens' values or extras, each with its convention; redshift, class and position are metadata.
`z` alone may be a band or a redshift: it is the band beside bare g, r, i and a redshift column, the redshift beside
columns such as zwarn, and otherwise an error until ReadOptions.columns says which.
An absent value is flagged missing_<name>, one that was looked for and not found non_detection_<name>.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from astropy import units
from astropy.coordinates import Angle

from albireo.observations.aliases import (
    CLASS_NAMES,
    DEC_NAMES,
    ID_NAMES,
    LABEL_NAMES,
    MISSING_VALUES,
    RA_NAMES,
    REDSHIFT_NAMES,
    REDSHIFT_SIBLINGS,
)
from albireo.observations.columns import Column, Columns, column_names, load_columns, table_kind
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.identifiers import about, exact_ids
from albireo.observations.lightcurves import read_table_lightcurve
from albireo.observations.measurements import Taken, measurements, rows_of, table_survey
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Doubles, Observation, Payload, Scalar
from albireo.observations.options import ReadOptions
from albireo.observations.photometry import Measured
from albireo.observations.source import Source

Items = list[Observation | AlbireoError]


def is_table(source: Source) -> bool:
    """Anything with named columns, and any VOTable, also one that will be refused."""
    return bool(column_names(source)) or table_kind(source) == "votable"


def read_table(source: Source, options: ReadOptions, companions: Sequence[Source]) -> Items:
    """One observation per row, or the error of that row; raises if the columns' meaning is not fully stated."""
    if {"mjd", "jd"} & options.columns.keys() and "band" in options.columns:
        return read_table_lightcurve(source, options, companions)
    table = load_columns(source, text=id_columns(options))
    if table.rows == 0:
        raise BadInput("empty_file", "the table has no row", file=source.name)
    source.make(table.rows)
    taken = Taken(set())
    names, flags = row_ids(table, options, source, taken)
    ra, dec = _positions(table, options, taken)
    redshift = _redshift(table, options, taken)
    survey = table_survey(table, options)
    found = measurements(table, options, survey, taken)
    labels = _labels(table, options, taken)
    if not found and redshift is None and ra is None and not labels:
        raise BadInput(
            "column_missing", "no column is recognised: " + ", ".join(c.name for c in table.columns),
            file=source.name, fix="map columns with columns: our name -> the file's",
        )  # fmt: skip
    unused = tuple(c.name for c in table.columns if c.name.lower() not in taken.names)
    shared: dict[str, Any] = {"unused_columns": unused} if unused else {}
    if table.meta.get("unused_hdus"):
        shared["unused_hdus"] = table.meta["unused_hdus"]
    if survey:
        shared["survey"] = survey
    rows = _Rows(table, source, options, survey, names, flags, ra, dec, redshift, found, labels, shared)
    return rows.items()


def id_columns(options: ReadOptions) -> set[str]:
    """Columns, in lower case, that ids may stand in: they are text however they look."""
    return {*ID_NAMES, "release", "brickid", options.columns.get("id", "id").lower()}


@dataclass(frozen=True)
class _Rows:
    """Everything of a table that is understood, ready to be dealt out to objects."""

    table: Columns
    source: Source
    options: ReadOptions
    survey: str | None
    ids: list[str]
    flags: tuple[str, ...]
    ra: Doubles | None
    dec: Doubles | None
    redshift: Doubles | None
    found: list[Measured]
    labels: dict[str, list[Any]]
    shared: dict[str, Any]

    def items(self) -> Items:
        columns = [
            (
                one,
                one.name in MODALITIES,
                rows_of(one.values),
                [None] * self.table.rows if one.errors is None else rows_of(one.errors),
                rows_of(one.missing),
                rows_of(one.undetected),
            )
            for one in self.found
        ]
        seen = Counter(self.ids)
        items: Items = []
        for row, name in enumerate(self.ids):
            try:
                if not name:
                    place = self.source.first_row + row
                    raise BadInput("value_missing", f"row {place} has no id", field="id", fix="give each row an id")
                if seen[name] > 1:
                    raise BadInput(
                        "id_duplicate", f"{seen[name]} rows have the id {name!r}", field="id", fix="keep one of them"
                    )
                items.append(self._row(row, name, columns))
            except AlbireoError as error:
                items.append(about(error, name, self.source.name))
        return items

    def _row(self, row: int, name: str, columns: Sequence[tuple[Any, ...]]) -> Observation:
        data: dict[str, Payload] = {}
        extras: dict[str, Scalar] = {}
        flags = list(self.flags)
        for one, token, values, errors, missing, undetected in columns:
            if undetected[row]:
                flags.append(f"non_detection_{one.label}")
            elif missing[row]:
                flags.append(f"missing_{one.label}")
            else:
                error = errors[row]
                scalar = Scalar(values[row], one.unit, None if error is None or error != error else error,
                                one.convention)  # fmt: skip
                (data if token else extras)[one.name] = scalar
                flags.extend(one.flags)
        metadata = dict(self.shared)
        for key, cells in self.labels.items():
            if cells[row] is not None:
                metadata[key] = cells[row]
        if self.redshift is not None:
            if np.isnan(self.redshift[row]):
                flags.append("missing_redshift")
            else:
                metadata["redshift"] = float(self.redshift[row])
        ra, dec = self._place(row)
        where = self.source.provenance(
            self.table.kind, survey=self.survey, release=self.options.release, hdu=self.table.hdu, row=row
        )
        return Observation(
            id=name,
            data=data,
            ra=ra,
            dec=dec,
            extras=extras,
            metadata=metadata,
            provenance=dict.fromkeys((*data, *extras), where),
            flags=tuple(dict.fromkeys(flags)),
        )

    def _place(self, row: int) -> tuple[float | None, float | None]:
        if self.ra is None or self.dec is None:
            return None, None
        ra, dec = float(self.ra[row]), float(self.dec[row])
        if np.isnan(ra) or np.isnan(dec):
            return None, None
        if not (0 <= ra <= 360 and -90 <= dec <= 90):
            raise BadInput(
                "value_out_of_range", f"ra {ra}, dec {dec}", field="ra", fix="give degrees, ra from 0 to 360"
            )
        return ra % 360.0, dec


def _chosen(table: Columns, options: ReadOptions, key: str, names: Sequence[str]) -> Column | None:
    """The column that the option names, else the first of the names that is there."""
    if key in options.columns:
        return table.named(options.columns[key])
    present = table.present
    return next((table.find(name) for name in names if name in present), None)


def row_ids(table: Columns, options: ReadOptions, source: Source, taken: Taken) -> tuple[list[str], tuple[str, ...]]:
    """Ids of the rows as text, and flags. Tractor's objid counts within a brick: with release and brickid it is one."""
    if "id" not in options.columns and table.present >= {"release", "brickid", "objid"}:
        parts = [table.find(name) for name in ("release", "brickid", "objid")]
        texts = [exact_ids(part) for part in parts if taken.take(part) is not None and part is not None]
        return ["-".join(cells) for cells in zip(*texts, strict=True)], ()
    column = taken.take(_chosen(table, options, "id", ID_NAMES))
    if column is not None:
        return exact_ids(column), ()
    stem = PurePath(source.name).name.split(".")[0]
    return [f"{stem}-{source.first_row + row}" for row in range(table.rows)], ("row_id",)


def _positions(table: Columns, options: ReadOptions, taken: Taken) -> tuple[Doubles | None, Doubles | None]:
    ra = taken.take(_chosen(table, options, "ra", RA_NAMES))
    dec = taken.take(_chosen(table, options, "dec", DEC_NAMES))
    if ra is None or dec is None:
        return None, None
    return _degrees(ra, hours=True), _degrees(dec, hours=False)


def _degrees(column: Column, hours: bool) -> Doubles:
    """Degrees (N,), NaN where missing. Text such as 12:40:10.8 is sexagesimal, a right ascension then in hours."""
    if column.values.dtype.kind == "U":
        out = np.full(len(column.values), np.nan)
        here = ~column.missing & (column.values != "")
        try:
            angles = Angle(column.values[here].tolist(), unit=units.hourangle if hours else units.deg)
            if here.any() and not all(
                ":" in text or " " in text.strip() or "h" in text for text in column.values[here]
            ):
                raise ValueError("neither numbers nor sexagesimal")
        except (ValueError, TypeError, units.UnitsError) as error:
            raise BadInput(
                "value_out_of_range", f"{column.name!r} cannot be read as an angle: {error}", field=column.name,
                fix="give degrees as numbers",
            ) from error  # fmt: skip
        out[here] = angles.deg
        return out
    numbers = column.numbers()
    if column.unit and column.unit.strip().lower() not in ("deg", "degree", "degrees"):
        try:
            numbers = numbers * float(units.Unit(column.unit).to(units.deg))
        except (ValueError, TypeError, units.UnitConversionError) as error:
            raise BadInput("unit_unknown", f"{column.name!r} is in {column.unit!r}", field=column.name) from error
    return numbers


def _redshift(table: Columns, options: ReadOptions, taken: Taken) -> Doubles | None:
    """Redshifts (N,), NaN where missing, or None; decides what a column `z` is, or raises alias_ambiguous."""
    present = table.present
    column = _chosen(table, options, "redshift", REDSHIFT_NAMES)
    mapped = {name.lower() for key, name in options.columns.items()}
    if "z" in present and "z" not in mapped:
        bare = {"g", "r", "i"} <= present
        if column is None and not bare and REDSHIFT_SIBLINGS & present:
            column = table.find("z")
        elif column is None or not bare:
            z = table.find("z")
            assert z is not None
            raise BadInput(
                "alias_ambiguous", f"column {z.name!r}: the z band or a redshift?", field=z.name,
                fix=f"state columns: redshift={z.name} or z={z.name}",
            )  # fmt: skip
    if column is None:
        return None
    taken.take(column)
    numbers = column.numbers()
    gone = ~np.isfinite(numbers) | (numbers <= -1) | np.isin(numbers, (*MISSING_VALUES, 9999.0))
    return np.where(gone, np.nan, numbers)


def _labels(table: Columns, options: ReadOptions, taken: Taken) -> dict[str, list[Any]]:
    """Labels by their lower-case name, None where missing; `class` also if it is called spectype and the like."""
    found: dict[str, list[Any]] = {}
    chosen = _chosen(table, options, "class", CLASS_NAMES)
    columns = {"class": chosen} if chosen is not None else {}
    present = table.present
    columns |= {name: column for name in LABEL_NAMES if name in present and (column := table.find(name)) is not None}
    for key, column in columns.items():
        if column.values.ndim != 1:
            continue
        taken.take(column)
        cells = column.values.tolist()
        if column.values.dtype.kind == "U":
            cells = [cell.strip() or None for cell in cells]
        found[key] = [None if gone else cell for cell, gone in zip(cells, column.missing.tolist(), strict=True)]
    return found


FORMATS: tuple[tuple[Any, ...], ...] = (
    ("table", "table of scalars (CSV, ECSV, FITS, Parquet, Arrow, VOTable)", is_table, read_table),
)
"""Rows of reading.Format."""
