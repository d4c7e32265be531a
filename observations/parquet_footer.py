"""The footer of a Parquet file, read without pyarrow: that ends the process over some that it does not like.

`RowGroupMetaData.column` lets an exception of C++ through, for example for a histogram of another length than its
column has levels. To open and to read a file with such a footer is an error like others, so what is looked at before it
is read is looked at here.

    Chunk       a column of a row group
    Group       a row group
    footer_of   the footer of a file
    row_groups  those of a file, whose numbers of rows agree
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"PAR1"

MAX_FOOTER_BYTES = 16 << 20
"""Of a table of a thousand columns in eighty row groups; a megabyte takes a third of a second."""

_TYPES = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")

_I32, _I64, _BINARY, _LIST, _SET, _MAP, _STRUCT = 5, 6, 8, 9, 10, 11, 12
"""Types of Thrift's compact protocol; 1 and 2 are true and false, 3 a byte, 4 an i16, 7 a double."""

_DEPTH = 16


@dataclass(frozen=True, slots=True)
class Chunk:
    """ColumnMetaData (parquet.thrift), as the footer states it; offsets and sizes in bytes."""

    physical_type: str
    path_in_schema: str
    num_values: int
    total_uncompressed_size: int
    total_compressed_size: int
    data_page_offset: int
    dictionary_page_offset: int | None


@dataclass(frozen=True, slots=True)
class Group:
    """A row group: its rows, and a chunk for each column."""

    num_rows: int
    chunks: tuple[Chunk, ...]


def footer_of(path: Path) -> bytes:
    """The last bytes of a file, its footer among them."""
    with path.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, end - 8))
        length = int.from_bytes(stream.read(4), "little") + 8
        stream.seek(max(0, end - min(length, MAX_FOOTER_BYTES + 16)))
        return stream.read()


def row_groups(tail: bytes) -> list[Group]:
    """The row groups of a file that ends with `tail`, which has the whole footer.

    ValueError if it is damaged, if a group has other numbers of rows than its columns, or all than the file: pyarrow
    takes memory for as many rows as a group states; or if its columns are of other types than those of the schema, by
    which pyarrow reads them.
    """
    length = int.from_bytes(tail[-8:-4], "little")
    if length > MAX_FOOTER_BYTES:
        raise ValueError(f"a footer of {length} bytes, the limit is {MAX_FOOTER_BYTES}")
    if tail[-4:] != MAGIC or length > len(tail) - 8:
        raise ValueError("the footer is not there")
    footer = _Thrift(tail[len(tail) - 8 - length : -8])
    rows: int | None = None
    types: list[str] = []
    groups: list[Group] = []
    try:
        for number, kind in footer.fields():
            if number == 2:
                types = [one for _ in range(footer.items(kind, _STRUCT)) if (one := _leaf(footer)) is not None]
            elif number == 3:
                rows = footer.integer(kind)
            elif number == 4:
                groups = [_group(footer) for _ in range(footer.items(kind, _STRUCT))]
            else:
                footer.skip(kind)
    except (IndexError, KeyError) as error:
        raise ValueError(f"a footer that cannot be read: {error!r}") from error
    for number, group in enumerate(groups):
        if [chunk.physical_type for chunk in group.chunks] != types:
            raise ValueError(f"row group {number} has columns of other types than the schema")
        values = min((chunk.num_values for chunk in group.chunks), default=group.num_rows)
        if not 0 <= group.num_rows <= values:
            raise ValueError(f"row group {number} states {group.num_rows} rows, of a column it has {values} values")
    if rows != sum(group.num_rows for group in groups):
        raise ValueError(f"the row groups have other numbers of rows than the file, {rows}")
    return groups


def _leaf(footer: _Thrift) -> str | None:
    """The type of an element of the schema, None of one that holds others."""
    numbers: dict[int, int] = {}
    for number, kind in footer.fields():
        if number in (1, 5):
            numbers[number] = footer.integer(kind)
        else:
            footer.skip(kind)
    return None if numbers.get(5) or 1 not in numbers else _type(numbers[1])


def _type(number: int) -> str:
    if not 0 <= number < len(_TYPES):
        raise ValueError(f"a column of type {number}")
    return _TYPES[number]


def _group(footer: _Thrift) -> Group:
    rows, chunks = 0, []
    for number, kind in footer.fields():
        if number == 1:
            chunks = [_chunk(footer) for _ in range(footer.items(kind, _STRUCT))]
        elif number == 3:
            rows = footer.integer(kind)
        else:
            footer.skip(kind)
    return Group(rows, tuple(chunks))


def _chunk(footer: _Thrift) -> Chunk:
    found: Chunk | None = None
    for number, kind in footer.fields():
        if number == 3 and kind == _STRUCT:
            found = _column(footer)
        else:
            footer.skip(kind)
    if found is None:
        raise ValueError("a column of a row group that is not described")
    return found


def _column(footer: _Thrift) -> Chunk:
    numbers: dict[int, int] = {}
    path = ""
    for number, kind in footer.fields():
        if number in (1, 5, 6, 7, 9, 11):
            numbers[number] = footer.integer(kind)
        elif number == 3:
            parts = [footer.binary() for _ in range(footer.items(kind, _BINARY))]
            path = b".".join(parts).decode("utf-8", "replace")
        else:
            footer.skip(kind)
    return Chunk(_type(numbers[1]), path, numbers[5], numbers[6], numbers[7], numbers[9], numbers.get(11))


class _Thrift:
    """Thrift's compact protocol, read from the beginning on. Who reads a field takes its value, or skips it."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """(number, type) of each field of a struct. ValueError if one comes twice: of which value is it meant?"""
        number = 0
        seen = set()
        while (byte := self.content[self.at]) != 0:
            self.at += 1
            number = number + (byte >> 4) if byte >> 4 else self._zigzag()
            if number in seen:
                raise ValueError(f"field {number} comes twice")
            seen.add(number)
            yield number, byte & 15
        self.at += 1

    def integer(self, kind: int) -> int:
        """ValueError if the type is another: pyarrow passes such a field over."""
        if kind not in (_I32, _I64):
            raise ValueError(f"a number of type {kind}")
        return self._zigzag()

    def items(self, kind: int, wanted: int) -> int:
        """How many items a list has; ValueError if it is none, or of another type."""
        if kind != _LIST:
            raise ValueError(f"a list of type {kind}")
        size, item = self._list()
        if size and item != wanted:
            raise ValueError(f"a list of items of type {item}")
        return size

    def binary(self) -> bytes:
        length = self._varint()
        value = self.content[self.at : self.at + length]
        self.at += length
        return value

    def skip(self, kind: int, depth: int = 0) -> None:
        """Pass a value over."""
        if depth > _DEPTH:
            raise ValueError("structs within structs")
        if kind in (_I32, _I64, 4):
            self._varint()
        elif kind == _BINARY:
            self.binary()
        elif kind == _STRUCT:
            for _, inside in self.fields():
                self.skip(inside, depth + 1)
        elif kind in (_LIST, _SET):
            size, item = self._list()
            for _ in range(size):
                self._item(item, depth)
        elif kind == _MAP:
            size = self._varint()
            kinds = self.content[self.at] if size else 0
            self.at += size > 0
            for _ in range(size):
                self._item(kinds >> 4, depth)
                self._item(kinds & 15, depth)
        elif kind in (3, 7):
            self.at += 1 if kind == 3 else 8
        elif kind not in (1, 2):
            raise ValueError(f"a field of type {kind}")

    def _item(self, kind: int, depth: int) -> None:
        """Pass over what stands in a list, where a bool takes a byte."""
        self.skip(3 if kind in (1, 2) else kind, depth + 1)
        if self.at > len(self.content):
            raise ValueError("a list beyond the end")

    def _list(self) -> tuple[int, int]:
        byte = self.content[self.at]
        self.at += 1
        size = self._varint() if byte >> 4 == 15 else byte >> 4
        if size > len(self.content):
            raise ValueError(f"a list of {size} items")
        return size, byte & 15

    def _varint(self) -> int:
        byte = self.content[self.at]
        self.at += 1
        if byte < 128:
            return byte
        value, shift = byte & 127, 7
        while byte >= 128:
            byte = self.content[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
            if shift > 70:
                raise ValueError("a number of more than 64 bits")
        return value

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
