"""FITS files from strangers: what their headers state is reckoned before astropy takes memory for it.

A table may state a milliard rows without a byte, let every row mean the same array of its heap, or hold an image whose
tiles unfold to any size; a header may state a milliard axes, for each of which astropy looks for a card. Streams of
HCOMPRESS and PLIO carry sizes of their own, which the C code of astropy follows out of its buffers: those that differ
from the image's are refused.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits
from astropy.io.fits.hdu.compressed._compression import CfitsioException
from numpy.typing import NDArray

from albireo.observations.errors import BadInput, TooLarge

if TYPE_CHECKING:
    from albireo.observations.source import Source

MAX_HEADER_BYTES = 4 << 20
"""Of all headers of a file in sum: astropy takes half a second and 8 MB of memory for each MB of them."""

MAX_TILED_HEADER_BYTES = 256 << 10
"""Of the header of a compressed image, 3,276 cards: astropy's time for it grows with the square of their number."""

FITS_DAMAGE = (CfitsioException, zlib.error, UnboundLocalError)
"""What astropy raises beside Python's other errors: for a damaged tile, and for 64-bit integers whose TZERO is not the
one of unsigned numbers."""

MOST_NUMBERED = 999
"""Axes of an image and columns of a table, at most (FITS 4.0, 4.4.1 and 7.2.1): so many keywords can number."""

_CARD, _BLOCK = 80, 2880
_SIZE_CARD = re.compile(
    rb"\s*(?:HIERARCH\s+)?(Z?NAXIS\d*|Z?BITPIX|PCOUNT|GCOUNT|TFIELDS)(?![A-Z0-9_-])\s*(?:=([^/]*))?", re.IGNORECASE
)
"""As astropy finds them: also in small letters, after blanks, and without a value."""
_COUNTS = (b"NAXIS", b"ZNAXIS", b"TFIELDS")
_END = b"END".ljust(_CARD)
_FORM = re.compile(r"\s*(\d*)([LXBIJKAEDCMPQ])([LXBIJKAEDCM]?)")
_SIZES = {"L": 1, "X": 1, "B": 1, "I": 2, "J": 4, "K": 8, "A": 1, "E": 4, "D": 8, "C": 8, "M": 16, "P": 8, "Q": 16}
_TILES = ("COMPRESSED_DATA", "GZIP_COMPRESSED_DATA")


@contextmanager
def open_checked(source: Source) -> Iterator[fits.HDUList]:
    """The file opened by astropy, every HDU checked. BadInput or TooLarge if it states what cannot be."""
    room = MAX_HEADER_BYTES - check_beginning(source.content)
    with fits.open(io.BytesIO(source.content), memmap=False, lazy_load_hdus=True) as hdus:
        compressed = []
        for number in count():
            try:
                hdu = hdus[number]
            except IndexError:
                break
            if isinstance(hdu, fits.CompImageHDU):
                compressed.append(number)
            elif isinstance(hdu, fits.BinTableHDU | fits.TableHDU):
                _check_table(hdu, number, source)
            place = hdu.fileinfo()
            room -= _checked_header(source.content, place["datLoc"] + place["datSpan"])
            if room < 0:
                raise _too_long()
        if compressed:
            _check_images(compressed, source)
        yield hdus


def check_beginning(content: bytes) -> int:
    """Check the first two headers, which is what astropy reads to open a file; how long the first is."""
    first = _checked_header(content, 0)
    if first > MAX_HEADER_BYTES:
        raise _too_long()
    begin = first + _CARD + -(first + _CARD) % _BLOCK
    data = fits.Header.fromfile(io.BytesIO(content)).data_size_padded
    if first + _checked_header(content, begin + data) > MAX_HEADER_BYTES:
        raise _too_long()
    return first


def _too_long() -> TooLarge:
    return TooLarge("too_large", f"headers of more than {MAX_HEADER_BYTES} bytes", fix="send fewer HDUs in a file")


def _checked_header(content: bytes, start: int) -> int:
    """The same as `_header_bytes`. BadInput if the header there counts more than can be numbered, or states a size that
    is a text, which astropy would multiply, or negative, so that the next HDU would begin before this one ends."""
    size = _header_bytes(content, start)
    if size > MAX_TILED_HEADER_BYTES and content.find(b"ZIMAGE  =", start, start + size) >= 0:
        raise TooLarge("too_large", f"the header of a compressed image of more than {MAX_TILED_HEADER_BYTES} bytes")
    for at in range(start, min(start + size, len(content)), _CARD):
        card = _SIZE_CARD.match(content[at : at + _CARD])
        if card is None:
            continue
        name, value = card[1].upper(), (card[2] or b"").strip()
        whole = re.fullmatch(rb"[+-]?\d{1,18}", value) is not None
        if not whole or (int(value) < 0 and b"BITPIX" not in name) or (name in _COUNTS and int(value) > MOST_NUMBERED):
            told = value.decode("ascii", "replace")
            raise BadInput("damaged_file", f"{name.decode()} is {told or 'not stated'}", field=name.decode())
    return size


def _header_bytes(content: bytes, start: int) -> int:
    """Bytes from `start` to the end of the header there, or one more than a file may have."""
    most = start + MAX_HEADER_BYTES
    at = content.find(_END, start, most + _CARD)
    while at >= 0 and (at - start) % _CARD:
        at = content.find(_END, at + 1, most + _CARD)
    if at >= 0:
        return at - start
    return min(max(len(content) - start, 0), MAX_HEADER_BYTES + 1)


def _check_table(hdu: Any, number: int, source: Source) -> None:
    try:
        _ = hdu.columns  # astropy parses them now
    except (AssertionError, NameError) as error:
        raise BadInput("damaged_file", f"columns of HDU {number}: {error}") from error
    rows = int(hdu.header["NAXIS2"])
    if rows > len(source.content) or (rows > 0 and hdu.header["NAXIS1"] == 0):
        raise BadInput(
            "damaged_file", f"{rows} rows of {hdu.header['NAXIS1']} bytes", field=hdu.name or f"HDU {number}"
        )
    sizes = (_cells(hdu, n, source)[:, 0].sum(dtype=np.float64) * size for n, size in _varying(hdu.header).items())
    source.unfold(int(sum(sizes)), f"arrays of HDU {number}")


def _varying(header: fits.Header) -> dict[int, int]:
    """Number of each column of arrays of varying length -> bytes of one element, once it is scaled."""
    forms = {n: _FORM.match(str(header.get(f"TFORM{n}", ""))) for n in range(1, int(header.get("TFIELDS", 0)) + 1)}
    return {
        n: 8 if f"TSCAL{n}" in header or f"TZERO{n}" in header else _SIZES[form[3] or "M"]
        for n, form in forms.items()
        if form is not None and form[2] in "PQ"
    }


def _cells(hdu: Any, column: int, source: Source) -> NDArray[Any]:
    """(rows, 2): elements and heap offset of every cell of a column of arrays, as the file states them."""
    header, offset = hdu.header, 0
    for n in range(1, column):
        form = _FORM.match(str(header[f"TFORM{n}"]))
        if form is None:
            raise BadInput("damaged_file", f"the form {header[f'TFORM{n}']!r}", field=f"TFORM{n}")
        repeat = int(form[1] or 1)
        offset += -(-repeat // 8) if form[2] == "X" else repeat * _SIZES[form[2]]
    form = _FORM.match(str(header[f"TFORM{column}"]))
    rows, width = int(header["NAXIS2"]), int(header["NAXIS1"])
    if not rows or form is None or form[1] == "0":
        return np.zeros((0, 2), np.int64)
    number = np.dtype(">i4" if form[2] == "P" else ">i8")
    begin = hdu.fileinfo()["datLoc"] + offset
    if width < offset + 2 * number.itemsize or begin + (rows - 1) * width + 2 * number.itemsize > len(source.content):
        raise BadInput("damaged_file", f"the file ends within its {rows} rows", field=hdu.name or f"TFORM{column}")
    cells: NDArray[Any] = np.ndarray((rows, 2), number, source.content, begin, (width, number.itemsize))
    if (cells < 0).any():
        raise BadInput("damaged_file", "an array of negative length or place", field=f"TFORM{column}")
    return cells


def _check_images(numbers: list[int], source: Source) -> None:
    """The tiles of compressed images, which astropy shows only as tables if it is told not to unfold them."""
    stream = io.BytesIO(source.content)
    with fits.open(stream, memmap=False, lazy_load_hdus=True, disable_image_compression=True) as hdus:
        for number in numbers:
            _check_image(hdus[number], number, source)


def _check_image(hdu: Any, number: int, source: Source) -> None:
    header = hdu.header
    _check_table(hdu, number, source)
    axes = range(int(header["ZNAXIS"]), 0, -1)
    shape = [int(header[f"ZNAXIS{n}"]) for n in axes]
    tile = [int(header.get(f"ZTILE{n}", shape[-1] if n == 1 else 1)) for n in axes]
    if min(shape, default=0) < 0 or min(tile, default=1) < 1:
        raise BadInput("damaged_file", f"an image of shape {shape} in tiles of {tile}", field=hdu.name)
    source.unfold(math.prod(shape) * abs(int(header["ZBITPIX"])) // 8, f"image of HDU {number}")
    counts = [-(-length // step) for length, step in zip(shape, tile, strict=True)]
    heap = hdu.fileinfo()["datLoc"] + int(header.get("THEAP", header["NAXIS1"] * header["NAXIS2"]))
    for column, size in _varying(header).items():
        name = str(header.get(f"TTYPE{column}")).strip().upper()
        kind = "GZIP_1" if name == _TILES[1] else str(header["ZCMPTYPE"]).strip().upper()
        if name not in _TILES or not kind.startswith(("GZIP", "HCOMPRESS", "PLIO")):
            continue
        for row, (length, offset) in enumerate(_cells(hdu, column, source)[: math.prod(counts)].tolist()):
            if not length:
                continue
            places = np.unravel_index(row, counts)
            sides = [min(step, n - int(at) * step) for n, step, at in zip(shape, tile, places, strict=True)]
            cell = source.content[heap + offset : heap + offset + length * size]
            if not _fits_tile(kind, cell, math.prod(sides)):
                raise BadInput("damaged_file", f"tile {row} is of another size than the image says", field=hdu.name)


def _fits_tile(kind: str, cell: bytes, pixels: int) -> bool:
    """Whether a compressed tile unfolds to no more than its pixels."""
    if kind.startswith("HCOMPRESS"):
        # Two bytes of magic, then the sides of the tile.
        return len(cell) >= 10 and bool(math.prod(struct.unpack_from(">ii", cell, 2)) == pixels)
    if kind.startswith("PLIO"):
        # A list of 16-bit words, of which the third is its length, or is not positive: then the fourth and fifth are.
        if len(cell) < 10:
            return False
        words = struct.unpack_from(">5h", cell)
        return bool((words[2] if words[2] > 0 else (words[4] << 15) + words[3]) * 2 <= len(cell))
    most = 8 * pixels
    while cell:
        unfolding = zlib.decompressobj(31)
        try:
            most -= len(unfolding.decompress(cell, most + 1))
        except zlib.error:
            return True  # astropy says what is wrong
        if most < 0:
            return False
        cell = unfolding.unused_data
    return True
