"""NumPy archives (.npz) of images, spectra, segmentation maps or catalogs: which arrays are read, under which names.

Images, one object or a batch of B:
    images | image | cube | flux   (C, H, W), (B, C, H, W) or one band (H, W); row 0 is the bottom
    bands | filters | band | filter   C texts, or one text such as "grz"
    unit, zero_point (one number, or one per band), pixel_scale (arcsec), survey, release
    ivar | invvar, variance | var, error | flux_err | sigma   the shape of the images
    mask   the shape of the images or (H, W), non-zero = bad; HSC integers are read as its pipeline's bit planes
    maskbits   the same shapes, bits of the Legacy Surveys' MASKBITS
Spectra, one object or a batch of N over L pixels:
    wavelength | wave | lambda   (L,) or (N, L) Angstrom, or loglam, log10 of Angstrom
    flux   (L,) or (N, L), and ivar | invvar, variance | var or error | flux_err | sigma
    mask   non-zero = bad
    survey (desi, sdss, lamost), unit, medium ("vacuum" or "air"), frame, release   one text each
Segmentation maps and catalogs, alone or beside either, one object or a batch of B; survey is the Legacy Surveys:
    segmentation_map   (H, W) or (B, H, W) fractions 0 to 1, 0 = background; with pixel_scale
    catalog_x, catalog_y, catalog_shape_e1, catalog_shape_e2, catalog_shape_r   (K,) or (B, K), padded with 9999;
        whole pixels of a 96 x 96 cutout counted from 0, and half-light radii in arcsec
All: id | ids | object_id | objid | targetid | source_id, ra, dec   one per object.

What is absent must come from `ReadOptions`; `columns` there maps one of our names (the first of each line, or
`loglam`) to another array. Other arrays with one value per object become metadata under their own names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albireo.observations import image_conventions as conventions
from albireo.observations.archive import Archive, sniff_npz
from albireo.observations.cutouts import Noise, Plane, Scene, observe
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import Modality
from albireo.observations.observation import Observation
from albireo.observations.options import ReadOptions
from albireo.observations.packed_maps import check_pixels, packed_maps
from albireo.observations.packed_spectra import spectrum_of, spectrum_terms
from albireo.observations.pixel_masks import BadBits, afw_planes, maskbits
from albireo.observations.positions import identifier, of_row
from albireo.observations.source import Source

IMAGES = ("images", "image", "cube")
WAVELENGTHS = ("wavelength", "wave", "lambda")
BANDS = ("bands", "filters", "band", "filter")
NOISES: dict[Noise, tuple[str, ...]] = {
    "ivar": ("ivar", "invvar"),
    "variance": ("variance", "var"),
    "error": ("error", "flux_err", "sigma"),
}
IDS = ("id", "ids", "object_id", "objid", "targetid", "source_id")


def read_npz(source: Source, options: ReadOptions, companions: Sequence[Source]) -> list[Observation | AlbireoError]:
    """One observation per object of the archive, or the error of that object."""
    archive = Archive(source, options.columns)
    maps = packed_maps(archive, options, _agreed(archive, "release", options.release))
    images = archive.find("images", IMAGES)
    flux = archive.find("flux", ("flux",))
    linear, logarithmic = archive.find("wavelength", WAVELENGTHS), archive.find("loglam", ("loglam",))
    if images is None and flux is not None and not (linear or logarithmic) and len(archive.shape(flux)[0]) >= 3:
        images = flux
    if images is not None and (linear or logarithmic):
        raise BadInput(
            "alias_ambiguous",
            f"{images} says images, {linear or logarithmic} says spectra",
            field=images,
            fix="store images and spectra in files of their own",
        )
    if linear and logarithmic:
        raise BadInput("alias_ambiguous", f"{linear} and {logarithmic} are both wavelengths", field=linear)
    if images is not None:
        check_pixels(maps, archive.shape(images)[0][-2:])
        items = _read_images(archive, images, source, options)
    elif flux is not None and (linear or logarithmic):
        items = _read_spectra(archive, flux, linear or logarithmic or "", logarithmic is not None, source, options)
    elif maps is not None:
        items = [
            entry if isinstance(entry, AlbireoError) else entry.observation()
            for entry in _objects(archive, maps.n, source)
        ]
    else:
        raise _nothing(archive, flux)
    return items if maps is None else maps.added(items, source)


def _nothing(archive: Archive, flux: str | None) -> BadInput:
    return BadInput(
        "column_missing",
        f"neither images ({', '.join(IMAGES)}, or flux of 3 or 4 axes) nor spectra (flux with "
        f"{', '.join((*WAVELENGTHS, 'loglam'))}) nor maps or catalogs among {', '.join(archive.names)}",
        field="images" if flux is None else "wavelength",
        fix="name the arrays in the option columns, e.g. images=<array>, or wavelength=<array> and flux=<array>",
    )


def _read_images(archive: Archive, name: str, source: Source, options: ReadOptions) -> list[Observation | AlbireoError]:
    if options.at is not None or options.positions is not None:
        raise BadInput(
            "wcs_missing",
            "an npz archive has no world coordinates to find a position with",
            field="at" if options.at is not None else "positions",
            fix="give a FITS image with a WCS",
        )
    pixels = archive.array(name)
    if pixels.dtype == np.uint8:
        raise BadInput(
            "not_photometric", "8-bit pixels are display levels, not fluxes", field=name, fix="store fluxes as float32"
        )
    if pixels.dtype.kind not in "fiu" or pixels.ndim not in (2, 3, 4) or pixels.size == 0:
        raise BadInput(
            "shape_mismatch",
            f"{pixels.dtype} of shape {pixels.shape} is no image",
            field=name,
            fix="(H, W), (C, H, W) or (B, C, H, W) real numbers",
        )
    batch = pixels[(np.newaxis,) * (4 - pixels.ndim)]
    row, bands = _row_and_bands(archive, batch.shape[1], name, options)
    factors = _factors(archive, row, bands, options)
    scale_stated = archive.real_numbers("pixel_scale", ("pixel_scale", "pixscale"), 1)
    scale = conventions.pixel_scale(
        [("the array pixel_scale", (scale_stated[0], scale_stated[0]))] if scale_stated else [], options, row
    )
    noise, kind = _noise(archive, batch.shape, pixels.shape)
    mask, maskname = _mask(archive, batch.shape, pixels.shape)
    release = _agreed(archive, "release", options.release)
    objects = _objects(archive, len(batch), source)
    if options.system == "Vega":
        raise BadInput("option_invalid", f"{row.name} has AB zero points", field="system", fix="leave it out, or AB")
    items: list[Observation | AlbireoError] = []
    for i, entry in enumerate(objects):
        if isinstance(entry, AlbireoError):
            items.append(entry)
            continue
        planes = [
            Plane(
                band,
                batch[i, c],
                factors[c],
                None if noise is None else noise[i, c],
                kind,
                None if mask is None else mask[i, c],
                _bits(maskname, mask, band, row),
            )
            for c, band in enumerate(bands)
        ]
        planes.sort(key=lambda plane: row.bands.index(plane.band))
        scene = Scene(
            row, tuple(planes), scale, release=release, extinction_corrected=bool(options.extinction_corrected)
        )
        provenance = source.provenance("npz", survey=row.survey, release=release, row=i if len(batch) > 1 else None)
        try:
            items.append(
                observe(
                    scene,
                    id=entry.id,
                    at=None,
                    resample=options.resample,
                    provenance=provenance,
                    metadata=entry.metadata,
                    position=entry.position,
                )
            )
        except AlbireoError as error:
            items.append(of_row(error, source.name, f"{name}[{i}]"))
    return items


def _read_spectra(
    archive: Archive, name: str, wave_name: str, logarithmic: bool, source: Source, options: ReadOptions
) -> list[Observation | AlbireoError]:
    pixels = archive.array(name)
    flux, wave = np.atleast_2d(pixels), np.atleast_2d(archive.array(wave_name))
    if (
        wave.dtype.kind not in "fiu"
        or flux.ndim != 2
        or flux.dtype.kind not in "fiu"
        or wave.shape not in (flux.shape, (1, flux.shape[1]))
    ):
        raise BadInput(
            "shape_mismatch",
            f"{name} has shape {flux.shape}, {wave_name} {wave.shape}",
            field=name,
            fix="flux (N, L) or (L,), wavelength (L,) or the shape of flux",
        )
    with np.errstate(over="ignore"):  # an infinite wavelength is refused with its spectrum
        wave = 10.0 ** wave.astype(np.float64) if logarithmic else wave.astype(np.float64)
    noise, kind = _noise(archive, flux.shape, pixels.shape)
    if noise is None:
        raise BadInput(
            "column_missing",
            f"no errors of the fluxes: none of {', '.join(a for names in NOISES.values() for a in names)}",
            field="ivar",
            fix="store ivar beside flux; a spectrum without errors has no weight",
        )
    mask, _ = _mask(archive, flux.shape, pixels.shape)
    terms = spectrum_terms({key: archive.text(key, (key,)) for key in ("survey", "unit", "medium", "frame")}, options)
    release = _agreed(archive, "release", options.release)
    objects = _objects(archive, len(flux), source)
    items: list[Observation | AlbireoError] = []
    for i, entry in enumerate(objects):
        if isinstance(entry, AlbireoError):
            items.append(entry)
            continue
        try:
            spectrum, flags = spectrum_of(
                wave[i if len(wave) > 1 else 0], flux[i], noise[i], kind, None if mask is None else mask[i], terms
            )
            items.append(
                replace(
                    entry.observation(),
                    data={terms.row.key: spectrum},
                    provenance={
                        terms.row.key: source.provenance(
                            "npz", survey=terms.row.survey, release=release, row=i if len(flux) > 1 else None
                        )
                    },
                    flags=flags,
                )
            )
        except AlbireoError as error:
            items.append(of_row(error, source.name, f"{name}[{i}]"))
    return items


def _row_and_bands(
    archive: Archive, n_planes: int, name: str, options: ReadOptions
) -> tuple[Modality, tuple[str, ...]]:
    """The modality and AION-1's band names of the planes in file order."""
    survey = archive.text("survey", ("survey",))
    stated = archive.texts("bands", BANDS)
    row = conventions.image_row([survey] if survey else [], stated[1] if stated else (), options)
    statements = []
    if stated is not None:
        where, texts = stated
        labels = conventions.split_bands(texts[0], row) if len(texts) == 1 else texts
        statements.append((where, conventions.canonical_bands(labels, row, where)))
    given = conventions.option_bands(row, options)
    if given is not None:
        statements.append(("the option bands", given))
    bands = conventions.agree("bands", statements, tuple.__eq__)
    if bands is None:
        raise BadInput(
            "band_missing",
            f"the bands of {n_planes} planes are not stated",
            field="bands",
            fix=f"store an array bands ({', '.join(BANDS)}) or give the option bands",
        )
    if len(bands) != n_planes:
        raise BadInput(
            "band_count",
            f"{len(bands)} bands ({', '.join(bands)}) for {n_planes} planes",
            field=name,
            fix="name each plane once; axes are [band, y, x] or [object, band, y, x]",
        )
    return row, bands


def _factors(archive: Archive, row: Modality, bands: Sequence[str], options: ReadOptions) -> list[float]:
    """Factor to the unit of the modality, per band in file order."""
    unit = archive.text("unit", ("unit", "flux_unit", "bunit"))
    points = archive.real_numbers("zero_point", ("zero_point", "zeropoint", "zp", "magzero"), len(bands))
    factors = []
    for c in range(len(bands)):
        stated = [("the array zero_point", points[c if len(points) > 1 else 0])] if points else []
        point = conventions.zero_point(row, [unit] if unit else [], stated, options)
        factors.append(conventions.flux_factor(point, row))
    return factors


def _noise(archive: Archive, shape: tuple[int, ...], stored: tuple[int, ...]) -> tuple[NDArray[Any] | None, Noise]:
    found = [(kind, name) for kind, names in NOISES.items() if (name := archive.find(kind, names)) is not None]
    if not found:
        return None, "ivar"
    if len(found) > 1:
        raise BadInput(
            "alias_ambiguous",
            f"{' and '.join(name for _, name in found)} all state the noise",
            field=found[0][1],
            fix="store one of them",
        )
    kind, name = found[0]
    noise = archive.array(name)
    if noise.dtype.kind not in "fiu" or noise.shape not in (shape, stored):
        raise BadInput("shape_mismatch", f"{noise.dtype} {noise.shape}, the fluxes have {stored}", field=name)
    return noise.reshape(shape), kind


def _mask(archive: Archive, shape: tuple[int, ...], stored: tuple[int, ...]) -> tuple[NDArray[Any] | None, str | None]:
    """(mask broadcast to `shape`, its name)."""
    name = archive.find("mask", ("mask", "maskbits"))
    if name is None:
        return None, None
    mask = archive.array(name)
    if mask.dtype.kind not in "biuf" or mask.shape not in (shape, stored, stored[-2:] if len(stored) > 2 else shape):
        raise BadInput("shape_mismatch", f"{mask.dtype} {mask.shape}, the fluxes have {stored}", field=name)
    return np.broadcast_to(mask if mask.ndim < len(stored) else mask.reshape(shape), shape), name


def _bits(name: str | None, mask: NDArray[Any] | None, band: str, row: Modality) -> BadBits:
    if name == "maskbits" and row.survey == "legacysurvey":
        return maskbits(band)
    if mask is not None and mask.dtype.kind in "iu" and row.survey == "hsc":
        return afw_planes({})
    return BadBits()


def _agreed(archive: Archive, key: str, option: str | None) -> str | None:
    stated = [found] if (found := archive.text(key, (key,))) else []
    if option is not None:
        stated.append((f"the option {key}", option))
    return conventions.agree(key, stated, lambda a, b: a.lower() == b.lower())


@dataclass(frozen=True)
class _Entry:
    """What an archive says of one object beside its pixels."""

    id: str
    position: tuple[float, float] | None
    metadata: dict[str, Any]

    def observation(self) -> Observation:
        """The object, of which nothing is measured yet."""
        ra, dec = self.position or (None, None)
        return Observation(id=self.id, data={}, ra=ra, dec=dec, metadata=self.metadata)


def _objects(archive: Archive, n: int, source: Source) -> list[_Entry | AlbireoError]:
    """Id, (ra, dec) and metadata of each of n objects; to be called when all other arrays have been asked for."""
    source.make(n)
    stem = PurePath(source.name).name.removesuffix(".npz")
    found = {key: archive.pick(key, names) for key, names in (("id", IDS), ("ra", ("ra",)), ("dec", ("dec",)))}
    for key, array in found.items():
        if array is not None and (array.size != n or array.dtype.kind not in ("fiuUS" if key == "id" else "fiu")):
            raise BadInput(
                "shape_mismatch",
                f"{array.dtype} of shape {array.shape} for {n} objects",
                file=source.name,
                field=key,
                fix="store one value per object; ra and dec in degrees ICRS",
            )
    ids = found["id"]
    sky = [[None] * n if (array := found[key]) is None else array.reshape(n).tolist() for key in ("ra", "dec")]
    columns: dict[str, list[Any]] = {}
    ignored = []
    for name in archive.unread:
        column = _column(archive, name, n)
        if column is None:
            ignored.append(name)
        else:
            columns[name] = column
    entries: list[_Entry | AlbireoError] = []
    for i in range(n):
        metadata: dict[str, Any] = {"id_from": "file name" if ids is None else "id"}
        metadata |= {name: cells[i] for name, cells in columns.items()}
        if ignored:
            metadata["ignored_arrays"] = tuple(ignored)
        default = stem if n == 1 else f"{stem}-{i}"
        try:
            name = default if ids is None else identifier(ids.flat[i])
            entries.append(_Entry(name, _position(sky[0][i], sky[1][i]), metadata))
        except AlbireoError as error:
            entries.append(of_row(error, source.name, f"object {i}"))
    return entries


def _column(archive: Archive, name: str, n: int) -> list[Any] | None:
    """One plain value per object, None if the array is something else (or a pickle, which is not touched)."""
    try:
        shape, dtype = archive.shape(name)
    except BadInput as error:
        if error.code == "pickle_refused":
            return None
        raise
    if len(shape) > 1 or prod(shape) != n or dtype.kind not in "biufUS":
        return None
    cells = archive.array(name).reshape(n).tolist()
    return [cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell for cell in cells]


def _position(ra: float | None, dec: float | None) -> tuple[float, float] | None:
    if ra is None or dec is None:
        return None
    if not (0 <= ra <= 360 and -90 <= dec <= 90):
        raise BadInput("value_out_of_range", f"position ({ra}, {dec})", fix="degrees ICRS: ra 0 to 360, dec -90 to 90")
    return ra, dec


FORMATS: tuple[tuple[Any, ...], ...] = (
    ("npz", "NumPy archive (.npz) of images, spectra, segmentation maps or catalogs", sniff_npz, read_npz),
)
