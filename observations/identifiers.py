"""Ids of rows: text, digit by digit, and the rows that belong to each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from albireo.observations.columns import Column
from albireo.observations.errors import AlbireoError, BadInput


def exact_ids(column: Column) -> list[str]:
    """Ids as text, "" where missing; floats are refused, and text that went through one: they lose digits."""
    if column.values.dtype.kind == "f":
        raise BadInput(
            "id_inexact", f"the ids in {column.name!r} are floating-point numbers", field=column.name,
            fix="store ids as integers or text",
        )  # fmt: skip
    ids = column.texts()
    rounded = next((name for name in ids if _is_rounded(name)), None)
    if rounded is not None:
        raise BadInput(
            "id_inexact", f"the id {rounded!r} is a rounded number", field=column.name,
            fix="write ids with all their digits",
        )  # fmt: skip
    return ids


def rows_by_id(ids: Sequence[str]) -> list[tuple[str, NDArray[np.int64]]]:
    """Ids in order of first appearance with the rows of each, in the file's order."""
    if not ids:
        return []
    names, first, inverse = np.unique(np.array(ids), return_index=True, return_inverse=True)
    rows = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    return [(str(names[k]), rows[k]) for k in np.argsort(first, kind="stable")]


def about(error: AlbireoError, id: str, file: str) -> AlbireoError:
    """The same error, told whose it is in which file; returns it."""
    error.message = f"object {id!r}: {error.message}"
    return error.at(file=file)


def _is_rounded(name: str) -> bool:
    """1.2345e+18 or 123.0; "1991E2" is a name."""
    try:
        float(name)
    except ValueError:
        return False
    head, _, exponent = name.lower().partition("e")
    return ("." in head and bool(exponent)) or exponent.startswith("+") or name.endswith(".0")
