"""Gaia XP continuous spectra: 55 BP and 55 RP basis coefficients per source, as the archive delivers them.

CSV, ECSV, FITS and VOTable hold the same table; in CSV the arrays are text. BP and RP are told by name. Other Gaia
columns that the model reads (mean fluxes, parallax) are taken along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.observations.columns import Column, Columns, load_columns, lower_names
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.identifiers import exact_ids
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Coefficients, Convention, Observation, Payload, Scalar
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source

PHOTOMETERS = {"tok_xp_bp": "bp", "tok_xp_rp": "rp"}
N_COEFFICIENTS = 55
SCALARS = {
    "tok_flux_g_gaia": ("phot_g_mean_flux", "GAIA-G"),
    "tok_flux_bp_gaia": ("phot_bp_mean_flux", "GAIA-BP"),
    "tok_flux_rp_gaia": ("phot_rp_mean_flux", "GAIA-RP"),
    "tok_parallax": ("parallax", None),
}
"""Token key -> the archive's column (electron / s, mas) and the band."""

Item = Observation | AlbireoError


def _is_xp(source: Source) -> bool:
    return {"bp_coefficients", "rp_coefficients"} <= lower_names(source)


def _read_xp(source: Source, options: ReadOptions, companions: Sequence[Source]) -> list[Item]:
    """One object per row; a row whose coefficients are not 55 finite numbers fails alone."""
    if options.survey not in (None, "gaia"):
        raise BadInput(
            "statement_conflict", f"survey is gaia by the file's columns, the option says {options.survey}",
            file=source.name, field="survey", fix="leave the option survey out",
        )  # fmt: skip
    table = load_columns(source, text=("bp_coefficients", "rp_coefficients", "bp_coefficient_errors",
                                       "rp_coefficient_errors"))  # fmt: skip
    ids = table.find("source_id")
    if ids is None:
        raise BadInput("column_missing", "there is no source_id", file=source.name, field="source_id")
    plain = {
        name: column.numbers()
        for name in ("ra", "dec", *(column for column, _ in SCALARS.values()),
                     *(f"{column}_error" for column, _ in SCALARS.values()))
        if (column := table.find(name)) is not None
    }  # fmt: skip
    items: list[Item] = []
    for row, identity in enumerate(exact_ids(ids)):
        try:
            items.append(_source(source, table, row, identity, plain, options))
        except BadInput as error:
            items.append(error.at(file=source.name, field=f"row {row}"))
    return items


def _source(
    source: Source, table: Columns, row: int, identity: str, plain: Mapping[str, NDArray[np.float64]],
    options: ReadOptions,
) -> Observation:  # fmt: skip
    if not identity:
        raise BadInput("value_missing", f"row {row} has no source_id", field="source_id")
    release = options.release or _release(table)
    data: dict[str, Payload] = {}
    metadata: dict[str, Any] = {}
    for key, photometer in PHOTOMETERS.items():
        values = _array(table.find(f"{photometer}_coefficients"), row)
        if values is None:
            continue
        field = f"{photometer}_coefficients"
        if values.shape != (N_COEFFICIENTS,):
            raise BadInput("shape_mismatch", f"source {identity}: {values.size} coefficients, not 55", field=field)
        if not np.isfinite(values).all():
            raise BadInput("not_finite", f"source {identity}: a coefficient is not finite", field=field)
        errors = _array(table.find(f"{photometer}_coefficient_errors"), row)
        if errors is not None and errors.shape != values.shape:
            raise BadInput("shape_mismatch", f"source {identity}: {errors.size} errors of 55 values", field=field)
        data[key] = Coefficients(
            values.astype(np.float32), MODALITIES[key].unit, None if errors is None else errors.astype(np.float32)
        )
        bases = table.find(f"{photometer}_n_relevant_bases")
        if bases is not None and not bases.missing[row]:
            metadata[f"{photometer}_n_relevant_bases"] = int(bases.values[row])
    if not data:
        raise BadInput("value_missing", f"source {identity} has no coefficients", field="bp_coefficients")
    for key, (name, band) in SCALARS.items():
        value = plain[name][row] if name in plain else np.nan
        if np.isfinite(value):
            convention = None if band is None else Convention("gaia", band, "Vega", "mean", False, release)
            error = plain[f"{name}_error"][row] if f"{name}_error" in plain else np.nan
            data[key] = Scalar(
                float(value), MODALITIES[key].unit, float(error) if np.isfinite(error) else None, convention
            )
    where = source.provenance("gaia-xp", survey="gaia", release=release, hdu=table.hdu, row=row)
    ra, dec = (float(plain[name][row]) if name in plain else None for name in ("ra", "dec"))
    flags = () if len(PHOTOMETERS.keys() & data.keys()) == len(PHOTOMETERS) else ("missing_photometer",)
    return Observation(identity, data, ra, dec, metadata=metadata, provenance=dict.fromkeys(data, where), flags=flags)


def _release(table: Columns) -> str | None:
    """DR3 is the only release with XP coefficients so far; its solution id says so."""
    column = table.find("solution_id")
    return None if column is None or not table.rows else f"solution {column.texts()[0]}"


def _array(column: Column | None, row: int) -> NDArray[np.float64] | None:
    """The numbers in one cell: an array, or text such as "(1.0, 2.0)", "[1.0 2.0]"; None if there is no value."""
    if column is None or np.asarray(column.missing[row]).all():
        return None
    cell = column.values[row]
    if isinstance(cell, str | bytes):
        text = cell.decode() if isinstance(cell, bytes) else cell
        parts = text.strip().strip("()[]{}\"' ").replace(",", " ").split()
        if not parts:
            return None
        try:
            return np.array([float(part) for part in parts])
        except ValueError as error:
            raise BadInput("value_out_of_range", f"not a list of numbers: {text[:40]!r}", field=column.name) from error
    values = np.ma.filled(np.ma.asarray(cell, np.float64), np.nan)
    return np.atleast_1d(values)


FORMATS = (("gaia-xp", "Gaia XP continuous coefficients (CSV, ECSV, FITS, VOTable)", _is_xp, _read_xp),)
