"""What heads say as Parquet: one row per object; errors in a table beside it.

The metadata of the schemas says what the numbers are and what computed them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from albireo.models.engine import Engine
from albireo.models.heads import LEVELS, Answer
from albireo.observations.errors import AlbireoError, BadInput
from albireo.service.embedding_table import OUTCOME, WHENCE, WHO, TableWriter, column, object_columns
from albireo.service.predictions import Answers, Predicted, Prediction, status_of, with_refused
from albireo.service.shelf import Shelved

MOMENTS = ("mean", "std", "mode")


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
        columns.append(column(shelved.name, pa.string(), "meta.code.class"))
        columns += [
            column(f"{shelved.name}_p_{name}", pa.float64(), "stat.probability;meta.code.class")
            for name in shelved.classes
        ]
    else:
        for target, unit in zip(shelved.targets, shelved.units, strict=True):
            ucd = "src.redshift" if target == "redshift" else "stat.value"
            names = [stem(shelved, target), *(f"{stem(shelved, target)}_{side}" for side in _sides())]
            columns += [column(name, pa.float64(), ucd, unit) for name in names]
    if shelved.task == "redshift":
        columns += [column(f"{shelved.name}_{moment}", pa.float64(), "src.redshift") for moment in MOMENTS]
        columns += [column(f"{shelved.name}_pdf", pa.list_(pa.float32()), "stat.probability;src.redshift")] * pdf
    columns.append(column(f"{shelved.name}_flags", pa.list_(pa.string()), "meta.code.qual"))
    columns.append(column(f"{shelved.name}_typicality", pa.float64(), "stat.probability"))
    return columns


def head_values(shelved: Shelved, answers: Sequence[Answer | None], pdf: bool) -> list[pa.Array]:
    """What one head says of each object, in the order of `head_columns`; null where it says nothing."""
    doubles = pa.float64()
    columns: list[pa.Array] = []
    if shelved.task == "classification":
        columns.append(pa.array([next(iter(one.classes), None) if one else None for one in answers], pa.string()))
        columns += [
            pa.array([one.classes.get(name) if one else None for one in answers], doubles) for name in shelved.classes
        ]
    else:
        for target in shelved.targets:
            numbers = [one and next((n for n in one.numbers if n.name == target), None) for one in answers]
            columns.append(pa.array([one and one.value for one in numbers], doubles))
            columns += [
                pa.array([one.intervals[level][k] if one else None for one in numbers], doubles)
                for level in LEVELS
                for k in (0, 1)
            ]
    if shelved.task == "redshift":
        densities = [one.density if one else None for one in answers]
        columns += [pa.array([one and getattr(one, moment) for one in densities], doubles) for moment in MOMENTS]
        cells = [None if one is None else one.probability.astype(np.float32) for one in densities] if pdf else []
        columns += [pa.array(cells, pa.list_(pa.float32()))] * pdf
    columns.append(pa.array([one and one.flags for one in answers], pa.list_(pa.string())))
    typical = [one.typicality if one and np.isfinite(one.typicality) else None for one in answers]
    columns.append(pa.array(typical, doubles))
    return columns


def refusal_columns(shelved: Shelved) -> list[pa.Field]:
    """Columns of why a head says nothing of an object of which others do."""
    return [
        column(f"{shelved.name}_error_code", pa.string(), "meta.code"),
        column(f"{shelved.name}_error_message", pa.string(), "meta.note"),
        column(f"{shelved.name}_error_fix", pa.string(), "meta.note"),
    ]


def _sides() -> Iterator[str]:
    """ "low68", "high68", "low95", "high95"."""
    for level in LEVELS:
        yield from (f"{side}{round(100 * level)}" for side in ("low", "high"))


def prediction_schema(
    heads: Mapping[str, Shelved], pdf: bool, about: Mapping[str, str], outcome: bool = False
) -> pa.Schema:
    """Columns of the table of what heads say, one row an object. BadInput if two would have one name.

    pdf      whether redshifts come with the probability of every cell
    about    metadata of the table
    outcome  whether objects that failed have rows, and each head columns of why it refuses an object
    """
    columns = list(WHO)
    for shelved in heads.values():
        columns += head_columns(shelved, pdf)
        columns += refusal_columns(shelved) if outcome else []
    columns += [*WHENCE, *(OUTCOME if outcome else ())]
    _refuse_twins([one.name for one in columns])
    return pa.schema(columns, metadata=dict(about))


def prediction_table(
    predictions: Sequence[Prediction[Answers]], heads: Mapping[str, Shelved], pdf: bool, schema: pa.Schema
) -> pa.Table | None:
    """What heads say as rows of a `prediction_schema`, None if there are none.

    Objects of which no head says anything have a row if the schema has columns of errors.
    """
    outcome = "status" in schema.names
    rows = [one for one in predictions if outcome or one.answer is not None]
    if not rows:
        return None
    columns = object_columns([one.outcome for one in rows], [one.modalities for one in rows])
    columns["status"] = pa.array([status_of(one) for one in rows], pa.string())
    for name, shelved in heads.items():
        said = [(one.answer or {}).get(name) for one in rows]
        answers = [one if isinstance(one, Answer) else None for one in said]
        fields = [one.name for one in head_columns(shelved, pdf)]
        columns |= dict(zip(fields, head_values(shelved, answers, pdf), strict=True))
        errors = [one if isinstance(one, AlbireoError) else None for one in said]
        parts = zip(refusal_columns(shelved), ("code", "message", "fix"), strict=True)
        columns |= {one.name: pa.array([e and getattr(e, part) for e in errors], pa.string()) for one, part in parts}
    return pa.table([columns[name] for name in schema.names], schema=schema)


class PredictionWriter(TableWriter):
    """A `TableWriter` of what heads say: one row an object; what a head refuses is null there, and a row of the errors.

    Metadata's `heads` says of each head its version, its space and, with `pdf`, the edges of its cells.
    """

    def __init__(self, path: Path, engine: Engine, heads: Mapping[str, Shelved], pdf: bool) -> None:
        self.heads, self.pdf = heads, pdf
        space = engine.space("tokens")
        about = {name: one.identity(space, one.edges(engine) if pdf else None) for name, one in heads.items()}
        super().__init__(path, prediction_schema(heads, pdf, computed_by(engine) | {"heads": json.dumps(about)}))

    def write(self, predicted: Predicted) -> None:
        """Append a batch."""
        table = prediction_table(predicted.predictions, self.heads, self.pdf, self.schema)
        self.append(table, with_refused(predicted.predictions))


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


def computed_by(engine: Engine) -> dict[str, str]:
    """What computed the numbers, and how, as metadata of a table."""
    return {"model": engine.name, "checkpoint": identity(engine)} | asdict(engine.numerics)
