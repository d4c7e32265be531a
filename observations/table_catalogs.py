"""Catalogs of cutouts in plain tables: columns X, Y, SHAPE_E1, SHAPE_E2, SHAPE_R, one row per object in a cutout.

The id is that of the cutout, so a cutout has as many rows as objects; a table without ids is one cutout. X and Y are
whole pixels from 0 of the 96 x 96 cutout, SHAPE_R is in arcsec unless its column has another unit. The survey must be
stated. Every other column is of the objects around, and is named in the metadata as unused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from astropy import units

from albireo.observations.aliases import ID_NAMES
from albireo.observations.catalogs import COLUMNS, catalog_of
from albireo.observations.columns import Column, Columns, load_columns, lower_names
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.identifiers import about, exact_ids, rows_by_id
from albireo.observations.measurements import table_survey
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Doubles, Observation
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source

ROW = MODALITIES["catalog"]

CUTOUT_IDS = ("object_id", "id", *ID_NAMES)
"""In order of preference; a Tractor `objid` beside one of the first two is that of the object around."""


def is_table_catalog(source: Source) -> bool:
    """Pixel positions and shapes."""
    return {name.lower() for name in COLUMNS} <= lower_names(source)


def read_table_catalog(
    source: Source, options: ReadOptions, companions: Sequence[Source]
) -> list[Observation | AlbireoError]:
    """One observation per cutout of the table, or the error of that cutout."""
    unknown = options.columns.keys() - {"id"}
    if unknown:
        raise BadInput(
            "option_invalid", f"columns has no {min(unknown)!r} for a catalog", field="columns", fix="use id"
        )
    table = load_columns(source, text={*CUTOUT_IDS, *(name.lower() for name in options.columns.values())})
    _check_survey(table, options)
    found = [table.named(name) for name in COLUMNS]
    columns = [column.numbers() for column in found[:-1]] + [_arcsec(found[-1])]
    id_column = _id_column(table, options)
    stem = PurePath(source.name).name.split(".")[0]
    ids = exact_ids(id_column) if id_column else [stem] * table.rows
    used = {column.name for column in (*found, *([id_column] if id_column else []))}
    unused = tuple(column.name for column in table.columns if column.name not in used)
    cutouts = rows_by_id(ids)
    source.make(len(cutouts))
    items: list[Observation | AlbireoError] = []
    for name, rows in cutouts:
        try:
            if not name:
                raise BadInput("value_missing", "rows without an id", field="id", fix="give each row an id")
            catalog, flags = catalog_of([column[rows] for column in columns], options.nearest)
            origin = source.provenance(
                "table_catalog", survey=ROW.survey, release=options.release, hdu=table.hdu, row=int(rows[0])
            )
            items.append(
                Observation(
                    id=name,
                    data={ROW.key: catalog},
                    metadata={"unused_columns": unused} if unused else {},
                    provenance={ROW.key: origin},
                    flags=flags,
                )
            )
        except AlbireoError as error:
            items.append(about(error, name, source.name))
    return items


def _check_survey(table: Columns, options: ReadOptions) -> None:
    survey = table_survey(table, options)
    if survey is None:
        raise BadInput(
            "survey_missing", "whose catalog this is is not stated", field="survey", fix=f"state survey: {ROW.survey}"
        )
    if survey != ROW.survey:
        raise BadInput(
            "modality_unknown", f"no catalog modality for {survey!r}", field="survey", fix=f"there is {ROW.name}"
        )


def _id_column(table: Columns, options: ReadOptions) -> Column | None:
    if "id" in options.columns:
        return table.named(options.columns["id"])
    return next((column for name in CUTOUT_IDS if (column := table.find(name)) is not None), None)


def _arcsec(column: Column) -> Doubles:
    """Numbers in arcsec, which is the survey's documented unit of SHAPE_R."""
    numbers = column.numbers()
    if column.unit is None:
        return numbers
    try:
        return numbers * float(units.Unit(column.unit).to(units.arcsec))
    except (ValueError, TypeError, units.UnitConversionError) as error:
        raise BadInput(
            "unit_unknown", f"{column.name!r} is in {column.unit!r}, which is no angle", field=column.name,
            fix="give it in arcsec",
        ) from error  # fmt: skip


FORMATS: tuple[tuple[Any, ...], ...] = (
    ("table_catalog", "table with X, Y, SHAPE_E1, SHAPE_E2 and SHAPE_R of the objects in cutouts", is_table_catalog,
     read_table_catalog),
)  # fmt: skip
"""Rows of reading.Format."""
