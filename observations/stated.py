"""A table stated cell by cell (a request's `values` or `table`) as the ECSV file that says the same.

Its text is what astropy writes, byte by byte, so that it has the hash of that file; its columns are those that reading
the file gives. Both are made without astropy where names and cells are plain, since its reader and writer take
milliseconds for a single row.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from astropy.table import Column as TableColumn
from astropy.table import MaskedColumn, Table

from albireo.observations.columns import Column, Columns, know
from albireo.observations.source import Source

Cell = float | int | bool | str | None

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TEXT = re.compile(r"[A-Za-z0-9_.:+*/()\[\]-]+(?: [A-Za-z0-9_.:+*/()\[\]-]+)*")
"""Texts that are written as they are, in quotation marks if there is a space in them."""

_TYPES = {"f": "float64", "i": "int64", "b": "bool"}


def stated_table(name: str, columns: Mapping[str, Sequence[Cell]], units: Mapping[str, str]) -> Source:
    """The file `name` with these columns, which are equally long; None is a missing cell.

    units  of some of the columns
    """
    made = [_Made.of(column, cells, units.get(column)) for column, cells in columns.items()]
    plain = [one for one in made if one is not None]
    if len(plain) < len(made) or not made:
        return Source(name, _written(columns, units))
    head = ["# %ECSV 1.0", "# ---", "# datatype:", *(line for one in plain for line in one.header)]
    rows = zip(*(one.cells for one in plain), strict=True)
    lines = [*head, "# schema: astropy-2.0", " ".join(columns), *map(" ".join, rows)]
    source = Source(name, ("\n".join(lines) + "\n").encode())
    know(source, Columns("ecsv", len(plain[0].cells), tuple(one.column for one in plain)))
    return source


class _Made:
    """One column as it is read, its lines of the header, and its cells as they are written."""

    def __init__(self, column: Column, header: tuple[str, ...], cells: list[str]) -> None:
        self.column = column
        self.header = header
        self.cells = cells

    @classmethod
    def of(cls, name: str, cells: Sequence[Cell], unit: str | None) -> _Made | None:
        """None if the column is left to astropy."""
        known = [cell for cell in cells if cell is not None]
        if not known or not _NAME.fullmatch(name):
            return None
        if len(known) < len(cells):
            blank = "" if isinstance(known[0], str) else type(known[0])()
            values = np.array([blank if cell is None else cell for cell in cells])
        else:
            values = np.array(cells)
        kind = values.dtype.kind
        gone = [cell is None or cell == "" for cell in cells]
        texts = values.tolist()
        if kind == "U":
            # Where a cell of text is missing, astropy reads 0.
            if not all(missing or _TEXT.fullmatch(text) for text, missing in zip(texts, gone, strict=True)):
                return None
            written = [f'"{text}"' if " " in text else text for text in texts]
            values = np.array(["0" if missing else text for text, missing in zip(texts, gone, strict=True)])
        elif kind in _TYPES and values.itemsize <= 8:
            written = [str(value) for value in texts]
        else:
            return None
        if any(gone):
            written = ['""' if missing else text for text, missing in zip(written, gone, strict=True)]
            if kind == "f":
                values[gone] = np.nan
        header, as_read = _header(name, unit, _TYPES.get(kind, "string"))
        return cls(Column(name, values, np.array(gone, bool), as_read), header, written)


@lru_cache(maxsize=4096)
def _header(name: str, unit: str | None, datatype: str) -> tuple[tuple[str, ...], str | None]:
    """The lines of the header that describe a column, and its unit as it is read."""
    table = Table([TableColumn(np.zeros(1, "U1" if datatype == "string" else datatype), name, unit=unit)])
    text = _ecsv(table)
    lines = text.splitlines()
    item = Table.read(lines, format="ascii.ecsv")[name]
    as_read = str(item.unit) if item.unit is not None and str(item.unit) else None
    return tuple(lines[lines.index("# datatype:") + 1 : lines.index("# schema: astropy-2.0")]), as_read


def _written(columns: Mapping[str, Sequence[Cell]], units: Mapping[str, str]) -> bytes:
    """The ECSV file as astropy writes it."""
    table = Table()
    for name, column in columns.items():
        mask = [value is None for value in column]
        filled = [_like(column) if value is None else value for value in column]
        table[name] = MaskedColumn(filled, mask=mask) if any(mask) else filled
        if name in units:
            table[name].unit = units[name]
    return _ecsv(table).encode()


def _like(column: Sequence[Cell]) -> Cell:
    """A stand-in, masked at once, of the type of the other entries."""
    known = next((value for value in column if value is not None), 0.0)
    return "" if isinstance(known, str) else type(known)()


def _ecsv(table: Table) -> str:
    text = io.StringIO()
    table.write(text, format="ascii.ecsv")
    return text.getvalue()
