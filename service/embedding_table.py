"""Embeddings as tables: one row per embedding vector.

Beside a file there is one of errors; in an answer of the service an object that failed has a row, with its error.

The metadata of the schema says which embedding space the vectors are of, that of a column its unit and its UCD.

    embedding_table, error_table  outcomes as tables
    TableWriter                   such tables as files, batch by batch
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from albireo.observations.modalities import MODALITIES
from albireo.service.core import Outcome

if TYPE_CHECKING:
    from albireo.models.engine import Embedding

ERRORS = pa.schema([(name, pa.string()) for name in ("file", "id", "code", "message", "field", "fix")])


def column(name: str, kind: pa.DataType, ucd: str, unit: str = "") -> pa.Field:
    """A column with what the Virtual Observatory calls its quantity (UCD1+), and its unit."""
    return pa.field(name, kind, metadata={"ucd": ucd} | ({"unit": unit} if unit else {}))


TEXT, TEXTS = pa.string(), pa.list_(pa.string())

WHO = (
    column("id", TEXT, "meta.id;meta.main"),
    column("ra", pa.float64(), "pos.eq.ra;meta.main", "deg"),
    column("dec", pa.float64(), "pos.eq.dec;meta.main", "deg"),
)
"""Columns that every table begins with; degrees ICRS."""

WHENCE = (
    column("modalities", TEXTS, "meta.id;meta.dataset"),
    column("qa_flags", TEXTS, "meta.code.qual"),
    column("warnings", TEXTS, "meta.note"),
    column("file", TEXT, "meta.id;meta.file"),
    column("sha256", TEXT, "meta.id;meta.file"),
)
"""Columns of what the numbers of a row rest on."""

OUTCOME = (
    column("status", TEXT, "meta.code.status"),
    column("error_code", TEXT, "meta.code"),
    column("error_message", TEXT, "meta.note"),
    column("error_field", TEXT, "meta.note"),
    column("error_fix", TEXT, "meta.note"),
)
"""Columns of tables whose rows may be of objects that failed: "ok", "degraded" or "error", and the error."""


CACHE = column("cache", TEXT, "meta.code")
"""Column of answers: "hit" if the embedding was remembered, "miss" if it was computed, null without one."""


def embedding_schema(dim: int, about: Mapping[str, str], outcome: bool = False) -> pa.Schema:
    """Columns of the table: `row` is the modality of a vector, null where it is of the whole object.

    about    metadata of the table
    outcome  whether objects that failed have rows
    """
    numbers = (
        column("embedding", pa.list_(pa.float32(), dim), "stat.param"),
        column("row", TEXT, "meta.id.part"),
    )
    modalities, *others = WHENCE
    whence = (modalities, column("n_tokens", pa.int32(), "meta.number"), *others)
    return pa.schema([*WHO, *numbers, *whence, *((CACHE, *OUTCOME) if outcome else ())], metadata=dict(about))


def errors_path(path: Path) -> Path:
    """`out.parquet` -> `out.errors.parquet`."""
    return path.with_name(f"{path.stem}.errors.parquet")


def about_object(outcome: Outcome, modalities: Sequence[str]) -> dict[str, Any]:
    """Columns that every table has: of which object a row is, and what it rests on."""
    observation = outcome.subject.observation
    assert observation is not None
    return {
        "id": outcome.subject.id,
        "ra": observation.ra,
        "dec": observation.dec,
        "modalities": list(modalities),
        "qa_flags": list(outcome.flags),
        "warnings": [f"{warning.code}: {warning.message}" for warning in outcome.warnings],
        "file": outcome.subject.file,
        "sha256": outcome.subject.sha256,
    }


def object_columns(outcomes: Sequence[Outcome], modalities: Sequence[Sequence[str]]) -> dict[str, pa.Array]:
    """The columns of WHO, WHENCE and OUTCOME, a row for each outcome."""
    errors = [outcome.error for outcome in outcomes]
    subjects = [outcome.subject for outcome in outcomes]
    warnings = [[f"{one.code}: {one.message}" for one in outcome.warnings] for outcome in outcomes]
    return {
        "id": pa.array([one.id for one in subjects], TEXT),
        "ra": pa.array([one.ra for one in subjects], pa.float64()),
        "dec": pa.array([one.dec for one in subjects], pa.float64()),
        "modalities": pa.array(modalities, TEXTS),
        "qa_flags": pa.array([outcome.flags for outcome in outcomes], TEXTS),
        "warnings": pa.array(warnings, TEXTS),
        "file": pa.array([one.file for one in subjects], TEXT),
        "sha256": pa.array([one.sha256 for one in subjects], TEXT),
        "status": pa.array([outcome.status for outcome in outcomes], TEXT),
        "error_code": pa.array([error and error.code for error in errors], TEXT),
        "error_message": pa.array([error and error.message for error in errors], TEXT),
        "error_field": pa.array([error and error.field for error in errors], TEXT),
        "error_fix": pa.array([error and error.fix for error in errors], TEXT),
    }


class TableWriter:
    """Writes a table and one of errors, batch by batch; they appear when all is written, or not at all.

    schema  of the table, metadata included
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.schema = schema
        self._targets = (path, errors_path(path))
        self._drafts = tuple(target.with_name(f".{target.name}.{os.getpid()}") for target in self._targets)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rows = pq.ParquetWriter(self._drafts[0], schema)
        self._errors = pq.ParquetWriter(self._drafts[1], ERRORS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._rows.close()
        self._errors.close()
        for draft, target in zip(self._drafts, self._targets, strict=True):
            if kind is None:
                draft.replace(target)
            else:
                draft.unlink(missing_ok=True)

    def append(self, table: pa.Table | None, outcomes: Sequence[Outcome]) -> None:
        """Append rows, if there are any, and the errors among outcomes."""
        errors = error_table(outcomes)
        if table is not None:
            self._rows.write_table(table)
        if errors is not None:
            self._errors.write_table(errors)


def embedding_table(outcomes: Sequence[Outcome], schema: pa.Schema) -> pa.Table | None:
    """The outcomes as rows of an `embedding_schema`, None if there are none.

    Objects that failed have one row, whose embedding is null, if the schema has columns of errors, else none.
    """
    if "status" not in schema.names:
        outcomes = [outcome for outcome in outcomes if outcome.embedding is not None]
    if not outcomes:
        return None
    embeddings = [outcome.embedding for outcome in outcomes]
    columns = object_columns(outcomes, [outcome.modalities for outcome in outcomes])
    columns["n_tokens"] = pa.array([one.n_tokens if one else 0 for one in embeddings], pa.int32())
    columns["cache"] = pa.array([outcome.cache for outcome in outcomes], TEXT)
    if any(one is not None and one.values.ndim > 1 for one in embeddings):
        counts = [1 if one is None or one.values.ndim == 1 else len(one.values) for one in embeddings]
        places = pa.array(np.repeat(np.arange(len(counts)), counts))
        columns = {name: values.take(places) for name, values in columns.items()}
    columns["row"] = pa.array([name for one in embeddings for name in _rows(one)], TEXT)
    columns["embedding"] = _vectors(embeddings, schema.field("embedding").type.list_size)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _rows(embedding: Embedding | None) -> list[str | None]:
    """The modality of every row of an embedding."""
    if embedding is None or embedding.values.ndim == 1:
        return [None]
    return [MODALITIES[key].name for key in embedding.modalities]


def _vectors(embeddings: Sequence[Embedding | None], dim: int) -> pa.Array:
    """Every vector (dim,) of the embeddings; null where there is none."""
    nothing = np.zeros(dim, np.float32)
    flat = np.concatenate([nothing if one is None else one.values.ravel() for one in embeddings])
    values = pa.array(flat.astype(np.float32, copy=False))
    if all(one is not None for one in embeddings):
        return pa.FixedSizeListArray.from_arrays(values, dim)
    gone = [one is None for one in embeddings for _ in _rows(one)]
    return pa.FixedSizeListArray.from_arrays(values, dim, mask=pa.array(gone))


def error_table(outcomes: Sequence[Outcome]) -> pa.Table | None:
    """The errors among outcomes, None if there are none."""
    rows = [_error_row(outcome) for outcome in outcomes if outcome.error is not None]
    return pa.Table.from_pylist(rows, schema=ERRORS) if rows else None


def _error_row(outcome: Outcome) -> dict[str, str | None]:
    assert outcome.error is not None
    told = outcome.error.as_dict()
    return {"file": outcome.subject.file, "id": outcome.subject.id} | {
        key: told.get(key) for key in ("code", "message", "field", "fix")
    }
