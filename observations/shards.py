"""Observations in Parquet or Arrow, whole: one object a row, one column a modality, as `albireo simulate` writes them.

A file says of itself that it is one: its schema has the metadata `albireo.observations`. Columns:
    id, ra, dec, flags     the object; degrees ICRS or null
    metadata               labels and the rest, JSON; never an input
    <public name>          a struct of the fields of that kind of payload (`image.legacysurvey`), or null
Arrays are lists in C order with their `shape` beside them, masks are packed bits, conventions JSON. Wavelengths are in
vacuum, and every number is in the unit of its modality.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from albireo.observations.arrow import arrow_kind, arrow_schema, arrow_table
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import IMAGE_SIZE, LABEL_KEYS, MODALITIES, Kind, Modality
from albireo.observations.observation import (
    Catalog,
    Coefficients,
    Convention,
    Image,
    LightCurve,
    Observation,
    Payload,
    Scalar,
    SegmentationMap,
    Spectrum,
)
from albireo.observations.options import ReadOptions
from albireo.observations.positions import of_row
from albireo.observations.source import Source

MARK = b"albireo.observations"
VERSION = b"1"

CLASSES: dict[Kind, type[Any]] = {
    "image": Image, "spectrum": Spectrum, "coefficients": Coefficients, "scalar": Scalar, "catalog": Catalog,
    "segmentation": SegmentationMap, "lightcurve": LightCurve,
}  # fmt: skip

_NUMBERS = {"f4": pa.float32(), "f8": pa.float64(), "i8": pa.int64()}
_COLUMNS: dict[Kind, dict[str, str]] = {
    "image": {"flux": "f4", "ivar": "f4", "mask": "bits", "bands": "texts", "conventions": "conventions"},
    "spectrum": {"wavelength": "f8", "flux": "f4", "ivar": "f4", "mask": "bits"},
    "coefficients": {"values": "f4", "errors": "f4"},
    "scalar": {"convention": "convention"},
    "segmentation": {"field": "f4"},
    "catalog": {"x": "i8", "y": "i8", "e1": "f4", "e2": "f4", "r": "f4"},
    "lightcurve": {"time": "f8", "band": "texts", "flux": "f8", "flux_err": "f8", "zero_point": "f8", "system": "texts",
                   "detected": "bits", "limit": "f8", "extinction_corrected": "bool"},
}  # fmt: skip
"""Fields of payloads that are no plain text or number, and how each is stored."""
_TEXTS = frozenset({"unit", "frame", "medium", "kind"})


@lru_cache
def _stored(kind: Kind) -> dict[str, str]:
    """Field -> how it is stored, in the order of the dataclass."""
    special = _COLUMNS[kind]
    names = [one.name for one in fields(CLASSES[kind])]
    return {name: special.get(name, "text" if name in _TEXTS else "number") for name in names}


def _type(how: str) -> pa.DataType:
    if how in _NUMBERS:
        return pa.list_(_NUMBERS[how])
    return {"bits": pa.binary(), "texts": pa.list_(pa.string()), "conventions": pa.list_(pa.string()),
            "convention": pa.string(), "text": pa.string(), "number": pa.float64(),
            "bool": pa.bool_()}[how]  # fmt: skip


def write_shard(observations: Sequence[Observation], path: str | Path, origin: Mapping[str, Any]) -> None:
    """Write the objects as one file, which is there whole or not at all; equal objects and origin give equal bytes.

    `origin` (JSON) says where they come from and is kept in the schema. `extras` have no row in the table of modalities
    and are refused, and so are labels among the data.
    """
    path = Path(path)
    columns: dict[str, pa.Array] = {
        "id": pa.array([one.id for one in observations], pa.string()),
        "ra": pa.array([one.ra for one in observations], pa.float64()),
        "dec": pa.array([one.dec for one in observations], pa.float64()),
        "flags": pa.array([list(one.flags) for one in observations], pa.list_(pa.string())),
        "metadata": pa.array([_json(dict(one.metadata)) for one in observations], pa.string()),
    }
    for one in observations:
        if one.extras:
            raise BadInput("modality_unknown", f"object {one.id!r} has {', '.join(one.extras)}", field="extras")
        labels = sorted(LABEL_KEYS & one.data.keys())
        if labels:
            raise BadInput("label_given", f"object {one.id!r} has {', '.join(labels)} among its data", field=labels[0])
    dictionary = ["metadata"]
    streams = []
    for key, row in MODALITIES.items():
        payloads = [one.data.get(key) for one in observations]
        if any(payload is not None for payload in payloads):
            columns[row.name] = _pack(row, payloads)
            for name, how in _stored(row.kind).items():
                path_in = f"{row.name}.{name}"
                if how in ("f4", "f8") and name != "wavelength":
                    streams.append(f"{path_in}.list.element")
                elif how in ("f8", "text", "convention"):
                    dictionary.append(f"{path_in}.list.element" if how == "f8" else path_in)
    schema_metadata = {MARK: VERSION, b"albireo.origin": _json(dict(origin)).encode()}
    table = pa.table(columns).replace_schema_metadata(schema_metadata)
    part = path.with_name(path.name + ".part")
    pq.write_table(
        table, part, compression="zstd", compression_level=3, use_dictionary=dictionary, use_byte_stream_split=streams
    )
    os.replace(part, path)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False, default=lambda one: one.item())


def _pack(row: Modality, payloads: Sequence[Payload | None]) -> pa.StructArray:
    """The column of one modality."""
    absent = np.array([payload is None for payload in payloads])
    children: dict[str, pa.Array] = {}
    for name, how in _stored(row.kind).items():
        values = [None if payload is None else getattr(payload, name) for payload in payloads]
        if how in _NUMBERS:
            children[name] = _lists(values, how)
        elif how == "bits":
            packed = [None if value is None else np.packbits(value).tobytes() for value in values]
            children[name] = pa.array(packed, pa.binary())
        elif how == "texts":
            children[name] = pa.array([None if v is None else [str(t) for t in v] for v in values], _type(how))
        elif how == "conventions":
            children[name] = pa.array(
                [None if v is None else [_json(asdict(c)) for c in v] for v in values], _type(how)
            )
        elif how == "convention":
            children[name] = pa.array([None if v is None else _json(asdict(v)) for v in values], _type(how))
        else:
            children[name] = pa.array(values, _type(how))
    first = next((name for name, how in _stored(row.kind).items() if how in _NUMBERS), None)
    if first is not None:
        shapes = [None if payload is None else list(getattr(payload, first).shape) for payload in payloads]
        children["shape"] = pa.array(shapes, pa.list_(pa.int32()))
    return pa.StructArray.from_arrays(list(children.values()), names=list(children), mask=pa.array(absent))


def _lists(values: Sequence[NDArray[Any] | None], how: str) -> pa.ListArray:
    flat = [np.empty(0, how) if value is None else np.ravel(value) for value in values]
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in flat])]).astype(np.int32)
    mask = pa.array(np.array([value is None for value in values]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(flat).astype(how)), mask=mask)


def is_shard(source: Source) -> bool:
    """Parquet or Arrow that says it holds whole observations."""
    if arrow_kind(source) is None or MARK not in source.content:
        return False
    try:
        return MARK in (arrow_schema(source).metadata or {})
    except (pa.ArrowException, OSError, ValueError):
        return False


def read_shard(source: Source, options: ReadOptions, companions: Sequence[Source]) -> list[Observation | AlbireoError]:
    """One observation per row, or the error of that row."""
    kind = {"parquet": "Parquet", "arrow": "Arrow"}[arrow_kind(source) or "parquet"]
    try:
        table = arrow_table(source)
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        raise BadInput("damaged_file", f"{kind}: {error}", file=source.name, fix="fetch the file again") from error
    version = table.schema.metadata[MARK]
    if version != VERSION:
        raise BadInput(
            "unknown_format",
            f"observations of version {version.decode('utf-8', 'replace')}; version {VERSION.decode()} is read here",
            file=source.name,
        )
    _refuse_statements(options, source)
    for name, wanted in (("id", pa.string()), ("metadata", pa.string()), ("ra", pa.float64()), ("dec", pa.float64())):
        if name not in table.column_names or table.schema.field(name).type != wanted:
            raise BadInput("column_missing", f"no column {name} of {wanted}", file=source.name, field=name)
    names = {row.name: row for key, row in MODALITIES.items() if key not in LABEL_KEYS}
    columns = []
    for name in table.column_names:
        if name in names:
            column = table.column(name)
            try:
                columns.append((names[name], _Column(names[name], column.combine_chunks(), source)))
            except UnicodeDecodeError as error:  # of the name of a field
                raise BadInput("damaged_file", f"{kind}: {error}", file=source.name, field=name) from error
    source.make(table.num_rows)
    plain = table.select(["id", "ra", "dec", "metadata"]).to_pylist()
    flags = table.column("flags").to_pylist() if "flags" in table.column_names else [None] * len(plain)
    items: list[Observation | AlbireoError] = []
    for i, (cells, flag) in enumerate(zip(plain, flags, strict=True)):
        try:
            items.append(_observation(cells, flag, columns, i, source))
        except AlbireoError as error:
            items.append(of_row(error, source.name, f"row {source.first_row + i}"))
    return items


def _refuse_statements(options: ReadOptions, source: Source) -> None:
    """Everything is stated in the file; what else is said of it could only contradict it."""
    for name in ("at", "positions", "survey", "bands", "pixel_scale", "unit", "zero_point", "medium", "frame", "system",
                 "kind", "extinction_corrected", "nearest"):  # fmt: skip
        if getattr(options, name) is not None:
            raise BadInput(
                "option_invalid", f"{name} is stated in the file, object by object", file=source.name, field=name,
                fix="leave the option out",
            )  # fmt: skip


def _observation(
    cells: Mapping[str, Any],
    flags: list[str] | None,
    columns: Sequence[tuple[Modality, _Column]],
    i: int,
    source: Source,
) -> Observation:
    if not cells["id"]:
        raise BadInput("value_missing", "an object without an id", field="id")
    ra, dec = cells["ra"], cells["dec"]
    if (ra is None) != (dec is None) or (ra is not None and not (0 <= ra <= 360 and -90 <= dec <= 90)):
        raise BadInput("value_out_of_range", f"position ({ra}, {dec})", field="ra", fix="degrees ICRS, or both null")
    try:
        metadata = json.loads(cells["metadata"] or "{}")
    except (ValueError, RecursionError) as error:
        raise BadInput("damaged_file", f"metadata are no JSON: {error}", field="metadata") from error
    if not isinstance(metadata, dict):
        raise BadInput("damaged_file", "metadata are no JSON object", field="metadata")
    data: dict[str, Payload] = {}
    for row, column in columns:
        if column.present[i]:
            payload = column.payload(i)
            check(row, payload)
            data[row.key] = payload
    provenance = {key: source.provenance("albireo", survey=MODALITIES[key].survey, row=i) for key in data}
    return Observation(cells["id"], data, ra, dec, metadata=metadata, provenance=provenance, flags=tuple(flags or ()))


@dataclass(frozen=True)
class _Lists:
    values: NDArray[Any]
    offsets: NDArray[Any]
    present: NDArray[np.bool_]

    def at(self, i: int) -> NDArray[Any] | None:
        return self.values[self.offsets[i] : self.offsets[i + 1]] if self.present[i] else None


class _Column:
    """The column of one modality, its arrays looked at in place."""

    def __init__(self, row: Modality, array: pa.StructArray, source: Source) -> None:
        self.row = row
        stored = _stored(row.kind)
        wanted = {name: _type(how) for name, how in stored.items()}
        if any(how in _NUMBERS for how in stored.values()):
            wanted["shape"] = pa.list_(pa.int32())
        there = {array.type.field(k).name: array.type.field(k).type for k in range(array.type.num_fields)} if (
            pa.types.is_struct(array.type)
        ) else {}  # fmt: skip
        for name, type_ in wanted.items():
            same = name in there and (
                there[name] == type_
                or (
                    pa.types.is_list(type_)
                    and pa.types.is_list(there[name])
                    and there[name].value_type == type_.value_type
                )
            )
            if not same:
                raise BadInput(
                    "column_missing", f"no field {name} of {type_}", file=source.name, field=f"{row.name}.{name}"
                )
        self.present = np.asarray(array.is_valid())
        self.arrays: dict[str, _Lists] = {}
        self.plain: dict[str, list[Any]] = {}
        for name, how in stored.items():
            child = array.field(name)
            if how in _NUMBERS:
                self.arrays[name] = _Lists(
                    child.values.to_numpy(zero_copy_only=False), child.offsets.to_numpy(), np.asarray(child.is_valid())
                )
            else:
                self.plain[name] = child.to_pylist()
        self.shape = array.field("shape").to_pylist() if "shape" in wanted else None

    def payload(self, i: int) -> Payload:
        shape = None
        if self.shape is not None:
            shape = tuple(int(n) for n in self.shape[i] or ())
            if not shape or len(shape) > 3 or min(shape) < 0:
                raise BadInput("shape_mismatch", f"shape {shape}", field=self.row.name)
        values: dict[str, Any] = {}
        for name, how in _stored(self.row.kind).items():
            field = f"{self.row.name}.{name}"
            cell: Any = self.arrays[name].at(i) if how in _NUMBERS else self.plain[name][i]
            if cell is None:
                values[name] = None
            elif how in _NUMBERS:
                values[name] = _shaped(cell, shape or (), field).astype(how)
            elif how == "bits":
                count = prod(shape or ())
                if len(cell) != (count + 7) // 8:
                    raise BadInput("shape_mismatch", f"{len(cell)} bytes of bits for {count} pixels", field=field)
                bits = np.unpackbits(np.frombuffer(cell, np.uint8), count=count).astype(bool)
                values[name] = bits.reshape(shape or ())
            elif how == "convention":
                values[name] = _convention(cell, field)
            elif how == "conventions":
                values[name] = tuple(_convention(one, field) for one in cell)
            elif how == "texts":
                values[name] = tuple(cell) if self.row.kind == "image" else np.array(cell, np.str_)
            else:
                values[name] = cell
        optional = {"ivar", "errors", "error", "convention"} if self.row.kind != "spectrum" else set()
        for name, value in values.items():
            if value is None and name not in optional:
                raise BadInput("value_missing", "null", field=f"{self.row.name}.{name}")
        payload: Payload = CLASSES[self.row.kind](**values)
        return payload


def _shaped(cell: NDArray[Any], shape: tuple[int, ...], field: str) -> NDArray[Any]:
    if len(cell) != prod(shape):
        raise BadInput("shape_mismatch", f"{len(cell)} numbers for the shape {shape}", field=field)
    return cell.reshape(shape)


_CONVENTIONS: dict[str, Convention] = {}


def _convention(text: str, field: str) -> Convention:
    found = _CONVENTIONS.get(text)
    if found is None:
        try:
            found = Convention(**json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise BadInput("convention_missing", f"{text[:80]!r} is no convention", field=field) from error
        if found.system not in ("AB", "Vega") or not isinstance(found.extinction_corrected, bool):
            raise BadInput("convention_missing", f"{text[:80]!r} is no convention", field=field)
        if len(_CONVENTIONS) < 1000:
            _CONVENTIONS[text] = found
    return found


def check(row: Modality, payload: Payload) -> None:
    """Raise unless a payload is what its modality says: unit, bands, shape, order, finite numbers."""
    unit = getattr(payload, "unit", row.unit)
    if unit != row.unit:
        raise BadInput("unit_unknown", f"unit {unit!r}, not {row.unit!r}", field=row.name)
    if isinstance(payload, Image):
        places = [row.bands.index(band) if band in row.bands else -1 for band in payload.bands]
        if not places or -1 in places or places != sorted(set(places)):
            raise BadInput("band_unknown", f"bands {', '.join(payload.bands)}", field=row.name)
        if payload.flux.shape != (len(places), IMAGE_SIZE, IMAGE_SIZE) or len(payload.conventions) != len(places):
            raise BadInput("shape_mismatch", f"an image of shape {payload.flux.shape}", field=row.name)
        if not np.isfinite(payload.flux[~payload.mask]).all():
            raise BadInput("not_finite", "pixels that are not masked", field=row.name)
    elif isinstance(payload, Spectrum):
        if payload.flux.ndim != 1 or len(payload.wavelength) < 2:
            raise BadInput("shape_mismatch", f"a spectrum of shape {payload.flux.shape}", field=row.name)
        if not (np.isfinite(payload.wavelength).all() and (np.diff(payload.wavelength) > 0).all()):
            raise BadInput("wavelength_not_monotonic", "wavelengths do not increase", field=row.name)
        if not (np.isfinite(payload.flux).all() and np.isfinite(payload.ivar).all() and (payload.ivar >= 0).all()):
            raise BadInput("not_finite", "flux or ivar", field=row.name)
        if payload.medium not in ("vacuum", "air"):
            raise BadInput("medium_missing", f"medium {payload.medium!r}", field=row.name)
    elif isinstance(payload, Scalar):
        if not np.isfinite(payload.value):
            raise BadInput("not_finite", f"value {payload.value}", field=row.name)
    elif isinstance(payload, Coefficients):
        if payload.values.shape != row.shape or not np.isfinite(payload.values).all():
            raise BadInput("shape_mismatch", f"coefficients of shape {payload.values.shape}", field=row.name)
    elif isinstance(payload, SegmentationMap) and (
        payload.field.shape != row.shape or not ((payload.field >= 0) & (payload.field <= 1)).all()
    ):
        raise BadInput("shape_mismatch", "no map of fractions 0 to 1", field=row.name)


FORMATS: tuple[tuple[Any, ...], ...] = (
    ("albireo", "Parquet or Arrow with whole observations, as `albireo simulate` writes it", is_shard, read_shard),
)
