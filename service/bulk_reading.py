"""Inputs of a long run, in units that are read one at a time: files that belong together, or rows of a large table.

    Piece  a file, or some of its rows, by content
    Unit   what is read at once, and which objects come of it
    units  the units of files, in an order that depends on nothing but names and contents

A unit is small unless companions make it large, so that a run needs little memory however long it is. Companions find
each other among all files if these are 512 MiB at most, else within their folder, and in a folder that is larger than
that by their names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import groupby
from pathlib import Path

import numpy as np

from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.options import ReadOptions
from albireo.observations.reading import detect
from albireo.observations.row_spans import Span, open_spans
from albireo.observations.source import Source
from albireo.service.files import TOGETHER_BYTES, open_source
from albireo.service.subjects import Subject, from_reports, read_opened
from albireo.tokenizers.checkpoint import sha256_of

SPLIT_BYTES = 1 << 20
"""Tables larger than this are read span by span."""

SPAN_BYTES = 16 << 20
"""Of a span, about."""

UNIT_BYTES = 64 << 20
"""Files of a unit, unless one alone or companions are larger."""

ROW_WEIGHT = 32
"""Bytes of memory that a byte of a table of numbers turns into, compared with images and spectra."""

ROW_FORMATS = frozenset({"table", "gaia_xp", "albireo"})
"""Formats of one object a row, so that rows can be read by themselves."""

KIN = frozenset({"snana_fits", "snana_phot", "desi", "desi_redrock", "plasticc", "plasticc_metadata"})
"""Formats of files that may complete each other."""

_ROLE = re.compile(r"(coadd|spectra|redrock|zbest|zcat|head|phot|metadata|lightcurves)[-_.]?|\.(fits?|fz|gz|csv)", re.I)
"""Words in names that say what a file is of something, not of what."""


@dataclass(frozen=True)
class Piece:
    """A file by its path as it was named, the sha256 of its content (None if it cannot be read), and which rows."""

    file: str
    sha256: str | None
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Unit:
    """What is read at once.

    pieces  its files, companions too
    size    its bytes, of all bytes of the run
    files   files that are done when it is
    read    the objects, in order; a file that cannot be read is one failed subject. Units are read in order, or left
            out, each once
    ids     of the rows before it in its table: to be told those of a unit that is left out
    """

    pieces: tuple[Piece, ...]
    size: int
    files: int
    read: Callable[[], list[Subject]]
    ids: Ids | None = None


def units(paths: Sequence[Path], options: ReadOptions, rows: int) -> Iterator[Unit]:
    """The units of files; of a table that is read in spans at most `rows` rows."""
    if options.positions is not None:
        table = Path(options.positions)
        options = replace(options, positions=table.name)
        paths = [*paths, table] if table.resolve() not in {path.resolve() for path in paths} else paths
        yield _together(paths, options)
        return
    for group in _neighbourhoods(paths):
        yield from _divided(group, options, rows)


def one_unit(paths: Sequence[Path], read: Callable[[], list[Subject]]) -> Unit:
    """All files as one unit, which `read` reads."""
    pieces = tuple(Piece(str(path), _sha256(path)) for path in paths)
    return Unit(pieces, sum(map(size_of, paths)), len(paths), read)


def size_of(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def _neighbourhoods(paths: Sequence[Path]) -> list[list[Path]]:
    if sum(map(size_of, paths)) <= TOGETHER_BYTES:
        return [list(paths)]
    return [list(group) for _, group in groupby(paths, key=lambda path: path.parent)]


def _divided(paths: Iterable[Path], options: ReadOptions, rows: int) -> Iterator[Unit]:
    """Files that need no other in small units, large tables in spans, then those that may complete each other."""
    kin: list[Path] = []
    held: list[tuple[Path, Source | AlbireoError]] = []
    weight = 0
    for path in paths:
        spans = _spans(path, options, rows) if size_of(path) > SPLIT_BYTES else None
        if spans is not None:
            if held:
                yield _of_sources(held, options)
                held, weight = [], 0
            yield from _of_spans(path, spans, options)
            continue
        source = open_source(path)
        name = _format(source)
        if name in KIN:
            kin.append(path)
            continue
        cost = (size_of(path) if isinstance(source, Source) else 0) * (ROW_WEIGHT if name in ROW_FORMATS else 1)
        if held and (weight + cost > UNIT_BYTES or len(held) >= rows):
            yield _of_sources(held, options)
            held, weight = [], 0
        held.append((path, source))
        weight += cost
    if held:
        yield _of_sources(held, options)
    for family in _families(kin):
        yield _together(family, options)


def _format(source: Source | AlbireoError) -> str | None:
    """The format of a file, None if it has none."""
    if isinstance(source, AlbireoError):
        return None
    try:
        return detect(source).name
    except AlbireoError:
        return None


def _spans(path: Path, options: ReadOptions, rows: int) -> Iterator[Span] | None:
    """The spans of a table whose rows are objects, None for other files."""
    if {"mjd", "jd"} & options.columns.keys() and "band" in options.columns:
        return None  # rows are epochs
    looked_at = open_spans(path, 1, 1)
    if looked_at is None:
        return None
    try:
        first = next(looked_at, None)
        if first is None or _format(first.read(path.name, "")) not in ROW_FORMATS:
            return None
    except AlbireoError:
        return None
    return open_spans(path, rows, SPAN_BYTES)


def _of_spans(path: Path, spans: Iterator[Span], options: ReadOptions) -> Iterator[Unit]:
    """One unit a span; the last one ends the file."""
    sha256, size, ids = sha256_of(path), size_of(path), Ids()
    before = 0.0
    parts = _or_why_not(spans)
    span = next(parts, None)
    while span is not None:
        following = next(parts, None)
        until = 1.0 if isinstance(span, AlbireoError) or following is None else span.until
        rows = None if isinstance(span, AlbireoError) else (span.first, span.first + span.count)
        yield Unit(
            (Piece(str(path), sha256, rows),),
            round(until * size) - round(before * size),
            int(following is None),
            partial(_read_span, span, path, sha256, options, ids),
            ids,
        )
        before, span = until, following


def _or_why_not(spans: Iterator[Span]) -> Iterator[Span | AlbireoError]:
    try:
        yield from spans
    except AlbireoError as error:
        yield error


def _read_span(span: Span | AlbireoError, path: Path, sha256: str, options: ReadOptions, ids: Ids) -> list[Subject]:
    try:
        if isinstance(span, AlbireoError):
            raise span
        rows = span.read(path.name, sha256)
    except AlbireoError as error:
        return [Subject(None, path.name, error=error.at(file=path.name))]
    subjects = from_reports(read_opened([path.name], [rows], options))
    named = [subject.id if subject.observation is not None else None for subject in subjects]
    return [
        subject.failed(_twice(subject)) if again else subject
        for subject, again in zip(subjects, ids.add(named), strict=True)
    ]


def _twice(subject: Subject) -> BadInput:
    return BadInput(
        "id_duplicate",
        f"the id {subject.id!r} stands in an earlier row too",
        file=subject.file,
        field="id",
        fix="keep one of them",
    )


def _of_sources(held: Sequence[tuple[Path, Source | AlbireoError]], options: ReadOptions) -> Unit:
    """Files that need no others."""
    pieces = tuple(Piece(str(path), source.sha256 if isinstance(source, Source) else None) for path, source in held)
    names, sources = [path.name for path, _ in held], [source for _, source in held]
    return Unit(
        pieces,
        sum(size_of(path) for path, _ in held),
        len(held),
        lambda: from_reports(read_opened(names, sources, options)),
    )


def _together(paths: Sequence[Path], options: ReadOptions) -> Unit:
    """Files among which companions find each other."""
    return _of_sources([(path, open_source(path)) for path in paths], options)


def _families(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Files that may complete each other: all of them, or where they are too many, those that are called alike."""
    if sum(map(size_of, paths)) <= TOGETHER_BYTES:
        if paths:
            yield list(paths)
        return
    named: dict[str, list[Path]] = {}
    for path in paths:
        named.setdefault(_ROLE.sub("", path.name.lower()), []).append(path)
    yield from (family for family in named.values() if len(family) > 1)
    rest: list[Path] = []
    for (path,) in (family for family in named.values() if len(family) == 1):
        if rest and sum(map(size_of, rest)) + size_of(path) > TOGETHER_BYTES:
            yield rest
            rest = []
        rest.append(path)
    if rest:
        yield rest


class Ids:
    """Ids that were met, by 64 bits of a hash: 8 bytes each, however many there are."""

    def __init__(self) -> None:
        self._known = np.zeros(0, np.uint64)

    def add(self, ids: Sequence[str | None]) -> list[bool]:
        """True for those that were met in an earlier call; None is no id."""
        hashes = np.array([_hash(name) if name is not None else 0 for name in ids], np.uint64)
        at = np.searchsorted(self._known, hashes)
        known = np.zeros(len(ids), bool)
        inside = at < len(self._known)
        known[inside] = self._known[at[inside]] == hashes[inside]
        new = np.unique(hashes[(hashes != 0) & ~known])
        self._known = np.insert(self._known, np.searchsorted(self._known, new), new)
        out: list[bool] = (known & (hashes != 0)).tolist()
        return out


def _hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") or 1


def _sha256(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except OSError:
        return None
