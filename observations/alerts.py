"""Alert packets of ZTF and LSST in Avro object containers: one alert is one light curve of difference fluxes.

An alert may hold two measurements of one exposure, the detection that raised an alert and forced photometry at the
object's place. Each exposure is kept once, the forced one if there is one: it is measured alike in all exposures, with
and without detections. Whether something was detected there is told by the list of detections.

ZTF   jd at the start of the exposure (UTC) becomes MJD; magpsf and the sign of isdiffpos become a flux at zero point
      23.9 (microjansky, AB); rows of prv_candidates without magpsf are non-detections with limit diffmaglim (5 sigma).
      Forced fluxes stay at the zero point of their exposure.
LSST  fluxes are nJy (zero point 31.4), times MJD in TAI; TAI is 37 s ahead of UTC since 2017, nothing is converted.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fastavro
import numpy as np

from albireo.observations.avro_bounds import check_avro, weight
from albireo.observations.bands import band_name
from albireo.observations.epochs import light_curve, mjd_from_jd
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.identifiers import about
from albireo.observations.observation import Observation
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source

ZTF_ZERO_POINT = 23.9
LSST_ZERO_POINT = 31.4
LIMIT_SIGMA = 5.0
_ZTF_BANDS = {1: "ZTF-g", 2: "ZTF-r", 3: "ZTF-i"}
_ZTF_NO_VALUE = -99999.0
_CUTOUTS = ("cutoutScience", "cutoutTemplate", "cutoutDifference")

Record = Mapping[str, Any]

_OTHER_TYPES = (TypeError, ValueError, AttributeError, OverflowError)
"""What comes of fields that have the survey's names and are something else: a container brings a schema of its own."""


@dataclass(frozen=True)
class _Epoch:
    """One exposure; time in the file's own unit; flux NaN if only `limit` (mag) is known."""

    time: float
    band: str
    flux: float
    error: float
    zero_point: float
    detected: bool
    limit: float = math.nan


def is_ztf(source: Source) -> bool:
    """An Avro container whose schema is that of ZTF alerts."""
    head = source.content[: 1 << 16]
    return head[:4] == b"Obj\x01" and b"isdiffpos" in head and b"candid" in head


def is_lsst(source: Source) -> bool:
    """An Avro container whose schema is that of LSST alerts, or one packet as it is sent, without its schema."""
    head = source.content[: 1 << 16]
    if head[:4] == b"Obj\x01":
        return b"lsst" in head and b"diaSource" in head
    return _registry_id(head) is not None


def read_ztf(source: Source, options: ReadOptions, companions: Sequence[Source]) -> list[Observation | AlbireoError]:
    """One observation per alert; of several alerts of one object the last one, which knows the others' past."""
    return _read(source, lambda record, row: _ztf(record, row, source), lambda r: str(r.get("objectId") or ""))


def read_lsst(source: Source, options: ReadOptions, companions: Sequence[Source]) -> list[Observation | AlbireoError]:
    """One observation per alert; of several alerts of one object the last one, which knows the others' past."""
    version = None if source.content[:4] == b"Obj\x01" else _registry_id(source.content)
    if version is not None:
        raise BadInput(
            "companion_missing",
            f"one LSST alert without its schema (registry id {version}: version {version // 100}.{version % 100})",
            file=source.name, field="schema", fix="store alerts in an Avro object container, which carries its schema",
        )  # fmt: skip
    return _read(source, lambda record, row: _lsst(record, row, source), lambda r: _lsst_id(r)[0])


def _registry_id(head: bytes) -> int | None:
    """The schema number of a packet in Confluent's wire format, if it can be one of LSST's (major * 100 + minor)."""
    if len(head) < 64 or head[0] != 0:
        return None
    number = int(struct.unpack(">I", head[1:5])[0])
    return number if 300 <= number < 3000 and number % 100 < 20 else None


def _records(source: Source) -> Iterator[Record]:
    try:
        check_avro(source)
        weighed = 0
        for record in fastavro.reader(io.BytesIO(source.content)):
            if not isinstance(record, dict):
                raise BadInput("damaged_file", "Avro: not a record", file=source.name)
            weighed += weight(record)
            source.make(1, weighed)
            yield record
    except (ValueError, EOFError, TypeError, KeyError, IndexError, StopIteration, zlib.error, struct.error,
            UnicodeDecodeError, OverflowError, fastavro.schema.SchemaParseException) as error:  # fmt: skip
        raise BadInput("damaged_file", f"Avro: {error}", file=source.name, fix="fetch the file again") from error


def _read(source: Source, one: Any, identify: Any) -> list[Observation | AlbireoError]:
    records = list(_records(source))
    names = [_named(identify, record) for record in records]
    last = {name: row for row, name in enumerate(names)}
    items: list[Observation | AlbireoError] = []
    for row, (record, name) in enumerate(zip(records, names, strict=True)):
        try:
            if last[name] != row:
                raise BadInput(
                    "id_duplicate", f"alert {row} is followed by alert {last[name]} of the same object", field=name,
                    fix="read the alerts one file at a time to have both",
                )  # fmt: skip
            items.append(one(record, row))
        except AlbireoError as error:
            items.append(about(error, name or f"alert {row}", source.name))
        except _OTHER_TYPES as error:
            other = BadInput("damaged_file", f"fields of other types than the survey's: {error}", field="schema")
            items.append(about(other, name or f"alert {row}", source.name))
    return items


def _named(identify: Any, record: Record) -> str:
    """What `identify` calls a record, "" if nothing of it can be a name."""
    try:
        return str(identify(record))
    except _OTHER_TYPES:
        return ""


def _number(record: Record, *names: str) -> float:
    """The first field of these that the record has, as a float; null is NaN."""
    for name in names:
        if name in record:
            return math.nan if record[name] is None else float(record[name])
    raise BadInput("column_missing", f"the alert has no field {names[0]}", field=names[0])


def _required(record: Record, name: str) -> Any:
    if record.get(name) is None:
        raise BadInput("column_missing", f"the alert has no {name}", field=name, fix="fetch the alert again")
    return record[name]


def _observation(
    epochs: Sequence[_Epoch],
    time: np.ndarray[Any, np.dtype[np.float64]],
    *,
    id: str,
    ra: float,
    dec: float,
    metadata: dict[str, Any],
    flags: tuple[str, ...],
    source: Source,
    survey: str,
    row: int,
    time_field: str,
) -> Observation:
    curve, found = light_curve(
        time=time,
        band=[epoch.band for epoch in epochs],
        flux=np.array([epoch.flux for epoch in epochs], np.float64),
        flux_err=np.array([epoch.error for epoch in epochs], np.float64),
        zero_point=np.array([epoch.zero_point for epoch in epochs], np.float64),
        system=["AB"] * len(epochs),
        detected=np.array([epoch.detected for epoch in epochs], bool),
        limit=np.array([epoch.limit for epoch in epochs], np.float64),
        extinction_corrected=False,
        kind="difference",
        time_field=time_field,
    )
    if not (0 <= ra < 360 and -90 <= dec <= 90):
        raise BadInput("value_out_of_range", f"ra {ra}, dec {dec}", field="ra")
    return Observation(
        id=id,
        data={"lightcurve": curve},
        ra=ra,
        dec=dec,
        metadata=metadata | {"limit_sigma": LIMIT_SIGMA},
        provenance={"lightcurve": source.provenance(f"{survey}_avro", survey=survey, row=row)},
        flags=tuple(dict.fromkeys((*flags, *found))),
    )


# ZTF


def _ztf(record: Record, row: int, source: Source) -> Observation:
    candidate = _required(record, "candidate")
    rows = [candidate, *(record.get("prv_candidates") or ())]
    # pid names an exposure of one quadrant. Two detections in it lie at two places; both are kept.
    detected = {r.get("pid") for r in rows if r.get("magpsf") is not None}
    forced = {
        r.get("pid"): epoch
        for r in record.get("fp_hists") or ()
        if (epoch := _ztf_forced(r, r.get("pid") in detected)) is not None
    }
    epochs = list(forced.values()) + [_ztf_epoch(r) for r in rows if r.get("pid") not in forced]
    cutouts = tuple(name for name in _CUTOUTS if (record.get(name) or {}).get("stampData"))
    metadata: dict[str, Any] = {
        "survey": "ztf",
        "candid": str(_required(record, "candid")),
        "schema_version": str(record.get("schemavsn")),
        "time_scale": "UTC",
        "time_reference": "start of exposure",
        "photometry": "forced" if forced else "detections and limits",
        "forced_epochs": len(forced),
        "cutouts": cutouts,
    }
    for name in ("rb", "drb", "distnr", "magnr", "ssnamenr"):
        value = candidate.get(name)
        if value is not None and value not in (-999.0, "null", ""):
            metadata[name] = value
    return _observation(
        epochs,
        mjd_from_jd(np.array([epoch.time for epoch in epochs], np.float64), "jd"),
        id=str(_required(record, "objectId")),
        ra=_number(candidate, "ra"),
        dec=_number(candidate, "dec"),
        metadata=metadata,
        flags=("forced_and_detected",) if forced and len(epochs) > len(forced) else (),
        source=source,
        survey="ztf",
        row=row,
        time_field="jd",
    )


def _ztf_band(row: Record) -> str:
    fid = row.get("fid")
    if fid not in _ZTF_BANDS:
        raise BadInput("band_unknown", f"fid = {fid!r}", field="fid", fix="1, 2, 3 are ZTF g, r, i")
    return _ZTF_BANDS[fid]


def _ztf_epoch(row: Record) -> _Epoch:
    """A detection (magpsf and the sign of isdiffpos) or a non-detection (diffmaglim)."""
    time, band = _number(row, "jd"), _ztf_band(row)
    magnitude = row.get("magpsf")
    limit = _number(row, "diffmaglim") if row.get("diffmaglim") is not None else math.nan
    if magnitude is None:
        return _Epoch(time, band, math.nan, math.nan, ZTF_ZERO_POINT, False, limit)
    sign = {"t": 1.0, "1": 1.0, "true": 1.0, "f": -1.0, "0": -1.0, "false": -1.0}.get(str(row.get("isdiffpos")).lower())
    if sign is None:
        raise BadInput(
            "value_out_of_range", f"isdiffpos = {row.get('isdiffpos')!r}", field="isdiffpos", fix="t or 1, f or 0"
        )
    flux = sign * 10.0 ** (0.4 * (ZTF_ZERO_POINT - float(magnitude)))
    error = abs(flux) * math.log(10.0) / 2.5 * _number(row, "sigmapsf")
    return _Epoch(time, band, flux, error, ZTF_ZERO_POINT, True, limit)


def _ztf_forced(row: Record, detected: bool) -> _Epoch | None:
    """Forced photometry of one exposure at that exposure's own zero point, or None if it failed."""
    flux, error = _number(row, "forcediffimflux"), _number(row, "forcediffimfluxunc")
    zero_point = _number(row, "magzpsci")
    if not all(math.isfinite(v) and v != _ZTF_NO_VALUE for v in (flux, error, zero_point)) or error <= 0:
        return None
    limit = _number(row, "diffmaglim") if row.get("diffmaglim") is not None else math.nan
    return _Epoch(_number(row, "jd"), _ztf_band(row), flux, error, zero_point, detected, limit)


# LSST


def _lsst(record: Record, row: int, source: Source) -> Observation:
    trigger = _required(record, "diaSource")
    detections = [trigger, *(record.get("prvDiaSources") or ())]
    seen = {_visit(r) for r in detections}
    forced = {
        _visit(r): epoch
        for r in record.get("prvDiaForcedSources") or ()
        if math.isfinite((epoch := _lsst_epoch(r, _visit(r) in seen)).flux)
    }
    epochs = list(forced.values())
    epochs += [_lsst_epoch(r, True) for r in detections if _visit(r) not in forced]
    known = seen | set(forced)
    epochs += [_lsst_limit(r) for r in record.get("prvDiaNondetectionLimits") or () if _visit(r) not in known]
    name, flags = _lsst_id(record)
    metadata: dict[str, Any] = {
        "survey": "lsst",
        "dia_source_id": str(_required(trigger, "diaSourceId")),
        "time_scale": "TAI",
        "time_reference": "middle of exposure",
        "photometry": "forced" if forced else "detections",
        "forced_epochs": len(forced),
        "cutouts": tuple(name for name in _CUTOUTS if record.get(name)),
    }
    if len(epochs) > len(forced) > 0:
        flags = (*flags, "forced_and_detected")
    if any(r.get("psfFlux_flag") for r in detections):
        flags = (*flags, "psf_flux_flagged")
    place = record.get("diaObject") or trigger
    return _observation(
        epochs,
        np.array([epoch.time for epoch in epochs], np.float64),
        id=name,
        ra=_number(place, "ra"),
        dec=_number(place, "dec", "decl"),
        metadata=metadata,
        flags=flags,
        source=source,
        survey="lsst",
        row=row,
        time_field="midpointMjdTai",
    )


def _lsst_id(record: Record) -> tuple[str, tuple[str, ...]]:
    """The id of the object, or, of an alert of no object yet, that of its source (flag no_object_id)."""
    trigger = record.get("diaSource") or {}
    for holder, name in (("diaObject", "diaObjectId"), ("diaSource", "diaObjectId"), ("diaSource", "ssObjectId")):
        value = (record.get(holder) or {}).get(name)
        if value:
            return str(value), ()
    return str(trigger.get("diaSourceId") or ""), ("no_object_id",)


def _visit(row: Record) -> tuple[Any, float]:
    """What one exposure is called: its visit (older schemas: ccdVisitId), and its time, since samples repeat visits."""
    visit = row.get("visit") if row.get("visit") is not None else row.get("ccdVisitId")
    return visit, _number(row, "midpointMjdTai", "midPointTai")


def _lsst_band(row: Record) -> str:
    text = row.get("band") or row.get("filterName")
    if not text:
        raise BadInput("band_missing", "a source names no band", field="band")
    return band_name(str(text).removesuffix("_sim"), "lsst")


def _lsst_epoch(row: Record, detected: bool) -> _Epoch:
    """A detection or forced photometry, PSF flux in nJy on the difference image."""
    flux, error = _number(row, "psfFlux", "psFlux"), _number(row, "psfFluxErr", "psFluxErr")
    time = _number(row, "midpointMjdTai", "midPointTai")
    return _Epoch(time, _lsst_band(row), flux, error, LSST_ZERO_POINT, detected)


def _lsst_limit(row: Record) -> _Epoch:
    """A visit in which nothing was found: diaNoise (nJy, 1 sigma) as a limit of 5 sigma."""
    noise = _number(row, "diaNoise")
    limit = LSST_ZERO_POINT - 2.5 * math.log10(LIMIT_SIGMA * noise) if noise > 0 else math.nan
    time = _number(row, "midpointMjdTai", "midPointTai")
    return _Epoch(time, _lsst_band(row), math.nan, noise, LSST_ZERO_POINT, False, limit)
