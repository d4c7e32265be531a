"""NumPy archives (.npz) read without trust: no pickles, no size that the zip directory or an array header overstates.

An array is named by its key in the archive; `Archive.pick` finds the one array that plays a part under any of the
names it may have, or under the one that `ReadOptions.columns` gives.
"""

from __future__ import annotations

import io
import math
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.observations.errors import BadInput, TooLarge
from albireo.observations.source import Source

MAX_TEXTS = 10_000
"""Names of bands and the like in one array."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What numpy writes."""


def sniff_npz(source: Source) -> bool:
    """True if the content is a zip file whose first member is a .npy array."""
    head = source.content[:30]
    if head[:4] != b"PK\x03\x04" or len(head) < 30:
        return False
    length = int.from_bytes(head[26:28], "little")
    return source.content[30 : 30 + length].endswith(b".npy")


class Archive:
    """The arrays of one .npz file, each read when asked for."""

    def __init__(self, source: Source, columns: Mapping[str, str]) -> None:
        self._source = source
        self._columns = columns
        self._taken: set[str] = set()
        with self._typed():
            self._zip = zipfile.ZipFile(io.BytesIO(source.content))
            members = [info for info in self._zip.infolist() if info.filename.endswith(".npy")]
        declared = sum(info.file_size for info in members)
        source.unfold(declared, "arrays")
        if odd := next((info for info in members if info.compress_type not in _METHODS), None):
            # zipfile unfolds the others without a bound.
            raise BadInput(
                "damaged_file", f"zip method {odd.compress_type}", file=source.name, field=odd.filename,
                fix="save it with numpy.savez or numpy.savez_compressed",
            )  # fmt: skip
        self._members = {info.filename.removesuffix(".npy"): info for info in members}
        if len(self._members) != len(members):
            raise BadInput("damaged_file", "two arrays have one name", file=source.name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._members)

    @property
    def unread(self) -> tuple[str, ...]:
        """Names of arrays that nothing asked for yet."""
        return tuple(name for name in self._members if name not in self._taken)

    def find(self, key: str, aliases: Sequence[str]) -> str | None:
        """The name of the array that plays the part `key`, None if absent; several candidates are an error."""
        if key in self._columns:
            name = self._columns[key]
            if name not in self._members:
                raise BadInput(
                    "column_unknown",
                    f"there is no array {name!r}",
                    file=self._source.name,
                    field=key,
                    fix=f"arrays: {', '.join(self.names)}",
                )
            return name
        found = [name for name in self._members if name.lower() in aliases]
        if len(found) > 1:
            raise BadInput(
                "alias_ambiguous",
                f"{' and '.join(found)} can both be the {key}",
                file=self._source.name,
                field=key,
                fix=f"name the array in the option columns: {key}=<array>",
            )
        return found[0] if found else None

    def pick(self, key: str, aliases: Sequence[str]) -> NDArray[Any] | None:
        """The array that plays the part `key`, None if absent."""
        name = self.find(key, aliases)
        return None if name is None else self.array(name)

    def text(self, key: str, aliases: Sequence[str]) -> tuple[str, str] | None:
        """(where, text) of an array that holds one text, None if absent."""
        texts = self.texts(key, aliases)
        if texts is None:
            return None
        if len(set(texts[1])) != 1:
            raise BadInput("shape_mismatch", f"{texts[1]} instead of one text", file=self._source.name, field=texts[0])
        return texts[0], texts[1][0]

    def texts(self, key: str, aliases: Sequence[str]) -> tuple[str, tuple[str, ...]] | None:
        """(where, texts) of an array of texts, None if absent."""
        name = self.find(key, aliases)
        if name is None:
            return None
        array = self.array(name)
        if array.dtype.kind not in "US":
            raise BadInput("value_out_of_range", "not text", file=self._source.name, field=name)
        if array.size > MAX_TEXTS:
            raise TooLarge(
                "too_large", f"{array.size} texts, the limit is {MAX_TEXTS}", file=self._source.name, field=name
            )
        cells = [cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell) for cell in array.flat]
        return f"the array {name}", tuple(cell.strip() for cell in cells)

    def real_numbers(self, key: str, aliases: Sequence[str], n: int) -> list[float]:
        """One number or n of them, empty if absent."""
        array = self.pick(key, aliases)
        if array is None:
            return []
        if array.dtype.kind not in "fiu" or array.size not in (1, n):
            raise BadInput("shape_mismatch", f"{array.dtype} of shape {array.shape}, one number expected", field=key)
        return [float(value) for value in array.flat]

    def shape(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """(shape, dtype) of an array from its header alone."""
        with self._typed(name), self._zip.open(self._members[name]) as stream:
            shape, _, dtype = self._header(name, stream)
        return shape, dtype

    def array(self, name: str) -> NDArray[Any]:
        """An array in native byte order. Errors: pickle_refused, damaged_file."""
        info = self._members[name]
        with self._typed(name), self._zip.open(info) as stream:
            shape, fortran, dtype = self._header(name, stream)
            expected = math.prod(shape) * dtype.itemsize
            # The header alone decides how much is allocated, so it must not say more than is there.
            if expected != info.file_size - stream.tell():
                raise BadInput("damaged_file", f"its header says {expected} bytes of data", field=name)
            data = stream.read(expected)  # whatever is behind it
        if len(data) != expected:
            raise BadInput("damaged_file", "shorter than its header says", file=self._source.name, field=name)
        array: NDArray[Any]
        if dtype.itemsize:
            array = np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")
        else:  # elements without bytes, of which there is no buffer
            array = np.zeros(shape, dtype)
        array = array.astype(dtype.newbyteorder("="), copy=False)
        if dtype.kind == "U":
            self._check_text(name, array)
        self._taken.add(name)
        return array

    def _check_text(self, name: str, array: NDArray[Any]) -> None:
        """BadInput unless every character is one: numpy makes texts of any numbers, which Python then stumbles over."""
        codes = np.ascontiguousarray(array).reshape(-1).view(np.uint32) if array.size and array.itemsize else array[:0]
        if codes.size and ((codes > sys.maxunicode) | ((codes >= 0xD800) & (codes <= 0xDFFF))).any():
            raise BadInput("damaged_file", "an array of text with numbers that are no characters",
                           file=self._source.name, field=name)  # fmt: skip

    def _header(self, name: str, stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise BadInput("damaged_file", f"array format version {version}", field=name, fix="save it with numpy")
        shape, fortran, dtype = readers[version](stream)
        if any(n < 0 for n in shape):
            raise BadInput("damaged_file", f"its header says the shape {shape}", field=name, fix="save it with numpy")
        if dtype.hasobject:
            raise BadInput(
                "pickle_refused",
                "an array of Python objects, which only a pickle can hold",
                file=self._source.name,
                field=name,
                fix="save it as numbers or as text of fixed width (dtype U or S)",
            )
        if math.prod(shape) * dtype.itemsize == 0 and math.prod(n or 1 for n in shape) > self._source.limit:
            raise BadInput("damaged_file", f"{dtype} of shape {shape}, elements without bytes", field=name)
        return shape, fortran, dtype

    @contextmanager
    def _typed(self, name: str | None = None) -> Iterator[None]:
        try:
            yield
        except BadInput as error:
            raise error.at(file=self._source.name, field=name) from error.__cause__
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
            raise BadInput(
                "damaged_file", f"npz: {error}", file=self._source.name, field=name, fix="fetch the file again"
            ) from error
        # zipfile reports an encrypted member as RuntimeError; numpy tokenizes an array header it cannot read.
        except (RuntimeError, SyntaxError, tokenize.TokenError) as error:
            raise BadInput("damaged_file", f"npz: {error}", file=self._source.name, field=name) from error
