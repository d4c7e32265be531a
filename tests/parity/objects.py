"""Objects to compare on: ordinary ones drawn broadly, and the extremes that break careless code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, cycle, islice

import numpy as np
from numpy.typing import NDArray

from albireo.observations.catalogs import catalog_of
from albireo.observations.modalities import IMAGE_SIZE, MODALITIES, Modality
from albireo.observations.observation import (
    Catalog,
    Coefficients,
    Convention,
    Image,
    Payload,
    Scalar,
    SegmentationMap,
    Spectrum,
)
from albireo.tokenizers.image import CLAMP
from albireo.tokenizers.scalar import LOG_KEYS

Floats = NDArray[np.float32]

TINY, LARGEST = np.float32(1e-45), np.finfo(np.float32).max
"""The smallest denormal and the largest float32."""

EXTREMES = np.array(
    [0.0, -0.0, TINY, -TINY, 1e-38, -1e-38, 1e-20, 1.0, -1.0, 1e6, -1e6, 1e30, -1e30, LARGEST, -LARGEST], np.float32
)

RANGES = {
    "tok_shape_e1": (-1, 1), "tok_shape_e2": (-1, 1), "tok_ebv": (0, 0.6), "tok_z": (-0.2, 1.6), "tok_ra": (0, 360),
    "tok_dec": (-90, 90), "tok_shape11": (0, 9), "tok_shape12": (-4, 4), "tok_shape22": (0, 9),
    **{f"tok_mag_{band}": (15, 28) for band in "grizy"}, **{f"tok_a_{band}": (0, 0.5) for band in "grizy"},
}  # fmt: skip
"""Key of a scalar without logarithm -> the range it is drawn from, in its unit."""


def payloads(key: str, n: int, seed: int) -> list[Payload]:
    """n objects of the modality `key`: first its extremes, then ordinary ones; another seed, other objects."""
    row = MODALITIES[key]
    rng = np.random.default_rng([seed, *key.encode()])
    hard = list(islice(extremes(row), n))
    return [*hard, *(ordinary(row, rng) for _ in range(n - len(hard)))]


def ordinary(row: Modality, rng: np.random.Generator) -> Payload:
    """One object of a modality, drawn broadly."""
    return ORDINARY[row.kind](row, rng)


def extremes(row: Modality) -> Iterator[Payload]:
    """The extreme objects of a modality, always the same."""
    yield from EXTREME[row.kind](row)


# Images


def band_subsets(row: Modality) -> list[tuple[str, ...]]:
    """Every non-empty subset of a survey's bands, and all of them in the other order."""
    bands = row.bands
    return [bands, *(some for n in range(1, len(bands)) for some in combinations(bands, n)), bands[::-1]]


def image(row: Modality, flux: NDArray[np.generic], bands: tuple[str, ...]) -> Image:
    """An image without bad pixels; flux (C, 96, 96) in the row's unit."""
    conventions = tuple(Convention(row.survey, band, "AB", "model", False) for band in bands)
    zero_point = 27.0 if row.survey == "hsc" else 22.5
    planes = np.broadcast_to(flux, (len(bands), IMAGE_SIZE, IMAGE_SIZE)).astype(np.float32)
    return Image(planes, bands, row.pixel_scale or 0.0, row.unit, zero_point, np.zeros(planes.shape, bool), conventions)


def _image(row: Modality, rng: np.random.Generator) -> Image:
    """Blobs of every size and brightness on noise of every level, in a random subset of the bands."""
    subsets = band_subsets(row)
    bands = subsets[rng.integers(len(subsets))] if rng.random() < 0.7 else row.bands
    y, x = np.indices((IMAGE_SIZE, IMAGE_SIZE))
    flux = rng.normal(0, 10 ** rng.uniform(-3, 0, (len(bands), 1, 1)), (len(bands), IMAGE_SIZE, IMAGE_SIZE))
    for _ in range(rng.integers(1, 12)):
        at, width = rng.uniform(0, IMAGE_SIZE, 2), 10 ** rng.uniform(0, 1.3)
        blob = np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * width**2))
        flux += 10 ** rng.uniform(-2, 1.5, (len(bands), 1, 1)) * blob
    return image(row, flux * (63.0 if row.survey == "hsc" else 1.0), bands)


def _image_extremes(row: Modality) -> Iterator[Image]:
    """One value everywhere, then what stands at a limit of the clamp; band subsets in turn."""
    subsets = cycle(band_subsets(row))
    for value, bands in zip(EXTREMES, subsets, strict=False):
        yield image(row, np.full((1, 1, 1), value), bands)
    limit = np.array([CLAMP[band] for band in row.bands], np.float32)[:, None, None]
    for edge in (limit, -limit, np.nextafter(limit, np.float32(np.inf)), np.nextafter(limit, np.float32(0))):
        yield image(row, edge, row.bands)
    checkers = np.indices((IMAGE_SIZE, IMAGE_SIZE)).sum(0) % 2 * 2 - 1
    yield image(row, checkers * LARGEST, row.bands)
    point = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    point[48, 48] = 1e9
    yield image(row, point, row.bands)


# Spectra


def survey_grid(row: Modality) -> NDArray[np.float64]:
    """Wavelengths (L,) of the row's survey in Angstrom as float32 holds them: linear for DESI, logarithmic for SDSS."""
    grid = 3600 + 0.8 * np.arange(7781) if row.survey == "desi" else 10 ** (3.58 + 1e-4 * np.arange(3850))
    return grid.astype(np.float32).astype(np.float64)


def _spectrum(row: Modality, rng: np.random.Generator) -> Spectrum:
    """A continuum with lines, some bad pixels (a few of them NaN), on a piece of the survey's grid."""
    grid = survey_grid(row)
    start, stop = sorted(rng.integers(0, len(grid), 2)) if rng.random() < 0.3 else (0, len(grid))
    grid = grid[min(start, len(grid) - 500) : max(stop, start + 500)]
    level = 10 ** rng.uniform(-2, 5)
    flux = 1 + rng.normal(0, 0.5) * np.linspace(-1, 1, len(grid)) + rng.normal(0, 10 ** rng.uniform(-2, 0), len(grid))
    for _ in range(rng.integers(0, 12)):
        line = np.exp(-((grid - rng.choice(grid)) ** 2) / (2 * rng.uniform(2, 60) ** 2))
        flux += rng.uniform(-1, 8) * line
    ivar = rng.uniform(0, 10 ** rng.uniform(-2, 2.5), len(grid))
    mask = rng.random(len(grid)) < rng.choice([0, 0.02, 0.4])
    flux[mask & (rng.random(len(grid)) < 0.1)] = np.nan
    return spectrum(row, grid, level * flux, ivar, mask)


def spectrum(
    row: Modality, grid: NDArray[np.float64], flux: object, ivar: object = 4.0, mask: object = False
) -> Spectrum:
    """A spectrum; what is one number is that number everywhere."""
    flux, ivar, mask = (np.broadcast_to(np.asarray(part), grid.shape) for part in (flux, ivar, mask))
    return Spectrum(grid, flux.astype(np.float32), ivar.astype(np.float32), mask.astype(bool), row.unit, "heliocentric")


def _spectrum_extremes(row: Modality) -> Iterator[Spectrum]:
    """Constant spectra of extreme flux and ivar, extreme grids, and masks that leave one pixel."""
    grid = survey_grid(row)
    for value in EXTREMES:
        yield spectrum(row, grid, value)
    for value in (0.0, -1.0, TINY, 100.0, 100.00001, 1e30):
        yield spectrum(row, grid, 5 + 2 * np.sin(grid / 500), value)
    wave = 5 + 2 * np.sin(grid / 500)
    for left in (0, len(grid) // 2, len(grid) - 1):
        mask = np.ones(len(grid), bool)
        mask[left] = False
        yield spectrum(row, grid, wave, mask=mask)
    wide = np.arange(2000, 12000, 3.3).astype(np.float32).astype(np.float64)
    model_grid = (3500 + 0.8 * np.arange(8704)).astype(np.float32).astype(np.float64)
    for other in (wide, wide[:500], wide[-540:], model_grid, np.array([3000.0, 5000.0]), np.array([5000.0, 5000.5])):
        yield spectrum(row, other, 3 + np.cos(other / 77))


# Numbers


def scalar_values(key: str, n: int, rng: np.random.Generator) -> Floats:
    """n values of a scalar in its unit; those with logarithms are positive but for a tenth."""
    if key in LOG_KEYS:
        values = np.exp(rng.normal(2, 2.5, n))
        values[rng.random(n) < 0.1] *= -1
    else:
        values = rng.uniform(*RANGES[key], n)
    return values.astype(np.float32)


def coefficient_values(n: int, rng: np.random.Generator) -> Floats:
    """n vectors (n, 55) of Gaia XP coefficients in electron / s: the first ones large, as in the survey."""
    return (rng.normal(0, 1, (n, 55)) * 10 ** np.linspace(3, 0, 55) * 10 ** rng.uniform(-1, 1, (n, 1))).astype(
        np.float32
    )


def _scalar(row: Modality, rng: np.random.Generator) -> Scalar:
    return Scalar(float(scalar_values(row.key, 1, rng)[0]), row.unit)


def _scalar_extremes(row: Modality) -> Iterator[Scalar]:
    yield from (Scalar(float(value), row.unit) for value in EXTREMES)


def _coefficients(row: Modality, rng: np.random.Generator) -> Coefficients:
    return Coefficients(coefficient_values(1, rng)[0], row.unit)


def _coefficients_extremes(row: Modality) -> Iterator[Coefficients]:
    yield from (Coefficients(np.full(55, value), row.unit) for value in EXTREMES)


# Segmentation maps and catalogs


def _map(row: Modality, rng: np.random.Generator) -> SegmentationMap:
    """Ellipses of the five classes on background; some maps are noise within [0, 1]."""
    if rng.random() < 0.2:
        return SegmentationMap(rng.random((IMAGE_SIZE, IMAGE_SIZE), np.float32), row.pixel_scale or 0.0)
    y, x = np.indices((IMAGE_SIZE, IMAGE_SIZE))
    field = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for _ in range(rng.integers(1, 25)):
        (b, a), (height, width) = rng.uniform(0, IMAGE_SIZE, 2), rng.uniform(1, 20, 2)
        field[((y - b) / height) ** 2 + ((x - a) / width) ** 2 < 1] = rng.integers(1, 6) / 5
    return SegmentationMap(field, row.pixel_scale or 0.0)


def _map_extremes(row: Modality) -> Iterator[SegmentationMap]:
    checkers = (np.indices((IMAGE_SIZE, IMAGE_SIZE)).sum(0) % 2).astype(np.float32)
    point = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    point[0, -1] = 1
    for field in (np.zeros_like(point), np.ones_like(point), np.full_like(point, TINY), checkers, point):
        yield SegmentationMap(field, row.pixel_scale or 0.0)


def _catalog(row: Modality, rng: np.random.Generator) -> Catalog:
    """One to ten objects anywhere in the cutout."""
    n = int(rng.integers(1, 11))
    columns = [*rng.integers(0, IMAGE_SIZE, (2, n)), *catalog_shapes(n, rng).values()]
    return catalog_of([column.astype(np.float64) for column in columns])[0]


def catalog_shapes(n: int, rng: np.random.Generator) -> dict[str, Floats]:
    """n shapes of catalogued objects, by the name of their column."""
    shapes = {
        "SHAPE_E1": rng.uniform(-1, 1, n),
        "SHAPE_E2": rng.uniform(-1, 1, n),
        "SHAPE_R": np.exp(rng.normal(0, 1.5, n)),
    }
    return {name: values.astype(np.float32) for name, values in shapes.items()}


def _catalog_extremes(row: Modality) -> Iterator[Catalog]:
    for corner in (0.0, 95.0):
        for e, r in ((-1, 0), (1, 1e-45), (0, 1e-20), (-0.0, 9998)):
            yield catalog_of([np.array([value], np.float64) for value in (corner, 95 - corner, e, -e, r)])[0]


ORDINARY: dict[str, Callable[[Modality, np.random.Generator], Payload]] = {
    "image": _image,
    "spectrum": _spectrum,
    "coefficients": _coefficients,
    "scalar": _scalar,
    "segmentation": _map,
    "catalog": _catalog,
}
"""Kind of modality -> how an ordinary object of it is drawn."""

EXTREME: dict[str, Callable[[Modality], Iterator[Payload]]] = {
    "image": _image_extremes,
    "spectrum": _spectrum_extremes,
    "coefficients": _coefficients_extremes,
    "scalar": _scalar_extremes,
    "segmentation": _map_extremes,
    "catalog": _catalog_extremes,
}
"""Kind of modality -> its extreme objects."""
