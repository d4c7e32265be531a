"""Draws as tables, for files and for answers of the service: one row per object and draw.

draws_schema  the columns; its metadata say what the numbers are, and what computed them
draws_table   draws as rows
DrawsWriter   such a table as a Parquet file, batch by batch; errors in one beside it
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from albireo.models.engine import Engine
from albireo.models.generation import Sampling, target_spec
from albireo.observations.modalities import MODALITIES
from albireo.service.draws import Drawn, Wanted
from albireo.service.embedding_table import OUTCOME, WHENCE, WHO, TableWriter, column, object_columns
from albireo.service.prediction_tables import computed_by
from albireo.service.predictions import Prediction


def draws_schema(target: str, about: Mapping[str, str], outcome: bool = False) -> pa.Schema:
    """Columns of the table: tokens of each draw, and the numbers that these stand for, flat; metadata has their shape.

    about    metadata of the table
    outcome  whether objects that failed have rows
    """
    numbers = (
        column("draw", pa.int32(), "meta.number"),
        column("tokens", pa.list_(pa.int32()), "meta.code"),
        column("values", pa.list_(pa.float32()), "stat.value", MODALITIES[target].unit),
    )
    return pa.schema([*WHO, *numbers, *WHENCE, *(OUTCOME if outcome else ())], metadata=dict(about))


def draws_table(predictions: Sequence[Prediction[Drawn]], schema: pa.Schema) -> pa.Table | None:
    """The draws as rows of a `draws_schema`, None if there are none.

    Objects that failed have one row, without a draw, if the schema has columns of errors, else none.
    """
    if "status" not in schema.names:
        predictions = [one for one in predictions if one.answer is not None]
    if not predictions:
        return None
    answers = [one.answer for one in predictions]
    counts = [1 if one is None else len(one.codes) for one in answers]
    places = pa.array(np.repeat(np.arange(len(counts)), counts))
    of_objects = object_columns([one.outcome for one in predictions], [one.modalities for one in predictions])
    columns = {name: values.take(places) for name, values in of_objects.items()}
    numbered = [[None] if one is None else range(len(one.codes)) for one in answers]
    columns["draw"] = pa.array([draw for draws in numbered for draw in draws], pa.int32())
    columns["tokens"] = _lists([None if one is None else one.codes for one in answers], np.int32)
    columns["values"] = _lists([None if one is None else one.values for one in answers], np.float32)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _lists(parts: Sequence[NDArray[Any] | None], dtype: type[Any]) -> pa.ListArray:
    """(draws, ...) numbers of each object as lists, one a draw; null of an object that has none."""
    sizes = [size for one in parts for size in ([None] if one is None else [one[0].size] * len(one))]
    there = [one.ravel().astype(dtype) for one in parts if one is not None]
    flat = np.concatenate(there) if there else np.zeros(0, dtype)
    edges = pa.array(np.cumsum([0, *(size or 0 for size in sizes)]), pa.int32())
    return pa.ListArray.from_arrays(edges, pa.array(flat), mask=pa.array([size is None for size in sizes]))


def drawn_what(engine: Engine, wanted: Wanted, shape: Sequence[int]) -> dict[str, str]:
    """As metadata: the modality, its unit, the shape of `values` and what runs along it, and what stayed known."""
    row = MODALITIES[wanted.target]
    # Decimals of single precision: 3500.8, not 3500.800048828125.
    wavelength = [float(str(w)) for w in engine.wavelength(row.key)]
    facts: dict[str, Any] = {
        "shape": shape,
        "bands": row.bands or None,
        "wavelength": wavelength or None,
        "wavelength_unit": "Angstrom, vacuum" if wavelength else None,
        **known_data(wanted),
    }
    stated = {"target": row.name, "unit": row.unit}
    for name, fact in facts.items():
        if fact is not None:
            stated[name] = fact if isinstance(fact, str) else json.dumps(fact)
    return stated


def known_data(wanted: Wanted) -> dict[str, Any]:
    """What may be known, as plain data: `mask`, `keep` and `from`, None where nothing is said."""
    names = None if wanted.sources is None else [r.name for k, r in MODALITIES.items() if k in wanted.sources]
    return {"mask": wanted.mask, "keep": wanted.keep, "from": names}


class DrawsWriter(TableWriter):
    """A `TableWriter` of draws."""

    def __init__(self, path: Path, engine: Engine, wanted: Wanted, sampling: Sampling) -> None:
        nothing = np.zeros((1, target_spec(engine, wanted.target).n_tokens), np.int64)
        (values,) = engine.values(wanted.target, nothing)
        about = computed_by(engine) | drawn_what(engine, wanted, values.shape)
        super().__init__(path, draws_schema(wanted.target, about | {"sampling": json.dumps(asdict(sampling))}))

    def write(self, predictions: Sequence[Prediction[Drawn]]) -> None:
        """Append a batch."""
        self.append(draws_table(predictions, self.schema), [one.outcome for one in predictions])
