"""Files and folders named on the command line, read in groups that find their companions and fit in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from albireo.observations.errors import AlbireoError, BadInput, Unavailable
from albireo.observations.options import ReadOptions
from albireo.observations.reading import FileReport
from albireo.observations.source import Source
from albireo.service.subjects import Subject, from_reports, read_opened

TOGETHER_BYTES = 512 << 20
"""Files of at most this size in sum are read together; more are read folder by folder."""


@dataclass(frozen=True)
class Batch:
    """Files read together: their paths, one report each, and their objects."""

    paths: tuple[Path, ...]
    reports: tuple[FileReport, ...]
    subjects: tuple[Subject, ...]


def expand(paths: Iterable[Path]) -> list[Path]:
    """The files named, each once; folders stand for all files under them, hidden ones left out."""
    files: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file())
            files |= dict.fromkeys(p for p in inside if not any(n.startswith(".") for n in p.relative_to(path).parts))
        else:
            files[path] = None
    if not files:
        raise BadInput("file_not_found", "there is no file in the folders named", fix="name files, or folders of files")
    return list(files)


def read_batches(paths: Sequence[Path], options: ReadOptions) -> Iterator[Batch]:
    """The files in groups: all at once if they are small, else one folder at a time."""
    if options.positions is not None:
        table = Path(options.positions)
        options = replace(options, positions=table.name)
        paths = [*paths, table] if table.resolve() not in {p.resolve() for p in paths} else paths
        groups: list[list[Path]] = [list(paths)]
    elif sum(path.stat().st_size for path in paths if path.is_file()) <= TOGETHER_BYTES:
        groups = [list(paths)]
    else:
        groups = [list(group) for _, group in groupby(paths, key=lambda path: path.parent)]
    for group in groups:
        yield _read(group, options)


def _read(paths: Sequence[Path], options: ReadOptions) -> Batch:
    reports = read_opened([path.name for path in paths], [open_source(path) for path in paths], options)
    return Batch(tuple(paths), tuple(reports), tuple(from_reports(reports)))


def open_source(path: Path) -> Source | AlbireoError:
    """A file, or why it cannot be read."""
    try:
        return Source.from_path(path)
    except AlbireoError as error:
        return error.at(file=str(path))
    except OSError as error:
        return Unavailable("storage_unavailable", str(error), file=str(path), fix="allow reading it")
