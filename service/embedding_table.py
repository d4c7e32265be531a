"""Embeddings as Parquet: one row per embedding vector, and a table of errors beside it.

The metadata of the schema says which embedding space the vectors are of.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from albireo.models.engine import Numerics
from albireo.observations.modalities import MODALITIES
from albireo.service.core import Embedded, Outcome

ERRORS = pa.schema([(name, pa.string()) for name in ("file", "id", "code", "message", "field", "fix")])


def embedding_schema(dim: int) -> pa.Schema:
    """Columns of the table: `row` is the modality of a vector, null where it is of the whole object."""
    return pa.schema(
        [
            ("id", pa.string()),
            ("ra", pa.float64()),
            ("dec", pa.float64()),
            ("embedding", pa.list_(pa.float32(), dim)),
            ("row", pa.string()),
            ("modalities", pa.list_(pa.string())),
            ("n_tokens", pa.int32()),
            ("qa_flags", pa.list_(pa.string())),
            ("warnings", pa.list_(pa.string())),
            ("file", pa.string()),
            ("sha256", pa.string()),
        ]
    )


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
        bad = [outcome for outcome in outcomes if outcome.error is not None]
        if table is not None:
            self._rows.write_table(table)
        if bad:
            self._errors.write_table(pa.Table.from_pylist([_error_row(outcome) for outcome in bad], schema=ERRORS))


class EmbeddingWriter(TableWriter):
    """A `TableWriter` of embeddings."""

    def __init__(self, path: Path, *, dim: int, space: str, model: str, pooling: str, numerics: Numerics) -> None:
        self.dim = dim
        about = {"space": space, "model": model, "pooling": pooling} | asdict(numerics)
        super().__init__(path, embedding_schema(dim).with_metadata(about))

    def write(self, embedded: Embedded) -> None:
        """Append a batch of outcomes."""
        good = [outcome for outcome in embedded.outcomes if outcome.embedding is not None]
        self.append(self._table(good) if good else None, embedded.outcomes)

    def _table(self, outcomes: Sequence[Outcome]) -> pa.Table:
        rows, vectors = [], []
        for outcome in outcomes:
            embedding = outcome.embedding
            assert embedding is not None
            single = embedding.values.ndim == 1
            vectors.append(np.atleast_2d(embedding.values))
            names = [None] if single else [MODALITIES[key].name for key in embedding.modalities]
            common = about_object(outcome, outcome.modalities) | {"n_tokens": embedding.n_tokens}
            rows += [common | {"row": name} for name in names]
        flat = pa.array(np.concatenate(vectors).astype(np.float32).ravel())
        columns = {
            field.name: pa.FixedSizeListArray.from_arrays(flat, self.dim)
            if field.name == "embedding"
            else pa.array([row[field.name] for row in rows], field.type)
            for field in self.schema
        }
        return pa.table(columns, schema=self.schema)


def _error_row(outcome: Outcome) -> dict[str, str | None]:
    assert outcome.error is not None
    told = outcome.error.as_dict()
    return {"file": outcome.subject.file, "id": outcome.subject.id} | {
        key: told.get(key) for key in ("code", "message", "field", "fix")
    }
