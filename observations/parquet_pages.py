"""The pages of a Parquet file, walked by their headers: how many values and bytes they say they unfold to.

The footer says it too, but a footer may say anything: pyarrow allocates by what stands in front of each page.
"""

from __future__ import annotations

from typing import Any

from albireo.observations.parquet_footer import Chunk

_SIZE, _COMPRESSED, _DATA, _DICTIONARY, _DATA_V2 = 2, 3, 5, 7, 8
"""Numbers of fields of a PageHeader (parquet.thrift); the first field of each kind of page is its number of values."""

_DEPTH = 8


def unfolded(content: bytes, chunk: Chunk) -> tuple[int, int]:
    """(values, bytes) of a chunk of the file `content`, as the larger of its footer and its pages says.

    ValueError if it is damaged.
    """
    start = chunk.data_page_offset
    if chunk.dictionary_page_offset:
        start = min(start, chunk.dictionary_page_offset)
    at, end = start, start + chunk.total_compressed_size
    if not 0 <= start <= end <= len(content):
        raise ValueError(f"a column chunk from byte {start} to {end} of {len(content)}")
    values = size = 0
    try:
        while at < end:
            header, at = _struct(content, at)
            if not 0 <= header[_COMPRESSED] <= end - at or header[_SIZE] < 0:
                raise ValueError(f"a page of {header[_COMPRESSED]} bytes where {end - at} are left")
            at += header[_COMPRESSED]
            size += header[_SIZE]
            values += max(0, *(header[kind][1] for kind in (_DATA, _DATA_V2) if kind in header), 0)
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"a page header that cannot be read: {error!r}") from error
    return max(values, chunk.num_values), max(size, chunk.total_uncompressed_size)


def _struct(content: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The numbers and structs of one struct in Thrift's compact protocol by field, and where it ends."""
    if depth > _DEPTH:
        raise ValueError("a page header of structs within structs")
    fields: dict[int, Any] = {}
    number = 0
    while content[at]:
        step, kind = content[at] >> 4, content[at] & 15
        at += 1
        if step:
            number += step
        else:
            number, at = _integer(content, at)
        fields[number], at = _value(content, at, kind, depth)
    return fields, at + 1


def _value(content: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):  # a bool, which is its own type
        return kind == 1, at
    if kind == 3:
        return content[at], at + 1
    if kind in (4, 5, 6):
        return _integer(content, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:
        length, at = _varint(content, at)
        return None, at + length
    if kind in (9, 10):
        length, item = content[at] >> 4, content[at] & 15
        at += 1
        if length == 15:
            length, at = _varint(content, at)
        for _ in range(length):
            if item in (1, 2):
                at += 1
            else:
                _, at = _value(content, at, item, depth + 1)
            if at > len(content):
                raise IndexError("a list beyond the end")
        return None, at
    if kind == 12:
        return _struct(content, at, depth + 1)
    raise ValueError(f"a field of type {kind} in a page header")


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _integer(content: bytes, at: int) -> tuple[int, int]:
    """A zigzag number."""
    value, at = _varint(content, at)
    return (value >> 1) ^ -(value & 1), at
