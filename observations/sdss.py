"""SDSS, BOSS, eBOSS and SDSS-V spectra: spec-*.fits, and the older spSpec-*.fit and spPlate-*.fits.

    spec     HDU COADD: flux, loglam (log10 of vacuum Angstrom), ivar, and_mask; HDU 2: class, redshift, position
    spSpec   one image, rows flux, continuum-subtracted flux, error, mask; wavelengths by the header
    spPlate  images flux, ivar, and_mask, or_mask with one fibre a row; a table of fibres

All are in vacuum and in the heliocentric frame, as the survey documents
(https://www.sdss4.org/dr17/spectro/spectro_basics/), in 1e-17 erg / (s cm2 Angstrom).
A pixel is bad if and_mask is not 0 or ivar <= 1e-6. or_mask is not used: one bad exposure of many is not in the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from albireo.observations.errors import AlbireoError, BadInput
from albireo.observations.fits_cells import (
    cards_of,
    column,
    columns_of,
    first_row,
    is_table_with,
    native,
    numbers,
    plain,
)
from albireo.observations.modalities import FLUX_DENSITY
from albireo.observations.observation import Observation, Provenance, Spectrum
from albireo.observations.options import ReadOptions
from albireo.observations.packed_spectra import Terms
from albireo.observations.positions import of_row
from albireo.observations.source import Source
from albireo.observations.spectral_terms import known, measured, position, solution, survey_terms, whole

KEY = "tok_spectrum_sdss"
LEAST_IVAR = 1e-6
"""Smaller inverse variances are rejected pixels that were left at next to nothing, not 0."""
EMISSION_LINE = 1 << 30
"""Bit of the spSpec mask that says a line was found here: the pixel is good."""
SPEC_CLASSES = {1: "STAR", 2: "GALAXY", 3: "QSO", 4: "QSO", 6: "STAR", 7: "GALAXY"}
"""SPEC_CLN of spSpec files; 5 is sky, 0 is unknown."""
MISSPELT_UNIT = "erg/cm/s/ang"
"""BUNIT of spSpec files as the pipeline wrote it, for erg/cm^2/s/Ang."""

_METADATA = {
    "redshift": "Z",
    "redshift_err": "Z_ERR",
    "class": "CLASS",
    "subclass": "SUBCLASS",
    "zwarning": "ZWARNING",
    "plate": "PLATE",
    "mjd": "MJD",
    "fiber": "FIBERID",
    "run2d": "RUN2D",
    "sn_median": "SN_MEDIAN_ALL",
}
_IDS = ("SPECOBJID", "CATALOGID", "SDSS_ID", "THING_ID", "BESTOBJID")


def _is_sdss(header: Mapping[str, Any]) -> bool:
    return "SDSS" in str(header.get("TELESCOP", "")).upper()


def sniff_spec(source: Source) -> bool:
    """True for spec-*.fits: a table of flux, loglam and ivar with and_mask, or called COADD."""
    if not source.is_fits:
        return False
    with source.fits() as hdus:
        return any(_is_coadd(hdu) for hdu in hdus) and "LAMOST" not in str(hdus[0].header.get("TELESCOP", ""))


def _is_coadd(hdu: Any) -> bool:
    return is_table_with(hdu, ("FLUX", "LOGLAM")) and ("AND_MASK" in columns_of(hdu) or hdu.name == "COADD")


def sniff_spspec(source: Source) -> bool:
    """True for spSpec-*.fit: SDSS, one image of 4 or more rows with a wavelength solution."""
    return _is_image(source, plate=False)


def sniff_spplate(source: Source) -> bool:
    """True for spPlate-*.fits: SDSS, images of one shape with a wavelength solution."""
    return _is_image(source, plate=True)


def _is_image(source: Source, plate: bool) -> bool:
    if not source.is_fits:
        return False
    with source.fits() as hdus:
        shape, header = hdus[0].shape, hdus[0].header
        if len(shape) != 2 or not _is_sdss(header) or not ("COEFF0" in header or "CRVAL1" in header):
            return False
        images = len(hdus) > 2 and all(hdu.is_image and hdu.shape == shape for hdu in hdus[1:3])
        return images if plate else not images and 4 <= shape[0] <= 6


def read_spec(source: Source, options: ReadOptions, companions: Sequence[Source]) -> list[Observation | AlbireoError]:
    """The one object of a spec-*.fits."""
    with source.fits() as hdus:
        header = cards_of(hdus[0])
        number, coadd = next((i, hdu) for i, hdu in enumerate(hdus) if _is_coadd(hdu))
        flux, loglam, ivar, and_mask = (numbers(coadd, name) for name in ("FLUX", "LOGLAM", "IVAR", "AND_MASK"))
        stated = coadd.columns[columns_of(coadd)["FLUX"]].unit
        row = first_row(hdus[number + 1]) if len(hdus) > number + 1 else {}
    unit = ("the column flux", str(stated)) if stated else _unit(header)
    terms = _terms(header, unit, options)
    wavelength = 10.0 ** loglam.astype(np.float64)
    spectrum, flags = measured(wavelength, flux, ivar, _bad(and_mask, ivar), terms)
    row = {name: value for name, value in {**_header_row(header), **row}.items() if not isinstance(value, tuple)}
    ra, dec, lost = _position(row)
    name, origin = _identity(row, source)
    metadata = {**known(row, _METADATA), "id_from": origin} | {
        key.lower(): str(row[key]) for key in _IDS if str(row.get(key, "")) not in ("", "0")
    }
    where = source.provenance("sdss_spec", survey="sdss", release=options.release, hdu="COADD")
    return [_object(name, spectrum, (ra, dec), metadata, where, (*flags, *lost))]


def _object(
    name: str,
    spectrum: Spectrum,
    place: tuple[float | None, float | None],
    metadata: Mapping[str, Any],
    where: Provenance,
    flags: tuple[str, ...],
) -> Observation:
    """The object of a single-spectrum file; a redshift that the pipeline doubts is flagged."""
    warned = ("zwarning",) if metadata.get("zwarning") else ()
    return Observation(
        id=name,
        data={KEY: spectrum},
        ra=place[0],
        dec=place[1],
        metadata=metadata,
        provenance={KEY: where},
        flags=(*flags, *warned),
    )


def read_spspec(source: Source, options: ReadOptions, companions: Sequence[Source]) -> list[Observation | AlbireoError]:
    """The one object of a spSpec-*.fit; an error of 0 is no information."""
    with source.fits() as hdus:
        header = cards_of(hdus[0])
        pixels = native(hdus[0].data).astype(np.float64)
        wavelength = solution(header, pixels.shape[1])
    if header.get("SPEC_CLN") == 5:
        raise _no_target("SPEC_CLN is 5, sky")
    terms = _terms(header, _unit(header), options)
    bits = np.where(np.isfinite(pixels[3]), pixels[3], 1.0).astype(np.int64)
    spectrum, flags = measured(wavelength, pixels[0], pixels[2], (bits & ~EMISSION_LINE) != 0, terms, "error")
    row = _header_row(header)
    ra, dec, lost = _position({"RA": header.get("RAOBJ"), "DEC": header.get("DECOBJ")})
    name, origin = _identity(row, source)
    metadata = {**known(row, _METADATA), "id_from": origin}
    metadata |= known(header, {"redshift": "Z", "redshift_err": "Z_ERR", "zwarning": "Z_WARNIN"})
    if (kind := SPEC_CLASSES.get(header.get("SPEC_CLN", 0))) is not None:
        metadata["class"] = kind
    where = source.provenance("sdss_spspec", survey="sdss", release=options.release, hdu="0")
    return [_object(name, spectrum, (ra, dec), metadata, where, (*flags, *lost))]


def read_spplate(
    source: Source, options: ReadOptions, companions: Sequence[Source]
) -> list[Observation | AlbireoError]:
    """One object per fibre, in order; fibres on the sky or on nothing are `not_a_target`."""
    with source.fits() as hdus:
        header = cards_of(hdus[0])
        flux, ivar, and_mask = (native(hdus[i].data) for i in range(3))
        wavelength = solution(header, flux.shape[1])
        plugs = next((hdu for hdu in hdus if is_table_with(hdu, ("FIBERID", "OBJTYPE"))), None)
        if plugs is None:
            raise BadInput(
                "column_missing",
                "no table of fibres with FIBERID and OBJTYPE",
                field="PLUGMAP",
                fix="give the whole spPlate file, whose HDU 5 tells fibres on objects from those on the sky",
            )
        names = ("FIBERID", "RA", "DEC", "OBJTYPE")
        cells_of = [*(numbers(plugs, name) for name in names[:3]), column(plugs, names[3])]
        if several := [name for name, cells in zip(names, cells_of, strict=True) if cells.ndim != 1]:
            raise BadInput("shape_mismatch", "several values a fibre", field=several[0], fix="fetch the file again")
        fibres = [dict(zip(names, cells, strict=True)) for cells in zip(*cells_of, strict=True)]
    if not len(fibres) == len(flux) == len(ivar) == len(and_mask):
        raise BadInput(
            "shape_mismatch",
            f"{len(flux)} spectra and {len(fibres)} fibres",
            field="PLUGMAP",
            fix="fetch the file again",
        )
    terms = _terms(header, _unit(header), options)
    items: list[Observation | AlbireoError] = []
    for i, cells in enumerate(fibres):
        fibre = {name: plain(value) for name, value in cells.items()}
        try:
            spectrum, flags = _fibre(fibre, wavelength, flux[i], ivar[i], and_mask[i], terms)
        except AlbireoError as error:
            items.append(of_row(error, source.name, f"fibre {fibre['FIBERID']} (row {i})"))
            continue
        row = _header_row(header) | {"FIBERID": fibre["FIBERID"]}
        ra, dec, lost = _position(fibre)
        name, origin = _identity(row, source)
        items.append(
            Observation(
                id=name,
                data={KEY: spectrum},
                ra=ra,
                dec=dec,
                metadata={**known(row, _METADATA), "objtype": fibre["OBJTYPE"], "id_from": origin},
                provenance={
                    KEY: source.provenance("sdss_spplate", survey="sdss", release=options.release, hdu="0", row=i)
                },
                flags=(*flags, *lost),
            )
        )
    return items


def _fibre(
    fibre: Mapping[str, Any],
    wavelength: NDArray[np.float64],
    flux: NDArray[Any],
    ivar: NDArray[Any],
    and_mask: NDArray[Any],
    terms: Terms,
) -> tuple[Spectrum, tuple[str, ...]]:
    if str(fibre["OBJTYPE"]).upper() == "SKY" or fibre["FIBERID"] < 1:
        raise _no_target(f"OBJTYPE is {fibre['OBJTYPE']!r}, FIBERID {fibre['FIBERID']}")
    return measured(wavelength, flux, ivar, _bad(and_mask, ivar), terms)


def _no_target(what: str) -> BadInput:
    return BadInput("not_a_target", what, field="OBJTYPE", fix="nothing to mend: this fibre was not on an object")


def _bad(and_mask: NDArray[Any], ivar: NDArray[Any]) -> NDArray[np.bool_]:
    if and_mask.shape != ivar.shape:
        raise BadInput("shape_mismatch", f"a mask of shape {and_mask.shape} for {ivar.shape}", field="and_mask",
                       fix="fetch the file again")  # fmt: skip
    return np.asarray((and_mask != 0) | ~(ivar > LEAST_IVAR))


def _unit(header: Mapping[str, Any]) -> tuple[str, str]:
    text = str(header.get("BUNIT", "")).strip()
    if not text:
        return "the survey's documentation", FLUX_DENSITY
    if text.lower().endswith(MISSPELT_UNIT):
        text = text.lower().replace(MISSPELT_UNIT, "erg/cm^2/s/Ang")
    return "BUNIT", text


def _terms(header: Mapping[str, Any], unit: tuple[str, str], options: ReadOptions) -> Terms:
    medium: tuple[str, Literal["vacuum", "air"]] = ("the survey's documentation", "vacuum")
    if header.get("VACUUM") in (False, 0):
        medium = ("VACUUM", "air")
    return survey_terms(KEY, options, unit=unit, medium=medium, frame=("the survey's documentation", "heliocentric"))


def _header_row(header: Mapping[str, Any]) -> dict[str, Any]:
    """What the primary header says of the object, under the names of the table in HDU 2."""
    cards = {"PLATE": "PLATEID", "MJD": "MJD", "FIBERID": "FIBERID", "RUN2D": "RUN2D"}
    cards |= {"PLUG_RA": "PLUG_RA", "PLUG_DEC": "PLUG_DEC", "SPECOBJID": "SPEC_ID"}
    return {name: plain(header[card]) for name, card in cards.items() if card in header}


def _position(row: Mapping[str, Any]) -> tuple[float | None, float | None, tuple[str, ...]]:
    """Where the fibre was: PLUG_RA, in SDSS-V RACAT or FIBER_RA, before the RA of a photometric match."""
    for ra, dec in (("PLUG_RA", "PLUG_DEC"), ("RACAT", "DECCAT"), ("FIBER_RA", "FIBER_DEC"), ("RA", "DEC")):
        if row.get(ra) is not None and row.get(dec) is not None:
            return position(row[ra], row[dec])
    return position(None, None)


def _identity(row: Mapping[str, Any], source: Source) -> tuple[str, str]:
    """(id, what it was made of): plate-mjd-fibre, field-mjd-catalogid in SDSS-V, SPECOBJID, or the file's name."""
    plate, mjd, fibre = (whole(row.get(name)) for name in ("PLATE", "MJD", "FIBERID"))
    if plate and mjd and fibre:
        return f"sdss-{plate:04d}-{mjd}-{fibre:04d}", "plate-mjd-fiber"
    # Beside a PLATE, FIELD is a frame of the imaging survey; SDSS-V has fields of fibres and no plates.
    field, catalog = whole(row.get("FIELD")), whole(row.get("CATALOGID"))
    if "PLATE" not in row and field and mjd and catalog:
        return f"sdss-{field:06d}-{mjd}-{catalog}", "field-mjd-catalogid"
    if row.get("SPECOBJID"):
        return str(row["SPECOBJID"]), "SPECOBJID"
    return PurePath(source.name).name.split(".")[0], "file name"


FORMATS: tuple[tuple[Any, ...], ...] = (
    ("sdss_spec", "SDSS, BOSS or SDSS-V spectrum (spec-*.fits)", sniff_spec, read_spec),
    ("sdss_spplate", "SDSS plate of spectra (spPlate-*.fits)", sniff_spplate, read_spplate),
    ("sdss_spspec", "SDSS DR1-7 spectrum (spSpec-*.fit)", sniff_spspec, read_spspec),
)
