"""Tables of the client as the Arrow streams that state them: units, masks, metadata and 64-bit ids included.

arrow_table   an astropy Table, a pandas DataFrame or columns by name as an Arrow table; the input stays as it is
stream_bytes  an Arrow table as a file
pieces_of     a table in pieces that never part the rows of one object; halves_of: in two
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from astropy.coordinates import SkyCoord
from astropy.table import Row, Table
from astropy.table.meta import get_yaml_from_header
from astropy.time import Time, TimeDelta
from numpy.typing import NDArray

from albireo.observations.errors import BadInput

META = b"table_meta_yaml"
"""Where astropy keeps the metadata of a table, in Parquet as in Arrow."""


def arrow_table(given: Any) -> pa.Table:
    """An Arrow table with everything that a table states. BadInput for a column that no table file can hold."""
    if isinstance(given, pa.Table):
        return given
    if isinstance(given, Row):
        given = given.table[given.index : given.index + 1]
    if isinstance(given, Table):
        return _from_astropy(given)
    if isinstance(given, Mapping):
        return _from_astropy(Table({name: _cells(name, cells) for name, cells in given.items()}))
    return _from_pandas(given)


def stream_bytes(table: pa.Table) -> bytes:
    """The table as an Arrow stream."""
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def scalars_of(meta: Mapping[Any, Any]) -> dict[str, Any]:
    """The entries of some metadata that a file can state: texts, numbers, yes or no."""
    out = {}
    for key, value in meta.items():
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, str | bool | int | float):
            out[str(key)] = value
    return out


def with_meta(table: pa.Table, meta: Mapping[Any, Any]) -> pa.Table:
    """The table with astropy's form of metadata; entries that no file can state are left out."""
    text = "\n".join(get_yaml_from_header({"cols": [], "meta": scalars_of(meta)}))
    return table.replace_schema_metadata({**(table.schema.metadata or {}), META: text})


def _cells(name: str, cells: Any) -> Any:
    """A column of a mapping as astropy takes it; None stands for what is missing."""
    if not isinstance(cells, Sequence) or isinstance(cells, str | bytes):
        if np.ndim(getattr(cells, "value", cells)) == 0:
            raise BadInput("shape_mismatch", "one number where a column is needed", field=name, fix="give a list")
        return cells
    known = [cell for cell in cells if cell is not None]
    if len(known) == len(cells):
        return cells
    stand_in = "" if known and isinstance(known[0], str) else type(known[0])() if known else 0.0
    filled = [stand_in if cell is None else cell for cell in cells]
    return np.ma.MaskedArray(filled, mask=[cell is None for cell in cells])


# astropy


def _from_astropy(table: Any) -> pa.Table:
    columns: dict[str, tuple[pa.Array, str | None]] = {}
    for name in table.colnames:
        column = table[name]
        if isinstance(column, SkyCoord):
            columns |= _position(column, table)
        else:
            columns[name] = _column(name, column)
    fields = [
        pa.field(name, array.type, metadata={"unit": unit} if unit else None) for name, (array, unit) in columns.items()
    ]
    made = pa.table([array for array, _ in columns.values()], schema=pa.schema(fields))
    return with_meta(made, table.meta)


def _position(column: Any, table: Any) -> dict[str, tuple[pa.Array, str | None]]:
    """A column of coordinates as ra and dec in degrees ICRS."""
    there = [name for name in table.colnames if name.lower() in ("ra", "dec")]
    if there or sum(isinstance(table[name], SkyCoord) for name in table.colnames) > 1:
        raise BadInput(
            "alias_ambiguous", f"{column.info.name!r} is a position, and so is another column",
            field=column.info.name, fix="keep one of them",
        )  # fmt: skip
    sky = column.icrs
    return {"ra": (pa.array(np.array(sky.ra.deg)), "deg"), "dec": (pa.array(np.array(sky.dec.deg)), "deg")}


def _column(name: str, column: Any) -> tuple[pa.Array, str | None]:
    """(values, unit) of one column. Times become MJD in their own scale, as readers of ECSV take them."""
    unit = str(column.unit) if getattr(column, "unit", None) is not None else None
    if isinstance(column, Time):
        column, unit = column.mjd, "d"
    elif isinstance(column, TimeDelta):
        column, unit = column.to_value("d"), "d"
    mask = np.asarray(column.mask) if getattr(column, "mask", None) is not None else None
    bare = getattr(column, "unmasked", column)
    values = np.asarray(np.ma.getdata(getattr(bare, "value", bare)))
    return _array(name, values, mask), unit or None


def _array(name: str, values: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> pa.Array:
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    kind = values.dtype.kind
    if kind == "O":
        return _objects(name, values, mask)
    if kind not in "biufU" or (kind == "f" and values.dtype.itemsize > 8) or values.ndim > 2:
        raise BadInput(
            "shape_mismatch", f"{values.dtype.name} cells of shape {values.shape[1:]} have no place in a table",
            field=name, fix="leave the column out, or send images as images",
        )  # fmt: skip
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    gone = np.zeros(len(values), bool) if mask is None else mask.reshape(len(values), -1).all(axis=1)
    if values.ndim == 1:
        return pa.array(values, mask=gone)
    if mask is not None and bool(np.any(mask & ~gone.reshape(-1, 1))):
        if kind != "f":
            raise BadInput(
                "value_missing", f"cells of {values.dtype.name} that are missing in part", field=name,
                fix="store floats: NaN is what is missing",
            )  # fmt: skip
        values = np.where(mask, np.nan, values)
    width = values.shape[1]
    offsets = pa.array(np.arange(0, len(values) * width + 1, width, dtype=np.int32) if width else
                       np.zeros(len(values) + 1, np.int32), mask=np.append(gone, False))  # fmt: skip
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))


def _objects(name: str, values: NDArray[Any], mask: NDArray[np.bool_] | None) -> pa.Array:
    """A column of Python objects: texts, or arrays of different lengths."""
    cells = [None if mask is not None and mask[i] else cell for i, cell in enumerate(values.tolist())]
    known = [cell for cell in cells if cell is not None]
    if all(isinstance(cell, str) for cell in known):
        return pa.array(cells, pa.string())
    if all(isinstance(cell, np.ndarray) and cell.ndim == 1 for cell in known):
        return pa.array([None if cell is None else np.ascontiguousarray(cell, cell.dtype.newbyteorder("="))
                         for cell in cells])  # fmt: skip
    kinds = ", ".join(sorted({type(cell).__name__ for cell in known}))
    raise BadInput(
        "shape_mismatch", f"cells of {kinds} have no place in a table", field=name, fix="give texts, numbers or arrays"
    )


# pandas


def _from_pandas(frame: Any) -> pa.Table:
    """A DataFrame with its named index; `attrs` is its metadata."""
    named = [name for name in frame.index.names if name is not None]
    if not named and frame.index.dtype.kind not in "iu":
        raise BadInput(
            "column_missing", "the index has no name: is it an id?", field="index",
            fix="name it: frame.rename_axis('id')",
        )  # fmt: skip
    table = pa.Table.from_pandas(frame, preserve_index=bool(named))
    return with_meta(table.replace_schema_metadata(None), frame.attrs)


# Pieces


def pieces_of(table: pa.Table, name: str, columns: Mapping[str, str], rows: int, size: int) -> Iterator[pa.Table]:
    """The table in pieces of at most `rows` objects and about `size` bytes, in order of the objects' first rows.

    columns  the reading option of that name: which column is the id
    A table that does not say which rows are one object stays whole.
    """
    small = table.num_rows <= rows and table.nbytes <= size
    keys = None if small else _ids(table, name, columns)
    if keys is None:
        yield table
        return
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first[inverse], kind="stable")
    edges = np.flatnonzero(np.diff(inverse[order], prepend=-1))
    budget = max(1, int(size * table.num_rows / max(1, table.nbytes)))
    stops = [*edges[1:].tolist(), len(order)]
    start = n_here = 0
    for stop, following in zip(stops, [*stops[1:], None], strict=True):
        n_here += 1
        if following is None or n_here == rows or following - start > budget:
            yield table.take(pa.array(order[start:stop]))
            start, n_here = stop, 0


def halves_of(table: pa.Table, name: str, columns: Mapping[str, str]) -> list[pa.Table]:
    """The table in two, or as it is if it cannot be parted."""
    keys = _ids(table, name, columns)
    objects = 1 if keys is None else len(np.unique(keys))
    return list(pieces_of(table, name, columns, -(-objects // 2), table.nbytes)) if objects > 1 else [table]


def _ids(table: pa.Table, name: str, columns: Mapping[str, str]) -> NDArray[Any] | None:
    """What tells the objects of the rows apart, as the reader of the table's format does; None if nothing does."""
    names = {column.lower(): column for column in table.column_names}
    found = [names[key] for key in _id_names(table, name, columns) if key in names]
    if not found:
        return None
    return np.array(["\t".join(map(str, row.values())) for row in table.select(found).to_pylist()])


def _id_names(table: pa.Table, name: str, columns: Mapping[str, str]) -> Sequence[str]:
    """The columns, in lower case, that are the id together; () if the rows are one object."""
    from albireo.observations import aliases, plain_spectra, table_catalogs  # only for tables that are divided
    from albireo.observations.reading import detect
    from albireo.observations.source import Source

    stated = columns.get("id", columns.get("source_id"))
    if stated is not None:
        return [stated.lower()]
    if columns.keys() & {"mjd", "jd"}:
        form = "table_lightcurve"
    else:
        form = detect(Source(name, stream_bytes(table.slice(0, 2)))).name
    there = {column.lower() for column in table.column_names}
    if form == "table" and there >= {"release", "brickid", "objid"}:
        return ("release", "brickid", "objid")
    lists = any(pa.types.is_list(field.type) or pa.types.is_large_list(field.type) for field in table.schema)
    known: Mapping[str, Sequence[str]] = {
        "table": aliases.ID_NAMES,
        "table_lightcurve": aliases.EPOCH_COLUMNS["id"],
        "plasticc": aliases.EPOCH_COLUMNS["id"],
        "table_catalog": table_catalogs.CUTOUT_IDS,
        "plain_spectrum": plain_spectra.IDS if lists else (),
        "gaia_xp": ("source_id",),
        "albireo": ("id",),
    }
    return next(([key] for key in known.get(form, ()) if key in there), ())
