"""A table of an answer as the bytes of a file: Arrow, Parquet, FITS, VOTable, CSV, NumPy archive.

Columns keep their order, names, units and UCDs. What a format lacks is written so: lists of texts become one text with
`; ` between them where there are no lists; a missing number is NaN and a missing text empty where there is no null; in
FITS, which has only ASCII, other characters are written as \\xNN, \\uNNNN or \\UNNNNNNNN. The table's metadata are the
schema's in Arrow and Parquet, cards of the header in FITS, INFO elements in a VOTable; CSV has no place for them but
columns of their own, of which the short ones are given, and in a NumPy archive arrays without axes.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from astropy import units
from astropy.io import fits
from astropy.io.votable import tree
from astropy.io.votable.exceptions import VOWarning
from numpy.typing import NDArray

SEPARATOR = "; "

CARDS = {"request_id": "REQUEST", "timings_ms": "TIMINGS", "collection": "COLLECT", "modality": "MODALITY"}
"""Entry of the metadata -> its FITS keyword, where that is not the entry in capitals."""

IN_CSV = ("space", "model")
"""Entries of the metadata that every row of a CSV repeats."""

IN_NPZ = {"embedding": "vectors", "id": "ids"}
"""Column -> its array, where that is called otherwise."""

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot carry."""


def arrow_bytes(table: pa.Table) -> bytes:
    """An Arrow IPC stream, with its end mark."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def parquet_bytes(table: pa.Table) -> bytes:
    """A Parquet file."""
    texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, use_dictionary=texts)
    return bytes(sink.getvalue())


def csv_bytes(table: pa.Table) -> bytes:
    """CSV with a header; an array is a column for each of its numbers, NAME_0, NAME_1, .."""
    names: list[str] = []
    columns: list[Any] = []
    for field in table.schema:
        values = table.column(field.name).combine_chunks()
        if _is_numbers(field.type):
            numbers = _matrix(values)
            for k in range(numbers.shape[1]):
                names.append(f"{field.name}_{k}")
                columns.append(pa.array(np.ascontiguousarray(numbers[:, k]), from_pandas=True))
        else:
            names.append(field.name)
            columns.append(_joined(values) if pa.types.is_list(field.type) else values)
    for name in IN_CSV:
        if name.encode() in (table.schema.metadata or {}):
            names.append(name)
            columns.append(pa.repeat(table.schema.metadata[name.encode()].decode(), table.num_rows))
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(pa.Table.from_arrays(columns, names), sink)
    return bytes(sink.getvalue())


def fits_bytes(table: pa.Table) -> bytes:
    """A FITS file with one binary table, and the metadata in its header."""
    columns = []
    for field in table.schema:
        values = _plain(table.column(field.name).combine_chunks())
        if values.dtype.kind == "U":
            values = np.array(list(map(ascii_text, values.tolist())), "S")
            form = f"{max(values.itemsize, 1)}A"
        else:
            width = values.shape[1] if values.ndim > 1 else 1
            form = f"{width}{ {'f4': 'E', 'f8': 'D', 'i4': 'J', 'i8': 'K'}[values.dtype.str[1:]] }"
        columns.append(fits.Column(field.name, form, unit=fits_unit(_about(field, "unit")), array=values))
    hdu = fits.BinTableHDU.from_columns(columns, name="ALBIREO")
    for name, text in _metadata(table):
        hdu.header[CARDS.get(name, name.upper())] = ascii_text(text)
    for k, field in enumerate(table.schema, 1):
        if ucd := _about(field, "ucd"):
            hdu.header[f"TUCD{k}"] = ucd
    out = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(out)
    return out.getvalue()


def votable_bytes(table: pa.Table, serialization: Literal["binary2", "tabledata"] = "binary2") -> bytes:
    """A VOTable 1.4; positions are tied to their ICRS frame."""
    votable = tree.VOTableFile(version="1.4")
    resource = tree.Resource(type="results")
    votable.resources.append(resource)
    resource.coordinate_systems.append(tree.CooSys(ID="icrs", system="ICRS"))
    resource.infos.append(tree.Info(name="QUERY_STATUS", value="OK"))
    for name, text in _metadata(table):
        resource.infos.append(tree.Info(name=name, value=_xml(text)))
    element = tree.TableElement(votable)
    resource.tables.append(element)
    arrays = [_plain(table.column(field.name).combine_chunks()) for field in table.schema]
    with warnings.catch_warnings():
        # Units of ours that the VOUnits standard does not know are written as they are.
        warnings.simplefilter("ignore", VOWarning)
        element.fields.extend(
            _field(votable, field, values) for field, values in zip(table.schema, arrays, strict=True)
        )
        element.create_arrays(table.num_rows)
        for field, values in zip(table.schema, arrays, strict=True):
            texts = values.dtype.kind == "U"
            element.array[field.name] = [_xml(text) for text in values.tolist()] if texts else values
            element.array.mask[field.name] = False
        out = io.BytesIO()
        votable.to_xml(out, tabledata_format=serialization)
    return out.getvalue()


def npz_bytes(table: pa.Table) -> bytes:
    """A NumPy archive without pickles: an array for each column, and for each entry of the metadata one of no axis.

    Texts are arrays of fixed width; so that one long message does not widen all rows, errors are given for the rows
    that have one only, whose numbers are in `errors`.
    """
    arrays: dict[str, Any] = {name: np.array(text) for name, text in _metadata(table)}
    whole = [name for name in table.column_names if not name.startswith("error_")]
    arrays |= {IN_NPZ.get(name, name): _plain(table.column(name).combine_chunks()) for name in whole}
    failed = np.flatnonzero(arrays["status"] == "error")
    arrays["errors"] = failed
    for name in [name for name in table.column_names if name.startswith("error_")]:
        arrays[name] = _plain(table.column(name).combine_chunks().take(pa.array(failed)))
    return archive_bytes(arrays)


def archive_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """A NumPy archive of arrays by any names, the same bytes for the same arrays; numbers are little-endian."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
    return out.getvalue()


def _field(votable: Any, field: pa.Field, values: NDArray[Any]) -> Any:
    kinds = {"f4": "float", "f8": "double", "i4": "int", "i8": "long"}
    if values.dtype.kind == "U":
        plain = all(text.isascii() for text in values.tolist())
        about = {"datatype": "char" if plain else "unicodeChar", "arraysize": "*"}
    else:
        about = {"datatype": kinds[values.dtype.str[1:]]}
        if values.ndim > 1:
            about["arraysize"] = str(values.shape[1])
    position = {"ref": "icrs"} if field.name in ("ra", "dec") else {}
    return tree.Field(
        votable, name=field.name, ID=field.name, unit=_about(field, "unit"), ucd=_about(field, "ucd"), **about,
        **position,
    )  # fmt: skip


def _metadata(table: pa.Table) -> Iterator[tuple[str, str]]:
    for name, text in (table.schema.metadata or {}).items():
        yield name.decode(), text.decode()


def _about(field: pa.Field, name: str) -> str | None:
    found = (field.metadata or {}).get(name.encode())
    return None if found is None else str(found.decode())


def _is_numbers(kind: Any) -> bool:
    """True of arrays of numbers."""
    return (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)) and not pa.types.is_string(kind.value_type)


def _plain(values: Any) -> NDArray[Any]:
    """(R,) or (R, K) numbers, NaN where missing; or (R,) texts."""
    kind = values.type
    if _is_numbers(kind):
        return _matrix(values)
    if pa.types.is_list(kind):
        values = _joined(values)
    if pa.types.is_string(values.type):
        return np.array(pc.fill_null(values, "").to_pylist(), np.str_)
    out: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return out


def _joined(values: Any) -> Any:
    """Lists of texts, each as one text."""
    return pc.binary_join(values, SEPARATOR)


def _matrix(values: Any) -> NDArray[np.float32]:
    """(R, K) numbers of lists that are equally long; NaN where there is none."""
    gone = values.is_null().to_numpy(zero_copy_only=False)
    there = values.drop_null()
    numbers = there.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    width = len(numbers) // len(there) if len(there) else getattr(values.type, "list_size", 0)
    out = np.full((len(values), width), np.nan, np.float32)
    out[~gone] = numbers.reshape(-1, width)
    return out


@lru_cache
def fits_unit(unit: str | None) -> str | None:
    """A unit as FITS writes it, such as 10**-17 erg s-1; one that it does not know stays as it is."""
    try:
        return units.Unit(unit).to_string("fits") if unit else None
    except ValueError:
        return unit


def ascii_text(text: str) -> str:
    """Text of printable ASCII: whatever else it has is written by its number."""
    if text.isascii() and text.isprintable():
        return text
    plain = text.encode("ascii", "backslashreplace").decode()
    return re.sub(r"[^ -~]", lambda found: f"\\x{ord(found[0]):02x}", plain)


def _xml(text: str) -> str:
    return _FORBIDDEN.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
