"""Light curves in plain tables, one row per epoch. FORMATS lists all light-curve formats.

Of such a table everything must be stated, by a column, the table's metadata or an option: the survey of a bare band,
the zero point, AB or Vega, and whether Galactic extinction was corrected for. A magnitude is turned into the flux that
it is by definition, at zero point 23.9 in its own system. `inf` is a non-detection, NaN is no observation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.observations import alerts, plasticc, snana
from albireo.observations.aliases import (
    EPOCH_COLUMNS,
    EPOCH_META,
    EPOCH_PREFERRED,
    FLUX_ZERO_POINTS,
    flux_unit,
    magnitude_system,
)
from albireo.observations.bands import band_name, known_survey
from albireo.observations.columns import Column, Columns, load_columns, lower_names
from albireo.observations.epochs import light_curve, mjd_from_jd
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.identifiers import about, exact_ids, rows_by_id
from albireo.observations.observation import Doubles, Observation
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source

MAGNITUDE_ZERO_POINT = 23.9
Items = list[Observation | AlbireoError]


def is_table_lightcurve(source: Source) -> bool:
    """A time, a band, and a flux or a magnitude."""
    names = lower_names(source)
    has = {key: bool(names & set(aliases)) for key, aliases in EPOCH_COLUMNS.items()}
    return (has["mjd"] or has["jd"]) and has["band"] and (has["flux"] or has["mag"])


def read_table_lightcurve(source: Source, options: ReadOptions, companions: Sequence[Source]) -> Items:
    """One observation per id of the table, or one in all if it has no id column."""
    text = {*EPOCH_COLUMNS["id"], *([options.columns["id"].lower()] if "id" in options.columns else [])}
    table = load_columns(source, text=text)
    reading = _Reading.of(table, source, options)
    objects = rows_by_id(reading.ids)
    source.make(len(objects))
    items: Items = []
    for name, rows in objects:
        try:
            if not name:
                raise BadInput("value_missing", "rows without an id", field="id")
            items.append(reading.observation(name, rows))
        except AlbireoError as error:
            items.append(about(error, name, source.name))
    return items


@dataclass(frozen=True)
class _Reading:
    """A table of epochs with its columns found; everything that does not depend on the object is done."""

    table: Columns
    source: Source
    options: ReadOptions
    found: Mapping[str, Column]
    ids: list[str]
    time: Doubles
    flux: Doubles
    flux_err: Doubles
    limit: Doubles
    zero_point: Doubles | None
    is_magnitude: bool

    @classmethod
    def of(cls, table: Columns, source: Source, options: ReadOptions) -> _Reading:
        unknown = [key for key in options.columns if key not in EPOCH_COLUMNS]
        if unknown:
            raise BadInput(
                "option_invalid", f"columns has no {unknown[0]!r} for a light curve", field="columns",
                fix="use " + ", ".join(EPOCH_COLUMNS),
            )  # fmt: skip
        found: dict[str, Column] = {}
        for key, aliases in EPOCH_COLUMNS.items():
            column = table.named(options.columns[key]) if key in options.columns else _find(table, key, aliases)
            if column is not None:
                found[key] = column
        if "flux" not in found and "mag" not in found:
            raise BadInput("column_missing", "no flux and no magnitude", file=source.name, field="flux")
        magnitude = "flux" not in found
        flux, error, limit = _magnitudes(found) if magnitude else _fluxes(found)
        return cls(
            table, source, options, found, _epoch_ids(table, found, source), _time(found), flux, error, limit,
            np.full(table.rows, MAGNITUDE_ZERO_POINT) if magnitude else _zero_points(table, found, options),
            magnitude,
        )  # fmt: skip

    def observation(self, name: str, rows: NDArray[np.int64]) -> Observation:
        corrected = _stated_correction(self.table, self.options)
        surveys = self._surveys(rows)
        texts = self.texts["band"]
        bands = [band_name(texts[row], survey) for row, survey in zip(rows.tolist(), surveys, strict=True)]
        systems = self._systems(rows)
        if self.zero_point is None or np.isnan(self.zero_point[rows]).any():
            raise BadInput(
                "zero_point_missing", "fluxes without a zero point", field="zp",
                fix="add a column zp, a unit such as nJy, or state zero_point",
            )  # fmt: skip
        if "AB" not in systems and self.unit_is_ab:
            raise BadInput(
                "statement_conflict", f"a flux in {self.found['flux'].unit} has an AB zero point, not one of Vega",
                field="system",
            )  # fmt: skip
        detected = None
        if "detected" in self.found:
            detected = self.numbers["detected"][rows] > 0
        curve, flags = light_curve(
            time=self.time[rows],
            band=bands,
            flux=self.flux[rows],
            flux_err=self.flux_err[rows],
            zero_point=self.zero_point[rows],
            system=systems,
            detected=detected if detected is not None else ~self._infinite(rows),
            limit=self.limit[rows],
            extinction_corrected=corrected,
            kind=self.options.kind or str(_meta(self.table, "kind") or "unstated"),
            time_field=(self.found.get("mjd") or self.found["jd"]).name,
        )
        ra, dec = self._constant("ra", rows), self._constant("dec", rows)
        metadata = {
            key: value
            for key in ("redshift", "class", "mwebv")
            if (value := self._constant(key, rows)) is not None
        }  # fmt: skip
        place = plasticc.place({"ra": ra, "dec": dec})
        survey = next((s for s in surveys if s), None)
        return Observation(
            id=name,
            data={"lightcurve": curve},
            ra=place[0],
            dec=place[1],
            metadata=metadata,
            provenance={"lightcurve": self.source.provenance("table_lightcurve", survey=survey, row=int(rows[0]))},
            flags=(*flags, "from_magnitude") if self.is_magnitude else flags,
        )

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        """Columns of text, and the system of each row, "" where the table does not say it."""
        texts = {key: self.found[key].texts() for key in ("band", "survey", "system") if key in self.found}
        texts.setdefault("system", [str(_meta(self.table, "system") or "")] * self.table.rows)
        return texts

    @cached_property
    def numbers(self) -> dict[str, Doubles]:
        """Columns of numbers as the table writes them."""
        return {key: self.found[key].numbers() for key in ("detected", "mag", "flux") if key in self.found}

    @property
    def unit_is_ab(self) -> bool:
        """The zero point comes from a physical unit, and so is an AB one."""
        return not self.is_magnitude and flux_unit(self.found["flux"].unit) is not None

    def _infinite(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Rows whose flux or magnitude is written as infinite: not detected."""
        return np.isinf(self.numbers["mag" if self.is_magnitude else "flux"][rows])

    def _surveys(self, rows: NDArray[np.int64]) -> list[str | None]:
        """The survey of each row: its own column (a telescope counts if the band table knows it), metadata, option."""
        stated = _meta(self.table, "survey")
        if stated and self.options.survey and known_survey(str(stated)) != known_survey(self.options.survey):
            raise BadInput("statement_conflict", f"the table says survey {stated!r}", field="survey")
        fallback = self.options.survey or (str(stated) if stated else None)
        if "survey" not in self.found:
            return [fallback] * len(rows)
        texts = self.texts["survey"]
        return [texts[row] if known_survey(texts[row]) else fallback for row in rows.tolist()]

    def _systems(self, rows: NDArray[np.int64]) -> list[str]:
        """AB or Vega for each row; what the option says may only fill in what the table leaves open."""
        texts = self.texts["system"]
        systems: list[str] = []
        for row in rows.tolist():
            system = magnitude_system(texts[row]) if texts[row] else self.options.system
            if system is None:
                said = f"{texts[row]!r} is neither AB nor Vega" if texts[row] else "not stated"
                raise BadInput(
                    "convention_missing", f"magnitude system: {said}", field="system",
                    fix="add a column zpsys or state system: AB or Vega",
                )  # fmt: skip
            if self.options.system and system != self.options.system:
                raise BadInput("statement_conflict", f"row {row} is in {system}", field="system")
            systems.append(system)
        return systems

    def _constant(self, key: str, rows: NDArray[np.int64]) -> Any:
        """What all rows of an object say, or the table's metadata."""
        if key not in self.found:
            return None if "id" in self.found else _meta(self.table, key)
        column = self.found[key]
        values = {column.values[row].item() for row in rows.tolist() if not column.missing[row]}
        values = {v for v in values if not (isinstance(v, float) and not np.isfinite(v))}
        if len(values) > 1:
            raise BadInput("statement_conflict", f"{len(values)} values of {column.name!r}", field=column.name)
        return values.pop() if values else None


def _find(table: Columns, key: str, aliases: Sequence[str]) -> Column | None:
    if key not in EPOCH_PREFERRED:
        return table.find(*aliases)
    return next((column for name in aliases if (column := table.find(name)) is not None), None)


def _meta(table: Columns, key: str) -> Any:
    """What the table's metadata says under any of the names of `key`."""
    values = {str(table.meta[name]): table.meta[name] for name in EPOCH_META[key] if name in table.meta}
    if len(values) > 1:
        raise BadInput("statement_conflict", f"the metadata says {', '.join(values)}", field=key)
    return next(iter(values.values()), None)


def _time(found: Mapping[str, Column]) -> Doubles:
    if "mjd" in found:
        return found["mjd"].numbers()
    time = found["jd"].numbers()
    return np.where(np.isnan(time), np.nan, mjd_from_jd(np.where(np.isnan(time), 2451545.0, time), found["jd"].name))


def _fluxes(found: Mapping[str, Column]) -> tuple[Doubles, Doubles, Doubles]:
    """flux, its error and limits (T,); a flux written as infinite is a non-detection without a value."""
    flux = found["flux"].numbers()
    error = found["flux_err"].numbers() if "flux_err" in found else np.full(len(flux), np.nan)
    if (error < 0).any() and (flux[error < 0] != error[error < 0]).any():
        raise BadInput(
            "value_out_of_range", f"negative errors in {found['flux_err'].name!r}", field=found["flux_err"].name,
            fix="leave out what has no error",
        )  # fmt: skip
    sentinel = (error < 0) & (flux == error)  # -99 in both: nothing was measured
    limit = found["limit"].numbers() if "limit" in found else np.full(len(flux), np.nan)
    return np.where(np.isinf(flux) | sentinel, np.nan, flux), np.where(sentinel, np.nan, error), limit


def _magnitudes(found: Mapping[str, Column]) -> tuple[Doubles, Doubles, Doubles]:
    """Magnitudes as flux at zero point 23.9 of their own system; 99 and inf are non-detections, NaN is nothing."""
    magnitude = found["mag"].numbers()
    error = found["mag_err"].numbers() if "mag_err" in found else np.full(len(magnitude), np.nan)
    gone = ~np.isfinite(magnitude) | (np.abs(magnitude) >= 90)
    flux = np.where(gone, np.nan, 10.0 ** (0.4 * (MAGNITUDE_ZERO_POINT - np.where(gone, 0.0, magnitude))))
    limit = found["limit"].numbers() if "limit" in found else np.full(len(magnitude), np.nan)
    if "upper_limit" in found:  # a row marked as a limit: its magnitude is the limit
        marked = found["upper_limit"].numbers() > 0
        limit = np.where(marked & ~gone, magnitude, limit)
        flux = np.where(marked, np.nan, flux)
    return flux, flux * np.log(10.0) / 2.5 * error, limit


def _zero_points(table: Columns, found: Mapping[str, Column], options: ReadOptions) -> Doubles | None:
    """From the column, the unit, the metadata, a name that says it (fluxcal), or the option; two that differ fail."""
    column = found["flux"]
    stated: dict[str, Doubles] = {}
    if "zp" in found:
        stated[found["zp"].name] = found["zp"].numbers()
    for where, value in (
        ("unit", FLUX_ZERO_POINTS.get(flux_unit(column.unit) or "")),
        ("name", 27.5 if column.name.lower().startswith("fluxcal") else None),
        ("metadata", _meta(table, "zp")),
        ("option zero_point", options.zero_point),
    ):
        if value is not None:
            stated[where] = np.full(table.rows, float(value))
    values = list(stated.values())
    for where, other in list(stated.items())[1:]:
        if not np.allclose(values[0], other, atol=1e-3, rtol=0, equal_nan=True):
            raise BadInput(
                "statement_conflict", f"the zero points by {' and by '.join(stated)} differ ({where})", field="zp",
                fix="state it once",
            )  # fmt: skip
    if not values and column.unit and flux_unit(column.unit) is None:
        raise BadInput(
            "unit_unknown", f"the flux unit {column.unit!r} has no zero point", field=column.name,
            fix="use nJy, uJy, mJy, Jy or nanomaggy, or state zero_point",
        )  # fmt: skip
    return values[0] if values else None


def _stated_correction(table: Columns, options: ReadOptions) -> bool:
    stated = _meta(table, "extinction_corrected")
    said = None if stated is None else str(stated).strip().lower() in ("true", "t", "1", "yes")
    if said is not None and options.extinction_corrected not in (None, said):
        raise BadInput("statement_conflict", f"the table says {stated!r}", field="extinction_corrected")
    answer = options.extinction_corrected if said is None else said
    if answer is None:
        raise BadInput(
            "convention_missing", "whether fluxes are corrected for Galactic extinction is not stated",
            field="extinction_corrected", fix="state extinction_corrected: true or false",
        )  # fmt: skip
    return answer


def _epoch_ids(table: Columns, found: Mapping[str, Column], source: Source) -> list[str]:
    if "id" in found:
        return exact_ids(found["id"])
    name = _meta(table, "id") or PurePath(source.name).name.split(".")[0]
    return [str(name)] * table.rows


FORMATS: tuple[tuple[Any, ...], ...] = (
    ("snana_fits", "SNANA HEAD.FITS with its PHOT.FITS", snana.is_head, snana.read_head, snana.head_completes),
    ("snana_phot", "SNANA PHOT.FITS (part of a pair)", snana.is_phot, snana.read_phot),
    ("snana_text", "SNANA text light curves", snana.is_text, snana.read_text),
    ("ztf_avro", "ZTF alerts (Avro)", alerts.is_ztf, alerts.read_ztf),
    ("lsst_avro", "LSST alerts (Avro)", alerts.is_lsst, alerts.read_lsst),
    (
        "plasticc",
        "PLAsTiCC light curves (CSV)",
        plasticc.is_plasticc,
        plasticc.read_plasticc,
        plasticc.plasticc_completes,
    ),
    (
        "plasticc_metadata",
        "PLAsTiCC metadata (part of a pair)",
        plasticc.is_plasticc_metadata,
        plasticc.read_plasticc_metadata,
    ),
    ("table_lightcurve", "table with time, band and flux or magnitude", is_table_lightcurve, read_table_lightcurve),
)
"""Rows of reading.Format."""
