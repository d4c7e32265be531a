"""Files of a few kilobytes that unfold to hundreds of megabytes, or to rows without end: one maker for each way."""

from __future__ import annotations

import base64
import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits

from albireo.observations import shards

LARGE = 64 << 20
"""Bytes that each unfolds to at least, where it unfolds to a number of them."""

STEP = 16 << 20


def gzipped(size: int = LARGE) -> bytes:
    """Zeros, of as many members as it takes."""
    return gzip.compress(bytes(STEP), 1) * (size // STEP)


# numpy archives


def _array(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _archive(head: bytes, zeros: int, method: int = zipfile.ZIP_DEFLATED, said: int | None = None) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method, compresslevel=1) as archive, archive.open("flux.npy", "w") as member:
        member.write(head)
        for start in range(0, zeros, STEP):
            member.write(bytes(min(STEP, zeros - start)))
    content = stream.getvalue()
    return content if said is None else content.replace(struct.pack("<I", len(head) + zeros), struct.pack("<I", said))


def npz_that_says_so() -> bytes:
    return _archive(_array((LARGE // 4,)), LARGE)


def npz_that_says_less() -> bytes:
    head = _array((100,))
    return _archive(head, LARGE, said=len(head) + 400)


def npz_of_bzip2() -> bytes:
    head = _array((100,))
    return _archive(head, LARGE, zipfile.ZIP_BZIP2, said=len(head) + 400)


def npz_of_nothing() -> bytes:
    """A million million texts of no bytes, where ids are read."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("flux.npy", _array((1, 4, 96, 96)) + bytes(4 * 96 * 96 * 4))
        archive.writestr("bands.npy", _array((10**12,), "|S0"))
    return stream.getvalue()


def npz_of_pickles() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, flux=np.array([{"a": 1}], dtype=object))
    return stream.getvalue()


# FITS


def _header(**cards: object) -> bytes:
    text = ""
    for name, value in cards.items():
        told = "T" if value is True else f"'{value:8}'" if isinstance(value, str) else str(value)
        text += f"{name.replace('_', '-'):8}= {told:>20}".ljust(80)
    return _padded((text + "END".ljust(80)).encode(), b" ")


def _padded(content: bytes, by: bytes = b"\x00") -> bytes:
    return content + by * (-len(content) % 2880)


_PRIMARY = _header(SIMPLE=True, BITPIX=8, NAXIS=0, EXTEND=True)
_SURVEY = {"SURVEY": "LegacySurvey", "BANDS": "g"}


def _table(width: int, rows: int, heap: bytes, data: bytes, **cards: object) -> bytes:
    fixed = {"XTENSION": "BINTABLE", "BITPIX": 8, "NAXIS": 2, "NAXIS1": width, "NAXIS2": rows}
    return _PRIMARY + _header(**fixed, PCOUNT=len(heap), GCOUNT=1, **cards) + _padded(data + heap)


def fits_of_pixels() -> bytes:
    """Declares an image of 1 GiB, and ends."""
    return _header(SIMPLE=True, BITPIX=-32, NAXIS=2, NAXIS1=1 << 14, NAXIS2=1 << 14, **_SURVEY) + bytes(2880)


def fits_of_rows() -> bytes:
    columns = {"TFIELDS": 2, "TTYPE1": "OBJID", "TFORM1": "0J", "TTYPE2": "FLUX_G", "TFORM2": "0E"}
    return _table(0, 10**9, b"", b"", **columns)


def fits_of_one_array() -> bytes:
    """Every row means the same array of the heap."""
    heap = bytes(1 << 20)
    cell = struct.pack(">ii", len(heap) // 4, 0)
    return _table(8, 400, heap, cell * 400, TFIELDS=1, TTYPE1="FLUX", TFORM1=f"1PE({len(heap) // 4})")


def fits_of_cards() -> bytes:
    cards = b"".join(f"C{n:07d}= {n:20d}".ljust(80).encode() for n in range(60_000))
    return _padded(_header(SIMPLE=True, BITPIX=8, NAXIS=0)[:240] + cards + b"END".ljust(80), b" ")


def fits_of_axes() -> bytes:
    """Two milliard axes: astropy would look for a card of each."""
    return _header(SIMPLE=True, BITPIX=8, NAXIS=1 << 31) + bytes(2880)


def fits_of_axes_behind() -> bytes:
    """In the second header, which astropy reads with the first if that does not say EXTEND."""
    behind = {"XTENSION": "IMAGE", "BITPIX": 8, "NAXIS": 1 << 31, "PCOUNT": 0, "GCOUNT": 1}
    return _header(SIMPLE=True, BITPIX=8, NAXIS=0) + _header(**behind)


def fits_of_columns() -> bytes:
    return _table(8, 1, b"", bytes(8), TFIELDS=1 << 31, TTYPE1="FLUX_G", TFORM1="1D")


def fits_of_a_text_for_a_size() -> bytes:
    """A text times a milliard is a text of gigabytes."""
    return _header(SIMPLE=True, BITPIX=8, NAXIS=2, NAXIS1=1 << 31, NAXIS2="AAAA") + bytes(2880)


def fits_of_a_size_without_a_value() -> bytes:
    """Which is a text too."""
    return fits_of_a_text_for_a_size().replace(b"NAXIS2  =", b"NAXIS2   ")


def fits_of_axes_after_blanks() -> bytes:
    """astropy leaves the blanks out."""
    return fits_of_axes_behind().replace(b"NAXIS   =           2147483648", b"  naxis =           2147483648")


def fits_that_goes_back() -> bytes:
    """Data of negative size, so that the next HDU is this one again."""
    behind = {"XTENSION": "IMAGE", "BITPIX": 8, "NAXIS": 1, "NAXIS1": -2880, "PCOUNT": 0, "GCOUNT": 1}
    return _PRIMARY + _header(**behind) + bytes(2880)


def fits_of_cards_of_a_compressed_image() -> bytes:
    """8,000 cards, for which astropy takes time by the square, whenever the file is looked at."""
    content = _image(16, "GZIP_1", gzip.compress(bytes(1024)))
    end = content.index(b"END".ljust(80), 2880)
    cards = b"".join(f"C{n:07d}= {n:20d}".ljust(80).encode() for n in range(8000))
    behind = content[end + 80 :].lstrip(b" ")
    return _padded(content[:end] + cards + b"END".ljust(80), b" ") + behind


def _image(side: int, kind: str, tile: bytes, form: str = "1PB", **cards: object) -> bytes:
    shape = {"ZIMAGE": True, "ZBITPIX": 32, "ZNAXIS": 2, "ZNAXIS1": side, "ZNAXIS2": side}
    tiles = {"ZTILE1": side, "ZTILE2": side, "ZCMPTYPE": kind}
    length = len(tile) // (2 if form == "1PI" else 1)
    column = {"TFIELDS": 1, "TTYPE1": "COMPRESSED_DATA", "TFORM1": f"{form}({length})"}
    return _table(8, 1, tile, struct.pack(">ii", length, 0), **column, **shape, **tiles, **cards, **_SURVEY)


def fits_of_a_large_image() -> bytes:
    return _image(1 << 14, "RICE_1", bytes(64), ZNAME1="BLOCKSIZE", ZVAL1=32, ZNAME2="BYTEPIX", ZVAL2=4)


def fits_of_a_gzipped_tile() -> bytes:
    return _image(100, "GZIP_1", gzipped())


def fits_of_an_hcompress_tile() -> bytes:
    """A tile that says it is larger than the image: the C code of astropy would write beyond its end."""
    stream = io.BytesIO()
    pixels = (np.arange(2500).reshape(50, 50) % 97).astype(np.int32)
    image = fits.CompImageHDU(pixels, compression_type="HCOMPRESS_1", tile_shape=(50, 50))
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(stream)
    content = stream.getvalue()
    at = content.index(b"\xdd\x99") + 2
    return content[:at] + struct.pack(">ii", 60, 60) + content[at + 8 :]


def fits_of_a_plio_tile() -> bytes:
    """A tile that says it is longer than the file: the C code of astropy would read what is behind it."""
    return _image(50, "PLIO_1", struct.pack(">9h", 0, 7, -100, 0, 32767, 0, 0, 0, 0), "1PI")


# Parquet


def _parquet(table: pa.Table, **options: object) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, row_group_size=1 << 30, compression="zstd", **options)
    return stream.getvalue()


def parquet_of_zeros() -> bytes:
    return _parquet(pa.table({"flux_g": np.zeros(LARGE // 8)}), use_dictionary=False)


def parquet_of_nulls() -> bytes:
    return _parquet(pa.table({"flux_g": pa.nulls(LARGE // 8, pa.float64())}))


def parquet_of_one_list() -> bytes:
    n = LARGE // 8
    return _parquet(
        pa.table({"flux": pa.ListArray.from_arrays(pa.array([0, n], pa.int32()), pa.nulls(n, pa.float64()))})
    )


def _one_text() -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), pa.array(["x" * 100_000]))


def parquet_of_one_text() -> bytes:
    return _parquet(pa.table({"id": _one_text()}), dictionary_pagesize_limit=1 << 30)


def parquet_of_texts_called_numbers() -> bytes:
    """A row group calls texts floats, the schema does not: by its word a text is as long as a float."""
    content = parquet_of_one_text()
    at = content.rindex(b"\x15\x0c\x19")  # of the column: type 6, and its encodings
    return content[: at + 1] + b"\x08" + content[at + 2 :]


def parquet_of_a_column_of_no_schema() -> bytes:
    """The row group calls it otherwise."""
    content = parquet_of_one_text()
    at = content.rindex(b"\x02id") + 1  # of the column: its path
    return content[:at] + b"iq" + content[at + 2 :]


def parquet_of_a_list_of_one_text() -> bytes:
    texts = pa.ListArray.from_arrays(pa.array([0, 100_000], pa.int32()), _one_text())
    return _parquet(pa.table({"id": ["a"], "labels": texts}), dictionary_pagesize_limit=1 << 30)


def shard_of_one_text() -> bytes:
    table = pa.table({"id": _one_text()}).replace_schema_metadata({shards.MARK: shards.VERSION})
    return _parquet(table, dictionary_pagesize_limit=1 << 30)


def parquet_with_another_footer() -> bytes:
    """A page of zeros behind the footer of a file of a few numbers, whose page has as many bytes."""
    large = _parquet(pa.table({"flux_g": np.zeros(LARGE // 8)}), use_dictionary=False, write_statistics=False)
    small = _parquet(pa.table({"flux_g": np.zeros(8)}), use_dictionary=False, write_statistics=False)
    meta = pq.read_metadata(io.BytesIO(large)).row_group(0).column(0)
    page = large[meta.data_page_offset :][: meta.total_compressed_size]
    about = pq.read_metadata(io.BytesIO(small)).row_group(0).column(0)
    # The footer of the small one, told of the bytes of the large one's page (zigzag numbers of Thrift).
    footer = small[about.data_page_offset + about.total_compressed_size :]
    footer = footer.replace(_zigzag(about.total_compressed_size), _zigzag(len(page)), 1)
    length = len(footer) - 8
    return large[: meta.data_page_offset] + page + footer[:length] + struct.pack("<I", length) + b"PAR1"


def parquet_of_rows_of_a_group() -> bytes:
    """Of a file of a few rows, the one row group says that it has a milliard, for which pyarrow would make room."""
    rows = 12345
    content = _parquet(pa.table({"flux_g": np.zeros(rows)}), use_dictionary=False, write_statistics=False)
    length = int.from_bytes(content[-8:-4], "little")
    footer = content[-8 - length : -8]
    # A long integer that follows a field: of the file, of the column, and last of the row group.
    head, mark, tail = footer.rpartition(b"\x16" + _zigzag(rows))
    footer = head + mark[:1] + _zigzag(10**9) + tail
    return content[: -8 - length] + footer + struct.pack("<I", len(footer)) + b"PAR1"


def parquet_of_a_histogram() -> bytes:
    """Levels are counted in fewer bins than there are levels: pyarrow, asked of the column, ends the process."""
    content = _parquet(pa.table({"flux_g": np.zeros(12)}), use_dictionary=False)
    length = int.from_bytes(content[-8:-4], "little")
    footer = content[-8 - length : -8]
    bins = b"\x26" + _zigzag(0) + _zigzag(12)  # a list of two long integers
    assert footer.count(bins) == 1
    footer = footer.replace(bins, b"\x16" + _zigzag(12))
    return content[: -8 - length] + footer + struct.pack("<I", len(footer)) + b"PAR1"


def _zigzag(number: int) -> bytes:
    number = (number << 1) ^ (number >> 63)
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


# Avro

_ZTF = (
    '{"type":"record","name":"alert","fields":[{"name":"objectId","type":"string"},{"name":"candid","type":"long"},'
    '{"name":"isdiffpos","type":"string"},{"name":"candidate","type":%s}]}'
)
_ALERT = _zigzag(3) + b"ZTF" + _zigzag(1) + _zigzag(1) + b"t"


def _avro(schema: str, codec: str, count: int, block: bytes) -> bytes:
    named = {b"avro.schema": schema.encode(), b"avro.codec": codec.encode()}
    meta = b"".join(_zigzag(len(name)) + name + _zigzag(len(value)) + value for name, value in named.items())
    return (
        b"Obj\x01" + _zigzag(2) + meta + b"\x00" + bytes(16) + _zigzag(count) + _zigzag(len(block)) + block + bytes(16)
    )


def avro_of_zeros() -> bytes:
    pack = zlib.compressobj(1, zlib.DEFLATED, -15)
    parts = [pack.compress(_ALERT + _zigzag(LARGE)), *(pack.compress(bytes(STEP)) for _ in range(LARGE // STEP))]
    return _avro(_ZTF % '"bytes"', "deflate", 1, b"".join([*parts, pack.flush()]))


def avro_of_small_records(blocks: int = 100) -> bytes:
    """Records of four bytes, each of which becomes a dict."""
    count = 16_000
    whole = _avro(_ZTF % '"long"', "null", count, _zigzag(0) * 4 * count)
    block = whole[whole.index(bytes(17)) + 17 :]  # behind the end of the header and its mark
    return whole + block * (blocks - 1)


def avro_of_nulls() -> bytes:
    return _avro(_ZTF % '{"type":"array","items":"null"}', "null", 1, _ALERT + _zigzag(10**9) + b"\x00")


def avro_of_nothing() -> bytes:
    return _avro('{"type":"record","name":"candid_isdiffpos","fields":[]}', "null", 10**9, b"")


def avro_of_a_record_within_itself() -> bytes:
    """By its short name: reading it would not come to an end."""
    return _avro('{"type":"record","name":"a.candid","fields":[{"name":"isdiffpos","type":"candid"}]}', "null", 1, b"")


# VOTable and text


def _votable(fields: str, data: str, table: str = "") -> bytes:
    name = "http://www.ivoa.net/xml/VOTable/v1.3"
    inside = f"<RESOURCE><TABLE{table}>{fields}<DATA>{data}</DATA></TABLE></RESOURCE>"
    return f'<?xml version="1.0"?><VOTABLE version="1.4" xmlns="{name}">{inside}</VOTABLE>'.encode()


_CELLS = "<TABLEDATA><TR><TD>1</TD><TD>2</TD></TR></TABLEDATA>"


def votable_of_rows() -> bytes:
    fields = '<FIELD name="id" datatype="long"/><FIELD name="flux_g" datatype="double"/>'
    return _votable(fields, _CELLS, ' nrows="200000000"')


def votable_of_elements() -> bytes:
    return _votable(
        '<FIELD name="id" datatype="long"/><FIELD name="flux_g" datatype="double" arraysize="100x1000000"/>', _CELLS
    )


def votable_of_nothing() -> bytes:
    """Rows without a byte, of which astropy never reads the last one."""
    stream = f'<STREAM encoding="base64">{base64.b64encode(b"").decode()}</STREAM>'
    return _votable('<FIELD name="id" datatype="char" arraysize="0"/>', f"<BINARY>{stream}</BINARY>")


def votable_of_entities() -> bytes:
    entities = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    return (
        f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "lol">{entities}]>'
        "<VOTABLE><RESOURCE><DESCRIPTION>&i;</DESCRIPTION></RESOURCE></VOTABLE>"
    ).encode()


def ecsv_of_aliases() -> bytes:
    letters = "abcdefghij"
    lists = "".join(f"#   {b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in pairwise(letters))
    return (
        f"# %ECSV 1.0\n# ---\n# meta:\n#   a: &a [x]\n{lists}# datatype:\n# - {{name: id, datatype: string}}\n"
        "# - {name: flux_g, datatype: float64, unit: nanomaggy}\nid flux_g\nA 1.0\n"
    ).encode()


def csv_of_one_long_cell() -> bytes:
    """Where every cell takes as much as the longest."""
    return b"id,flux_g\n" + b"A,1\n" * 20_000 + b"B" * 20_000 + b",1\n"


TOO_LARGE, DAMAGED = "too_large", "damaged_file"

BOMBS: dict[Callable[[], bytes], str] = {
    gzipped: TOO_LARGE,
    npz_that_says_so: TOO_LARGE,
    npz_that_says_less: DAMAGED,
    npz_of_bzip2: DAMAGED,
    npz_of_nothing: DAMAGED,
    npz_of_pickles: "pickle_refused",
    fits_of_pixels: DAMAGED,
    fits_of_rows: DAMAGED,
    fits_of_one_array: TOO_LARGE,
    fits_of_cards: TOO_LARGE,
    fits_of_axes: DAMAGED,
    fits_of_axes_behind: DAMAGED,
    fits_of_columns: DAMAGED,
    fits_of_a_text_for_a_size: DAMAGED,
    fits_of_a_size_without_a_value: DAMAGED,
    fits_of_axes_after_blanks: DAMAGED,
    fits_that_goes_back: DAMAGED,
    fits_of_cards_of_a_compressed_image: TOO_LARGE,
    fits_of_a_large_image: TOO_LARGE,
    fits_of_a_gzipped_tile: DAMAGED,
    fits_of_an_hcompress_tile: DAMAGED,
    fits_of_a_plio_tile: DAMAGED,
    parquet_of_zeros: TOO_LARGE,
    parquet_of_nulls: TOO_LARGE,
    parquet_of_one_list: TOO_LARGE,
    parquet_of_one_text: TOO_LARGE,
    parquet_of_texts_called_numbers: DAMAGED,
    parquet_of_a_list_of_one_text: TOO_LARGE,
    shard_of_one_text: TOO_LARGE,
    parquet_with_another_footer: TOO_LARGE,
    parquet_of_rows_of_a_group: DAMAGED,
    parquet_of_a_histogram: DAMAGED,
    avro_of_zeros: TOO_LARGE,
    avro_of_nulls: DAMAGED,
    avro_of_nothing: DAMAGED,
    avro_of_a_record_within_itself: DAMAGED,
    votable_of_rows: TOO_LARGE,
    votable_of_elements: TOO_LARGE,
    votable_of_nothing: DAMAGED,
    votable_of_entities: "entities_refused",
    csv_of_one_long_cell: TOO_LARGE,
}
"""Maker -> the code of the error that reading it gives."""
