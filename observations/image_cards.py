"""What the cards of a FITS image say, HDU by HDU, and the scene that comes of it.

Hdu, load_hdus  the image HDUs of a file and what each holds: fluxes, noise, a mask
build_scene     fluxes, noise and masks as aligned planes, in the terms of an image modality
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales, wcs_to_celestial_frame
from numpy.typing import NDArray

from albireo.observations import image_conventions as conventions
from albireo.observations.cutouts import Noise, Plane, Scene, orientation_flags
from albireo.observations.errors import BadInput
from albireo.observations.fits_cells import cards_of
from albireo.observations.image_hdus import (
    BAND_CARDS,
    FLUX_WORDS,
    PIXEL_SCALE_CARDS,
    RELEASE_CARDS,
    ROLES,
    SURVEY_CARDS,
    ZERO_POINT_CARDS,
    Hdu,
    words,
)
from albireo.observations.modalities import Modality
from albireo.observations.options import ReadOptions
from albireo.observations.pixel_masks import BadBits, afw_planes, maskbits


def build_scene(primary: fits.Header, hdus: Sequence[Hdu], options: ReadOptions) -> tuple[Scene, list[Hdu]]:
    """The aligned planes of a file in the band order of its modality, and the HDUs their fluxes are from."""
    flux = _flux_hdus(hdus)
    cards = [primary, *(hdu.header for hdu in flux)]
    stated = _survey_statements(cards)
    labels = [text for hdu in flux for _, texts in _stated_labels(hdu, primary, len(flux)) for text in texts]
    row = conventions.image_row(stated, labels, options)
    bands = _bands(flux, primary, row, options)
    wcs, scale = _geometry(flux, primary, row, options)
    planes = []
    places = [(hdu, number) for hdu in flux for number in range(len(hdu.planes))]
    for index, ((hdu, number), band) in enumerate(zip(places, bands, strict=True)):
        point = _zero_point(hdu, primary, row, scale, options)
        plane = Plane(band, hdu.planes[number], conventions.flux_factor(point, row))
        planes.append(_with_companions(plane, index, len(bands), hdus, row))
    planes.sort(key=lambda plane: row.bands.index(plane.band))
    flags = orientation_flags(wcs) if wcs is not None else ()
    flags += conventions.filter_flags(row, labels, [text for _, text in stated])
    scene = Scene(
        row=row,
        planes=tuple(planes),
        pixel_scale=scale,
        wcs=wcs,
        release=_release(cards, options),
        # Coadds of both surveys hold flux as observed: extinction is a catalogue column (Dey et al. 2019, AJ 157,
        # 168, MW_TRANSMISSION; Aihara et al. 2022, PASJ 74, 247, a_<band>), never applied to pixels.
        extinction_corrected=bool(options.extinction_corrected),
        flags=flags,
    )
    if options.system == "Vega":
        raise BadInput("option_invalid", f"{row.name} has AB zero points", field="system", fix="leave it out, or AB")
    return scene, flux


def _flux_hdus(hdus: Sequence[Hdu]) -> list[Hdu]:
    """The HDUs with fluxes, all of one shape of planes."""
    flux = [hdu for hdu in hdus if hdu.role == "flux"]
    if not flux:
        kinds = ", ".join(hdu.label for hdu in hdus)
        raise BadInput("not_photometric", f"no HDU holds fluxes, only {kinds}", fix="fetch the image itself")
    for hdu in flux:
        if hdu.pixels.dtype.kind == "u" and hdu.pixels.dtype.itemsize == 1:
            raise BadInput(
                "not_photometric",
                "8-bit pixels are display levels, not fluxes",
                field=hdu.label,
                fix="fetch the FITS cutout with floating-point fluxes",
            )
        if hdu.planes.shape[1:] != flux[0].planes.shape[1:]:
            raise BadInput(
                "shape_mismatch",
                f"planes of {hdu.planes.shape[1:]} and {flux[0].planes.shape[1:]} pixels",
                field=hdu.label,
                fix="give the bands in files of their own",
            )
    return flux


def _survey_statements(cards: Sequence[fits.Header]) -> list[tuple[str, str]]:
    """(card, text) of the cards that may name the survey."""
    stated = [(key, str(header[key])) for header in cards for key in SURVEY_CARDS if key in header]
    stated += [("LEGPIPEV", "Legacy Survey") for header in cards if "LEGPIPEV" in header]
    # SURVEY outranks the instrument: DECam took the images of several surveys.
    return [part for part in stated if part[0] == "SURVEY" and conventions.known_survey(part[1])] or stated


def _numbered(header: fits.Header, stem: str) -> tuple[str, ...]:
    """Values of BAND0, BAND1, .. or BAND1, BAND2, .., empty if there are none."""
    for first in (0, 1):
        texts: list[str] = []
        while f"{stem}{first + len(texts)}" in header:
            texts.append(str(header[f"{stem}{first + len(texts)}"]))
        if texts:
            return tuple(texts)
    return ()


def _stated_labels(hdu: Hdu, primary: fits.Header, n_flux: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(where, labels as written) of each statement about the bands of one flux HDU; a list may be one text."""
    alone = [primary] if n_flux == 1 and hdu.number else []
    if hdu.pixels.ndim == 2:
        single = [(card, (str(head[card]),)) for head in (hdu.header, *alone) for card in BAND_CARDS if card in head]
        rest = [word for word in words(hdu.header, "EXTNAME") if word not in FLUX_WORDS]
        if single or (rest and n_flux > 1):
            yield from single or [("EXTNAME", ("-".join(rest),))]
            return
    for head in (hdu.header, *alone):
        for card in ("BANDS", "FILTERS", *BAND_CARDS):
            if card in head:
                yield card, (str(head[card]),)
        for stem in ("BAND", "FILTER"):
            if numbered := _numbered(head, stem):
                yield f"{stem}0..", numbered


def _bands(flux: Sequence[Hdu], primary: fits.Header, row: Modality, options: ReadOptions) -> tuple[str, ...]:
    """AION-1's name of every plane, in file order."""
    n_planes = sum(len(hdu.planes) for hdu in flux)
    bands: list[str] = []
    for hdu in flux:
        found = conventions.agree("bands", _canonical(_stated_labels(hdu, primary, len(flux)), row), tuple.__eq__)
        if found is not None:
            _same_count(found, len(hdu.planes), hdu.label, hdu.pixels.shape)
            bands += found
    if not bands and len(flux) > 1 and "BANDS" in primary:
        bands = list(conventions.canonical_bands(conventions.split_bands(str(primary["BANDS"]), row), row, "BANDS"))
    given = conventions.option_bands(row, options)
    if given is not None:
        _same_count(given, n_planes, "the option bands", tuple(hdu.pixels.shape for hdu in flux))
    if given is not None and bands:
        conventions.agree("bands", [("the file", tuple(bands)), ("the option bands", given)], tuple.__eq__)
    bands = bands or list(given or ())
    if not bands:
        raise BadInput(
            "band_missing",
            f"the bands of {n_planes} planes are not stated",
            field="bands",
            fix="give the option bands, in the order of the planes",
        )
    _same_count(bands, n_planes, "the file", tuple(hdu.pixels.shape for hdu in flux))
    return conventions.canonical_bands(bands, row, "the file")


def _canonical(stated: Iterator[tuple[str, tuple[str, ...]]], row: Modality) -> Iterator[tuple[str, tuple[str, ...]]]:
    for where, texts in stated:
        labels = conventions.split_bands(texts[0], row) if len(texts) == 1 else texts
        if where == "EXTNAME" and conventions.canonical_band(texts[0], row) is None:
            continue  # a name that need not be a band's
        yield where, conventions.canonical_bands(labels, row, where)


def _same_count(bands: Sequence[str], n_planes: int, where: str, shape: tuple[Any, ...]) -> None:
    if len(bands) != n_planes:
        raise BadInput(
            "band_count",
            f"{len(bands)} bands ({', '.join(bands)}) for {n_planes} planes of an image of shape {shape}",
            field=where,
            fix="name each plane once; axes are [band, y, x]",
        )


def celestial_wcs(header: fits.Header) -> WCS | None:
    """The sky coordinates of the first two axes, None if the header has none (a scale must be stated, too)."""
    kinds = [str(header.get(f"CTYPE{axis}", ""))[:5].upper() for axis in (1, 2)]
    sky = all(re.match(r"RA--|DEC-|GLON|GLAT", kind) for kind in kinds)
    scaled = any(key in header for key in ("CD1_1", "CD1_2", "CD2_1", "CD2_2")) or (
        "CDELT1" in header and "CDELT2" in header
    )
    if not sky or not scaled:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # repairs of dates and units; the celestial axes are checked below
            wcs = WCS(header, naxis=2)
        wcs_to_celestial_frame(wcs)
        if wcs.has_celestial and np.linalg.det(wcs.pixel_scale_matrix) != 0:
            return wcs
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError) as error:
        # wcslib reports a bad header through ValueError and MemoryError; astropy takes cards for what they should be
        raise BadInput("damaged_file", f"world coordinates: {error}", field="WCS") from error
    raise BadInput("damaged_file", "the world coordinates are singular", field="WCS")


def _geometry(
    flux: Sequence[Hdu], primary: fits.Header, row: Modality, options: ReadOptions
) -> tuple[WCS | None, tuple[float, float]]:
    """World coordinates, which must be the same for every HDU, and arcsec per pixel (y, x)."""
    maps = [celestial_wcs(hdu.header) for hdu in flux]
    if maps[0] is None and flux[0].number:
        maps = [celestial_wcs(primary)] * len(maps)
    wcs = maps[0]
    stated: list[tuple[str, tuple[float, float]]] = []
    if wcs is not None:
        x, y = (float(scale) * 3600 for scale in proj_plane_pixel_scales(wcs))
        stated.append(("the WCS", (y, x)))
        height, width = flux[0].planes.shape[1:]
        corners = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], dtype=float)
        for hdu, other in zip(flux[1:], maps[1:], strict=True):
            there = None if other is None else other.all_world2pix(wcs.all_pix2world(corners, 0), 0, quiet=True)
            if there is None or not np.abs(there - corners).max() <= 0.5:
                raise BadInput(
                    "shape_mismatch",
                    f"its pixels are not aligned with those of {flux[0].label}",
                    field=hdu.label,
                    fix="resample the bands to one grid",
                )
    for header in [primary, *(hdu.header for hdu in flux)]:
        for card in PIXEL_SCALE_CARDS:
            if card in header:
                value = _number(header, card)
                stated.append((card, (value, value)))
    return wcs, conventions.pixel_scale(stated, options, row)


def _number(header: fits.Header, card: str) -> float:
    try:
        return float(header[card])
    except (TypeError, ValueError) as error:
        raise BadInput("value_out_of_range", f"{card} = {header[card]!r} is no number", field=card) from error


def _zero_point(
    hdu: Hdu, primary: fits.Header, row: Modality, scale: tuple[float, float], options: ReadOptions
) -> float:
    """AB magnitude of flux 1 of one HDU."""
    texts = [("BUNIT", str(head["BUNIT"])) for head in _nearest(hdu.header, primary, "BUNIT")]
    points = [(card, _number(head, card)) for card in ZERO_POINT_CARDS for head in _nearest(hdu.header, primary, card)]
    for head in _nearest(hdu.header, primary, "FLUXMAG0"):
        flux0 = _number(head, "FLUXMAG0")
        if not flux0 > 0:
            raise BadInput("value_out_of_range", f"FLUXMAG0 = {flux0}", field="FLUXMAG0")
        points.append(("FLUXMAG0", float(2.5 * np.log10(flux0))))
    stated = {key for head in (hdu.header, primary) for key in head}
    viewer = row.survey == "legacysurvey" and stated >= {"SURVEY", "VERSION", "IMAGETYP"} and stated & {"BANDS", "BAND"}
    at_native = all(abs(s / (row.pixel_scale or s) - 1) <= conventions.PIXEL_SCALE_TOLERANCE for s in scale)
    if viewer and at_native and not texts and not points:
        # Cutouts of the viewer carry no unit; at 0.262 arcsec they hold the coadds' nanomaggies, at another scale
        # they do not (https://www.legacysurvey.org/svtips/).
        points.append(("the Legacy Surveys' cutout service", 22.5))
    return conventions.zero_point(row, texts, points, options)


def _nearest(own: fits.Header, primary: fits.Header, card: str) -> list[fits.Header]:
    """The header that states `card` for an HDU: its own before the primary's."""
    return [head for head in (own, primary) if str(head.get(card, "")).strip()][:1]


def _with_companions(plane: Plane, index: int, n_planes: int, hdus: Sequence[Hdu], row: Modality) -> Plane:
    """The plane with its noise and its mask, from HDUs that name its band or hold all bands."""
    for hdu in hdus:
        if hdu.role in ("flux", "other"):
            continue
        pixels = _companion_pixels(hdu, plane, index, n_planes, row)
        if pixels is None:
            continue
        if pixels.shape != plane.flux.shape:
            raise BadInput("shape_mismatch", f"{pixels.shape}, the image has {plane.flux.shape}", field=hdu.label)
        twice = plane.mask if hdu.role == "mask" else plane.noise
        if twice is not None:
            raise BadInput("statement_conflict", f"{plane.band} has two HDUs of kind {hdu.role}", field=hdu.label)
        if hdu.role == "mask":
            plane = replace(plane, mask=pixels, bits=_bits(hdu, plane.band, row))
        else:
            kind: Noise = "ivar" if hdu.role == "ivar" else "variance" if hdu.role == "variance" else "error"
            plane = replace(plane, noise=pixels, noise_kind=kind)
    return plane


def _companion_pixels(hdu: Hdu, plane: Plane, index: int, n_planes: int, row: Modality) -> NDArray[Any] | None:
    if len(hdu.planes) == n_planes and (hdu.pixels.ndim == 3 or n_planes == 1):
        own: NDArray[Any] = hdu.planes[index if n_planes > 1 else 0]
        return own
    roles = set().union(*ROLES.values(), FLUX_WORDS)
    named = [str(hdu.header[card]) for card in BAND_CARDS if card in hdu.header]
    named = named or ["-".join(word for word in words(hdu.header, "EXTNAME") if word not in roles)]
    band = conventions.canonical_band(named[0], row)
    if band is not None:
        return hdu.planes[0] if band == plane.band else None
    if hdu.role == "mask" and hdu.pixels.ndim == 2:
        return hdu.pixels  # one mask for all bands
    raise BadInput(
        "band_missing",
        f"which of {n_planes} planes it belongs to is not stated",
        field=hdu.label,
        fix="name its band in EXTNAME or FILTER",
    )


def _bits(hdu: Hdu, band: str, row: Modality) -> BadBits:
    if row.survey == "legacysurvey" and "MASKBITS" in words(hdu.header, "EXTNAME", "IMAGETYP"):
        return maskbits(band)
    if row.survey == "hsc" and hdu.pixels.dtype.kind in "iu":
        return afw_planes(cards_of(hdu))
    return BadBits()


def _release(cards: Sequence[fits.Header], options: ReadOptions) -> str | None:
    texts = [(card, str(head[card]).strip().lower()) for card in RELEASE_CARDS for head in cards if card in head]
    # VERSION is the release in the viewer's cutouts and the version of some program elsewhere.
    stated = [(card, text) for card, text in texts if card != "VERSION" or re.fullmatch(r"p?dr\d+\w*", text)][:1]
    if options.release is not None:
        stated.append(("the option release", options.release.strip().lower()))
    return conventions.agree("release", stated, str.__eq__)
