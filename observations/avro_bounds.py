"""Avro containers from strangers: what their blocks unfold to is reckoned before they are unfolded.

A block may be compressed, and it may hold a milliard items that take no bytes: nulls, or records of them. What takes a
byte in a container takes up to fifty in Python, so records are weighed one by one as they are read.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import Any, cast

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
    # Parsed, so that a type is called by its full name wherever it stands.
    schema, codec = fastavro.parse_schema(cast(Any, opened.writer_schema), _force=True), opened.codec
    least = _Least({one["name"]: one for one in _parts(schema) if one["type"] in _NAMED})
    empty = [one["items"] for one in _parts(schema) if one["type"] == "array" and not least.of(one["items"])]
    if empty or not least.of(schema):
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


class _Least:
    """The fewest bytes that a value of a schema takes. BadInput for a record within itself: fastavro follows it as deep
    as the stack goes, and further.

    named  full name -> the schema that it stands for
    """

    def __init__(self, named: dict[str, Any]) -> None:
        self._named = named
        self._known: dict[str, int] = {}
        self._within: list[str] = []

    def of(self, schema: Any) -> int:
        if isinstance(schema, list):
            return 1 + min((self.of(one) for one in schema), default=0)
        if isinstance(schema, dict):
            kind = schema["type"]
            if kind in _NAMED:
                return self._of_named(schema["name"], schema)
            if kind in ("array", "map"):
                self.of(schema["items" if kind == "array" else "values"])  # what is inside may be within itself
                return 1
            return self.of(kind)
        return self._of_named(schema, self._named[schema]) if schema in self._named else _LEAST.get(schema, 1)

    def _of_named(self, name: str, schema: Any) -> int:
        if name in self._within:
            raise BadInput("damaged_file", f"Avro: {name} is within itself", field="schema")
        if name not in self._known:
            self._within.append(name)
            kind = schema["type"]
            fields = schema["fields"] if kind in ("record", "error") else ()
            own = int(schema["size"]) if kind == "fixed" else int(kind == "enum")
            self._known[name] = own + sum(self.of(field["type"]) for field in fields)
            self._within.pop()
        return self._known[name]
