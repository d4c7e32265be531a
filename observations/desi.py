"""DESI spectra: coadd-*.fits and spectra-*.fits, several targets a file, and the redrock-*.fits that completes them.

HDUs <camera>_WAVELENGTH (P,), <camera>_FLUX, _IVAR, _MASK (rows, P) of cameras B, R, Z, or BRZ co-added already, and
FIBERMAP with a row for each. Where cameras overlap, and where a target has several rows (exposures), pixels are
averaged by inverse variance; nothing is resampled, because all cameras are extracted on one grid of 0.8 A. A pixel
counts if its mask is 0, flux and ivar are finite and ivar > 0. Outliers of the sky subtraction (9400 A, desispec issue
2725) are not masked by the survey: they carry little weight by their own small ivar, and are not touched here.

Wavelengths are in vacuum and corrected to the barycentre of the solar system at extraction, as the survey documents.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from albireo.observations.desi_targets import Target, group, photometry, target_metadata
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.fits_cells import column, columns_of, is_table_with, native, plain
from albireo.observations.modalities import FLUX_DENSITY
from albireo.observations.observation import Bools, Doubles, Observation
from albireo.observations.options import ReadOptions
from albireo.observations.packed_spectra import Terms
from albireo.observations.positions import of_row
from albireo.observations.source import OBJECT_BYTES, Source
from albireo.observations.spectral_terms import known, measured, parse_unit, position, survey_terms

KEY = "tok_spectrum_desi"
ALIGNED = 1e-3
"""Angstrom within which the pixels of two cameras are the same pixel."""
BLOCK = 256
"""Targets co-added at a time, which bounds the memory of float64 sums."""
REDSHIFT_HDUS = ("REDSHIFTS", "ZBEST")

_REDROCK = {
    "redshift": "Z",
    "redshift_err": "ZERR",
    "zwarning": "ZWARN",
    "class": "SPECTYPE",
    "subclass": "SUBTYPE",
    "deltachi2": "DELTACHI2",
}
_GROUP_CARDS = ("SPGRP", "SPGRPVAL", "SURVEY", "PROGRAM", "TILEID", "PETAL", "HPXPIXEL", "HPXNSIDE")


@dataclass(frozen=True)
class Camera:
    """One camera: wavelength (P,) in Angstrom; flux, ivar, mask (R, P) as stored, mask None if there is none."""

    name: str
    wavelength: Doubles
    flux: NDArray[Any]
    ivar: NDArray[Any]
    mask: NDArray[Any] | None


def sniff_desi(source: Source) -> bool:
    """True if a camera has wavelengths and fluxes in HDUs of their own."""
    if not source.is_fits:
        return False
    with source.fits() as hdus:
        return bool(_cameras_of(hdus))


def _cameras_of(hdus: fits.HDUList) -> list[str]:
    names = {str(hdu.name).upper() for hdu in hdus}
    cameras = [name.removesuffix("_WAVELENGTH") for name in names if name.endswith("_WAVELENGTH")]
    return sorted(camera for camera in cameras if f"{camera}_FLUX" in names)


def sniff_redrock(source: Source) -> bool:
    """True for a table of redshifts by TARGETID."""
    if not source.is_fits:
        return False
    with source.fits() as hdus:
        return _redshifts(hdus) is not None


def _redshifts(hdus: fits.HDUList) -> fits.BinTableHDU | None:
    return next(
        (hdu for hdu in hdus if hdu.name in REDSHIFT_HDUS and is_table_with(hdu, ("TARGETID", "Z"))),
        None,
    )


def refuse_redrock(
    source: Source, options: ReadOptions, companions: Sequence[Source]
) -> list[Observation | AlbireoError]:
    """Redshifts alone are labels of objects that are not there."""
    raise BadInput(
        "companion_missing",
        "redshifts of DESI targets, without their spectra",
        file=source.name,
        fix="give the coadd file with the same TARGETIDs along",
    )


@dataclass(frozen=True)
class _Contents:
    """What tells which files belong together: TARGETIDs of spectra and of redshifts, and the group in the header."""

    spectra: frozenset[int]
    redshifts: frozenset[int]
    cards: Mapping[str, str]


_CONTENTS: weakref.WeakKeyDictionary[Source, _Contents] = weakref.WeakKeyDictionary()


def _contents(source: Source) -> _Contents:
    """Remembered per source, because every pair of files of a request is looked at."""
    if source not in _CONTENTS:
        found = _Contents(frozenset(), frozenset(), {})
        try:
            with source.fits() as hdus:
                header = hdus[0].header
                cards = {card: str(header[card]).strip() for card in _GROUP_CARDS if card in header}
                fibermap = next((hdu for hdu in hdus if hdu.name == "FIBERMAP"), None)
                found = _Contents(_ids(fibermap) if _cameras_of(hdus) else frozenset(), _ids(_redshifts(hdus)), cards)
        except BadInput:
            # Whatever is wrong with a file is for its own reader to say; it completes nothing.
            pass
        _CONTENTS[source] = found
    return _CONTENTS[source]


def _ids(table: Any) -> frozenset[int]:
    return frozenset(column(table, "TARGETID").tolist()) if is_table_with(table, ("TARGETID",)) else frozenset()


def completes(source: Source, other: Source, options: ReadOptions) -> bool:
    """True if `other` holds redshifts of targets of `source`, and is not of another tile, pixel or survey."""
    if not other.is_fits:
        return False
    spectra, redshifts = _contents(source), _contents(other)
    if spectra.spectra.isdisjoint(redshifts.redshifts):
        return False
    both = spectra.cards.keys() & redshifts.cards.keys()
    return all(spectra.cards[card] == redshifts.cards[card] for card in both)


@dataclass(frozen=True)
class _File:
    """What all targets of a file share."""

    source: Source
    release: str | None
    wavelength: Doubles
    terms: Terms
    cards: Mapping[str, Any]
    flags: tuple[str, ...]
    redshifts: Sequence[Mapping[int, Mapping[str, Any]]]


def read_desi(source: Source, options: ReadOptions, companions: Sequence[Source]) -> list[Observation | AlbireoError]:
    """One object per TARGETID in the file's order; fibres on no object are `not_a_target`.

    Raises column_missing, shape_mismatch, grid_mismatch, statement_conflict if nothing of the file can be read.
    """
    with source.fits() as hdus:
        header = {card: plain(hdus[0].header[card]) for card in (*_GROUP_CARDS, "NIGHT") if card in hdus[0].header}
        cameras = [_camera(hdus, name) for name in _cameras_of(hdus)]
        unit = _unit(hdus)
        fibermap = _fibermap(hdus)
    rows = {len(camera.flux) for camera in cameras} | {len(fibermap["TARGETID"])}
    if len(rows) != 1:
        raise BadInput(
            "shape_mismatch",
            f"cameras and FIBERMAP have {sorted(rows)} rows",
            field="FIBERMAP",
            fix="fetch the file again",
        )
    said = "the survey's documentation"
    terms = survey_terms(KEY, options, unit=unit, medium=(said, "vacuum"), frame=(said, "barycentric"))
    wavelength, places = common_grid(cameras)
    file = _File(
        source,
        options.release,
        wavelength,
        terms,
        known(header, {card.lower(): card for card in header}),
        ("missing_cameras",) if 0 < len({"B", "R", "Z"} & {camera.name for camera in cameras}) < 3 else (),
        [_read_redrock(other) for other in companions],
    )
    targets = group(fibermap)
    source.make(len(targets), OBJECT_BYTES + 21 * len(wavelength))  # wavelength, flux, ivar and mask
    items: list[Observation | AlbireoError] = []
    for start in range(0, len(targets), BLOCK):
        block = targets[start : start + BLOCK]
        for target, sums in zip(block, coadd(cameras, places, len(wavelength), block), strict=True):
            try:
                items.append(_observe(file, target, sums))
            except AlbireoError as error:
                items.append(of_row(error, source.name, f"TARGETID {target.id}"))
    return items


def _observe(file: _File, target: Target, sums: Sums) -> Observation:
    if target.reason is not None:
        raise BadInput(
            "not_a_target", target.reason, field="OBJTYPE", fix="nothing to mend: this fibre was not on an object"
        )
    spectrum, found = measured(file.wavelength, sums.flux, sums.ivar, None, file.terms)
    scalars, release, of_photometry = photometry(target.row)
    labels, of_labels = _labels(target.id, file.redshifts)
    ra, dec, lost = position(target.row.get("TARGET_RA"), target.row.get("TARGET_DEC"))
    row = int(target.rows[0])
    legacy = file.source.provenance("desi", survey="legacysurvey", release=release, hdu="FIBERMAP", row=row)
    here = file.source.provenance("desi", survey="desi", release=file.release, row=row)
    nan = ("nan_pixels",) if sums.nan else ()
    return Observation(
        id=str(target.id),
        data={KEY: spectrum, **scalars},
        ra=ra,
        dec=dec,
        metadata={**file.cards, **target_metadata(target), **labels},
        provenance={KEY: here} | dict.fromkeys(scalars, legacy),
        flags=(*file.flags, *nan, *found, *target.flags, *of_photometry, *lost, *of_labels),
    )


# Pixels


@dataclass(frozen=True)
class Sums:
    """flux (L,) float64, the mean by inverse variance, 0 where nothing was seen; ivar (L,), their sum; any NaN met."""

    flux: Doubles
    ivar: Doubles
    nan: bool


def common_grid(cameras: Sequence[Camera]) -> tuple[Doubles, list[NDArray[np.int64]]]:
    """Wavelengths (L,) that any camera has, and the place (P,) in it of each camera's pixels.

    Raises grid_mismatch if pixels of different cameras are not the same or whole steps apart.
    """
    for camera in cameras:
        if len(camera.wavelength) < 2 or not (np.diff(camera.wavelength) > 0).all():
            raise BadInput(
                "wavelength_not_monotonic",
                f"wavelengths of camera {camera.name} do not increase",
                field=f"{camera.name}_WAVELENGTH",
                fix="fetch the file again",
            )
    if len(cameras) == 1:
        return cameras[0].wavelength, [np.arange(len(cameras[0].wavelength))]
    bluest = min(cameras, key=lambda camera: float(camera.wavelength[0])).wavelength
    step = float(bluest[-1] - bluest[0]) / (len(bluest) - 1)
    steps = []
    for camera in cameras:
        number = np.rint((camera.wavelength - bluest[0]) / step).astype(np.int64)
        off = np.abs(camera.wavelength - (bluest[0] + step * number))
        if off.max() > ALIGNED or not (np.diff(number) > 0).all():
            raise BadInput(
                "grid_mismatch",
                f"pixels of camera {camera.name} are up to {off.max():.3g} A off the grid {bluest[0]:g} + {step:g} k",
                field=f"{camera.name}_WAVELENGTH",
                fix="give cameras on one grid, or spectra co-added over cameras (BRZ)",
            )
        steps.append(number)
    all_steps = np.unique(np.concatenate(steps))
    places = [np.searchsorted(all_steps, number) for number in steps]
    wavelength = np.empty(len(all_steps))
    for camera, place in zip(cameras, places, strict=True):
        wavelength[place] = camera.wavelength
    return wavelength, places


def coadd(
    cameras: Sequence[Camera], places: Sequence[NDArray[np.int64]], length: int, targets: Sequence[Target]
) -> Iterator[Sums]:
    """The mean by inverse variance over cameras and rows, for each target."""
    rows = np.concatenate([target.rows for target in targets])
    starts = np.cumsum([0, *(len(target.rows) for target in targets[:-1])])
    weight = np.zeros((len(targets), length))
    total = np.zeros((len(targets), length))
    nan = np.zeros(len(targets), np.bool_)
    for camera, place in zip(cameras, places, strict=True):
        flux = camera.flux[rows].astype(np.float64)
        ivar = camera.ivar[rows].astype(np.float64)
        finite = np.isfinite(flux) & np.isfinite(ivar)
        good: Bools = finite & (ivar > 0)
        if camera.mask is not None:
            good &= camera.mask[rows] == 0
        ivar = np.where(good, ivar, 0.0)
        weight[:, place] += np.add.reduceat(ivar, starts, axis=0)
        total[:, place] += np.add.reduceat(ivar * np.where(good, flux, 0.0), starts, axis=0)
        nan |= np.logical_or.reduceat(~finite.all(axis=1), starts)
    mean = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    for i in range(len(targets)):
        yield Sums(mean[i], weight[i], bool(nan[i]))


# HDUs


def _camera(hdus: fits.HDUList, name: str) -> Camera:
    """Pixels stay as stored: blocks of targets are converted when they are co-added."""
    names = {str(hdu.name).upper() for hdu in hdus}
    if f"{name}_IVAR" not in names:
        raise BadInput("column_missing", f"no HDU {name}_IVAR", field=f"{name}_IVAR", fix="fetch the whole file again")
    axis = hdus[f"{name}_WAVELENGTH"]
    factor = 1.0
    if axis.header.get("BUNIT"):
        factor = float(parse_unit(str(axis.header["BUNIT"])).to("Angstrom"))
    camera = Camera(
        name,
        native(axis.data).astype(np.float64) * factor,
        np.atleast_2d(hdus[f"{name}_FLUX"].data),
        np.atleast_2d(hdus[f"{name}_IVAR"].data),
        np.atleast_2d(hdus[f"{name}_MASK"].data) if f"{name}_MASK" in names else None,
    )
    shapes = {array.shape for array in (camera.flux, camera.ivar, camera.mask) if array is not None}
    if len(shapes) != 1 or camera.flux.shape[1:] != camera.wavelength.shape:
        raise BadInput(
            "shape_mismatch",
            f"camera {name}: {len(camera.wavelength)} wavelengths, flux, ivar and mask of shapes {sorted(shapes)}",
            field=f"{name}_FLUX",
            fix="fetch the file again",
        )
    return camera


def _unit(hdus: fits.HDUList) -> tuple[str, str]:
    """(where it is said, unit) of all cameras' fluxes."""
    texts = {str(hdus[f"{name}_FLUX"].header.get("BUNIT") or "").strip() for name in _cameras_of(hdus)}
    if len(texts) > 1:
        raise BadInput("statement_conflict", f"cameras have units {sorted(texts)}", field="BUNIT")
    text = texts.pop()
    return ("BUNIT", text) if text else ("the survey's documentation", FLUX_DENSITY)


def _fibermap(hdus: fits.HDUList) -> dict[str, NDArray[Any]]:
    table = next((hdu for hdu in hdus if hdu.name == "FIBERMAP"), None)
    if table is None or not is_table_with(table, ("TARGETID",)):
        raise BadInput(
            "column_missing",
            "no HDU FIBERMAP with TARGETID",
            field="FIBERMAP",
            fix="fetch the whole file again: without it nobody knows whose spectra these are",
        )
    return {name: native(table.data[written]) for name, written in columns_of(table).items()}


# Redshifts


def _read_redrock(source: Source) -> dict[int, dict[str, Any]]:
    """TARGETID -> metadata."""
    with source.fits() as hdus:
        table = _redshifts(hdus)
        assert table is not None, "completes() lets only files with redshifts come here"
        names = columns_of(table)
        columns = {name: native(table.data[names[name]]) for name in (*_REDROCK.values(), "TARGETID") if name in names}
    rows = zip(*columns.values(), strict=True)
    cells = ({name: plain(value) for name, value in zip(columns, row, strict=True)} for row in rows)
    return {row["TARGETID"]: known(row, _REDROCK) for row in cells}


def _labels(
    target: int, redshifts: Sequence[Mapping[int, Mapping[str, Any]]]
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Metadata and flags from the redrock files given; raises statement_conflict if they disagree."""
    found = [table[target] for table in redshifts if target in table]
    if any(row != found[0] for row in found[1:]):
        raise BadInput(
            "statement_conflict",
            f"redrock files give {', '.join(str(row.get('redshift')) for row in found)}",
            field="redshift",
            fix="give the redrock file of this coadd only",
        )
    if not found:
        return {}, ("no_redrock_row",) if redshifts else ()
    return found[0], ("zwarning",) if found[0].get("zwarning") else ()


FORMATS: tuple[tuple[Any, ...], ...] = (
    ("desi", "DESI coadd or spectra file", sniff_desi, read_desi, completes),
    ("desi_redrock", "DESI redrock file (redshifts that complete a coadd)", sniff_redrock, refuse_redrock),
)
