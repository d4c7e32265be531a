"""Segmentation maps: which class of object covers a pixel, as a number from 0 (background) to 1.

segmentation_map_of      an array as files have it -> a `SegmentationMap` and its QA flags
check_segmentation_map   what every map must be
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.observations.errors import BadInput
from albireo.observations.image_conventions import PIXEL_SCALE_TOLERANCE
from albireo.observations.modalities import IMAGE_SIZE, MODALITIES
from albireo.observations.observation import SegmentationMap

ROW = MODALITIES["tok_segmap"]


def segmentation_map_of(field: NDArray[Any], pixel_scale: float) -> tuple[SegmentationMap, tuple[str, ...]]:
    """The central 96 x 96 pixels of a field (H, W) of fractions, `pixel_scale` in arcsec; flag `cropped` if larger.

    Errors: shape_mismatch, image_too_small, pixel_scale, not_finite, value_out_of_range. Nothing is resampled: between
    two classes lies no third.
    """
    assert ROW.pixel_scale is not None
    if field.ndim != 2:
        raise BadInput("shape_mismatch", f"a map of shape {field.shape}", fix="give (H, W)")
    if abs(pixel_scale / ROW.pixel_scale - 1) > PIXEL_SCALE_TOLERANCE:
        raise BadInput(
            "pixel_scale",
            f"{pixel_scale:.4f} arcsec per pixel, {ROW.name} has {ROW.pixel_scale}",
            field="pixel_scale",
            fix="make the map at the survey's pixel scale: classes cannot be interpolated",
        )
    if min(field.shape) < IMAGE_SIZE:
        raise BadInput(
            "image_too_small",
            f"{field.shape[1]} x {field.shape[0]} pixels, {ROW.name} reads {IMAGE_SIZE} x {IMAGE_SIZE} of them",
            fix="make a larger map; a padded one would invent sky",
        )
    if field.dtype.kind != "f":
        raise BadInput(
            "value_out_of_range",
            f"a map of {field.dtype}: numbers of classes, or fractions?",
            fix="store fractions from 0 to 1 as float32; AION-1's maps hold 0.2, 0.4, 0.6, 0.8 and 1 on objects",
        )
    height, width = field.shape
    y, x = ((size - IMAGE_SIZE) // 2 for size in field.shape)
    kept = IMAGE_SIZE**2 / (height * width)
    cut = SegmentationMap(
        field[y : y + IMAGE_SIZE, x : x + IMAGE_SIZE].astype(np.float32), pixel_scale, kept_fraction=kept
    )
    check_segmentation_map(cut)
    return cut, ("cropped",) if kept < 1 else ()


def check_segmentation_map(given: SegmentationMap) -> None:
    """Errors: shape_mismatch, not_finite, value_out_of_range."""
    if given.field.shape != (IMAGE_SIZE, IMAGE_SIZE):
        raise BadInput(
            "shape_mismatch", f"a map of shape {given.field.shape}, not ({IMAGE_SIZE}, {IMAGE_SIZE})", field=ROW.name
        )
    if not np.isfinite(given.field).all():
        raise BadInput("not_finite", "a pixel is not finite", field=ROW.name, fix="0 is background")
    if given.field.min() < 0 or given.field.max() > 1:
        raise BadInput(
            "value_out_of_range",
            f"{given.field.min():g} to {given.field.max():g} is not within 0 to 1",
            field=ROW.name,
            fix="AION-1's maps hold 0 for background and 0.2, 0.4, 0.6, 0.8 or 1 on objects",
        )
