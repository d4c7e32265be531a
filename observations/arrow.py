"""Parquet files, Arrow IPC streams and Arrow IPC files (Feather) as Arrow tables, read without trust.

    arrow_kind    which of them the bytes are
    arrow_schema  names, types and metadata: cheap
    arrow_table   the whole table, checked, and never larger than the source's limit

What a compressed, dictionary-encoded, run-length-encoded or shared value unfolds to is reckoned before it is unfolded.
Damage is raised as what pyarrow raises; the callers say which file it is of.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from albireo.observations.parquet_footer import row_groups
from albireo.observations.parquet_pages import unfolded
from albireo.observations.source import Source

ArrowKind = Literal["arrow", "parquet"]

FILE_MAGIC = b"ARROW1"
STREAM_MAGIC = b"\xff\xff\xff\xff"
"""What stands before the length of a message since Arrow 0.15; a stream begins with its first message."""

_FILE_HEAD = 8
_CELL = 8
"""Bytes that a cell takes at least once it is an array."""

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4}
"""The same of Parquet's types that take less."""


def arrow_kind(source: Source) -> ArrowKind | None:
    """Which of them the bytes are, by how they begin; None for others."""
    head = source.content[:_FILE_HEAD]
    if head[:4] == b"PAR1":
        return "parquet"
    if head[:6] == FILE_MAGIC:
        return "arrow"
    # Behind the mark stands the length of the schema, a multiple of 8 that is never long.
    length = int.from_bytes(head[4:8], "little")
    return "arrow" if head[:4] == STREAM_MAGIC and length % 8 == 0 and 0 < length < 1 << 24 else None


def arrow_schema(source: Source) -> pa.Schema:
    """Names and types of the columns, and the metadata."""
    if arrow_kind(source) == "parquet":
        return pq.read_schema(io.BytesIO(source.content))
    return pa.ipc.open_stream(_stream(source)).schema


def arrow_table(source: Source) -> pa.Table:
    """The table, one chunk a column, dictionaries and shared texts unfolded. TooLarge over the source's limit."""
    table = _parquet(source) if arrow_kind(source) == "parquet" else _ipc(source)
    # An offset that points out of its buffer would otherwise be followed.
    table.validate(full=True)
    # A column may state any number of rows and have no bytes for them.
    _check(table.num_rows * table.num_columns * _CELL, source)
    types = [_plain(kind) for kind in table.schema.types]
    _check(sum(_size(chunk) for column in table.columns for chunk in column.chunks), source)
    fields = [field.with_type(kind) for field, kind in zip(table.schema, types, strict=True)]
    return table.cast(pa.schema(fields, table.schema.metadata)).combine_chunks()


def _check(size: int, source: Source) -> None:
    source.unfold(size, "table")


# Parquet


def _parquet(source: Source) -> pa.Table:
    groups = row_groups(source.content)
    total = 0
    texts = set()
    for chunk in (chunk for group in groups for chunk in group.chunks):
        values, size = unfolded(source.content, chunk)
        # Runs take no bytes: a milliard nulls are one.
        total += max(size, values * _WIDTHS.get(chunk.physical_type, _CELL))
        # A text that stands in a dictionary once may be meant by every row.
        if chunk.physical_type == "BYTE_ARRAY" and values * size > source.limit:
            texts.add(chunk.path_in_schema)
    _check(max(total, sum(group.num_rows * len(group.chunks) for group in groups)), source)
    try:
        file = pq.ParquetFile(io.BytesIO(source.content), read_dictionary=sorted(texts))
    except KeyError as error:
        raise pa.ArrowInvalid(f"a row group has a column {error}, the schema has none") from error
    return file.read(use_threads=False)


# Arrow IPC


def _stream(source: Source) -> pa.Buffer:
    """The messages; a file has the same ones as a stream, behind its magic and before its footer."""
    content = pa.py_buffer(source.content)
    return content[_FILE_HEAD:] if source.content[:6] == FILE_MAGIC else content


def _ipc(source: Source) -> pa.Table:
    messages = list(pa.ipc.MessageReader.open_stream(_stream(source)))
    _check(sum(size for message in messages for size in _buffer_sizes(message)), source)
    batches = sum(message.type == "record batch" for message in messages)
    if source.content[:6] == FILE_MAGIC:
        with pa.ipc.open_file(pa.py_buffer(source.content)) as whole:
            if whole.num_record_batches != batches:
                raise pa.ArrowInvalid(f"{batches} batches, the footer lists {whole.num_record_batches}")
    elif not source.content.endswith(STREAM_MAGIC + bytes(4)):
        # A stream may stop where its connection was cut: only its end mark says that it is whole.
        raise pa.ArrowInvalid("the stream breaks off: it has no end mark")
    return pa.ipc.open_stream(_stream(source), options=pa.ipc.IpcReadOptions(use_threads=False)).read_all()


def _buffer_sizes(message: Any) -> Iterator[int]:
    """Bytes of each buffer of a record or dictionary batch once it is decompressed (Arrow format, Message.fbs)."""
    if message.type not in ("record batch", "dictionary"):
        return
    metadata, body = message.metadata.to_pybytes(), memoryview(message.body)
    batch = _child(metadata, _follow(metadata, 0), 2)
    if message.type == "dictionary":
        batch = _child(metadata, batch, 1)
    compressed = _slot(metadata, batch, 3) is not None
    buffers = _child(metadata, batch, 2)
    (count,) = struct.unpack_from("<I", metadata, buffers)
    for offset, length in struct.iter_unpack("<qq", metadata[buffers + 4 : buffers + 4 + 16 * count]):
        if not 0 <= offset <= offset + length <= len(body):
            raise pa.ArrowInvalid("a buffer that is not in its message")
        stated = struct.unpack_from("<q", body, offset)[0] if compressed and length >= 8 else -1
        yield length if stated < 0 else stated


def _slot(content: bytes, table: int, n: int) -> int | None:
    """Where field n of a flatbuffers table stands, None if it is absent."""
    vtable = table - struct.unpack_from("<i", content, table)[0]
    (size,) = struct.unpack_from("<H", content, vtable)
    at = 4 + 2 * n
    offset = struct.unpack_from("<H", content, vtable + at)[0] if at < size else 0
    return table + offset if offset else None


def _child(content: bytes, table: int, n: int) -> int:
    """Where the table or vector stands that field n refers to."""
    at = _slot(content, table, n)
    if at is None:
        raise pa.ArrowInvalid("a batch without buffers")
    return _follow(content, at)


def _follow(content: bytes, at: int) -> int:
    return int(at + struct.unpack_from("<I", content, at)[0])


# Values that stand once and are meant often


def _plain(kind: Any) -> Any:
    """The type with every cell's value in its own place."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        item = kind.value_field.with_type(_plain(kind.value_type))
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(item, kind.list_size)
        return pa.list_(item) if pa.types.is_list(kind) else pa.large_list(item)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    if pa.types.is_nested(kind) or pa.types.is_run_end_encoded(kind):
        raise pa.ArrowNotImplementedError(f"the type {kind} is not read; cast it to a list or a plain column")
    return kind


def _size(array: Any) -> int:
    """Bytes of an array once it is `_plain`."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        each = pa.array(_sizes(array.dictionary))
        return int(pc.sum(pc.take(each, array.indices)).as_py() or 0) + len(array) * _CELL
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return int(_sizes(array).sum()) + len(array) * _CELL
    if pa.types.is_struct(kind):
        return sum(_size(array.field(k)) for k in range(kind.num_fields)) + len(array)
    if pa.types.is_nested(kind):
        return _size(array.values) + len(array) * _CELL
    return int(array.nbytes)


def _sizes(texts: Any) -> NDArray[np.int64]:
    """Bytes of each cell of texts, or a bound of them for other cells."""
    kind = texts.type
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return _view_sizes(texts)
    if any(of(kind) for of in _TEXTS):
        sizes: NDArray[np.int64] = pc.fill_null(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False)
        return sizes.astype(np.int64)
    return np.full(len(texts), _size(texts) if pa.types.is_nested(kind) else _CELL, np.int64)


def _view_sizes(texts: Any) -> NDArray[np.int64]:
    """Bytes of each cell of views. ArrowInvalid for one that lies outside of what it is of, also where a cell is null:
    `validate` does not look there, and to copy the texts Arrow does."""
    _, views, *held = texts.buffers()
    cells = np.frombuffer(views, np.int32)[4 * texts.offset :][: 4 * len(texts)].reshape(-1, 4).astype(np.int64)
    size, _, which, start = cells.T
    long = size > _INLINE
    ends = np.array([0 if one is None else one.size for one in held] or [0], np.int64)
    inside = (which >= 0) & (which < len(held)) & (start >= 0)
    inside &= start + size <= ends[np.where(inside, which, 0)]
    if (size < 0).any() or (long & ~inside).any():
        raise pa.ArrowInvalid("a view of a text that is not there")
    return size


_INLINE = 12
"""Bytes of a text that stands in its view (Arrow columnar format, variable-size binary view)."""

_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
