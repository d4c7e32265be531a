"""Segmentation maps and catalogs of cutouts in NumPy archives, alone or beside the images or spectra of the objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.observations import image_conventions as conventions
from albireo.observations.archive import Archive
from albireo.observations.catalogs import COLUMNS, catalog_of
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import IMAGE_SIZE, MODALITIES
from albireo.observations.observation import Observation, Payload
from albireo.observations.options import ReadOptions
from albireo.observations.positions import of_row
from albireo.observations.segmentation import segmentation_map_of
from albireo.observations.source import Source

SEGMENTATION_MAP = "segmentation_map"
CATALOG_COLUMNS = tuple(f"catalog_{name.lower()}" for name in COLUMNS)

MAP_ROW, CATALOG_ROW = MODALITIES["tok_segmap"], MODALITIES["catalog"]


@dataclass(frozen=True)
class PackedMaps:
    """What an archive holds for each of `n` objects.

    fields    (n, H, W) as stored, at `pixel_scale` arcsec, or None
    catalogs  x, y, e1, e2, r, each (n, K) padded with 9999, or empty; of each object the `nearest` are kept
    """

    n: int
    fields: NDArray[Any] | None
    pixel_scale: float
    catalogs: tuple[NDArray[Any], ...]
    nearest: int | None
    release: str | None

    def added(self, items: Sequence[Observation | AlbireoError], source: Source) -> list[Observation | AlbireoError]:
        """The objects with their maps and catalogs; one whose map cannot be used is an error."""
        if len(items) != self.n:
            raise BadInput(
                "shape_mismatch",
                f"segmentation maps or catalogs of {self.n} objects, the archive has {len(items)}",
                field=SEGMENTATION_MAP if self.fields is not None else CATALOG_COLUMNS[0],
                fix="store one of each per object",
            )
        done: list[Observation | AlbireoError] = []
        for i, item in enumerate(items):
            try:
                done.append(self._added(item, i, source) if isinstance(item, Observation) else item)
            except AlbireoError as error:
                done.append(of_row(error, source.name, f"object {i}"))
        return done

    def _added(self, item: Observation, i: int, source: Source) -> Observation:
        data: dict[str, Payload] = dict(item.data)
        flags = list(item.flags)
        if self.fields is not None:
            data[MAP_ROW.key], more = segmentation_map_of(self.fields[i], self.pixel_scale)
            flags += more
        if self.catalogs:
            columns = [column[i].astype(np.float64) for column in self.catalogs]
            data[CATALOG_ROW.key], more = catalog_of(columns, self.nearest)
            flags += more
        origin = source.provenance("npz", survey=MAP_ROW.survey, release=self.release, row=i if self.n > 1 else None)
        provenance = {**item.provenance, **dict.fromkeys(data.keys() - item.data.keys(), origin)}
        return replace(item, data=data, provenance=provenance, flags=tuple(dict.fromkeys(flags)))


def packed_maps(archive: Archive, options: ReadOptions, release: str | None) -> PackedMaps | None:
    """The segmentation maps and catalogs of an archive, None if it has neither; their survey must be stated."""
    fields = archive.pick(SEGMENTATION_MAP, (SEGMENTATION_MAP,))
    columns = {name: column for name in CATALOG_COLUMNS if (column := archive.pick(name, (name,))) is not None}
    if fields is None and not columns:
        return None
    _check_survey(archive, options)
    catalogs = _catalogs(columns)
    scale = 0.0
    if fields is not None:
        if fields.dtype.kind not in "fiub" or fields.ndim not in (2, 3):
            raise BadInput(
                "shape_mismatch",
                f"{fields.dtype} of shape {fields.shape} is no segmentation map",
                field=SEGMENTATION_MAP,
                fix="store (H, W) or (B, H, W) fractions from 0 to 1",
            )
        fields = fields[(np.newaxis,) * (3 - fields.ndim)]
        stated = archive.real_numbers("pixel_scale", ("pixel_scale", "pixscale"), 1)
        statements = [("the array pixel_scale", (stated[0], stated[0]))] if stated else []
        scale, _ = conventions.pixel_scale(statements, options, MAP_ROW)
        if catalogs and fields.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE):
            raise _other_pixels(fields.shape[1:])
    sizes = {len(part) for part in (*catalogs, *([] if fields is None else [fields]))}
    if len(sizes) != 1:
        raise BadInput("shape_mismatch", f"maps and catalogs of {sorted(sizes)} objects", field=CATALOG_COLUMNS[0])
    return PackedMaps(sizes.pop(), fields, scale, catalogs, options.nearest, release)


def check_pixels(maps: PackedMaps | None, shape: tuple[int, ...]) -> None:
    """Error if catalogs stand beside images (H, W) of which only a part will be used: whose pixels are theirs?"""
    if maps is not None and maps.catalogs and shape != (IMAGE_SIZE, IMAGE_SIZE):
        raise _other_pixels(shape)


def _other_pixels(shape: tuple[int, ...]) -> BadInput:
    return BadInput(
        "shape_mismatch",
        f"catalogs are in pixels of {IMAGE_SIZE} x {IMAGE_SIZE} cutouts, the archive has "
        + (" x ".join(map(str, reversed(shape))) or "one number"),
        field=CATALOG_COLUMNS[0],
        fix="cut the images and shift the positions of the objects together, before storing them",
    )


def _check_survey(archive: Archive, options: ReadOptions) -> None:
    stated = archive.text("survey", ("survey",))
    named = archive.texts("bands", ("bands", "filters", "band", "filter"))
    row = conventions.image_row([stated] if stated else [], named[1] if named else (), options)
    if row.survey != MAP_ROW.survey:
        raise BadInput(
            "modality_unknown",
            f"no segmentation map and no catalog for {row.survey!r}",
            field="survey",
            fix=f"leave the arrays out; there are {MAP_ROW.name} and {CATALOG_ROW.name}",
        )


def _catalogs(columns: dict[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
    """x, y, e1, e2, r, each (n, K)."""
    if not columns:
        return ()
    missing = [name for name in CATALOG_COLUMNS if name not in columns]
    if missing:
        raise BadInput(
            "column_missing", f"a catalog without {', '.join(missing)}", field=missing[0],
            fix="store " + ", ".join(CATALOG_COLUMNS),
        )  # fmt: skip
    shapes = {column.shape for column in columns.values()}
    if len(shapes) != 1 or any(
        column.dtype.kind not in "fiu" or column.ndim not in (1, 2) for column in columns.values()
    ):
        raise BadInput(
            "shape_mismatch", f"catalog columns of shapes {sorted(shapes)}", field=CATALOG_COLUMNS[0],
            fix="store numbers, (K,) of one object or (B, K) padded with 9999, in each",
        )  # fmt: skip
    return tuple(np.atleast_2d(columns[name]) for name in CATALOG_COLUMNS)
