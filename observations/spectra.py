"""One-dimensional spectra in the layouts of SDSS, BOSS and LAMOST. DESI has a file of its own.

All three write vacuum wavelengths in the heliocentric frame: SDSS and BOSS by their data model, LAMOST by its cards
VACUUM and HELIO. A file that contradicts that, or an option that does, is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from albireo.observations import desi
from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.modalities import FLUX_DENSITY, MODALITIES
from albireo.observations.observation import Observation, Spectrum
from albireo.observations.options import ReadOptions
from albireo.observations.source import Source
from albireo.observations.wavelengths import air_to_vacuum

MIN_IVAR = 1e-6
"""Inverse variance at or below which SDSS calls a pixel bad."""

Item = Observation | AlbireoError


def make_spectrum(
    wavelength: NDArray[Any], flux: NDArray[Any], ivar: NDArray[Any], bad: NDArray[np.bool_], *, unit: str, frame: str,
    medium: str, file: str,
) -> tuple[Spectrum, tuple[str, ...]]:  # fmt: skip
    """A checked payload and its QA flags. Wavelength in Angstrom in `medium`; air is converted to vacuum.

    Bad pixels (also those that are not finite or have no information) get flux 0, ivar 0 and mask True.
    """
    lengths = {len(wavelength), len(flux), len(ivar), len(bad)}
    if len(lengths) != 1:
        raise BadInput("shape_mismatch", f"arrays of {sorted(lengths)} pixels belong together", file=file)
    grid = np.asarray(wavelength, np.float64)
    if len(grid) < 2 or not np.isfinite(grid).all() or not (np.diff(grid) > 0).all():
        raise BadInput(
            "wavelength_not_monotonic", "the wavelengths do not increase everywhere (reversed, or padded?)", file=file,
            field="wavelength", fix="sort the pixels by wavelength and cut the padding off",
        )  # fmt: skip
    if grid[-1] < 100.0:
        raise BadInput(
            "wavelength_unit", f"wavelengths from {grid[0]:g} to {grid[-1]:g} cannot be in Angstrom", file=file,
            field="wavelength", fix="give them in Angstrom",
        )  # fmt: skip
    if medium == "air":
        grid = air_to_vacuum(grid)
    values, weights = np.asarray(flux, np.float32), np.asarray(ivar, np.float32)
    mask = np.asarray(bad, bool) | ~np.isfinite(values) | ~np.isfinite(weights) | (weights <= 0)
    if mask.all():
        raise BadInput("no_coverage", "every pixel is masked or without information", file=file, field="flux")
    flags = ("masked_pixels",) if mask.any() else ()
    if (~np.isfinite(values)).any():
        flags += ("nan_pixels",)
    payload = Spectrum(
        grid, np.where(mask, np.float32(0), values), np.where(mask, np.float32(0), weights), mask, unit, frame,
        "air" if medium == "air" else "vacuum",
    )  # fmt: skip
    return payload, flags


def check_statements(options: ReadOptions, file: str, **known: str) -> None:
    """An option that contradicts what the format fixes is an error."""
    for name, value in known.items():
        given = getattr(options, name)
        if given is not None and given != value:
            raise BadInput(
                "statement_conflict", f"{name} is {value} by the file's format, the option says {given}", file=file,
                field=name, fix=f"leave the option {name} out",
            )  # fmt: skip


def _columns(hdu: fits.BinTableHDU) -> dict[str, str]:
    """Lower-case name -> the file's name of a column."""
    return {name.lower(): name for name in hdu.columns.names}


# --- SDSS and BOSS: spec-PLATE-MJD-FIBER.fits -------------------------------------------------------------------


def _is_sdss(source: Source) -> bool:
    if not source.is_fits:
        return False
    with source.fits() as hdus:
        return any(
            isinstance(hdu, fits.BinTableHDU) and {"flux", "loglam", "ivar"} <= _columns(hdu).keys() for hdu in hdus[1:]
        )


def _read_sdss(source: Source, options: ReadOptions, companions: Sequence[Source]) -> list[Item]:
    """One spectrum. Bad pixels: and_mask not 0, or ivar at most 1e-6."""
    check_statements(options, source.name, survey="sdss", medium="vacuum", frame="heliocentric")
    with source.fits() as hdus:
        number = next(
            i for i, hdu in enumerate(hdus) if isinstance(hdu, fits.BinTableHDU) and "loglam" in _columns(hdu)
        )
        names, data = _columns(hdus[number]), hdus[number].data
        if "and_mask" not in names:
            raise BadInput("column_missing", "there is no and_mask", file=source.name, field="and_mask")
        ivar = np.asarray(data[names["ivar"]], np.float64)
        bad = (np.asarray(data[names["and_mask"]]) != 0) | ~(ivar > MIN_IVAR)
        wavelength = 10.0 ** np.asarray(data[names["loglam"]], np.float64)
        spectrum, flags = make_spectrum(
            wavelength, data[names["flux"]], ivar, bad, unit=FLUX_DENSITY, frame="heliocentric", medium="vacuum",
            file=source.name,
        )  # fmt: skip
        known, header = _object_row(hdus, number), hdus[0].header
        if known.get("zwarning"):
            flags += ("zwarning",)
        row = MODALITIES["tok_spectrum_sdss"]
        where = source.provenance(
            "sdss-spec", survey="sdss", release=options.release or known.get("run2d"), hdu=hdus[number].name or str(number)
        )
        identity = known.get("specobjid") or "-".join(
            str(known.get(key, header.get(card, "")))
            for key, card in (("plate", "PLATEID"), ("mjd", "MJD"), ("fiberid", "FIBERID"))
        )
    ra, dec = known.get("plug_ra"), known.get("plug_dec")
    keep = ("redshift", "class", "subclass", "zwarning", "plate", "mjd", "fiberid")
    return [
        Observation(
            identity, {row.key: spectrum}, ra, dec, metadata={key: known[key] for key in keep if key in known},
            provenance={row.key: where}, flags=flags,
        )
    ]  # fmt: skip


def _object_row(hdus: fits.HDUList, number: int) -> dict[str, Any]:
    """What HDU 2 says of the object, in our names, as plain Python values; empty text is left out."""
    for hdu in hdus[number + 1 :]:
        if isinstance(hdu, fits.BinTableHDU) and len(hdu.data) == 1 and "class" in _columns(hdu):
            names = _columns(hdu)
            out: dict[str, Any] = {}
            for key in ("class", "subclass", "z", "zwarning", "plug_ra", "plug_dec", "plate", "mjd", "fiberid", "run2d",
                        "specobjid"):  # fmt: skip
                if key in names:
                    value = hdu.data[names[key]][0]
                    value = str(value).strip() if isinstance(value, str | np.str_) else np.asarray(value).item()
                    if value != "":
                        out["redshift" if key == "z" else key] = str(value) if key == "specobjid" else value
            return out
    return {}


# --- SDSS spPlate: many fibres on one log-linear grid -----------------------------------------------------------


def _is_spplate(source: Source) -> bool:
    if not source.is_fits:
        return False
    with source.fits() as hdus:
        head = hdus[0]
        return (
            head.data is not None and head.data.ndim == 2 and "COEFF0" in head.header
            and str(head.header.get("TELESCOP", "")).startswith("SDSS") and len(hdus) > 5
            and any(isinstance(hdu, fits.BinTableHDU) and "fiberid" in _columns(hdu) for hdu in hdus)
        )  # fmt: skip


def _read_spplate(source: Source, options: ReadOptions, companions: Sequence[Source]) -> list[Item]:
    """One object per fibre: flux, ivar and and_mask are HDUs 0, 1, 2; the plug map names the fibres."""
    check_statements(options, source.name, survey="sdss", medium="vacuum", frame="heliocentric")
    row = MODALITIES["tok_spectrum_sdss"]
    items: list[Item] = []
    with source.fits() as hdus:
        header = hdus[0].header
        wavelength = 10.0 ** (header["COEFF0"] + header["COEFF1"] * np.arange(header["NAXIS1"]))
        fibres = next(hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU) and "fiberid" in _columns(hdu))
        names = _columns(fibres)
        for i, (flux, ivar, masked) in enumerate(zip(hdus[0].data, hdus[1].data, hdus[2].data, strict=True)):
            fibre = int(fibres.data[names["fiberid"]][i])
            identity = f"{header.get('PLATEID')}-{header.get('MJD')}-{fibre}"
            try:
                spectrum, flags = make_spectrum(
                    wavelength, flux, ivar, (masked != 0) | ~(ivar > MIN_IVAR), unit=FLUX_DENSITY, frame="heliocentric",
                    medium="vacuum", file=source.name,
                )  # fmt: skip
            except BadInput as error:
                items.append(error.at(field=identity))
                continue
            ra, dec = (
                float(fibres.data[names[key]][i]) if key in names else None for key in ("ra", "dec")
            )
            where = source.provenance("sdss-spplate", survey="sdss", release=options.release, hdu="0", row=i)
            items.append(
                Observation(identity, {row.key: spectrum}, ra, dec, provenance={row.key: where}, flags=flags)
            )
    return items


# --- LAMOST -----------------------------------------------------------------------------------------------------


def _is_lamost(source: Source) -> bool:
    if not source.is_fits:
        return False
    with source.fits() as hdus:
        head = hdus[0]
        return (
            str(head.header.get("TELESCOP", "")).strip().upper() == "LAMOST"
            and head.data is not None and head.data.ndim == 2 and len(head.data) == 5 and "COEFF0" in head.header
        )  # fmt: skip


def _read_lamost(source: Source, options: ReadOptions, companions: Sequence[Source]) -> list[Item]:
    """One spectrum: rows flux, ivar, (a wavelength that is not used), and_mask, or_mask.

    The wavelength is 10 ** (COEFF0 + COEFF1 * i): row 2 does not hold it in every release.
    """
    check_statements(options, source.name, survey="lamost")
    row = MODALITIES["spectrum_lamost"]
    with source.fits() as hdus:
        header, data = hdus[0].header, hdus[0].data
        medium = _stated(header, "VACUUM", {True: "vacuum", False: "air"}, options.medium, source.name, "medium")
        frame = _stated(header, "HELIO", {True: "heliocentric", False: "observed"}, options.frame, source.name, "frame")
        wavelength = 10.0 ** (header["COEFF0"] + header["COEFF1"] * np.arange(data.shape[1]))
        spectrum, flags = make_spectrum(
            wavelength, data[0], data[1], data[3] != 0, unit=row.unit, frame=frame, medium=medium, file=source.name
        )
        identity = str(header.get("OBSID") or header.get("DESIG") or source.name).strip()
        metadata = {
            name: header[card]
            for name, card in (("redshift", "Z"), ("class", "CLASS"), ("subclass", "SUBCLASS"))
            if header.get(card) not in (None, "")
        }
        ra, dec = header.get("RA"), header.get("DEC")
        release = options.release or (str(header["DATA_V"]).strip() if "DATA_V" in header else None)
        where = source.provenance("lamost", survey="lamost", release=release, hdu="0")
    flags += ("relative_flux",)
    return [Observation(identity, {row.key: spectrum}, ra, dec, metadata=metadata, provenance={row.key: where},
                        flags=flags)]  # fmt: skip


def _stated(
    header: fits.Header, card: str, values: dict[bool, str], given: str | None, file: str, field: str
) -> str:
    """What a logical card says, or the option if the card is absent."""
    if card in header:
        value = values[bool(header[card])]
        if given not in (None, value):
            raise BadInput(
                "statement_conflict", f"{card} says {value}, the option says {given}", file=file, field=field,
                fix=f"leave the option {field} out",
            )  # fmt: skip
        return value
    if given is None:
        code = "medium_missing" if field == "medium" else "frame_missing"
        raise BadInput(code, f"there is no {card} card", file=file, field=card, fix=f"state it by the option {field}")
    return given


FORMATS = (
    ("sdss-spec", "SDSS and BOSS spectrum (spec-*.fits)", _is_sdss, _read_sdss),
    ("sdss-spplate", "SDSS plate of spectra (spPlate-*.fits)", _is_spplate, _read_spplate),
    *desi.FORMATS,
    ("lamost", "LAMOST spectrum", _is_lamost, _read_lamost),
)
