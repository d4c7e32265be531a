"""Avro containers from strangers: what their blocks unfold to is reckoned before they are unfolded.

A block may be compressed, and it may hold a milliard items that take no bytes: nulls, or records of them. What takes a
byte in a container takes up to fifty in Python, so records are weighed one by one as they are read.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import Any

import fastavro

from albireo.observations.errors import BadInput, TooLarge
from albireo.observations.source import Source

_STEP = 1 << 20

_BLOCK_SHARE = 64
"""By which a block must be smaller than a file may be: it is one record at least, which is weighed when it is there."""

_BLOCK = {
    "type": "record",
    "name": "Block",
    "fields": [
        {"name": "records", "type": "long"},
        {"name": "content", "type": "bytes"},
        {"name": "sync", "type": {"type": "fixed", "name": "sync", "size": 16}},
    ],
}

_NAMED = ("record", "error", "enum", "fixed")

_LEAST = {"null": 0, "float": 4, "double": 8}
"""Bytes of a value; of the other simple types at least one."""


def check_avro(source: Source) -> None:
    """BadInput or TooLarge for a container that states too much. Other damage is raised as fastavro raises it."""
    content = source.content
    stream = io.BytesIO(content)
    opened = fastavro.reader(stream)
    schema, codec = opened.writer_schema, opened.codec
    named: dict[str, Any] = {one["name"]: one for one in _parts(schema) if one["type"] in _NAMED}
    empty = [one["items"] for one in _parts(schema) if one["type"] == "array" and not _least(one["items"], named)]
    if empty or not _least(schema, named):
        raise BadInput("damaged_file", "Avro: any number of items without a byte", file=source.name, field="schema")
    if codec not in ("null", "deflate"):
        raise BadInput("damaged_file", f"Avro: codec {codec!r}", file=source.name, fix="write it with deflate or null")
    size = 0
    while stream.tell() < len(content):
        block: Any = fastavro.schemaless_reader(stream, _BLOCK, None)
        before = size
        if codec == "null":
            size += len(block["content"])
        else:
            unfolding, rest = zlib.decompressobj(-15), block["content"]
            while rest and not unfolding.eof:
                size += len(unfolding.decompress(rest, _STEP))
                source.unfold(size, "blocks")
                rest = unfolding.unconsumed_tail
        if size - before > source.limit // _BLOCK_SHARE:
            raise TooLarge(
                "too_large", f"Avro: a block of {size - before} bytes, the limit is {source.limit // _BLOCK_SHARE}",
                file=source.name, fix="write smaller blocks",
            )  # fmt: skip


def weight(value: Any) -> int:
    """Bytes of memory that a record takes, about, beside its texts and numbers of bytes."""
    inside = value.values() if isinstance(value, dict) else value
    return 64 + 100 * len(inside) + sum(weight(one) for one in inside if isinstance(one, dict | list))


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Every complex type within a schema, and itself."""
    if isinstance(schema, list):
        for one in schema:
            yield from _parts(one)
    elif isinstance(schema, dict):
        if isinstance(schema.get("type"), str):
            yield schema
        for one in (schema.get("type"), schema.get("items"), schema.get("values"), schema.get("fields")):
            yield from _parts(one)


def _least(schema: Any, named: dict[str, Any], within: tuple[str, ...] = ()) -> int:
    """The fewest bytes that a value takes."""
    if isinstance(schema, list):
        return 1 + min((_least(one, named, within) for one in schema), default=0)
    if isinstance(schema, dict):
        kind = schema["type"]
        if kind == "fixed":
            return int(schema["size"])
        if kind in ("record", "error"):
            inside = (*within, schema["name"])
            return sum(_least(field["type"], named, inside) for field in schema["fields"])
        return 1 if kind in ("array", "map", "enum") else _least(kind, named, within)
    if schema in named:
        return 1 if schema in within else _least(named[schema], named, within)
    return _LEAST.get(schema, 1)
