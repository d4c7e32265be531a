"""What a user gives the client, as pieces of requests: files, or items of the JSON form with their files.

    Piece   what is sent whole: a file, part of a table, or one item
    pieces  the pieces of anything that is accepted, in order

Accepted: paths (also folders and patterns), bytes, HDULists, tables (astropy, pandas, Arrow, columns by name), spectra
(specutils), images (CCDData, NDData), dicts of modalities or of the JSON form, and sequences of these. Inputs are never
modified; most become bytes only when they are sent. What cannot be stated fails alone, as a piece with an error.
"""

from __future__ import annotations

import glob
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from astropy import units
from astropy.io import fits
from astropy.nddata import NDData
from astropy.table import Row, Table

from albireo.observations.errors import AlbireoError, BadInput, NotFound
from albireo.observations.modalities import MODALITIES, modality
from albireo.service.client_objects import fits_bytes, image_bytes, is_spectrum, spectra_of, spectrum_table
from albireo.service.client_reading import Reading
from albireo.service.client_tables import arrow_table, halves_of, pieces_of, stream_bytes

KINDS = ("photometry", "image", "spectrum", "lightcurve", "gaia.xp")
"""Names of a kind in the JSON form, where the survey is left to the reader."""

RESERVED = ("id", "meta", "read")
"""Keys of a dict of modalities that are none."""

HDUS = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU, fits.BinTableHDU, fits.TableHDU)

IN_MEMORY = Path(":memory:")
"""Stands for the folder of files that are in no folder."""

INPUT = frozenset(
    {"file", "modality", "ref", "b64", "format", "filename", "values", "table", "units", "object", "read"}
)
"""Keys of one input of the JSON form; `file` is ours alone: anything that is one file's worth."""


@dataclass(frozen=True)
class File:
    """A file part: its name, its size in bytes as far as it is known, and where its bytes come from.

    folder  among whose files companions are looked for; None of what has none
    """

    name: str
    size: int
    read: Callable[[], bytes]
    folder: Path | None = None


@dataclass(frozen=True)
class Piece:
    """What is sent whole.

    item    of the JSON form, the `ref` of its inputs a number of `files`; None for a bare file
    n       objects that it holds, as far as that is known
    error   why it cannot be sent
    halves  gives it in two, or itself alone
    """

    files: tuple[File, ...] = ()
    item: Mapping[str, Any] | None = None
    n: int = 1
    error: AlbireoError | None = None
    halves: Callable[[], Sequence[Piece]] | None = None

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def name(self) -> str | None:
        """What its rows are told apart by if it fails as a whole."""
        return " + ".join(file.name for file in self.files) or None

    @property
    def id(self) -> str | None:
        return None if self.item is None else self.item.get("id")


def pieces(given: Any, reading: Reading, rows: int, size: int) -> list[Piece]:
    """The pieces of what was given; BadInput if that is nothing.

    rows, size  most objects and bytes that a piece of a table shall have
    """
    found = list(_Inputs(reading, rows, size).pieces(given))
    if not found:
        raise BadInput("request_invalid", "nothing was given", field="input", fix="give files or objects")
    extra = reading.positions
    if isinstance(extra, Path):
        here = {(file.folder, file.name) for piece in found for file in piece.files}
        found += [] if (extra.parent, extra.name) in here else [Piece((_on_disk(extra),))]
    elif extra is not None:
        text = io.StringIO()
        extra.write(text, format="ascii.ecsv")
        found.append(Piece((_held("positions.ecsv", text.getvalue().encode()),)))
    return found


def json_text(body: Any) -> str:
    """JSON of what is sent. BadInput for what JSON cannot state."""
    try:
        return json.dumps(body, allow_nan=False, separators=(",", ":"), default=_plain)
    except (TypeError, ValueError) as error:
        raise BadInput(
            "request_invalid", f"cannot be stated in JSON: {error}", field="item", fix="give texts and finite numbers"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and not isinstance(value, units.Quantity):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")


@dataclass
class _Inputs:
    """Makes pieces. Names of inputs that have none are counted: ids of objects without one begin with them."""

    reading: Reading
    rows: int
    size: int
    _counts: dict[str, int] = field(default_factory=dict)

    def pieces(self, given: Any) -> Iterator[Piece]:
        if not _is_sequence(given):
            yield from self._one(given)
            return
        for number, entry in enumerate(given):
            try:
                yield from self.pieces(entry)
            except AlbireoError as error:
                yield Piece(error=error.at(field=f"input {number}"))

    def _one(self, given: Any) -> Iterator[Piece]:
        if isinstance(given, Mapping) and ("inputs" in given or _are_modalities(given) or not _are_columns(given)):
            yield self._item(given)
        elif isinstance(given, Mapping) or _is_table(given):
            table, name = arrow_table(given), self._name("table", ".arrow")
            for part in pieces_of(table, name, self.reading.columns, self.rows, self.size):
                yield _of_table(part, name, self.reading.columns, min(part.num_rows, self.rows))
        else:
            yield from (Piece((file,)) for file in self._files(given))

    def _files(self, given: Any) -> list[File]:
        """The files of what is not a table and not a dict."""
        if isinstance(given, str | Path):
            return _paths(given)
        if isinstance(given, bytes | bytearray | memoryview):
            return [_held(self._name("bytes"), bytes(given), IN_MEMORY)]
        if is_spectrum(given):
            return [
                File(self._name("spectrum", ".arrow"), 32 * one.flux.size, partial(_spectrum_bytes, one, place))
                for one, place in spectra_of(given)
            ]
        if isinstance(given, NDData):
            return [File(self._name("image", ".fits"), 2 * given.data.nbytes, partial(image_bytes, given))]
        hdus = [given] if isinstance(given, HDUS) else given
        if isinstance(hdus, list) and hdus:
            size = sum(int(hdu.size) for hdu in hdus)
            return [File(self._name("hdus", ".fits"), size, partial(fits_bytes, hdus), IN_MEMORY)]
        raise BadInput(
            "request_invalid", f"{type(given).__module__}.{type(given).__qualname__} cannot be sent", field="input",
            fix="give a path, bytes, an HDUList, a table, a spectrum, an image, a dict of modalities, or a list",
        )  # fmt: skip

    def _name(self, stem: str, suffix: str = "") -> str:
        self._counts[stem] = self._counts.get(stem, -1) + 1
        return f"{stem}{self._counts[stem]}{suffix}"

    # One object, as an item of the JSON form or as a dict of modalities

    def _item(self, given: Mapping[str, Any]) -> Piece:
        if "inputs" in given:
            stated = [entry if isinstance(entry, Mapping) else {"file": entry} for entry in given["inputs"]]
            item = {key: value for key, value in given.items() if key != "inputs"}
        else:
            shared = {"read": given["read"]} if "read" in given else {}
            item = {key: given[key] for key in ("id", "meta") if key in given}
            names = [key for key in given if key not in RESERVED]
            stated = [{"modality": _modality(name), **_entry(name, given[name]), **shared} for name in names]
        if item.get("id") is not None:
            item["id"] = str(item["id"])
        files: list[File] = []
        item["inputs"] = [self._input(entry, files) for entry in stated]
        json_text(item)
        return Piece(tuple(files), item)

    def _input(self, given: Mapping[str, Any], files: list[File]) -> dict[str, Any]:
        """One input in the JSON form; its file joins `files`, and `ref` becomes its number there."""
        unknown = given.keys() - INPUT
        if unknown:
            raise BadInput(
                "request_invalid",
                "no such key of an input",
                field=min(unknown),
                fix="one of " + ", ".join(sorted(INPUT)),
            )
        out = {key: value for key, value in given.items() if key != "file"}
        if isinstance(out.get("read"), Mapping):
            out["read"] = dict(Reading.of(out["read"]).data)
        if "file" in given:
            out["ref"] = len(files)
            files.append(self._only_file(given["file"]))
        return out

    def _only_file(self, given: Any) -> File:
        found = [piece.files for piece in self.pieces(given)]
        if len(found) != 1 or len(found[0]) != 1:
            raise BadInput(
                "request_invalid", f"{len(found)} files as one input of an object", field="file",
                fix="give one file for each input",
            )  # fmt: skip
        return found[0][0]


def _of_table(table: pa.Table, name: str, columns: Mapping[str, str], n: int) -> Piece:
    def halves() -> list[Piece]:
        return [_of_table(half, name, columns, -(-n // 2)) for half in halves_of(table, name, columns)]

    return Piece((File(name, table.nbytes, partial(stream_bytes, table)),), n=n, halves=halves)


def _on_disk(path: Path) -> File:
    """A file on disk. NotFound if it is not there."""
    if not path.is_file():
        raise NotFound("file_not_found", "there is no such file", file=str(path))
    return File(path.name, path.stat().st_size, path.read_bytes, path.parent)


def _held(name: str, content: bytes, folder: Path | None = None) -> File:
    return File(name, len(content), lambda: content, folder)


def _spectrum_bytes(spectrum: Any, place: int | None) -> bytes:
    return stream_bytes(spectrum_table(spectrum, place))


def _paths(given: str | Path) -> list[File]:
    """The files of a path, a folder (all under it, hidden ones left out) or a pattern, in the order of their names."""
    path = Path(given).expanduser()
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file())
        found = [p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    elif not path.exists() and glob.has_magic(str(given)):
        found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
    else:
        return [_on_disk(path)]
    if not found:
        raise NotFound("file_not_found", "there is no file", file=str(given), fix="name files, or a folder of files")
    return [_on_disk(p) for p in found]


def _is_sequence(given: Any) -> bool:
    """Lists, tuples, SpectrumLists, generators; not what is one object though it can be iterated over."""
    if isinstance(given, str | bytes | bytearray | memoryview | Mapping | fits.HDUList):
        return False
    return isinstance(given, Sequence | Iterator) and not _is_table(given)


def _is_table(given: Any) -> bool:
    """A table of astropy, Arrow or pandas; the last is told without importing it."""
    if isinstance(given, Table | pa.Table | Row):
        return True
    bases = type(given).__mro__
    return any(base.__module__.split(".")[0] == "pandas" and base.__name__ == "DataFrame" for base in bases)


def _are_columns(given: Mapping[str, Any]) -> bool:
    """Columns by name: lists or arrays, every one of them."""
    return bool(given) and all(
        isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)
        for value in given.values()
    )


def _are_modalities(given: Mapping[str, Any]) -> bool:
    """A dict of modalities by the names of the table, or of kinds."""
    known = {row.name for row in MODALITIES.values()} | {*MODALITIES, *KINDS, *RESERVED}
    return given.keys() <= known


def _modality(name: str) -> str:
    return name if name in KINDS else modality(name).name


def _entry(name: str, value: Any) -> dict[str, Any]:
    """One entry of a dict of modalities: a number, numbers by name, or a file."""
    if isinstance(value, Mapping) and not _are_columns(value):
        return _values(value)
    if isinstance(value, units.Quantity | int | float | np.number) and np.ndim(value) == 0:
        return _values({name.rsplit(".", 1)[-1]: value})
    return {"file": value}


def _values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Named numbers as the JSON form has them; a Quantity brings its unit along."""
    values: dict[str, Any] = {}
    stated: dict[str, str] = {}
    for name, value in given.items():
        if isinstance(value, units.Quantity):
            stated[name] = str(value.unit)
            value = value.value
        value = value.item() if isinstance(value, np.ndarray | np.generic) else value
        if isinstance(value, float) and not np.isfinite(value):
            raise BadInput(
                "not_finite", f"{value}: the JSON form cannot state it", field=name,
                fix="leave out what is missing; give a table of one row for a non-detection",
            )  # fmt: skip
        values[name] = value
    return {"values": values} | ({"units": stated} if stated else {})
