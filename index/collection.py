"""Collections: named sets of objects with one embedding each, in one SQLite file, searched exactly.

    StoredObject  what is kept of an object
    Hit           an object found, with its score
    Collections   the file
    Collection    one named set of one embedding space

SQLite is the truth; the vectors in memory are a copy, loaded at the first search and kept in step with every change
of this process. A change by another process is seen by its revision number, and loads them again.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from albireo.index.flat import FlatIndex, Metric
from albireo.index.rows import checksum_of, metadata_text
from albireo.index.storage import connect, damaged, prepare, transaction
from albireo.observations.errors import BadInput, Conflict, NotFound
from albireo.observations.spaces import same_space

Floats = NDArray[np.float32]

MAX_ID = 512
"""Longest object id, in characters."""

MAX_DIM = 65536

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_COLUMNS = "id, vector, ra, dec, metadata, modalities, checksum"
_KINDS = (str, bytes, float | None, float | None, str, str, int)
"""Of cells of these columns; SQLite gives what is stored, whatever a column was declared."""

_AT_ONCE = 500


@dataclass(frozen=True, eq=False)
class StoredObject:
    """vector (D,) float32, kept bit by bit; ra, dec degrees ICRS; metadata of JSON values; modality names."""

    id: str
    vector: Floats
    ra: float | None = None
    dec: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    modalities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hit:
    """An object found. `score` grows with nearness: the cosine, or minus the Euclidean distance."""

    id: str
    score: float
    ra: float | None
    dec: float | None
    metadata: Mapping[str, Any]
    modalities: tuple[str, ...]


class Collections:
    """The collections of one file; safe to use from any thread, and beside other processes."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._open: dict[str, Collection] = {}
        self._connection = connect(self.path)
        try:
            prepare(self._connection, self.path)
        except BaseException:
            self._connection.close()
            raise

    def create(self, name: str, space: str, dim: int, metric: Metric = "cosine") -> Collection:
        """The collection `name`, made if there is none. One that is there must have this definition."""
        if not _NAME.fullmatch(name):
            raise _invalid("name", f"{name!r} cannot name a collection", "1 to 128 of letters, digits, '.', '_', '-'")
        if not space:
            raise _invalid("space", "no embedding space is named", "give the space that the embeddings state")
        if not 1 <= dim <= MAX_DIM:
            raise _invalid("dim", f"{dim} is no dimension", f"1 to {MAX_DIM}")
        if metric not in get_args(Metric):
            raise _invalid("metric", f"{metric!r} is no metric", "cosine or l2")
        with self._lock:
            with transaction(self._connection, self.path, write=True):
                self._connection.execute(
                    "INSERT INTO collections (name, space, dim, metric) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    (name, space, dim, metric),
                )
            collection = self.get(name)
        if not same_space(collection.space, space):
            raise _other_space(collection, space)
        if collection.dim != dim:
            raise _other_dimension(collection, dim)
        if collection.metric != metric:
            raise Conflict(
                "collection_invalid",
                f"collection {name!r} has metric {collection.metric}, not {metric}",
                field="metric",
                fix="use its metric or another name",
            )
        return collection

    def get(self, name: str) -> Collection:
        """The collection `name`; NotFound collection_unknown."""
        with self._lock:
            with transaction(self._connection, self.path, write=False):
                row = self._connection.execute(
                    "SELECT key, space, dim, metric FROM collections WHERE name = ?", (name,)
                ).fetchone()
            known = self._open.get(name)
            if row is None:
                raise _unknown(name)
            if known is None or known.key != row[0]:
                if known is not None:
                    known.close(deleted=True)
                known = self._open[name] = Collection(self.path, name, *row)
            return known

    def names(self) -> list[str]:
        """Names of all collections, sorted."""
        with self._lock, transaction(self._connection, self.path, write=False):
            return [name for (name,) in self._connection.execute("SELECT name FROM collections ORDER BY name")]

    def delete(self, name: str) -> None:
        """Delete a collection with all its objects."""
        with self._lock:
            with transaction(self._connection, self.path, write=True):
                gone = self._connection.execute("DELETE FROM collections WHERE name = ?", (name,)).rowcount
            known = self._open.pop(name, None)
            if known is not None:
                known.close(deleted=True)
        if not gone:
            raise _unknown(name)

    def close(self) -> None:
        """Close the file; collections of it answer `not_ready` from now on."""
        with self._lock:
            for collection in self._open.values():
                collection.close()
            self._open.clear()
            self._connection.close()


class Collection:
    """Objects of one embedding space. Got from `Collections`; its methods may be called from any thread."""

    def __init__(self, path: Path, name: str, key: int, space: str, dim: int, metric: Metric) -> None:
        self.name = name
        self.space = space
        self.dim = dim
        self.metric = metric
        self.key = key
        self._path = path
        self._lock = threading.RLock()
        self._connection = connect(path)
        self._memory: FlatIndex | None = None
        self._memory_revision = -1
        self._deleted = False

    @property
    def count(self) -> int:
        """Number of objects."""
        with self._reading():
            (count,) = self._connection.execute(
                "SELECT count(*) FROM objects WHERE collection = ?", (self.key,)
            ).fetchone()
        return int(count)

    def upsert(self, objects: Sequence[StoredObject]) -> int:
        """Add objects, or replace those whose id is known; all or none, on disk when it returns. How many."""
        rows = [(self.key, *self._encoded(stored)) for stored in objects]
        ids = [stored.id for stored in objects]
        if len(set(ids)) < len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise BadInput("request_invalid", f"object {twice!r} is given twice", field="id", fix="give each id once")
        if not rows:
            return 0
        with self._lock:
            with self._writing() as revision:
                self._connection.executemany(
                    f"INSERT INTO objects (collection, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
                    "ON CONFLICT (collection, id) DO UPDATE SET vector = excluded.vector, ra = excluded.ra, "
                    "dec = excluded.dec, metadata = excluded.metadata, modalities = excluded.modalities, "
                    "checksum = excluded.checksum",
                    rows,
                )
            with self._following(revision) as memory:
                if memory is not None:
                    memory.put(ids, np.stack([stored.vector for stored in objects]).astype(np.float32))
        return len(rows)

    def fetch(self, ids: Sequence[str]) -> list[StoredObject]:
        """The objects with these ids, in this order; NotFound object_unknown."""
        with self._reading():
            found = self._rows(ids)
        for name in ids:
            if name not in found:
                raise NotFound("object_unknown", f"collection {self.name!r} has no object {name!r}", field="id")
        return [found[name] for name in ids]

    def search(self, vectors: Floats, k: int, *, space: str, exclude: Sequence[str | None] = ()) -> list[list[Hit]]:
        """The k objects nearest to each query (Q, D) of `space`, nearest first, ties by id.

        exclude[q] is the id of an object never returned for query q. Fewer than k only if there are fewer.
        """
        if not same_space(space, self.space):
            raise _other_space(self, space)
        if k < 1:
            raise BadInput("request_invalid", f"k = {k}", field="k", fix="ask for at least one neighbour")
        queries = np.asarray(vectors, np.float32)
        if queries.ndim != 2:
            raise BadInput("shape_mismatch", f"queries of shape {queries.shape}", field="vectors", fix="give (Q, D)")
        if queries.shape[1] != self.dim:
            raise _other_dimension(self, queries.shape[1])
        for q, query in enumerate(queries):
            self._check(query, f"query {q}")
        excluded = list(exclude) if len(exclude) else [None] * len(queries)
        if len(excluded) != len(queries):
            raise BadInput("shape_mismatch", f"{len(excluded)} ids for {len(queries)} queries", field="exclude")
        with self._reading() as revision:
            pairs = self._loaded(revision).search(queries, k, excluded)
            names = dict.fromkeys(name for row in pairs for name, _ in row)
            found = self._rows(list(names))
            if lost := names.keys() - found.keys():
                raise damaged(
                    self._path, f"{len(lost)} objects of collection {self.name!r} are not found by id", field="id"
                )
        return [[_hit(found[name], score) for name, score in row] for row in pairs]

    def delete(self, ids: Sequence[str]) -> int:
        """Delete objects; ids that are not there are passed over. How many were deleted, on disk when it returns."""
        with self._lock:
            with self._writing() as revision:
                gone = sum(
                    self._connection.execute(
                        "DELETE FROM objects WHERE collection = ? AND id = ?", (self.key, name)
                    ).rowcount
                    for name in dict.fromkeys(ids)
                )
            with self._following(revision) as memory:
                if memory is not None:
                    memory.drop(ids)
        return gone

    def close(self, *, deleted: bool = False) -> None:
        """Close the connection; used later, the collection is `not_ready`, or unknown if it was deleted."""
        with self._lock:
            self._deleted = deleted
            self._memory = None
            self._connection.close()

    @contextmanager
    def _reading(self) -> Iterator[int]:
        """One moment of the collection, by its revision."""
        with self._transaction("SELECT revision FROM collections WHERE key = ?", write=False) as revision:
            yield revision

    @contextmanager
    def _writing(self) -> Iterator[int]:
        """A change of the collection, with the revision that it will be."""
        change = "UPDATE collections SET revision = revision + 1 WHERE key = ? RETURNING revision"
        with self._transaction(change, write=True) as revision:
            yield revision

    @contextmanager
    def _transaction(self, revision: str, *, write: bool) -> Iterator[int]:
        with self._lock:
            if self._deleted:
                raise _unknown(self.name)
            with transaction(self._connection, self._path, write=write):
                row = self._connection.execute(revision, (self.key,)).fetchone()
                if row is None:
                    raise _unknown(self.name)
                yield row[0]

    @contextmanager
    def _following(self, revision: int) -> Iterator[FlatIndex | None]:
        """The vectors in memory, to be given the change that made `revision`; None if they missed one before it."""
        memory, self._memory = self._memory, None  # forgotten if the change fails half-way
        if memory is None or self._memory_revision != revision - 1:
            yield None
            return
        yield memory
        self._memory, self._memory_revision = memory, revision

    def _loaded(self, revision: int) -> FlatIndex:
        """The vectors in memory as they are at `revision`."""
        if self._memory is None or self._memory_revision != revision:
            (count,) = self._connection.execute(
                "SELECT count(*) FROM objects WHERE collection = ?", (self.key,)
            ).fetchone()
            memory = FlatIndex(self.dim, self.metric, capacity=count)
            cursor = self._connection.execute(f"SELECT {_COLUMNS} FROM objects WHERE collection = ?", (self.key,))
            while rows := cursor.fetchmany(_AT_ONCE):
                batch = [self._decoded(row) for row in rows]
                memory.put([stored.id for stored in batch], np.stack([stored.vector for stored in batch]))
            self._memory, self._memory_revision = memory, revision
        return self._memory

    def _rows(self, ids: Sequence[str]) -> dict[str, StoredObject]:
        """The objects of `ids` that there are."""
        found = {}
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            cursor = self._connection.execute(
                f"SELECT {_COLUMNS} FROM objects WHERE collection = ? AND id IN ({marks})", (self.key, *some)
            )
            found.update({stored.id: stored for stored in map(self._decoded, cursor)})
        return found

    def _encoded(self, stored: StoredObject) -> tuple[Any, ...]:
        """The row of an object, in the order of _COLUMNS; BadInput if it cannot be kept as it is."""
        vector = stored.vector
        assert vector.dtype.newbyteorder("=") == np.float32, vector.dtype
        if not 1 <= len(stored.id) <= MAX_ID or not stored.id.isprintable():
            raise BadInput(
                "request_invalid",
                f"{stored.id[:MAX_ID]!r} cannot be an object id",
                field="id",
                fix=f"1 to {MAX_ID} printable characters",
            )
        if vector.ndim != 1:
            raise BadInput("shape_mismatch", f"a vector of shape {vector.shape}", field=stored.id, fix="give (D,)")
        if len(vector) != self.dim:
            raise _other_dimension(self, len(vector))
        self._check(vector, stored.id)
        for name, angle, low, high in (("ra", stored.ra, 0.0, 360.0), ("dec", stored.dec, -90.0, 90.0)):
            if angle is not None and not low <= angle <= high:
                raise BadInput(
                    "value_out_of_range",
                    f"object {stored.id!r} has {name} {angle}",
                    field=name,
                    fix=f"degrees ICRS, {low:g} to {high:g}, or leave it out",
                )
        blob = vector.astype("<f4").tobytes()
        metadata = metadata_text(stored.id, stored.metadata)
        modalities = json.dumps(list(stored.modalities))
        ra, dec = (None if angle is None else float(angle) for angle in (stored.ra, stored.dec))
        return (
            stored.id,
            blob,
            ra,
            dec,
            metadata,
            modalities,
            checksum_of(stored.id, blob, ra, dec, metadata, modalities),
        )

    def _decoded(self, row: tuple[Any, ...]) -> StoredObject:
        name, blob, ra, dec, metadata, modalities, checksum = row
        if not all(map(isinstance, row, _KINDS)):
            raise damaged(self._path, f"a row of collection {self.name!r} is not what was written", field="id")
        if checksum != checksum_of(name, blob, ra, dec, metadata, modalities) or len(blob) != 4 * self.dim:
            raise damaged(
                self._path, f"object {name!r} of collection {self.name!r} is not what was written", field="id"
            )
        vector = np.frombuffer(blob, "<f4").astype(np.float32)
        return StoredObject(name, vector, ra, dec, json.loads(metadata), tuple(json.loads(modalities)))

    def _check(self, vector: Floats, name: str) -> None:
        if not np.isfinite(vector).all():
            raise BadInput("not_finite", f"the vector of {name} has NaN or infinity", field="vector")
        if self.metric == "cosine" and not vector.any():
            raise BadInput("value_out_of_range", f"the vector of {name} is zero: it has no direction", field="vector")


def _hit(stored: StoredObject, score: float) -> Hit:
    return Hit(stored.id, score, stored.ra, stored.dec, stored.metadata, stored.modalities)


def _unknown(name: str) -> NotFound:
    return NotFound("collection_unknown", f"there is no collection {name!r}", field="collection", fix="create it first")


def _invalid(field: str, message: str, fix: str) -> BadInput:
    return BadInput("collection_invalid", message, field=field, fix=fix)


def _other_space(collection: Collection, space: str) -> Conflict:
    return Conflict(
        "space_mismatch",
        f"collection {collection.name!r} holds vectors of {collection.space}, not of {space}",
        field="space",
        fix="embed with the same checkpoint and pooling, or use a collection of that space",
    )


def _other_dimension(collection: Collection, dim: int) -> Conflict:
    return Conflict(
        "dimension_mismatch",
        f"collection {collection.name!r} holds vectors of dimension {collection.dim}, not {dim}",
        field="vector",
        fix="embed with the same checkpoint and pooling, or use a collection of that dimension",
    )
