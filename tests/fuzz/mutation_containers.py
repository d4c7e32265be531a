"""The same of containers: members of NumPy archives, blocks of Avro, metadata of Parquet and Arrow."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from random import Random

from tests.fuzz.mutation_formats import WHOLE, Change, json_value

# NumPy archives


def member(rng: Random, content: bytes, words: Sequence[bytes]) -> bytes | None:
    """A member with another header, other data or another name; left out, or twice."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            plain = [
                info for info in archive.infolist() if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            ]
            members = [(info.filename, archive.open(info).read(1 << 22)) for info in plain]
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, RuntimeError, NotImplementedError, KeyError):
        return None
    if not members:
        return None
    at, what = rng.randrange(len(members)), rng.randrange(8)
    name, data = members[at]
    if what == 0:
        del members[at]
    elif what == 1:
        other = rng.choice((rng.choice(members)[0], rng.choice(words).decode("latin-1") + ".npy", "x", "../x.npy"))
        members[at] = (other, data)
    elif what == 2:
        members.append((rng.choice(words).decode("latin-1") + ".npy", data))
    else:
        members[at] = (name, array_header(rng, data, words) or data[: rng.randrange(len(data) + 1)])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)), compresslevel=1) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


_DESCR = (
    *[
        "<f4",
        ">f8",
        "<f2",
        "<i8",
        "|u1",
        "|b1",
        "<U3",
        "|S0",
        "<U0",
        "|O",
        "<c16",
        "<M8[D]",
        "<m8[s]",
        "|V4",
        "<f16",
        "<g",
        "<U99999999",
        "{}",
        "None",
    ],
    *("[('a', '<f4')]", "('<f4', (2,))", "[('a', '<f4', (1000000,))]"),
)


def array_header(rng: Random, data: bytes, words: Sequence[bytes]) -> bytes | None:
    """Another type, order or shape of a .npy array; sometimes the data change with it."""
    if data[:6] != b"\x93NUMPY" or len(data) < 10:
        return None
    size = 2 if data[6] == 1 else 4
    end = 8 + size + int.from_bytes(data[8 : 8 + size], "little")
    head, body = data[8 + size : end].decode("latin-1"), data[end:]
    what = rng.randrange(4)
    if what == 0:
        head = re.sub(r"'descr': [^,]*", lambda _: f"'descr': {rng.choice(_DESCR)!r}", head, count=1)
    elif what == 1:
        shape = tuple(rng.choice((*WHOLE, 1, 3, 96)) for _ in range(rng.randrange(5)))
        head = re.sub(r"'shape': \([^)]*\)", lambda _: f"'shape': {shape}", head, count=1)
    elif what == 2:
        shape = tuple(rng.choice((0, 1, 2, 3, 4, 96)) for _ in range(rng.randrange(5)))
        head = re.sub(r"'shape': \([^)]*\)", lambda _: f"'shape': {shape}", head, count=1)
        count = 1
        for n in shape:
            count *= n
        width = int("".join(re.findall(r"descr': '[<>|=][a-zA-Z](\d{1,3})'", head)[:1]) or 4)
        body = (body * 3)[: count * width].ljust(min(count * width, 1 << 20), b"\x01")
    else:
        body = (
            body[: len(body) // 2]
            + struct.pack("<d", rng.choice((float("nan"), float("inf"), -1.0, 1e300)))
            + body[len(body) // 2 :]
        )
        body = body[: len(data) - end]
    return data[:8] + len(head).to_bytes(size, "little") + head.encode("latin-1") + body


ARCHIVE: Sequence[Change] = (member, member)


# Avro object containers


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A zigzag number and where the next one begins."""
    number = shift = 0
    while True:
        byte = content[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return (number >> 1) ^ -(number & 1), at


def zigzag(number: int) -> bytes:
    """A whole number as Avro writes it."""
    number = ((number << 1) ^ (number >> 63)) & (1 << 64) - 1
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def avro(rng: Random, content: bytes, words: Sequence[bytes]) -> bytes | None:
    """The schema, the codec, or a block of a container; deflated blocks are changed inside."""
    try:
        count, at = _varint(content, 4)
        meta = []
        for _ in range(min(abs(count), 20)):
            size, at = _varint(content, at)
            name, at = content[at : at + size], at + size
            size, at = _varint(content, at)
            meta.append((name, content[at : at + size]))
            at += size
        _, at = _varint(content, at)
        sync, at = content[at : at + 16], at + 16
        rows, at = _varint(content, at)
        size, at = _varint(content, at)
        block, rest = content[at : at + size], content[at + size :]
        deflated = (b"avro.codec", b"deflate") in meta
        if deflated:
            block = zlib.decompressobj(-15).decompress(block, 1 << 22)
    except (IndexError, zlib.error):
        return None
    what = rng.randrange(5)
    if what < 2:
        meta = [(n, (json_value(rng, v, words) or v) if n == b"avro.schema" and what == 0 else v) for n, v in meta]
        if what == 1:
            meta = [(n, _renamed(rng, v, words) if n == b"avro.schema" else v) for n, v in meta]
    elif what == 2:
        rows = rng.choice((*WHOLE[:-4], -1, rows + 1))
    else:
        place = rng.randrange(len(block) + 1)
        new = rng.choice(
            (
                zigzag(rng.choice(WHOLE) & (1 << 62) - 1),
                rng.randbytes(8),
                b"\x00",
                b"\x02",
                struct.pack("<d", float("nan")),
            )
        )
        block = block[:place] + new + block[place + len(new) * rng.randrange(2) :]
    if deflated:
        packing = zlib.compressobj(1, zlib.DEFLATED, -15)
        block = packing.compress(block) + packing.flush()
    head = b"".join(zigzag(len(name)) + name + zigzag(len(value)) + value for name, value in meta)
    return b"Obj\x01" + zigzag(len(meta)) + head + b"\x00" + sync + zigzag(rows) + zigzag(len(block)) + block + rest


def _renamed(rng: Random, schema: bytes, words: Sequence[bytes]) -> bytes:
    """A schema in which one type is another."""
    kinds = list(
        re.finditer(rb'"(null|boolean|int|long|float|double|bytes|string|array|map|record|enum|fixed)"', schema)
    )
    if not kinds:
        return schema
    old = rng.choice(kinds)
    new = rng.choice(
        (
            b'"null"',
            b'"int"',
            b'"long"',
            b'"double"',
            b'"string"',
            b'"bytes"',
            b'"boolean"',
            b'["null","int"]',
            b'"%s"' % rng.choice(words),
        )
    )
    return schema[: old.start()] + new + schema[old.end() :]


AVRO: Sequence[Change] = (avro, avro)


# Parquet and Arrow: words of flatbuffers and Thrift


def footer(rng: Random, content: bytes, words: Sequence[bytes]) -> bytes | None:
    """A byte, a small number or a word in the last kilobytes, where Parquet's metadata and Arrow's footer are."""
    at = rng.randint(max(0, len(content) - rng.choice((64, 512, 4096))), len(content) - 1)
    new = rng.choice(
        (
            bytes([rng.randrange(256)]),
            zigzag(rng.choice(WHOLE) & (1 << 62) - 1),
            struct.pack("<i", rng.choice((0, -1, 1 << 30))),
        )
    )
    return content[:at] + new + content[at + len(new) :]


def aligned(rng: Random, content: bytes, words: Sequence[bytes]) -> bytes | None:
    """A number of 2, 4 or 8 bytes at a multiple of that, in the first kilobytes: lengths and offsets of messages."""
    n = rng.choice((2, 4, 8))
    at = rng.randrange(0, max(min(len(content), 4096) - n, 1), n)
    old = int.from_bytes(content[at : at + n], "little")
    value = rng.choice((*WHOLE, old + n, old - n, old + 1, old ^ 8, old * 8))
    return content[:at] + (value & (1 << 8 * n) - 1).to_bytes(n, "little") + content[at + n :]


WORDS: Sequence[Change] = (footer, aligned, aligned)
