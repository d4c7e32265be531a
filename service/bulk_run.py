"""A long run on disk: its finished parts, and a manifest that never says more than what is there.

    Chunk  some objects that are finished: of which inputs, in which files, how many
    Run    the folder of a run, opened to begin or to go on

FOLDER/part-000000-000.parquet           rows of one chunk, none if all its objects failed
FOLDER/_errors/part-000000-000.parquet   its errors, if there are any
FOLDER/_manifest.jsonl                   first what was ordered, then a line for each finished chunk

A part is written, brought to the disk, and only then given its name; a line follows when its parts have theirs. So a
run that was killed goes on behind the last line. Lines and parts have checksums: what is damaged is computed again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from albireo.observations.errors import BadInput, Conflict, Full, Unavailable
from albireo.service.bulk_reading import Piece
from albireo.tokenizers.checkpoint import sha256_of

MANIFEST, ERRORS, LOCK = "_manifest.jsonl", "_errors", ".lock"
"""Names that begin with an underscore or a point are passed over by what reads a folder of Parquet files as a table."""


@dataclass(frozen=True)
class Chunk:
    """Objects `start` to `stop` of the `objects` of a unit, finished.

    pieces   the inputs of the unit, by content
    part, errors  name and sha256 of the files of its rows and of its errors, None if there are none
    """

    unit: int
    chunk: int
    start: int
    stop: int
    objects: int
    pieces: tuple[Piece, ...]
    part: tuple[str, str] | None
    errors: tuple[str, str] | None
    rows: int
    failed: int
    tokens: int
    space: str
    version: str


class Run:
    """The folder of a run. `damaged` names parts that are not as they were written: their chunks are not finished.

    Use it in a `with` block: one process at a time may have it.
    """

    def __init__(self, folder: Path, order: Mapping[str, Any], resume: bool) -> None:
        """Begin the run of `order` (plain JSON), or go on with it.

        Raises Conflict run_unfinished if there is one already and `resume` is False, run_differs if it is of another
        order, Full storage_full, and Unavailable storage_unavailable.
        """
        self.folder = folder
        self.order: dict[str, Any] = json.loads(json.dumps(order))
        self._finished: dict[int, dict[int, Chunk]] = {}
        self.damaged: list[str] = []
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
        try:
            self._take(resume)
        except BaseException:
            os.close(self._lock)
            raise

    def _take(self, resume: bool) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict("run_unfinished", "another process is at this run", file=str(self.folder)) from error
        except OSError:
            pass  # a file system without locks
        path = self.folder / MANIFEST
        with storing(self.folder):
            if path.exists():
                size = self._read(path, resume)
            elif any(not inside.name.startswith(".") for inside in self.folder.iterdir()):
                raise BadInput(
                    "option_invalid", "the folder has other files in it", file=str(self.folder), field="output",
                    fix="name a new folder",
                )  # fmt: skip
            else:
                self._begin(path)
                size = path.stat().st_size
            self._manifest = os.open(path, os.O_WRONLY | os.O_APPEND)
            os.ftruncate(self._manifest, size)  # a line that was being written when the run was killed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._manifest)
        os.close(self._lock)

    def chunks(self) -> list[Chunk]:
        """Finished chunks, in the order of the run."""
        return [chunk for unit in sorted(self._finished) for chunk in self.of_unit(unit)]

    def of_unit(self, unit: int) -> list[Chunk]:
        """Finished chunks of a unit."""
        return [chunk for _, chunk in sorted(self._finished.get(unit, {}).items())]

    def is_whole(self, unit: int, pieces: Sequence[Piece]) -> bool:
        """Whether every object of a unit is finished. Conflict run_differs if its inputs are not what they were."""
        done = self.of_unit(unit)
        for chunk in done:
            for was, now in zip(chunk.pieces, pieces, strict=False):
                if was != now:
                    raise self._differs("inputs", f"{now.file} is not what it was", "put the file back")
            if len(chunk.pieces) != len(pieces):
                raise self._differs("inputs", f"{pieces[0].file} is read with other files than before", "")
        at = 0
        for chunk in done:
            if chunk.start == at:
                at = chunk.stop
        return bool(done) and at == done[0].objects

    def ids(self, unit: int) -> list[str]:
        """Ids of the finished objects of a unit, in no order."""
        found: set[str] = set()
        for chunk in self.of_unit(unit):
            for table in (self.rows(chunk), self.errors(chunk)):
                found |= {name for name in table.column("id").to_pylist() if name is not None} if table else set()
        return sorted(found)

    def rows(self, chunk: Chunk) -> pa.Table | None:
        """The rows of a chunk."""
        return None if chunk.part is None else pq.read_table(self.folder / chunk.part[0])

    def errors(self, chunk: Chunk) -> pa.Table | None:
        """The errors of a chunk."""
        return None if chunk.errors is None else pq.read_table(self.folder / chunk.errors[0])

    def write(self, name: str, table: pa.Table) -> tuple[str, str]:
        """Write a part, on disk when it returns: its name in the folder and its sha256."""
        path = self.folder / name
        draft = path.with_name(f".{path.name}.tmp")
        with storing(self.folder):
            path.parent.mkdir(exist_ok=True)
            try:
                pq.write_table(table, draft)
                sha256 = sha256_of(draft)
                to_disk(draft)
                draft.replace(path)
            except BaseException:
                with suppress(OSError):
                    draft.unlink(missing_ok=True)
                raise
            to_disk(path.parent)
        return name, sha256

    def add(self, chunk: Chunk) -> None:
        """Say in the manifest that a chunk is finished; its parts were written before."""
        self._append(asdict(chunk))
        self._finished.setdefault(chunk.unit, {})[chunk.chunk] = chunk

    def remove(self) -> None:
        """Remove the folder: the run is finished, and what came of it is elsewhere."""
        with storing(self.folder):
            os.replace(self.folder, self._old)  # at once: what is left of it when this is killed is no run
            shutil.rmtree(self._old)

    @property
    def _old(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.old")

    def _begin(self, path: Path) -> None:
        if self._old.exists():
            shutil.rmtree(self._old)
        draft = path.with_name(f".{path.name}.tmp")
        draft.write_bytes(_line({"run": self.order}))
        to_disk(draft)
        draft.replace(path)
        to_disk(self.folder)

    def _append(self, entry: Mapping[str, Any]) -> None:
        with storing(self.folder):
            line = _line(entry)
            if os.write(self._manifest, line) != len(line):
                raise OSError(errno.ENOSPC, "the disk is full")
            os.fsync(self._manifest)

    def _read(self, path: Path, resume: bool) -> int:
        """Take over the manifest; returns the bytes of its whole lines."""
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        entries = [_entry(line) for line in whole.splitlines()]
        head = entries[0] if entries else None
        if head is None or "run" not in head:
            raise Unavailable(
                "storage_unavailable", "the manifest is damaged", file=str(path), fix="remove the folder, begin anew"
            )
        if not resume:
            raise Conflict(
                "run_unfinished",
                f"an earlier run is here, with {len(entries) - 1} chunks finished",
                file=str(self.folder),
                field="resume",
                fix="go on with it by --resume, or remove it, or name another output",
            )
        self._compare(head["run"])
        chunks = [_chunk(entry) for entry in entries[1:] if entry is not None]
        for chunk in chunks:
            files = [file for file in (chunk.part, chunk.errors) if file is not None]
            broken = [name for name, sha256 in files if not self._is_as_written(name, sha256)]
            if not broken:
                self._finished.setdefault(chunk.unit, {})[chunk.chunk] = chunk
            self.damaged += broken
        return len(whole)

    def _is_as_written(self, name: str, sha256: str) -> bool:
        try:
            return sha256_of(self.folder / name) == sha256
        except FileNotFoundError:
            return False

    def _compare(self, there: Mapping[str, Any]) -> None:
        """Conflict run_differs, naming what."""
        for name, now in self.order.items():
            was = there.get(name)
            if was == now:
                continue
            if name == "inputs":
                raise self._differs(name, _changed(dict(was or ()), dict(now)), "name the same files")
            raise self._differs(name, f"{name} was {_told(was)}, is now {_told(now)}", "ask for the same as before")

    def _differs(self, field: str, message: str, fix: str) -> Conflict:
        return Conflict(
            "run_differs", message, file=str(self.folder), field=field,
            fix=f"{fix}, or remove the run, or name another output" if fix else "remove the run or name another output",
        )  # fmt: skip


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Errors of the disk as ours."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise (Full if full else Unavailable)(
            "storage_full" if full else "storage_unavailable",
            error.strerror or str(error),
            file=str(path),
            fix=f"{'free the disk' if full else 'allow writing there'}; what is finished stays, and --resume goes on",
        ) from error


def to_disk(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest_of(order: Mapping[str, Any]) -> str:
    """sha256 (hex) of an order."""
    return hashlib.sha256(json.dumps(order, sort_keys=True).encode()).hexdigest()


def _line(entry: Mapping[str, Any]) -> bytes:
    """A line of the manifest, with its checksum."""
    text = json.dumps(entry, sort_keys=True)
    return f'{text[:-1]}, "check": "{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def _entry(line: bytes) -> dict[str, Any] | None:
    """What a line says, None if it is damaged."""
    try:
        entry = json.loads(line)
        check = entry.pop("check")
    except (ValueError, KeyError, AttributeError):
        return None
    return entry if check == f"{zlib.crc32(json.dumps(entry, sort_keys=True).encode()):08x}" else None


def _chunk(entry: Mapping[str, Any]) -> Chunk:
    pieces = tuple(
        Piece(piece["file"], piece["sha256"], None if piece["rows"] is None else tuple(piece["rows"]))
        for piece in entry["pieces"]
    )
    files = {name: None if entry[name] is None else tuple(entry[name]) for name in ("part", "errors")}
    values: dict[str, Any] = {one.name: entry[one.name] for one in fields(Chunk)}
    return Chunk(**values | files | {"pieces": pieces})


def _changed(was: Mapping[str, int], now: Mapping[str, int]) -> str:
    """Which of the inputs (name -> bytes) is another."""
    for name in (*was, *now):
        if name not in now:
            return f"{name} was among the inputs and is not now"
        if name not in was:
            return f"{name} is new among the inputs"
        if was[name] != now[name]:
            return f"{name} had {was[name]} bytes and has {now[name]} now"
    return "the inputs come in another order"


def _told(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "..."
