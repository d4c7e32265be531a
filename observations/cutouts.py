"""From a scene of any size to the 96 x 96 pixels of one object: cropping, resampling, masks, QA flags.

    Plane, Scene   planes as their file has them, with what turns them into the unit of the modality
    cut            one box of a scene as an `Image`
    observe        the same as an `Observation`

Axes are (y, x), row 0 at the bottom, and pixel centres have integer coordinates, as in FITS counted from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.ndimage import binary_dilation

from albireo.observations.errors import BadInput
from albireo.observations.image_conventions import PIXEL_SCALE_TOLERANCE, ZERO_POINTS
from albireo.observations.modalities import IMAGE_SIZE, Modality
from albireo.observations.observation import Bools, Convention, Doubles, Image, Observation, Provenance
from albireo.observations.pixel_masks import BadBits

SPLINE_MARGIN = 16
"""Source pixels kept around a box before a spline is laid through it: its memory fades by 0.27 per pixel."""

ROTATION_TOLERANCE = 10.0
"""Degrees that north may be off the y axis before the flag `rotated` is set."""

Noise = Literal["ivar", "variance", "error"]


@dataclass(frozen=True)
class Plane:
    """One band: flux (H, W) as in the file and the factor to the unit of the modality.

    noise (H, W)  in the file's flux unit, of the kind `noise_kind`
    mask  (H, W)  as in the file; `bits` says which values are bad
    """

    band: str
    flux: NDArray[Any]
    factor: float = 1.0
    noise: NDArray[Any] | None = None
    noise_kind: Noise = "ivar"
    mask: NDArray[Any] | None = None
    bits: BadBits = field(default_factory=BadBits)


@dataclass(frozen=True)
class Scene:
    """Aligned planes of one image in the band order of `row`; pixel_scale (y, x) arcsec."""

    row: Modality
    planes: tuple[Plane, ...]
    pixel_scale: tuple[float, float]
    wcs: WCS | None = None
    release: str | None = None
    extinction_corrected: bool = False
    flags: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.planes[0].flux.shape
        return height, width


@dataclass(frozen=True)
class Cut:
    """One box: the image, its flags, its lower left corner (y, x) in source pixels, and the sky position (deg)."""

    image: Image
    flags: tuple[str, ...]
    start: tuple[float, float]
    position: tuple[float, float] | None


def check_scale(scene: Scene, resample: bool) -> bool:
    """True if the scene must be resampled; an error if it must and may not, or if it is too small either way."""
    assert scene.row.pixel_scale is not None
    off = max(abs(scale / scene.row.pixel_scale - 1) for scale in scene.pixel_scale) > PIXEL_SCALE_TOLERANCE
    y, x = scene.pixel_scale
    if off and not resample:
        raise BadInput(
            "pixel_scale",
            f"{x:.4f} x {y:.4f} arcsec per pixel, {scene.row.name} has {scene.row.pixel_scale}",
            field="pixel_scale",
            fix="fetch the cutout at the survey's pixel scale, or give the option resample",
        )
    needed = _box(scene, off)
    if any(size < box - 1e-6 for size, box in zip(scene.shape, needed, strict=True)):
        height, width = scene.shape
        at_least = " x ".join(str(int(np.ceil(box - 1e-6))) for box in reversed(needed))
        raise BadInput(
            "image_too_small",
            f"{width} x {height} pixels, {scene.row.name} reads {at_least} of them",
            field="image",
            fix="fetch a larger cutout; a padded one would invent sky",
        )
    return off


def cut(scene: Scene, at: tuple[float, float] | None = None, resample: bool = False) -> Cut:
    """The box of `scene` around its centre, or around `at` = (ra, dec) in degrees ICRS.

    The centre box starts at (size - 96) // 2, as AION-1's does. A box at a position has the pixel whose centre is
    nearest to it at index 48; resampled, the position is the centre of the box. Errors: image_too_small,
    pixel_scale, wcs_missing, position_outside, image_blank.
    """
    scaled = check_scale(scene, resample)
    box = _box(scene, scaled)
    if at is None and scaled:
        start = tuple((size - length) / 2 for size, length in zip(scene.shape, box, strict=True))
    elif at is None:
        start = tuple(float((size - IMAGE_SIZE) // 2) for size in scene.shape)
    else:
        pixel = pixel_of(scene.wcs, at)
        if scaled:
            start = tuple(p + 0.5 - length / 2 for p, length in zip(pixel, box, strict=True))
        else:
            # A tie goes up, and coordinate noise does not break ties.
            start = tuple(float(np.floor(p + 0.5 + 1e-6)) - IMAGE_SIZE // 2 for p in pixel)
    outside = any(
        first < -1e-6 or first + length > size + 1e-6
        for first, length, size in zip(start, box, scene.shape, strict=True)
    )
    if outside and at is not None:
        raise BadInput(
            "position_outside",
            f"the box of {IMAGE_SIZE} pixels around ({at[0]:.6f}, {at[1]:.6f}) is not fully inside the image",
            field="position",
            fix="give an image that covers the position with half a box to spare",
        )
    corner = (start[0], start[1])
    return _assemble(scene, corner, box, scaled, at)


def observe(
    scene: Scene,
    *,
    id: str,
    at: tuple[float, float] | None,
    resample: bool,
    provenance: Provenance,
    metadata: Mapping[str, Any],
    position: tuple[float, float] | None = None,
) -> Observation:
    """The object in a box of `scene`; ra, dec are `at`, else the centre of the box, else `position` of the file."""
    box = cut(scene, at, resample)
    ra, dec = box.position or position or (None, None)
    height, width = scene.shape
    return Observation(
        id=id,
        data={scene.row.key: box.image},
        ra=ra,
        dec=dec,
        metadata={**metadata, "image_shape": (height, width), "box_start": box.start},
        provenance={scene.row.key: provenance},
        flags=box.flags,
    )


def pixel_of(wcs: WCS | None, at: tuple[float, float]) -> tuple[float, float]:
    """(y, x) of a sky position (ra, dec) in degrees ICRS; counted from 0 at the centre of the first pixel."""
    if wcs is None:
        raise BadInput(
            "wcs_missing",
            "a position was asked for, but the image has no world coordinates",
            field="position",
            fix="give a file with a WCS, or leave the position out to cut at the centre",
        )
    if not (np.isfinite(at).all() and 0 <= at[0] <= 360 and -90 <= at[1] <= 90):
        raise BadInput(
            "value_out_of_range", f"position {at}", field="position", fix="ra 0 to 360, dec -90 to 90, in degrees"
        )
    target = SkyCoord(at[0], at[1], unit=units.deg, frame="icrs")
    outside = BadInput(
        "position_outside",
        f"({at[0]:.6f}, {at[1]:.6f}) is not on the image",
        field="position",
        fix="give an image that covers the position",
    )
    try:
        x, y = (float(value) for value in wcs.world_to_pixel(target))
        back = wcs.pixel_to_world(x, y)
    except ValueError as error:  # a distortion that does not converge so far from the image
        raise outside from error
    # The far side of the sky projects onto the tangent plane too; only the way back tells.
    if not np.isfinite([x, y]).all() or not back.separation(target) < 1 * units.arcsec:
        raise outside
    return y, x


def sky_of(wcs: WCS, y: float, x: float) -> tuple[float, float]:
    """(ra, dec) in degrees ICRS of a pixel position."""
    sky = wcs.pixel_to_world(x, y).icrs
    return float(sky.ra.deg), float(sky.dec.deg)


def resampled(flux: Doubles, edges_y: Doubles, edges_x: Doubles) -> Doubles:
    """Flux in the pixels between the given edges, in source pixel-edge coordinates (0 = lower edge of pixel 0).

    A cubic spline through the running sum along each axis, differenced at the new edges: flux is conserved exactly
    between any two edges, and a pixel that spans several old ones is their sum, not a sample.
    """
    for axis, edges in ((0, edges_y), (1, edges_x)):
        size = flux.shape[axis]
        running = np.concatenate([np.zeros_like(np.take(flux, [0], axis)), np.cumsum(flux, axis)], axis)
        flux = np.diff(CubicSpline(np.arange(size + 1), running, axis=axis)(edges), axis=axis)
    return flux


def _box(scene: Scene, scaled: bool) -> tuple[float, float]:
    """Size (y, x) of the 96 pixels in source pixels."""
    assert scene.row.pixel_scale is not None
    if not scaled:
        return float(IMAGE_SIZE), float(IMAGE_SIZE)
    y, x = (IMAGE_SIZE * scene.row.pixel_scale / scale for scale in scene.pixel_scale)
    return y, x


def _assemble(
    scene: Scene,
    start: tuple[float, float],
    box: tuple[float, float],
    scaled: bool,
    at: tuple[float, float] | None,
) -> Cut:
    read = [_resample_plane(plane, start, box) if scaled else _crop_plane(plane, start) for plane in scene.planes]
    flux = np.stack([part.flux for part in read])
    mask = np.stack([part.mask for part in read])
    with_ivar = all(part.ivar is not None for part in read)
    ivar = np.stack([part.ivar for part in read if part.ivar is not None]) if with_ivar else None
    blank = [not (flux[c] != 0)[~mask[c]].any() for c in range(len(read))]
    if all(blank):
        raise BadInput(
            "image_blank",
            "no good pixel of the box differs from zero",
            field="image",
            fix="the survey has no data here; ask for another position or release",
        )
    flags = list(scene.flags)
    flags += dict.fromkeys(flag for part in read for flag in part.flags)
    if any(blank):
        # Services fill bands without coverage with zeros: a measurement of nothing, not a flux of zero.
        mask[blank] = True
        flags.append("blank_band")
    if len(read) < len(scene.row.bands):
        flags.append("missing_bands")
    kept = float(box[0] * box[1] / (scene.shape[0] * scene.shape[1]))
    if kept < 1 - 1e-9:
        flags.append("cropped")
    assert scene.row.pixel_scale is not None
    scale = scene.row.pixel_scale if scaled else float(np.sqrt(scene.pixel_scale[0] * scene.pixel_scale[1]))
    image = Image(
        flux=flux.astype(np.float32),
        bands=tuple(plane.band for plane in scene.planes),
        pixel_scale=scale,
        unit=scene.row.unit,
        zero_point=ZERO_POINTS[scene.row.survey],
        mask=mask,
        conventions=tuple(
            Convention(scene.row.survey, plane.band, "AB", "image", scene.extinction_corrected, scene.release)
            for plane in scene.planes
        ),
        ivar=None if ivar is None else ivar.astype(np.float32),
        kept_fraction=min(kept, 1.0),
    )
    position = at
    if at is None and scene.wcs is not None:
        position = sky_of(scene.wcs, start[0] + box[0] / 2 - 0.5, start[1] + box[1] / 2 - 0.5)
    return Cut(image, tuple(dict.fromkeys(flags)), start, position)


@dataclass(frozen=True)
class _Pixels:
    """flux, mask, ivar (h, w) of one plane in the unit of the modality; flux is 0 where it was not finite."""

    flux: Doubles
    mask: Bools
    ivar: Doubles | None
    flags: tuple[str, ...]


def _crop_plane(plane: Plane, start: tuple[float, float]) -> _Pixels:
    y, x = round(start[0]), round(start[1])
    return _pixels(plane, slice(y, y + IMAGE_SIZE), slice(x, x + IMAGE_SIZE))


def _resample_plane(plane: Plane, start: tuple[float, float], box: tuple[float, float]) -> _Pixels:
    slices, edges = [], []
    for first, length, size in zip(start, box, plane.flux.shape, strict=True):
        low = max(int(np.floor(first)) - SPLINE_MARGIN, 0)
        high = min(int(np.ceil(first + length)) + SPLINE_MARGIN, size)
        slices.append(slice(low, high))
        edges.append(np.clip(first - low + length * np.arange(IMAGE_SIZE + 1) / IMAGE_SIZE, 0, high - low))
    source = _pixels(plane, slices[0], slices[1])
    # A bad pixel reaches its neighbours through the spline.
    spoilt = binary_dilation(source.mask, np.ones((3, 3))).astype(np.float64)
    flags = ["resampled", *source.flags]
    if source.ivar is not None:
        flags.append("ivar_dropped")  # resampled noise is correlated: an ivar per pixel would claim too much
    return _Pixels(resampled(source.flux, *edges), _covered(spoilt, *edges) > 1e-6, None, tuple(flags))


def _covered(values: Doubles, edges_y: Doubles, edges_x: Doubles) -> Doubles:
    """Sum of `values` over the area of each new pixel, without a spline's overshoot."""
    for axis, edges in ((0, edges_y), (1, edges_x)):
        size = values.shape[axis]
        running = np.concatenate([np.zeros_like(np.take(values, [0], axis)), np.cumsum(values, axis)], axis)
        low = np.minimum(edges.astype(np.int64), size - 1)
        shape = [1, 1]
        shape[axis] = len(edges)
        part = (edges - low).reshape(shape)
        at_edges = np.take(running, low, axis) * (1 - part) + np.take(running, low + 1, axis) * part
        values = np.diff(at_edges, axis=axis)
    return values


def _pixels(plane: Plane, ys: slice, xs: slice) -> _Pixels:
    flux = plane.flux[ys, xs].astype(np.float64)
    mask = ~np.isfinite(flux)
    flags = ["nan_pixels"] if mask.any() else []
    flux = np.where(mask, 0.0, flux * plane.factor)
    if plane.mask is not None:
        bad, saturated = plane.bits.of(plane.mask[ys, xs])
        flags += (["masked_pixels"] if bad.any() else []) + (["saturated"] if saturated.any() else [])
        mask |= bad
    ivar = None
    if plane.noise is not None:
        noise = plane.noise[ys, xs].astype(np.float64)
        good = np.isfinite(noise) & (noise > 0)
        power = {"ivar": 1, "variance": -1, "error": -2}[plane.noise_kind]
        ivar = np.where(good, np.where(good, noise, 1.0) ** power, 0.0) / plane.factor**2
        flags += ["masked_pixels"] if not good.all() else []
        mask |= ~good
        ivar[mask] = 0.0
    return _Pixels(flux, mask, ivar, tuple(flags))


def orientation_flags(wcs: WCS) -> tuple[str, ...]:
    """`mirrored` if east is to the right with north up, `rotated` if north is off the y axis."""
    east = wcs.pixel_scale_matrix[wcs.wcs.lng]
    north = wcs.pixel_scale_matrix[wcs.wcs.lat]
    flags = []
    if east[0] * north[1] - east[1] * north[0] > 0:
        flags.append("mirrored")
    if np.degrees(np.arccos(np.clip(north[1] / np.hypot(*north), -1, 1))) > ROTATION_TOLERANCE:
        flags.append("rotated")
    return tuple(flags)
