"""What heads say, and draws, as Parquet: one row per object, or per object and draw; errors in a table beside it.

The metadata of the schemas says what the numbers are and what computed them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from albireo.models.engine import Engine
from albireo.models.generation import Sampling, target_spec
from albireo.models.heads import LEVELS, Answer
from albireo.observations.errors import BadInput
from albireo.observations.modalities import MODALITIES
from albireo.service.draws import Drawn, Wanted
from albireo.service.embedding_table import TableWriter, about_object
from albireo.service.predictions import Answers, Predicted, Prediction, with_refused
from albireo.service.shelf import Shelved

MOMENTS = ("mean", "std", "mode")

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


def stem(shelved: Shelved, target: str) -> str:
    """What the columns of a target begin with: the head's name, and the target's where the head may have several."""
    return f"{shelved.name}_{target}" if shelved.task == "regression" else shelved.name


def head_columns(shelved: Shelved, pdf: bool) -> list[pa.Field]:
    """Columns of one head. Numbers: value, low and high at each level, of a redshift also moments and cells; classes:
    the most probable one, and the probability of each."""
    columns: list[pa.Field] = []
    if shelved.task == "classification":
        columns.append(pa.field(shelved.name, pa.string()))
        columns += [pa.field(f"{shelved.name}_p_{name}", pa.float64()) for name in shelved.classes]
    else:
        for target, unit in zip(shelved.targets, shelved.units, strict=True):
            names = [stem(shelved, target), *(f"{stem(shelved, target)}_{side}" for side in _sides())]
            columns += [pa.field(name, pa.float64(), metadata={"unit": unit}) for name in names]
    if shelved.task == "redshift":
        columns += [pa.field(f"{shelved.name}_{moment}", pa.float64()) for moment in MOMENTS]
        columns += [pa.field(f"{shelved.name}_pdf", pa.list_(pa.float32()))] * pdf
    columns.append(pa.field(f"{shelved.name}_flags", pa.list_(pa.string())))
    columns.append(pa.field(f"{shelved.name}_typicality", pa.float64()))
    return columns


def head_row(shelved: Shelved, answer: Answer, pdf: bool) -> dict[str, Any]:
    """What one head says of one object, by column; what is not known is left out."""
    row: dict[str, Any] = {f"{shelved.name}_flags": list(answer.flags)}
    if np.isfinite(answer.typicality):
        row[f"{shelved.name}_typicality"] = answer.typicality
    if answer.classes:
        row[shelved.name] = next(iter(answer.classes))
        row |= {f"{shelved.name}_p_{name}": p for name, p in answer.classes.items()}
    for number in answer.numbers:
        name = stem(shelved, number.name)
        row[name] = number.value
        for level, (low, high) in number.intervals.items():
            row |= {f"{name}_low{round(100 * level)}": low, f"{name}_high{round(100 * level)}": high}
    if answer.density is not None:
        row |= {f"{shelved.name}_{moment}": getattr(answer.density, moment) for moment in MOMENTS}
        if pdf:
            row[f"{shelved.name}_pdf"] = answer.density.probability.astype(np.float32)
    return row


def _sides() -> Iterator[str]:
    """ "low68", "high68", "low95", "high95"."""
    for level in LEVELS:
        yield from (f"{side}{round(100 * level)}" for side in ("low", "high"))


class PredictionWriter(TableWriter):
    """A `TableWriter` of what heads say: one row an object; what a head refuses is null there, and a row of the errors.

    Metadata's `heads` says of each head its version, its space and, with `pdf`, the edges of its cells.
    """

    def __init__(self, path: Path, engine: Engine, heads: Mapping[str, Shelved], pdf: bool) -> None:
        columns = [pa.field(*column) for column in _WHO]
        columns += [column for shelved in heads.values() for column in head_columns(shelved, pdf)]
        columns += [pa.field(*column) for column in _WHENCE]
        _refuse_twins([column.name for column in columns])
        self.heads, self.pdf = heads, pdf
        space = engine.space("tokens")
        about = {name: one.identity(space, one.edges(engine) if pdf else None) for name, one in heads.items()}
        super().__init__(path, pa.schema(columns).with_metadata(_computed_by(engine) | {"heads": json.dumps(about)}))

    def write(self, predicted: Predicted) -> None:
        """Append a batch."""
        rows = [self._row(one) for one in predicted.predictions if one.answer is not None]
        self.append(pa.Table.from_pylist(rows, self.schema) if rows else None, with_refused(predicted.predictions))

    def _row(self, one: Prediction[Answers]) -> dict[str, Any]:
        row = about_object(one.outcome, one.modalities)
        for name, answer in (one.answer or {}).items():
            if isinstance(answer, Answer):
                row |= head_row(self.heads[name], answer, self.pdf)
        return row


def _refuse_twins(names: Sequence[str]) -> None:
    """BadInput if two columns would have one name."""
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise BadInput(
            "option_invalid",
            f"two columns of the table would be called {twice!r}",
            field="head",
            fix="predict with one of these heads at a time",
        )


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
