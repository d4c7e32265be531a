"""Tables as columns: CSV, ECSV, FITS binary tables, Parquet, Arrow and VOTable become the same plain arrays.

    column_names   what a table calls its columns: cheap, for telling formats apart
    load_columns   the whole table

Nothing is interpreted here. Units are what the file says, integers stay integers (ids pass 2^53), missing cells are
marked, arrays are in native byte order.
"""

from __future__ import annotations

import csv
import io
import re
import struct
import weakref
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal
from xml.parsers.expat import ExpatError

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from astropy.io import fits
from astropy.io.votable import parse_single_table
from astropy.io.votable.exceptions import VOWarning
from astropy.table import Table
from astropy.table.meta import YamlParseError, get_header_from_yaml
from numpy.typing import NDArray

from albireo.observations.arrow import arrow_kind, arrow_schema, arrow_table
from albireo.observations.errors import BadInput, TooLarge
from albireo.observations.observation import Bools, Doubles
from albireo.observations.source import Source
from albireo.observations.votables import refuse_references

TableKind = Literal["arrow", "csv", "ecsv", "fits", "parquet", "votable"]

_LOOK = 1 << 16
"""Bytes looked at to tell a text table from other text."""

MAX_YAML = 128 << 10
"""Characters of a header of ECSV, or of astropy's in Parquet: for some 2,000 columns, and a second of the parser."""

_SEPARATORS = (",", "\t", ";", "|")


@dataclass(frozen=True)
class Column:
    """values (T,) or (T, K), native; missing (T,) True where the file has no value; unit as written, or None."""

    name: str
    values: NDArray[Any]
    missing: Bools
    unit: str | None = None

    def numbers(self) -> Doubles:
        """The values as float64, NaN where missing; text is an error, and so are several values a row."""
        if self.values.dtype.kind not in "fiub":
            raise BadInput(
                "value_out_of_range",
                f"column {self.name!r} holds {self.values.dtype.name}, numbers are needed",
                field=self.name,
                fix="write numbers, and nothing where there is none",
            )
        if self.values.ndim != 1:
            raise BadInput(
                "shape_mismatch",
                f"column {self.name!r} has several values a row",
                field=self.name,
                fix="give one a row",
            )
        out = self.values.astype(np.float64)
        if self.missing.any():
            out[self.missing] = np.nan
        return out

    def texts(self) -> list[str]:
        """The values as stripped text, "" where missing; integers digit by digit."""
        return [
            "" if gone else str(value).strip()
            for value, gone in zip(self.values.tolist(), self.missing.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class Columns:
    """A table: columns in the file's order, `meta` with lower-case names, and which HDU it came from."""

    kind: TableKind
    rows: int
    columns: tuple[Column, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    hdu: str | None = None

    def find(self, *names: str) -> Column | None:
        """The one column with any of these names, upper or lower case alike."""
        found: list[Column] = []
        for name in names:
            found += self._by_name.get(name.lower(), ())
        if len(found) > 1 and len(found := [c for c in self.columns if any(c is one for one in found)]) > 1:
            raise BadInput(
                "alias_ambiguous",
                f"columns {', '.join(repr(c.name) for c in found)} can all be {names[0]!r}",
                field=names[0],
                fix=f"say which with columns: {names[0]}=<column>",
            )
        return found[0] if found else None

    @property
    def present(self) -> Set[str]:
        """Names in lower case."""
        return self._by_name.keys()

    @cached_property
    def _by_name(self) -> dict[str, list[Column]]:
        """Columns by their name in lower case."""
        found: dict[str, list[Column]] = {}
        for column in self.columns:
            found.setdefault(column.name.lower(), []).append(column)
        return found

    def named(self, name: str) -> Column:
        """The column that an option names, exactly as written or, if there is one only, in another case."""
        for column in self.columns:
            if column.name == name:
                return column
        found = self.find(name)
        if found is None:
            raise BadInput(
                "column_unknown",
                f"the file has no column {name!r}",
                field=name,
                fix="its columns are " + ", ".join(c.name for c in self.columns),
            )
        return found


def table_kind(source: Source) -> TableKind | None:
    """Which kind of table the bytes are, or None."""
    head = source.content[:_LOOK]
    kind = arrow_kind(source)
    if kind is not None:
        return kind
    if source.is_fits:
        return "fits"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        return "votable" if b"<VOTABLE" in head.upper() else None
    if re.match(rb"# %ECSV", head):
        return "ecsv"
    return "csv" if _csv_layout(head) else None


_NAMES: weakref.WeakKeyDictionary[Source, tuple[str, ...]] = weakref.WeakKeyDictionary()
_LOWER: weakref.WeakKeyDictionary[Source, frozenset[str]] = weakref.WeakKeyDictionary()
_KNOWN: weakref.WeakKeyDictionary[Source, Columns] = weakref.WeakKeyDictionary()


def know(source: Source, table: Columns) -> None:
    """`load_columns(source)` shall give this table, without reading it."""
    _KNOWN[source] = table
    _NAMES[source] = tuple(column.name for column in table.columns)


def column_names(source: Source) -> tuple[str, ...]:
    """The table's column names, () if it is no table or a damaged one; remembered per source."""
    if source not in _NAMES:
        try:
            _NAMES[source] = _peek(source)
        except (BadInput, OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError,
                pa.ArrowException, VOWarning, csv.Error):  # fmt: skip
            # Whether the content is damaged is for the reader to say; a look at foreign bytes never fails.
            _NAMES[source] = ()
    return _NAMES[source]


def lower_names(source: Source) -> frozenset[str]:
    """The table's column names in lower case."""
    if source not in _LOWER:
        _LOWER[source] = frozenset(name.lower() for name in column_names(source))
    return _LOWER[source]


def load_columns(source: Source, *, text: Iterable[str] = ()) -> Columns:
    """The table; columns of `text` (lower case) are text however they look, so that "000006" stays what it is."""
    if source in _KNOWN:
        return _KNOWN[source]
    kind = table_kind(source)
    if kind is None:
        raise BadInput("unknown_format", "not a table that is read here", file=source.name)
    if kind == "fits":
        return _load_fits(source)
    wanted = {name.lower() for name in text}
    try:
        if kind == "csv":
            return _load_csv(source, wanted)
        if kind == "parquet" or kind == "arrow":
            return _load_arrow(kind, source)
        return _load_votable(source) if kind == "votable" else _load_ecsv(source)
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OverflowError,
        csv.Error,
        struct.error,
        pa.ArrowException,
        YamlParseError,
        ExpatError,
        VOWarning,
    ) as error:
        raise BadInput(
            "damaged_file", f"{kind}: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            file=source.name, fix="write the table again",
        ) from error  # fmt: skip


def _csv_layout(head: bytes) -> tuple[int, str, list[str]] | None:
    """Lines before the header, the separator and the column names, if the text is laid out as a table.

    The header and the first row must have the same number of fields, and names must not be numbers.
    """
    if b"\x00" in head:
        return None
    try:
        lines = head.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return None
        lines = head[: error.start].decode("utf-8-sig").splitlines()
    skip = 0
    while skip < len(lines) and (not lines[skip].strip() or lines[skip].lstrip().startswith("#")):
        skip += 1
    if len(lines) < skip + 1:
        return None
    separator = max(_SEPARATORS, key=lines[skip].count)
    try:
        rows = list(csv.reader(lines[skip : skip + 2], delimiter=separator))
    except csv.Error:  # a field longer than one may be
        return None
    names = [name.strip() for name in rows[0]]
    if len(names) < 2 or not all(names) or any(_is_number(name) for name in names):
        return None
    if len(rows) > 1 and len(rows[1]) != len(names):
        return None
    if not all(re.fullmatch(r"[^\s{}<>\"]+( [^\s{}<>\"]+)?", name) for name in names):
        return None
    return skip, separator, names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _peek(source: Source) -> tuple[str, ...]:
    kind = table_kind(source)
    if kind == "parquet" or kind == "arrow":
        return tuple(arrow_schema(source).names)
    if kind == "fits":
        with source.fits() as hdus:
            table = next((hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)), None)
            return tuple(name or "" for name in table.columns.names) if table is not None else ()
    if kind == "votable":
        head = source.content[: 1 << 20].decode("utf-8", "replace")
        fields = re.findall(r"<FIELD\b[^>]*", head)
        found = (re.search(r'\bname\s*=\s*["\']([^"\']*)', field) for field in fields)
        return tuple(match[1] for match in found if match)
    if kind == "ecsv":
        for line in source.content.decode("utf-8", "replace").splitlines():
            if line and not line.startswith("#"):
                return tuple(next(csv.reader([line], delimiter="," if "," in line else " ")))
        return ()
    layout = _csv_layout(source.content[:_LOOK]) if kind == "csv" else None
    return tuple(layout[2]) if layout else ()


def _load_csv(source: Source, text: set[str]) -> Columns:
    layout = _csv_layout(source.content[:_LOOK])
    assert layout is not None
    skip, separator, names = layout
    _refuse_twins(names, source)
    table = pyarrow.csv.read_csv(
        io.BytesIO(source.content),
        # One block, because types are inferred from the first one only.
        read_options=pyarrow.csv.ReadOptions(
            column_names=names,
            skip_rows=skip + 1,
            block_size=min(len(source.content) + 1, 2**31 - 1),
            use_threads=False,
        ),
        parse_options=pyarrow.csv.ParseOptions(delimiter=separator),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={name: pa.string() for name in names if name.lower() in text},
            null_values=["", "nan", "NaN", "NAN", "null", "NULL", "None", "--", "NA", "N/A", "masked", "<NA>"],
            strings_can_be_null=True,
        ),
    )  # fmt: skip
    return Columns("csv", table.num_rows, tuple(_arrow_column(table, name, None, source) for name in names))


def _load_arrow(kind: TableKind, source: Source) -> Columns:
    """Parquet and Arrow: units are where astropy keeps them, or the metadata `unit` of a field."""
    table = arrow_table(source)
    _refuse_twins(table.column_names, source)
    raw = {key.decode(): value for key, value in (table.schema.metadata or {}).items()}
    units: dict[str, str] = {}
    meta: dict[str, Any] = {
        key.lower(): value.decode("utf-8", "replace")
        for key, value in raw.items()
        if key not in ("pandas", "ARROW:schema", "table_meta_yaml")
    }
    if "table_meta_yaml" in raw:  # how astropy keeps units and meta in Parquet
        header = get_header_from_yaml(_bounded(raw["table_meta_yaml"].decode().split("\n"), source))
        units = {row["name"]: str(row["unit"]) for row in header["datatype"] if row.get("unit")}
        meta |= _lower(header.get("meta") or {})
    for item in table.schema:
        if item.metadata and item.metadata.get(b"unit"):
            units[item.name] = item.metadata[b"unit"].decode()
    columns = tuple(_arrow_column(table, name, units.get(name), source) for name in table.column_names)
    return Columns(kind, table.num_rows, columns, meta)


def _arrow_column(table: Any, name: str, unit: str | None, source: Source) -> Column:
    """An Arrow column as numpy: integers stay integers also where some are null."""
    chunk = table.column(name).combine_chunks()
    missing = np.asarray(chunk.is_null().to_numpy(zero_copy_only=False), bool)
    kind = chunk.type
    values: NDArray[Any]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        values = _arrow_lists(chunk)
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        values = chunk.fill_null(False if pa.types.is_boolean(kind) else 0).to_numpy(zero_copy_only=False)
    elif pa.types.is_floating(kind):
        values = chunk.to_numpy(zero_copy_only=False)
    elif pa.types.is_decimal(kind):
        values = chunk.cast(pa.float64()).to_numpy(zero_copy_only=False)
    elif pa.types.is_null(kind):
        values = np.full(len(chunk), np.nan)
    else:
        cells = ["" if cell is None else str(cell) for cell in chunk.to_pylist()]
        size = 4 * len(cells) * max(map(len, cells), default=0)
        if size > source.limit:  # every cell takes as much as the longest
            raise TooLarge(
                "too_large", f"{size} bytes of text, the limit is {source.limit}", file=source.name, field=name
            )
        values = np.array(cells, dtype=np.str_)
    return Column(name, np.array(values), missing, unit)


def _arrow_lists(chunk: Any) -> NDArray[Any]:
    """(T, K) if all lists are as long, else (T,) of lists; a missing one is NaN."""
    lengths = np.unique(pc.drop_null(pc.list_value_length(chunk)).to_numpy())
    inner = chunk.flatten()
    plain = pa.types.is_floating(inner.type) or pa.types.is_signed_integer(inner.type)
    if plain and len(lengths) == 1 and not chunk.null_count and not inner.null_count:
        wide = np.float64 if pa.types.is_floating(inner.type) else np.int64
        flat: NDArray[Any] = inner.to_numpy(zero_copy_only=False).astype(wide)
        return flat.reshape(len(chunk), int(lengths[0]))
    cells = chunk.to_pylist()
    if len(lengths) == 1:
        blank = [np.nan] * int(lengths[0])
        return np.array([blank if cell is None else cell for cell in cells])
    values = np.empty(len(cells), object)
    values[:] = cells
    return values


def _load_fits(source: Source) -> Columns:
    """The first binary table with columns; the names of further ones stand in meta["unused_hdus"]."""
    with source.fits() as hdus:
        tables = [(i, hdu) for i, hdu in enumerate(hdus) if isinstance(hdu, fits.BinTableHDU)]
        if not tables:
            raise BadInput("unknown_format", "no binary table in the FITS file", file=source.name)
        number, hdu = tables[0]
        meta = _lower({card.keyword: card.value for card in hdus[0].header.cards if card.keyword})
        meta |= _lower({card.keyword: card.value for card in hdu.header.cards if card.keyword})
        if len(tables) > 1:
            meta["unused_hdus"] = tuple(other.name or str(i) for i, other in tables[1:])
        _refuse_twins(hdu.columns.names, source)
        columns = tuple(_fits_column(hdu, item) for item in hdu.columns)
        return Columns("fits", len(hdu.data), columns, meta, hdu.name or str(number))


def _fits_column(hdu: Any, item: Any) -> Column:
    values = np.asarray(hdu.data[item.name])
    missing = np.zeros(len(values), bool)
    if values.dtype.kind == "S":
        values = np.char.decode(values, "ascii", "replace")
    if values.dtype.kind == "U":
        values = np.char.strip(values)
        missing = values == "" if values.ndim == 1 else missing
    elif values.dtype.kind in "iu" and item.null is not None and values.ndim == 1:
        missing = values == item.null
    return Column(
        item.name,
        np.array(values, dtype=values.dtype.newbyteorder("=")),
        missing,
        str(item.unit) if item.unit else None,
    )


def _load_votable(source: Source) -> Columns:
    refuse_references(source)
    table = parse_single_table(io.BytesIO(source.content), verify="ignore").to_table(use_names_over_ids=True)
    return _from_astropy("votable", table, source)


def _load_ecsv(source: Source) -> Columns:
    lines = source.text().splitlines()
    _bounded([line for line in lines if line.startswith("#")], source)
    return _from_astropy("ecsv", Table.read(lines, format="ascii.ecsv"), source)


def _bounded(header: list[str], source: Source) -> list[str]:
    """The lines of a YAML header. TooLarge if there are more than it may have."""
    size = sum(map(len, header))
    if size > MAX_YAML:
        raise TooLarge(
            "too_large", f"a header of {size} characters of YAML, the limit is {MAX_YAML}",
            file=source.name, fix="send fewer columns, or a table without it: CSV with units stated, FITS",
        )  # fmt: skip
    return header


def _from_astropy(kind: TableKind, table: Any, source: Source) -> Columns:
    _refuse_twins(table.colnames, source)
    columns = []
    for name in table.colnames:
        item = table[name]
        unit = str(item.unit) if getattr(item, "unit", None) is not None and str(item.unit) else None
        if hasattr(item, "mjd"):  # an astropy Time column: its numbers are ours to choose
            item, unit = np.asarray(item.mjd, np.float64), "d"
        elif not hasattr(item, "dtype"):
            continue  # a mixin without plain values, such as SkyCoord
        mask = np.asarray(getattr(item, "mask", np.zeros(len(item), bool)))
        values = np.asarray(getattr(item, "data", item))
        if isinstance(values, np.ma.MaskedArray):
            values = values.data
        missing = mask.reshape(len(values), -1).all(axis=1) if mask.ndim > 1 else mask
        if values.dtype.kind == "O" and all(isinstance(cell, (str, bytes)) or cell is None for cell in values.flat):
            values = np.array(["" if cell is None else _text(cell) for cell in values.tolist()], dtype=np.str_)
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8", "replace")
        if values.dtype.kind == "f" and mask.shape == values.shape and mask.any():
            values = np.where(mask, np.nan, values)
        columns.append(
            Column(name, np.array(values, dtype=values.dtype.newbyteorder("=")), np.array(missing, bool), unit)
        )
    return Columns(kind, len(table), tuple(columns), _lower(table.meta))


def _text(cell: str | bytes) -> str:
    return cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell


def _lower(meta: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key).lower(): value for key, value in meta.items()}


def _refuse_twins(names: Iterable[str], source: Source) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadInput(
                "alias_ambiguous", f"two columns are called {name!r}", file=source.name, field=name,
                fix="give each column a name of its own",
            )  # fmt: skip
        seen.add(name)
