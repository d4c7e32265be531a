"""Tables that are spectra: columns of wavelength, flux and its noise, in CSV, ECSV, FITS, VOTable or Parquet.

    wavelength | wave | lambda | lam   in the column's unit, Angstrom if it states none; or loglam, log10 of Angstrom
    flux       in the column's unit or the option unit
    ivar | variance | error            (and other spellings) of the flux; a unit of its own is honoured
    mask | and_mask                    optional, non-zero = bad

One row is one pixel, and the table one object; or, if cells are arrays, one row is one object. Whose spectrum it is,
vacuum or air, and the velocity frame must be said by the table's header (SURVEY, MEDIUM or VACUUM or AIRORVAC, FRAME
or SPECSYS) or by the options. Wavelengths must increase: turning or sorting them is left to whoever knows why not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.observations.columns import Column, Columns, load_columns, lower_names
from albireo.observations.cutouts import Noise
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.fits_cells import plain
from albireo.observations.observation import Doubles, Observation
from albireo.observations.options import ReadOptions
from albireo.observations.packed_spectra import Terms, spectrum_terms
from albireo.observations.positions import identifier, of_row
from albireo.observations.source import Source
from albireo.observations.spectral_terms import measured, parse_unit, position

WAVELENGTHS = ("wavelength", "wavelengths", "wave", "lambda", "lam")
LOG_WAVELENGTHS = ("loglam", "log_lam", "log10_wavelength")
FLUXES = ("flux", "flux_density", "flam")
NOISES: dict[Noise, tuple[str, ...]] = {
    "ivar": ("ivar", "invvar", "flux_ivar"),
    "variance": ("variance", "var", "flux_var"),
    "error": ("error", "err", "flux_err", "flux_error", "fluxerr", "sigma", "uncertainty"),
}
MASKS = ("mask", "and_mask")
IDS = ("id", "object_id", "objid", "targetid", "source_id", "specobjid")
OF_LIGHT_CURVES = frozenset({"mjd", "jd", "time", "band", "filter", "flt", "passband"})
"""Columns that make fluxes a light curve, whatever else is there."""

_FRAMES = {"heliocen": "heliocentric", "barycent": "barycentric", "topocent": "observed"}
_POWER: dict[Noise, int] = {"ivar": -2, "variance": 2, "error": 1}


def sniff_plain(source: Source) -> bool:
    """True if a table has a wavelength and a flux, and no epochs."""
    names = lower_names(source)
    return bool(names & {*WAVELENGTHS, *LOG_WAVELENGTHS} and names & set(FLUXES) and not names & OF_LIGHT_CURVES)


def read_plain(source: Source, options: ReadOptions, companions: Sequence[Source]) -> list[Observation | AlbireoError]:
    """The object of the table, or one per row if cells are arrays."""
    table = load_columns(source, text=IDS)
    wavelength, logarithmic = _wavelength_column(table, options)
    flux = _column(table, options, "flux", FLUXES)
    noise, kind = _noise_column(table, options)
    mask = _find(table, options, "mask", MASKS)
    terms = _terms(table, flux, options)
    factor = _noise_factor(noise, kind, flux, options)
    rows = _rows(table, wavelength, flux, noise, mask)
    source.make(len(rows))
    items: list[Observation | AlbireoError] = []
    for number, cells in enumerate(rows):
        named: dict[str, Any] = _row_values(table, number) if _is_vector(flux) else dict(table.meta)
        try:
            grid = _angstrom(cells[0], wavelength, logarithmic)
            spectrum, flags = measured(grid, cells[1], cells[2] * factor, cells[3], terms, kind)
            name, origin = _identity(named, source, number, len(rows))
            ra, dec, lost = position(_number(named.get("ra")), _number(named.get("dec")))
        except AlbireoError as error:
            items.append(of_row(error, source.name, f"row {number}") if _is_vector(flux) else error)
            continue
        metadata = {key: value for key, value in named.items() if key not in ("ra", "dec", *IDS)}
        key = terms.row.key
        items.append(
            Observation(
                id=name,
                data={key: spectrum},
                ra=ra,
                dec=dec,
                metadata={**(metadata if _is_vector(flux) else {}), "id_from": origin},
                provenance={
                    key: source.provenance(
                        "plain_spectrum",
                        survey=terms.row.survey,
                        release=options.release,
                        hdu=table.hdu,
                        row=number if _is_vector(flux) else None,
                    )
                },
                flags=(*flags, *lost),
            )
        )
    return items


# Columns


def _find(table: Columns, options: ReadOptions, key: str, names: Sequence[str]) -> Column | None:
    return table.named(options.columns[key]) if key in options.columns else table.find(*names)


def _column(table: Columns, options: ReadOptions, key: str, names: Sequence[str]) -> Column:
    found = _find(table, options, key, names)
    if found is None:
        raise BadInput(
            "column_missing",
            f"none of {', '.join(names)} among {', '.join(column.name for column in table.columns)}",
            field=key,
            fix=f"name the column in the option columns: {key}=<column>",
        )
    return found


def _wavelength_column(table: Columns, options: ReadOptions) -> tuple[Column, bool]:
    """(column, whether it is log10)."""
    logarithmic = _find(table, options, "loglam", LOG_WAVELENGTHS)
    linear = _find(table, options, "wavelength", WAVELENGTHS)
    if logarithmic is not None and linear is not None:
        raise BadInput(
            "alias_ambiguous",
            f"{linear.name} and {logarithmic.name} are both wavelengths",
            field="wavelength",
            fix="keep one of the two columns",
        )
    return (logarithmic, True) if logarithmic else (_column(table, options, "wavelength", WAVELENGTHS), False)


def _noise_column(table: Columns, options: ReadOptions) -> tuple[Column, Noise]:
    found = [(column, kind) for kind, names in NOISES.items() if (column := _find(table, options, kind, names))]
    if len(found) > 1:
        raise BadInput(
            "alias_ambiguous",
            f"{' and '.join(column.name for column, _ in found)} all state the noise",
            field=found[0][0].name,
            fix="keep one of the columns",
        )
    if not found:
        raise BadInput(
            "column_missing",
            "no column of inverse variances or errors: how good the fluxes are is not stated",
            field="ivar",
            fix="add a column ivar, variance or error, or name it in the option columns: error=<column>",
        )
    return found[0]


def _is_vector(column: Column) -> bool:
    return column.values.ndim == 2 or column.values.dtype.kind == "O"


Cells = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any] | None]


def _rows(table: Columns, wavelength: Column, flux: Column, noise: Column, mask: Column | None) -> list[Cells]:
    """(wavelength, flux, noise, mask) of each object, as stored."""
    needed = [wavelength, flux, noise, *([mask] if mask is not None else [])]
    if len({_is_vector(column) for column in needed}) != 1:
        raise BadInput(
            "shape_mismatch",
            "some columns hold arrays and some single numbers",
            field=flux.name,
            fix="give wavelength, flux and noise all as arrays (one row, one object), or none (one row, one pixel)",
        )
    if not _is_vector(flux):
        bits = None if mask is None else np.where(mask.missing, 1, mask.numbers())
        return [(wavelength.numbers(), flux.numbers(), noise.numbers(), bits)]
    return [
        (
            np.asarray(wavelength.values[i], np.float64),
            np.asarray(flux.values[i], np.float64),
            np.asarray(noise.values[i], np.float64),
            None if mask is None else np.asarray(mask.values[i]),
        )
        for i in range(table.rows)
    ]


# Meaning


def _angstrom(values: Doubles, column: Column, logarithmic: bool) -> Doubles:
    """Wavelengths in Angstrom; padding and units that are no length are errors."""
    if logarithmic:
        return np.asarray(10.0**values)
    blank = ~(values > 0)
    if blank.any():
        raise BadInput(
            "wavelength_not_monotonic",
            f"{int(blank.sum())} wavelengths are padding or missing, the first at pixel {int(np.argmax(blank))}: "
            f"{values[blank][0]:g}",
            field=column.name,
            fix="cut the padding (-1, 0 or NaN) off before sending",
        )
    if column.unit is None:
        return values
    try:
        return np.asarray(values * float(parse_unit(column.unit).to("Angstrom")))
    except (ValueError, TypeError) as error:
        raise BadInput(
            "wavelength_unit", f"{column.unit!r} is no length", field=column.name, fix="Angstrom, nm or micron"
        ) from error


def _unit(text: str, field: str) -> Any:
    try:
        return parse_unit(text)
    except (ValueError, TypeError) as error:
        raise BadInput("unit_unknown", f"{text!r} is no unit", field=field, fix="astropy notation") from error


def _terms(table: Columns, flux: Column, options: ReadOptions) -> Terms:
    meta = table.meta
    unit = flux.unit or meta.get("bunit")
    if unit and options.unit and _unit(str(unit), flux.name) != _unit(options.unit, "unit"):
        raise BadInput(
            "statement_conflict",
            f"column {flux.name} is in {unit!r}, the option unit says {options.unit!r}",
            field="unit",
            fix="leave the option out",
        )
    text = str(unit or options.unit or "")
    relative = text.strip().lower() == "relative flux"
    stated = {
        "survey": _said(meta, "survey"),
        "unit": (flux.name, text if relative else str(_unit(text, flux.name))) if text else None,
        "medium": _medium(meta),
        "frame": _frame(meta),
    }
    return spectrum_terms(stated, replace(options, unit=None))


def _said(meta: Mapping[str, Any], key: str) -> tuple[str, str] | None:
    return (key, str(meta[key])) if meta.get(key) not in (None, "") else None


def _medium(meta: Mapping[str, Any]) -> tuple[str, str] | None:
    if isinstance(meta.get("vacuum"), bool):
        return "VACUUM", "vacuum" if meta["vacuum"] else "air"
    said = _said(meta, "medium") or _said(meta, "airorvac")
    return (said[0], {"vac": "vacuum"}.get(said[1].strip().lower(), said[1])) if said else None


def _frame(meta: Mapping[str, Any]) -> tuple[str, str] | None:
    said = _said(meta, "frame") or _said(meta, "specsys")
    return (said[0], _FRAMES.get(said[1].strip().lower(), said[1])) if said else None


def _noise_factor(noise: Column, kind: Noise, flux: Column, options: ReadOptions) -> float:
    """Factor from the unit of the noise to the one that goes with the flux's; 1 if it states none."""
    text = flux.unit or options.unit
    if noise.unit is None or text is None:
        return 1.0
    try:
        return float(_unit(noise.unit, noise.name).to(_unit(text, flux.name) ** _POWER[kind]))
    except (ValueError, TypeError) as error:
        raise BadInput(
            "unit_unknown",
            f"{noise.unit!r} is no unit of {kind} for fluxes in {text!r}",
            field=noise.name,
            fix="state the noise in the unit of the flux (squared for a variance, inverse for ivar)",
        ) from error


def _row_values(table: Columns, number: int) -> dict[str, Any]:
    """The scalar cells of a row by lower-case names, without those missing."""
    return {
        column.name.lower(): plain(column.values[number])
        for column in table.columns
        if not _is_vector(column) and not column.missing[number]
    }


def _identity(named: Mapping[str, Any], source: Source, number: int, total: int) -> tuple[str, str]:
    found = [key for key in IDS if named.get(key) not in (None, "")]
    if len(found) > 1 and len({str(named[key]) for key in found}) > 1:
        raise BadInput(
            "alias_ambiguous", f"{' and '.join(found)} can both be the id", field=found[0], fix="keep one of them"
        )
    if found:
        return identifier(named[found[0]]), found[0]
    stem = PurePath(source.name).name.split(".")[0]
    return (stem if total == 1 else f"{stem}-{number}"), "file name"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


FORMATS: tuple[tuple[Any, ...], ...] = (
    ("plain_spectrum", "table that is a spectrum: wavelength, flux and ivar or error", sniff_plain, read_plain),
)
