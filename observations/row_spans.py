"""A large table as a sequence of small ones: spans of rows, each a file of its own, never all in memory.

    Span      some rows, read when asked for
    open_spans  the spans of a file, None if it is no table that can be read so, or an empty one

A span has the header of its table, so every reader takes it for a file; rows keep their numbers in the table, and its
sha256 is that of the whole file. Text (CSV, ECSV, plain or gzipped) is cut between lines, FITS between rows; rows of
Parquet and Arrow become Arrow streams. VOTables and FITS files of several tables or with arrays of varying length
cannot be cut.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.io.fits.verify import VerifyError

from albireo.observations.arrow import arrow_kind
from albireo.observations.columns import table_kind
from albireo.observations.errors import BadInput, TooLarge
from albireo.observations.fits_bounds import MAX_HEADER_BYTES, check_beginning
from albireo.observations.parquet_footer import footer_of, row_groups
from albireo.observations.source import MAX_BYTES, Source

_HEAD = 1 << 16
_CARD, _BLOCK = 80, 2880


class Rows(Source):
    """Some rows of a table, from row `first_row` of it on."""

    def __init__(self, name: str, content: bytes, first_row: int, sha256: str) -> None:
        super().__init__(name, content)
        self.first_row = first_row
        self._sha256 = sha256

    @cached_property
    def sha256(self) -> str:
        """Of the whole file."""
        return self._sha256


@dataclass(frozen=True)
class Span:
    """`count` rows from row `first` on; spans are read in their order, or left out.

    content  gives the rows as a file
    until    fraction of the whole file that lies before the end of the span
    """

    first: int
    count: int
    content: Callable[[], bytes]
    until: float

    def read(self, name: str, sha256: str) -> Rows:
        """The rows as a source of the file `name` with the hash `sha256`. BadInput damaged_file if they are broken."""
        try:
            content = self.content()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise BadInput(
                "damaged_file", f"rows {self.first} to {self.first + self.count - 1}: {error}", file=name
            ) from error
        return Rows(name, content, self.first, sha256)


_DAMAGE = (OSError, EOFError, ValueError, TypeError, KeyError, IndexError, zlib.error, VerifyError, pa.ArrowException)


def open_spans(path: Path, rows: int, size: int) -> Iterator[Span] | None:
    """Spans of at most `rows` rows and about `size` bytes at most; None if the file cannot be cut into them.

    BadInput damaged_file comes between spans where the file is broken.
    """
    try:
        head = _head(path)
        kind = table_kind(head)
        if kind in ("csv", "ecsv"):
            return _checked(_text_spans(path, rows, size), path.name)
        if kind == "fits":
            spans = _fits_spans(path, rows, size)
            return None if spans is None else _checked(spans, path.name)
        if kind in ("parquet", "arrow"):
            return _checked(_arrow_spans(path, rows, size, arrow_kind(head) or "parquet"), path.name)
    except (BadInput, *_DAMAGE):
        return None  # the reader of whole files says what is wrong
    return None


def _checked(spans: Iterator[Span], name: str) -> Iterator[Span]:
    read = 0
    try:
        for span in spans:
            yield span
            read = span.first + span.count
    except _DAMAGE as error:
        raise BadInput(
            "damaged_file", f"after row {read}: {error}", file=name, fix="fetch the file again, or write it again"
        ) from error


def _head(path: Path) -> Source:
    with path.open("rb") as stream:
        return Source(path.name, _unzipped(stream).read(_HEAD))


def _unzipped(stream: IO[bytes]) -> IO[bytes]:
    """The decompressed bytes of an open file."""
    zipped = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    return cast(IO[bytes], gzip.GzipFile(fileobj=stream)) if zipped else stream


# Text


def _text_spans(path: Path, rows: int, size: int) -> Iterator[Span]:
    total = path.stat().st_size
    with path.open("rb") as stream:
        lines = _records(_unzipped(stream), path.name)
        header = b""
        for line in lines:
            header += line
            if line.strip() and not line.lstrip(b"\xef\xbb\xbf \t").startswith(b"#"):
                break
        first, count = 0, 0
        held: list[bytes] = []
        so_far, until = 0, stream.tell()
        for line in lines:
            # A format is told by the first row, which must be one line for that.
            if (count >= rows or so_far >= size) and line.count(b"\n") < 2 and line.strip():
                yield _text_span(first, count, header, held, until / total)
                first, count, held, so_far = first + count, 0, [], 0
            held.append(line)
            so_far += len(line)
            count += bool(line.strip())
            until = stream.tell()
        if count or not first:
            yield _text_span(first, count, header, held, 1.0)


def _text_span(first: int, count: int, header: bytes, lines: Iterable[bytes], until: float) -> Span:
    body = b"".join(lines)
    return Span(first, count, lambda: header + body, until)


def _records(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """Lines, with those that a quotation mark holds together in one."""
    record = b""
    while line := stream.readline(MAX_BYTES):
        record = record + line if record else line
        if len(record) >= MAX_BYTES:
            raise TooLarge("too_large", f"a row of {len(record)} bytes, the limit is {MAX_BYTES}", file=name)
        if line.startswith(b"#") or record.count(b'"') % 2 == 0:
            yield record
            record = b""
    if record:
        yield record


# FITS

MAX_SPAN_HEADER = 256 << 10
"""Bytes before a table that is cut: every span is read with them, and astropy takes half a second for a MB."""


def _fits_spans(path: Path, rows: int, size: int) -> Iterator[Span] | None:
    with path.open("rb") as stream:
        head = stream.read(2 * MAX_HEADER_BYTES)
    if head[:6] != b"SIMPLE":
        return None  # gzipped
    check_beginning(head)
    with fits.open(path, memmap=True, lazy_load_hdus=True) as hdus:
        table = hdus[1]
        if not isinstance(table, fits.BinTableHDU) or table.header["PCOUNT"]:
            return None
        where, there = table.fileinfo(), path.stat().st_size
        if there >= where["datLoc"] + where["datSpan"] + _BLOCK or hdus[0].header["NAXIS"] != 0:
            return None  # there is more in it
        width, total = int(table.header["NAXIS1"]), int(table.header["NAXIS2"])
        start, begin = int(where["hdrLoc"]), int(where["datLoc"])
    if begin > MAX_SPAN_HEADER:
        return None
    if width:
        total = min(total, (there - begin) // width + 1)  # one that is not there is enough to say so
    with path.open("rb") as stream:
        header = stream.read(begin)
    at = next((k for k in range(start, begin, _CARD) if header[k : k + 10] == b"NAXIS2  = "), None)
    if at is None or not width or not total:
        return None

    def content(first: int, count: int) -> bytes:
        card = f"NAXIS2  = {count:20d}".ljust(_CARD).encode()
        at_first, wanted = begin + first * width, count * width
        with path.open("rb") as stream:
            stream.seek(at_first)
            body = stream.read(max(0, min(wanted, there - at_first)))  # what a header states alone is not asked for
        if len(body) < wanted:
            raise OSError(f"the file ends within row {first + len(body) // width}")
        return header[:at] + card + header[at + _CARD :] + body + bytes(-len(body) % _BLOCK)

    return _even(total, min(rows, max(1, size // width)), content)


def _even(
    count: int, step: int, content: Callable[[int, int], bytes], before: int = 0, total: int | None = None
) -> Iterator[Span]:
    """`count` rows of a table of `total`, `step` at a time; there are `before` rows in front of them."""
    for start in range(0, count, step):
        n = min(step, count - start)
        until = (before + start + n) / max(total or count, 1)
        yield Span(before + start, n, partial(content, start, n), until)


# Parquet and Arrow


def _arrow_spans(path: Path, rows: int, size: int, kind: str) -> Iterator[Span]:
    if kind == "parquet":
        return _parquet_spans(path, rows, size)
    file = pa.memory_map(str(path))
    try:
        reader: Any = pa.ipc.open_file(file)
        batches: Iterator[Any] = (reader.get_batch(i) for i in range(reader.num_record_batches))
        total = sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
    except pa.ArrowInvalid:
        batches = iter(pa.ipc.open_stream(file))
        total = sum(batch.num_rows for batch in pa.ipc.open_stream(pa.memory_map(str(path))))
    return _batch_spans(batches, total, rows, size)


def _batch_spans(batches: Iterator[Any], total: int, rows: int, size: int) -> Iterator[Span]:
    before = 0
    for batch in batches:
        batch.validate(full=True)  # an offset that points out of its buffer would otherwise be followed
        step = min(rows, max(1, size * batch.num_rows // max(batch.nbytes, 1)))
        yield from _even(batch.num_rows, step, partial(_some_of, batch), before, total)
        before += batch.num_rows


def _some_of(batch: Any, start: int, count: int) -> bytes:
    return _stream([batch.slice(start, count)])


def _parquet_spans(path: Path, rows: int, size: int) -> Iterator[Span]:
    groups = row_groups(footer_of(path))
    total = sum(group.num_rows for group in groups)
    # A text that stands in a dictionary once may be meant by every row: it stays there until it was reckoned with.
    texts = {
        chunk.path_in_schema
        for group in groups
        for chunk in group.chunks
        if chunk.physical_type == "BYTE_ARRAY" and "." not in chunk.path_in_schema
        and min(rows, group.num_rows) * chunk.total_uncompressed_size > MAX_BYTES
    }  # fmt: skip
    file = pq.ParquetFile(path, read_dictionary=sorted(texts))
    before = 0
    for number, group in enumerate(groups):
        held = sum(chunk.total_uncompressed_size for chunk in group.chunks)
        step = min(rows, max(1, size * group.num_rows // max(held, 1)))
        yield from _even(group.num_rows, step, _Cursor(file, number, step).content, before, total)
        before += group.num_rows


class _Cursor:
    """Reads on in a row group, so that spans one after another are decoded once."""

    def __init__(self, file: pq.ParquetFile, group: int, step: int) -> None:
        self.file, self.group, self.step = file, group, step
        self.at = 0
        self.batches: Iterator[Any] | None = None
        self.left: Any = None

    def content(self, start: int, count: int) -> bytes:
        """The rows from `start` of the group on, as an Arrow stream."""
        if self.batches is None or start < self.at:
            self.batches = self.file.iter_batches(self.step, row_groups=[self.group], use_threads=False)
            self.at, self.left = 0, None
        try:
            self._take(start - self.at)
            batches = self._take(count)
        except BaseException:
            self.batches = None
            raise
        return _stream(batches)

    def _take(self, count: int) -> list[Any]:
        """The next rows, as they come."""
        assert self.batches is not None
        taken = []
        while count:
            if self.left is None or not self.left.num_rows:
                self.left = next(self.batches, None)
                if self.left is None:
                    raise OSError(f"row group {self.group} ends after {self.at} rows")
            part = self.left.slice(0, count)
            self.left = self.left.slice(part.num_rows)
            self.at += part.num_rows
            count -= part.num_rows
            taken.append(part)
        return taken


def _stream(batches: Sequence[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    out: bytes = sink.getvalue().to_pybytes()
    return out
