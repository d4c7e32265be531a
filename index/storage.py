"""The collection file: one SQLite database, opened, checked, and written in transactions durable when they end.

A file that is not ours, is of a newer schema or is damaged is refused with `collection_damaged`, never repaired
by force and never written to.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from albireo.observations.errors import AlbireoError, Full, Unavailable

APPLICATION_ID = 0x414C4231
"""In the header of every collection file: "ALB1"."""

SCHEMA_VERSION = 1
"""In the header too (`user_version`)."""

BUSY_SECONDS = 30.0
"""How long a writer waits for another process that writes."""

_SCHEMA = """
CREATE TABLE collections (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    space TEXT NOT NULL,
    dim INTEGER NOT NULL,
    metric TEXT NOT NULL,
    revision INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE objects (
    collection INTEGER NOT NULL REFERENCES collections (key) ON DELETE CASCADE,
    id TEXT NOT NULL,
    vector BLOB NOT NULL,
    ra REAL,
    dec REAL,
    metadata TEXT NOT NULL,
    modalities TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    UNIQUE (collection, id)
);
"""

_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})


def connect(path: Path) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time; commits reach the disk before they return."""
    with named_errors(path):
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error:
            connection.close()
            raise
    return connection


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Check the file behind a new connection, or write the schema if it is new and empty."""
    with named_errors(path):
        application, version = _header(connection)
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if (application, version, tables) == (0, 0, 0):
            connection.execute("PRAGMA journal_mode = WAL")
            _create(connection)
            application, version = _header(connection)
        if application != APPLICATION_ID:
            raise damaged(path, "an SQLite file of another program")
        if version != SCHEMA_VERSION:
            raise damaged(path, f"of schema version {version}, this program reads {SCHEMA_VERSION}")
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise damaged(path, str(verdict))
        connection.execute("PRAGMA journal_mode = WAL")


def _header(connection: sqlite3.Connection) -> tuple[int, int]:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return application, version


def _create(connection: sqlite3.Connection) -> None:
    """Write the schema; of two processes that find a new file, the second finds it written."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if _header(connection) == (0, 0):
            for statement in filter(str.strip, _SCHEMA.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except sqlite3.Error:
        connection.rollback()
        raise


@contextmanager
def transaction(connection: sqlite3.Connection, path: Path, *, write: bool) -> Iterator[None]:
    """All or nothing: committed when the block ends, rolled back when it raises. Reading sees one moment."""
    with named_errors(path):
        connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        try:
            yield
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.rollback()


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """SQLite's errors as ours: damage, a closed file, or a file that cannot be read or written now."""
    try:
        yield
    except sqlite3.ProgrammingError as error:
        raise Unavailable("not_ready", f"the collection file is closed: {error}", file=path.name) from error
    except UnicodeDecodeError as error:  # SQLite tells of a damaged schema in its own bytes
        raise damaged(path, str(error)) from error
    except sqlite3.DatabaseError as error:
        # Extended result codes keep the plain code in the low byte.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _DAMAGE:
            raise damaged(path, str(error)) from error
        if code == sqlite3.SQLITE_FULL:
            raise Full("storage_full", str(error), file=path.name, fix="free the disk; searching goes on") from error
        raise Unavailable(
            "storage_unavailable",
            str(error),
            file=path.name,
            fix="allow writing there, or end the process that holds the file",
        ) from error


def damaged(path: Path, message: str, field: str | None = None) -> AlbireoError:
    """The error of a file that cannot be trusted."""
    return Unavailable(
        "collection_damaged",
        message,
        file=path.name,
        field=field,
        fix="put a copy of the file back, or move it away and index the objects again",
    )
