"""Catalogs of the objects in a cutout: whole pixels, five numbers an object, nearest to the centre first.

catalog_of      columns as files have them -> a `Catalog` and its QA flags
check_catalog   what every catalog must be
distances       of objects from the centre of the cutout
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.observations.errors import BadInput
from albireo.observations.modalities import IMAGE_SIZE
from albireo.observations.observation import Catalog, Doubles

COLUMNS = ("X", "Y", "SHAPE_E1", "SHAPE_E2", "SHAPE_R")
"""The numbers of one object, in the order of its tokens, as the Legacy Surveys and AION-1 call them."""

PADDING = 9999
"""A row of nothing but this number fills up an array of catalogs of different lengths; AION-1's codec does so."""

ORDER_TOLERANCE = 1.5
"""Pixels that an object may be nearer than one before it: both positions were rounded, each by half a diagonal."""


def catalog_of(columns: Sequence[Doubles], nearest: int | None = None) -> tuple[Catalog, tuple[str, ...]]:
    """A catalog and its QA flags from x, y in pixels, e1, e2, and r in arcsec, each (n,) in any order.

    nearest   keep only so many objects, those nearest to the centre (flag `catalog_shortened`)
    Rows of padding are left out (`padding_dropped`); objects out of order are sorted (`catalog_sorted`).
    Errors: not_finite, value_missing, value_out_of_range, option_invalid.
    """
    if nearest is not None and nearest < 1:
        raise BadInput("option_invalid", f"nearest={nearest}", field="nearest", fix="keep at least one object")
    flags = []
    rows = np.stack([np.asarray(column, np.float64) for column in columns], axis=1)
    padding = (rows == PADDING).all(axis=1)
    if padding.any():
        rows = rows[~padding]
        flags.append("padding_dropped")
    _check_values(rows)
    away = distances(rows[:, 0], rows[:, 1])
    if not in_order(away):
        rows = rows[np.argsort(away, kind="stable")]
        flags.append("catalog_sorted")
    if nearest is not None and len(rows) > nearest:
        rows = rows[:nearest]
        flags.append("catalog_shortened")
    x, y, e1, e2, r = rows.T
    catalog = Catalog(
        x.astype(np.int64), y.astype(np.int64), e1.astype(np.float32), e2.astype(np.float32), r.astype(np.float32)
    )
    return catalog, tuple(flags)


def check_catalog(catalog: Catalog) -> None:
    """Errors: shape_mismatch, value_missing, not_finite, value_out_of_range, not_sorted."""
    columns = (catalog.x, catalog.y, catalog.e1, catalog.e2, catalog.r)
    shapes = {column.shape for column in columns}
    if shapes != {(catalog.n_objects,)}:
        raise BadInput("shape_mismatch", f"columns of shapes {sorted(shapes)}", fix="one number per object in each")
    _check_values(np.stack([column.astype(np.float64) for column in columns], axis=1))
    if not in_order(distances(catalog.x, catalog.y)):
        raise BadInput(
            "not_sorted",
            "the objects are not in order of their distance from the centre of the cutout",
            fix="sort them, nearest first; the position of a token in the sequence has a meaning",
        )


def distances(x: NDArray[Any], y: NDArray[Any]) -> Doubles:
    """Distance (n,) in pixels from the centre of the cutout, which is the corner of four pixels."""
    centre = (IMAGE_SIZE - 1) / 2
    away: Doubles = np.hypot(x - centre, y - centre)
    return away


def in_order(away: Doubles) -> bool:
    """Whether distances (n,) in pixels increase, as far as rounded positions can tell."""
    return bool((away >= np.maximum.accumulate(away) - ORDER_TOLERANCE).all())


def _check_values(rows: Doubles) -> None:
    """rows (n, 5) in the order of COLUMNS."""
    if not len(rows):
        raise BadInput("value_missing", "the catalog has no object", fix="leave the catalog out")
    last = IMAGE_SIZE - 1
    for name, values, low, high in zip(
        COLUMNS, rows.T, (0, 0, -1, -1, 0), (last, last, 1, 1, PADDING - 1), strict=True
    ):
        if not np.isfinite(values).all():
            raise BadInput("not_finite", "a number is not finite", field=name, fix="leave the object out")
        if values.min() < low or values.max() > high:
            raise BadInput(
                "value_out_of_range",
                f"{values.min():g} to {values.max():g} is not within {low} to {high}",
                field=name,
                fix=f"X and Y are pixels of a cutout of {IMAGE_SIZE} x {IMAGE_SIZE}, SHAPE_R is in arcsec",
            )
    if not np.array_equal(rows[:, :2], np.rint(rows[:, :2])):
        raise BadInput(
            "value_out_of_range", "positions are not whole pixels", field="X", fix="give the pixel that they lie in"
        )
