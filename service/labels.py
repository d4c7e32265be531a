"""Label tables: what a head is fitted on or evaluated against, by object, from any table that is read here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.models.head_fitting import Labels
from albireo.models.heads import Task
from albireo.observations.aliases import MISSING_VALUES
from albireo.observations.columns import Column, Columns, load_columns
from albireo.observations.errors import BadInput
from albireo.observations.measurements import Taken
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source
from albireo.observations.tables import id_columns, row_ids

NOT_COLUMNS = frozenset({"object", "sky", "survey"})
"""Groups that no column of the table is needed for."""


@dataclass(frozen=True)
class Wanted:
    """What is taken from a label table.

    id       column of the ids; None: found as in every table (docs/formats.md)
    group    as in `Plan`: a word, or a column
    missing  numbers that stand for "no value"; None: not stated, then suspicious ones are refused
    """

    targets: tuple[str, ...]
    task: Task
    id: str | None = None
    group: str = "object"
    weights: str | None = None
    missing: tuple[float, ...] | None = None


def read_labels(path: Path, wanted: Wanted) -> tuple[Labels, dict[str, str]]:
    """The labels, and the units that the table states of its targets. Nothing is dropped: what is missing is NaN or "".

    BadInput id_duplicate, value_missing (an id), column_unknown, value_out_of_range, not_finite.
    """
    source = Source.from_path(path)
    options = ReadOptions(columns={"id": wanted.id} if wanted.id else {})
    table = load_columns(source, text=id_columns(options))
    ids = _ids(table, options, source)
    columns: dict[str, NDArray[Any]] = {}
    units: dict[str, str] = {}
    for name in wanted.targets:
        column = table.named(name)
        classes = wanted.task == "classification"
        columns[name] = _classes(column) if classes else _numbers(column, wanted.missing, source.name)
        if column.unit:
            units[name] = column.unit
    if wanted.group not in NOT_COLUMNS:
        columns[wanted.group] = _classes(table.named(wanted.group))
    if wanted.weights is not None:
        columns[wanted.weights] = _weights(table.named(wanted.weights), source.name)
    return Labels(tuple(ids), columns, source.sha256, source.name), units


def _ids(table: Columns, options: ReadOptions, source: Source) -> list[str]:
    ids, _ = row_ids(table, options, source, Taken(set()))
    if "" in ids:
        raise BadInput(
            "value_missing", f"row {ids.index('')} has no id", file=source.name, field="id", fix="give each row an id"
        )
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise BadInput(
            "id_duplicate",
            f"{len(twice)} ids come more than once, {twice[0]!r} for one",
            file=source.name,
            field="id",
            fix="keep one row an object, or name another column with --id",
        )
    return ids


def _numbers(column: Column, missing: Sequence[float] | None, file: str) -> NDArray[np.float64]:
    """Numbers (N,), NaN where there is none."""
    values = _one_each(column, file).numbers()
    gone = np.isin(values, missing or ())
    values[gone] = np.nan
    if np.isinf(values).any():
        raise BadInput(
            "not_finite", f"row {np.flatnonzero(np.isinf(values))[0]} is infinite", file=file, field=column.name,
            fix="leave the cell empty where there is no value",
        )  # fmt: skip
    suspicious = [value for value in MISSING_VALUES if (values == value).any()] if missing is None else []
    if suspicious:
        value = suspicious[0]
        raise BadInput(
            "value_out_of_range",
            f"{int((values == value).sum())} rows have {value:g}, which tables write where there is no value",
            file=file,
            field=column.name,
            fix=f"say so with --missing {value:g}, or --missing none if it is a value like others",
        )
    return values


def _classes(column: Column) -> NDArray[np.str_]:
    """Words (N,), "" where there is none."""
    texts = np.array(column.texts(), dtype=np.str_)
    if column.values.dtype.kind == "f":
        texts[np.isnan(column.values)] = ""
    return texts


def _weights(column: Column, file: str) -> NDArray[np.float64]:
    values = _one_each(column, file).numbers()
    bad = ~np.isfinite(values) | (values <= 0)
    if bad.any():
        raise BadInput(
            "value_out_of_range", f"the weight of row {np.flatnonzero(bad)[0]} is no number above 0", file=file,
            field=column.name, fix="give every row a weight; leave rows out that shall not count",
        )  # fmt: skip
    return values


def _one_each(column: Column, file: str) -> Column:
    if column.values.ndim != 1:
        raise BadInput("shape_mismatch", "several values a row", file=file, field=column.name, fix="one value a row")
    return column


def without_value(labels: Labels, targets: Sequence[str]) -> int:
    """Rows that have no value of any target."""
    gone = np.ones(len(labels.ids), bool)
    for target in targets:
        values = labels.columns[target]
        gone &= np.isnan(values) if values.dtype.kind == "f" else values == ""
    return int(gone.sum())
