"""A cache of small values in one SQLite file of bounded size: the least recently used go first.

Several processes may use one file. A value has a checksum, and one that is damaged counts as absent. What is lost is
only work, so writes do not wait for the disk, and no error of the disk reaches the caller: it is told to the log and
counted.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from albireo.observations.errors import BadInput, Unavailable

log = logging.getLogger("albireo.cache")

APPLICATION_ID = 0x414C4354
"""In the header of every cache file: "ALCT"."""

SCHEMA_VERSION = 1
PAGE = 4096
SMALLEST = 1 << 20
"""Bytes of the smallest cache."""

FILLED = 0.6
"""Of a file's bytes, what values may take: pages of a tree are never full."""

ROW_BYTES = 80
"""What a row costs beside its value: its key, its numbers, and its place among the least recently used."""

BUSY_SECONDS = 5.0
WAL_BYTES = 4 << 20
_AT_ONCE = 500

_SCHEMA = """
CREATE TABLE entries (
    place INTEGER PRIMARY KEY,
    key BLOB NOT NULL,
    value BLOB NOT NULL,
    checksum INTEGER NOT NULL,
    size INTEGER NOT NULL,
    used INTEGER NOT NULL
);
CREATE INDEX by_use ON entries (used, size);
CREATE TABLE total (bytes INTEGER NOT NULL);
INSERT INTO total VALUES (0);
"""


@dataclass
class Counts:
    """What became of look-ups and writes in this process."""

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    errors: int = 0


class ByteCache:
    """Key -> value. Keys are hashes: at least 16 bytes of which any 8 are as good as random.

    limit  of the file, in bytes; beside it stands a log (WAL) of a few MiB
    """

    def __init__(self, path: Path, limit: int) -> None:
        """Raises Unavailable storage_unavailable if the file cannot be used or is none of ours."""
        if limit < SMALLEST:
            raise BadInput("option_invalid", f"a cache of {limit} bytes", field="limit", fix=f"at least {SMALLEST}")
        self.path = path
        self.limit = limit
        self.counts = Counts()
        self._lock = threading.Lock()
        self._touched: set[int] = set()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._connection.text_factory = bytes  # of a damaged column: whatever it is, it is told by its checksum
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise
        except (OSError, sqlite3.Error, TypeError, UnicodeDecodeError) as error:  # the last two: of what is damaged
            raise Unavailable(
                "storage_unavailable", str(error), file=str(path),
                fix="allow writing there, or remove the file: a cache holds nothing that cannot be computed again",
            ) from error  # fmt: skip

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values that there are; damaged ones are left out, and forgotten at the next write."""
        found: dict[bytes, bytes] = {}
        places = {_place(key): key for key in keys}
        with self._lock:
            try:
                for start in range(0, len(places), _AT_ONCE):
                    some = list(places)[start : start + _AT_ONCE]
                    marks = ", ".join("?" * len(some))
                    rows = self._connection.execute(
                        f"SELECT place, key, value, checksum FROM entries WHERE place IN ({marks})", some
                    )
                    for place, key, value, checksum in rows:
                        if key != places.get(place):
                            continue
                        if isinstance(value, bytes) and checksum == _checksum(key, value):
                            found[key] = value
                            self._touched.add(place)
                        else:
                            self.counts.damaged += 1
                            log.warning("%s: a value is damaged; it is computed again", self.path)
            except (sqlite3.Error, TypeError, UnicodeDecodeError) as error:
                self._failed("read", error)
            self.counts.hits += len(found)
            self.counts.misses += len(places) - len(found)
            if len(self._touched) >= _AT_ONCE:
                self._write({})
        return found

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """Keep values; the least recently used make room. A value too large for the cache is not kept."""
        room = int(self.limit * FILLED) // 4
        fitting = {key: value for key, value in values.items() if len(value) + ROW_BYTES <= room}
        with self._lock:
            if fitting:
                self._write(fitting)

    def close(self) -> None:
        """Remember what was used, and close the file."""
        with self._lock:
            if self._touched:
                self._write({})
            self._connection.close()

    @property
    def size(self) -> int:
        """Bytes of the file."""
        with self._lock:
            (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        return int(pages) * PAGE

    def _prepare(self) -> None:
        execute = self._connection.execute
        execute(f"PRAGMA page_size = {PAGE}")
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")
        execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        execute("BEGIN IMMEDIATE")
        try:
            (application,) = execute("PRAGMA application_id").fetchone()
            (version,) = execute("PRAGMA user_version").fetchone()
            (tables,) = execute("SELECT count(*) FROM sqlite_master").fetchone()
            if (application, version, tables) == (0, 0, 0):
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    execute(statement)
                execute(f"PRAGMA application_id = {APPLICATION_ID}")
                execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif (application, version) != (APPLICATION_ID, SCHEMA_VERSION):
                raise sqlite3.DatabaseError("an SQLite file of another program, or of another version of this one")
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.rollback()
            raise
        (pages,) = execute("PRAGMA page_count").fetchone()
        if pages * PAGE > self.limit:  # it was allowed to be larger
            self._transaction({}, set(), int(self.limit * FILLED))
            execute("VACUUM")
        execute(f"PRAGMA max_page_count = {self.limit // PAGE}")

    def _write(self, values: Mapping[bytes, bytes]) -> None:
        """Values, and which entries were used since the last write; under the lock."""
        touched, self._touched = self._touched, set()
        spare = 1.0
        while True:
            try:
                self._transaction(values, touched, int(self.limit * FILLED * spare))
                return
            except (sqlite3.Error, TypeError, UnicodeDecodeError) as error:  # the last two: of what is damaged
                with suppress(sqlite3.Error):
                    self._connection.rollback()
                full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
                if not full or spare < 0.1:
                    self._failed("write", error)
                    return
                spare /= 2  # pages are emptier than thought

    def _transaction(self, values: Mapping[bytes, bytes], touched: set[int], most: int) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        (now,) = execute("SELECT coalesce(max(used), 0) + 1 FROM entries").fetchone()
        self._connection.executemany("UPDATE entries SET used = ? WHERE place = ?", [(now, at) for at in touched])
        change = 0
        for key in values:
            for (size,) in execute("DELETE FROM entries WHERE place = ? RETURNING size", (_place(key),)).fetchall():
                change -= size
        added = sum(len(value) + ROW_BYTES for value in values.values())
        (total,) = execute("SELECT bytes FROM total").fetchone()
        change -= self._evict(total + change + added - most)
        self._connection.executemany(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)",
            [
                (_place(key), key, value, _checksum(key, value), len(value) + ROW_BYTES, now + 1)
                for key, value in values.items()
            ],
        )
        execute("UPDATE total SET bytes = bytes + ?", (change + added,))
        execute("COMMIT")

    def _evict(self, over: int) -> int:
        """Delete the least recently used until so many bytes are free; how many were freed."""
        freed = 0
        while freed < over:
            rows = self._connection.execute("SELECT place, size FROM entries ORDER BY used LIMIT ?", (_AT_ONCE,))
            gone: list[int] = []
            for place, size in rows.fetchall():
                if freed >= over:
                    break
                freed += size
                gone.append(place)
            if not gone:
                break
            self._connection.executemany("DELETE FROM entries WHERE place = ?", [(place,) for place in gone])
        return freed

    def _failed(self, what: str, error: Exception) -> None:
        self.counts.errors += 1
        if self.counts.errors & (self.counts.errors - 1) == 0:  # the first, second, fourth, ...: it may go on for days
            log.warning("%s cannot %s: %s; what is asked is computed", self.path, what, error)


def _place(key: bytes) -> int:
    """Where an entry stands: by its hash, so that room which others leave is filled again."""
    return int.from_bytes(key[:8], "big") >> 1


def _checksum(key: bytes, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(key))
