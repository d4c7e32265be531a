"""LAMOST low-resolution spectra, as an image (DR1-7) or as a table with one row (from DR8 on).

    image   rows flux, inverse variance, (not used), andmask, ormask; wavelengths are 10**(COEFF0 + COEFF1 * pixel).
            Row 2 is the continuum-subtracted flux in some releases and a wavelength in others: EXTEN0 says which,
            and it is never taken for the wavelength.
    table   HDU COADD: FLUX, IVAR, WAVELENGTH, ANDMASK, ORMASK, each one array

Fluxes are calibrated relatively only: the flag `relative_flux`. VACUUM and HELIO in the header say medium and frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.fits_cells import cards_of, is_table_with, native, numbers, plain
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Observation
from albireo.observations.options import ReadOptions
from albireo.observations.packed_spectra import Terms
from albireo.observations.source import Source
from albireo.observations.spectral_terms import GRID_TOLERANCE, known, measured, position, solution, survey_terms, whole

KEY = "spectrum_lamost"
UNKNOWN = -9999.0
"""What the pipeline writes for a redshift or a signal-to-noise ratio that it could not measure."""

_METADATA = {
    "redshift": "Z",
    "redshift_err": "Z_ERR",
    "class": "CLASS",
    "subclass": "SUBCLASS",
    "designation": "DESIG",
    "objname": "OBJNAME",
    "objtype": "OBJTYPE",
    "obsid": "OBSID",
    "release": "DATA_V",
    "sn_u": "SNRU",
    "sn_g": "SNRG",
    "sn_r": "SNRR",
    "sn_i": "SNRI",
    "sn_z": "SNRZ",
}
_OLDER_CARDS = {f"sn_{band.lower()}": f"SN_{band}" for band in "UGRIZ"}


def sniff_lamost(source: Source) -> bool:
    """True if the header names LAMOST and the file holds pixels of a spectrum."""
    if not source.is_fits:
        return False
    with source.fits() as hdus:
        header = hdus[0].header
        if not any("LAMOST" in str(header.get(card, "")).upper() for card in ("TELESCOP", "ORIGIN", "AUTHOR")):
            return False
        image = len(hdus[0].shape) == 2 and ("COEFF0" in header or "CRVAL1" in header)
        return image or any(is_table_with(hdu, ("FLUX", "IVAR")) for hdu in hdus)


def read_lamost(source: Source, options: ReadOptions, companions: Sequence[Source]) -> list[Observation | AlbireoError]:
    """The one object of a file."""
    with source.fits() as hdus:
        header = {card: plain(value) for card, value in cards_of(hdus[0]).items()}
        wavelength, flux, ivar, and_mask = _image(header, hdus[0]) if len(hdus[0].shape) == 2 else _table(header, hdus)
    kinds = {str(header.get(card, "")).upper() for card in ("FIBERTYP", "OBJTYPE")}
    if kinds & {"SKY", "UNUSED", "POSERR", "DEAD"}:
        raise BadInput(
            "not_a_target",
            f"FIBERTYP is {header.get('FIBERTYP')!r}, OBJTYPE {header.get('OBJTYPE')!r}",
            field="FIBERTYP",
            fix="nothing to mend: this fibre was not on an object",
        )
    spectrum, flags = measured(wavelength, flux, ivar, and_mask != 0, _terms(header, options))
    metadata = known(header, _METADATA | {k: v for k, v in _OLDER_CARDS.items() if v in header})
    metadata = {key: value for key, value in metadata.items() if value != UNKNOWN}
    if "obsid" in metadata:
        metadata["obsid"] = str(metadata["obsid"])
    ra, dec, lost = position(header.get("RA"), header.get("DEC"))
    name, metadata["id_from"] = _identity(header, source)
    return [
        Observation(
            id=name,
            data={KEY: spectrum},
            ra=ra,
            dec=dec,
            metadata=metadata,
            provenance={
                KEY: source.provenance(
                    "lamost", survey="lamost", release=options.release or metadata.get("release"), hdu="0"
                )
            },
            flags=("relative_flux", *flags, *lost),
        )
    ]


Pixels = tuple[NDArray[np.float64], NDArray[Any], NDArray[Any], NDArray[Any]]
"""wavelength, flux, ivar, and_mask, all (L,)."""


def _image(header: Mapping[str, Any], hdu: fits.PrimaryHDU) -> Pixels:
    pixels = native(hdu.data)
    rows = str(header.get("EXTEN0", "Flux Inverse - Andmask Ormask")).lower().split()
    if pixels.shape[0] != len(rows) or not {"flux", "inverse", "andmask"} <= set(rows):
        raise BadInput(
            "shape_mismatch",
            f"{pixels.shape[0]} rows, EXTEN0 names {' '.join(rows)!r}",
            field="EXTEN0",
            fix="rows are flux, inverse variance, anything, andmask, ormask",
        )
    flux, ivar, and_mask = (pixels[rows.index(name)] for name in ("flux", "inverse", "andmask"))
    return solution(header, pixels.shape[1]), flux, ivar, and_mask


def _table(header: Mapping[str, Any], hdus: fits.HDUList) -> Pixels:
    hdu = next((hdu for hdu in hdus if is_table_with(hdu, ("FLUX", "IVAR", "WAVELENGTH", "ANDMASK"))), None)
    if hdu is None or len(hdu.data) != 1:
        names = ", ".join(str(hdu.name) for hdu in hdus[1:])
        raise BadInput(
            "modality_unknown",
            f"no low-resolution coadd among the HDUs {names}: medium-resolution spectra have no modality",
            field="COADD",
            fix="give low-resolution spectra, one row with FLUX, IVAR, WAVELENGTH and ANDMASK",
        )
    wavelength, flux, ivar, and_mask = (numbers(hdu, name)[0] for name in ("WAVELENGTH", "FLUX", "IVAR", "ANDMASK"))
    wavelength = wavelength.astype(np.float64)
    if "COEFF0" in header and "COEFF1" in header:
        by_header = solution(header, len(wavelength))
        # Columns are float32, which rounds by up to 0.0005 A.
        if not np.allclose(by_header, wavelength, rtol=0, atol=GRID_TOLERANCE):
            raise BadInput(
                "statement_conflict",
                f"COEFF0, COEFF1 begin at {by_header[0]:.2f} A, the column at {wavelength[0]:.2f} A",
                field="WAVELENGTH",
                fix="fetch the file again",
            )
        wavelength = by_header
    return wavelength, flux, ivar, and_mask


def _terms(header: Mapping[str, Any], options: ReadOptions) -> Terms:
    medium: Literal["vacuum", "air"] | None = options.medium
    stated = "the option medium"
    if isinstance(header.get("VACUUM"), (bool, int)):
        stated, medium = "VACUUM", "vacuum" if header["VACUUM"] else "air"
    if medium is None:
        raise BadInput(
            "medium_missing",
            "the header does not say VACUUM",
            field="VACUUM",
            fix="give the option medium: vacuum or air",
        )
    corrected = header.get("HELIO")
    frame = options.frame
    if isinstance(corrected, (bool, int)):
        frame = "heliocentric" if corrected else "observed"
    if frame is None:
        raise BadInput(
            "frame_missing", "the header does not say HELIO", field="HELIO", fix="give the option frame: heliocentric"
        )
    unit = ("the survey's documentation", MODALITIES[KEY].unit)
    return survey_terms(KEY, options, unit=unit, medium=(stated, medium), frame=("HELIO", frame.lower()))


def _identity(header: Mapping[str, Any], source: Source) -> tuple[str, str]:
    """(id, what it was made of): day, plan, spectrograph and fibre, as in the survey's file names, or OBSID."""
    day, spectrograph, fibre = (whole(header.get(card)) for card in ("LMJD", "SPID", "FIBERID"))
    plan = header.get("PLANID")
    if day and plan and spectrograph is not None and fibre is not None:
        return f"lamost-{day}-{plan}_sp{spectrograph:02d}-{fibre:03d}", "lmjd-planid-spid-fiberid"
    if header.get("OBSID"):
        return f"lamost-{header['OBSID']}", "OBSID"
    return PurePath(source.name).name.split(".")[0], "file name"


FORMATS: tuple[tuple[Any, ...], ...] = (
    ("lamost", "LAMOST low-resolution spectrum (FITS image or table)", sniff_lamost, read_lamost),
)
