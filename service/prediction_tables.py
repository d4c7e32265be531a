"""Redshift posteriors and draws as Parquet: one row per object, or per object and draw; errors in a table beside it.

The metadata of the schemas says what the numbers are and what computed them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from albireo.models.engine import Engine
from albireo.models.generation import Sampling, target_spec
from albireo.models.redshift import Posterior, cell_edges
from albireo.observations.modalities import MODALITIES
from albireo.service.embedding_table import TableWriter, about_object
from albireo.service.predictions import Drawn, Prediction, Wanted

MOMENTS = ("z_mean", "z_std", "z_mode", "z_q16", "z_q50", "z_q84")

_WHO = [("id", pa.string()), ("ra", pa.float64()), ("dec", pa.float64())]
_WHENCE = [
    ("modalities", pa.list_(pa.string())),
    ("qa_flags", pa.list_(pa.string())),
    ("warnings", pa.list_(pa.string())),
    ("file", pa.string()),
    ("sha256", pa.string()),
]


def identity(engine: Engine) -> str:
    """What computed the numbers, as in the name of an embedding space: checkpoint, fingerprint, preprocessing."""
    return engine.space("mean").removesuffix(":mean")


def redshift_row(prediction: Prediction[Posterior], pdf: bool = False) -> dict[str, Any]:
    """One object: moments and quantiles of its posterior; with `pdf` the probability of each cell."""
    posterior = prediction.answer
    assert posterior is not None
    quantiles = {f"z_q{percent}": posterior.quantile(percent / 100) for percent in (16, 50, 84)}
    moments = {"z_mean": posterior.mean, "z_std": posterior.std, "z_mode": posterior.mode}
    cells = {"z_pdf": posterior.probability.astype(np.float32)} if pdf else {}
    return about_object(prediction.outcome, prediction.modalities) | moments | quantiles | cells


class RedshiftWriter(TableWriter):
    """A `TableWriter` of posteriors; with `pdf` also z_pdf, the probability of each cell between metadata's z_edges."""

    def __init__(self, path: Path, engine: Engine, pdf: bool) -> None:
        edges = cell_edges(engine)
        probabilities = [("z_pdf", pa.list_(pa.float32(), len(edges) - 1))] if pdf else []
        columns = [*_WHO, *((name, pa.float64()) for name in MOMENTS), *probabilities, *_WHENCE]
        about = _computed_by(engine) | ({"z_edges": json.dumps(edges.tolist())} if pdf else {})
        self.pdf = pdf
        super().__init__(path, pa.schema(columns).with_metadata(about))

    def write(self, predictions: Sequence[Prediction[Posterior]]) -> None:
        """Append a batch."""
        rows = [redshift_row(one, self.pdf) for one in predictions if one.answer is not None]
        self.append(pa.Table.from_pylist(rows, self.schema) if rows else None, [one.outcome for one in predictions])


class DrawsWriter(TableWriter):
    """A `TableWriter` of draws: their tokens, and the numbers that these stand for, flat; metadata has their shape."""

    def __init__(self, path: Path, engine: Engine, wanted: Wanted, sampling: Sampling) -> None:
        numbers = [
            ("draw", pa.int32()),
            ("tokens", pa.list_(pa.int32())),
            ("values", pa.list_(pa.float32())),
        ]
        about = _computed_by(engine) | _drawn_what(engine, wanted) | {"sampling": json.dumps(asdict(sampling))}
        super().__init__(path, pa.schema([*_WHO, *numbers, *_WHENCE]).with_metadata(about))

    def write(self, predictions: Sequence[Prediction[Drawn]]) -> None:
        """Append a batch."""
        good = [one for one in predictions if one.answer is not None]
        self.append(self._table(good) if good else None, [one.outcome for one in predictions])

    def _table(self, predictions: Sequence[Prediction[Drawn]]) -> pa.Table:
        drawn = [one.answer for one in predictions if one.answer is not None]
        rows = [
            about_object(one.outcome, one.modalities) | {"draw": draw}
            for one, answer in zip(predictions, drawn, strict=True)
            for draw in range(len(answer.codes))
        ]
        numbers = {
            "tokens": _lists(np.concatenate([answer.codes for answer in drawn]), np.int32),
            "values": _lists(np.concatenate([answer.values for answer in drawn]), np.float32),
        }
        columns = [
            numbers[field.name] if field.name in numbers else pa.array([row[field.name] for row in rows], field.type)
            for field in self.schema
        ]
        return pa.table(columns, schema=self.schema)


def _lists(values: NDArray[Any], dtype: type[Any]) -> pa.ListArray:
    """(R, ...) numbers as R lists."""
    flat = values.reshape(len(values), -1).astype(dtype)
    return pa.ListArray.from_arrays(np.arange(len(flat) + 1, dtype=np.int32) * flat.shape[1], pa.array(flat.ravel()))


def _computed_by(engine: Engine) -> dict[str, str]:
    return {"model": engine.name, "checkpoint": identity(engine)} | asdict(engine.numerics)


def _drawn_what(engine: Engine, wanted: Wanted) -> dict[str, str]:
    """The modality, its unit, the shape of `values` and what runs along it, and what stayed known."""
    row = MODALITIES[wanted.target]
    (values,) = engine.values(row.key, np.zeros((1, target_spec(engine, row.key).n_tokens), np.int64))
    # Decimals of single precision: 3500.8, not 3500.800048828125.
    wavelength = [float(str(w)) for w in engine.wavelength(row.key)]
    facts: dict[str, Any] = {
        "shape": values.shape,
        "bands": row.bands or None,
        "wavelength": wavelength or None,
        "wavelength_unit": "Angstrom, vacuum" if wavelength else None,
        "mask": wanted.mask,
        "keep": wanted.keep,
        "from": None if wanted.sources is None else [r.name for k, r in MODALITIES.items() if k in wanted.sources],
    }
    stated = {"target": row.name, "unit": row.unit}
    for name, fact in facts.items():
        if fact is not None:
            stated[name] = fact if isinstance(fact, str) else json.dumps(fact)
    return stated
