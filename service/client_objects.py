"""Images and spectra in memory as the files that state them, with noise, mask, units and world coordinates.

    fits_bytes       HDUs as a FITS file
    image_bytes      CCDData or NDData as a FITS file: INVVAR, VARIANCE or ERROR, and MASK, beside the image
    spectrum_table   a one-dimensional specutils Spectrum as a table of one row

Nothing is converted, and the input stays as it is. What these objects cannot say (survey, bands, vacuum or air,
velocity frame) stands in their `meta`, or is said by the reading options; the readers refuse what nobody says.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from astropy import units
from astropy.io import fits
from astropy.io.fits.verify import VerifyWarning
from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty
from astropy.wcs import WCS

from albireo.observations.errors import BadInput
from albireo.service.client_tables import scalars_of, with_meta

KINDS = {
    InverseVariance: ("ivar", "INVVAR", -2),
    VarianceUncertainty: ("variance", "VARIANCE", 2),
    StdDevUncertainty: ("error", "ERROR", 1),
}
"""Class of an uncertainty -> its column, its HDU, and the power of the flux unit that it has."""

LABELS = ("id", "object_id", "objid", "targetid", "source_id", "ra", "dec", "redshift")
"""Metadata of a spectrum that belongs to its object. A FITS header's are not taken: its RA may be the telescope's."""

TERMS = ("survey", "medium", "vacuum", "airorvac", "frame", "specsys")
"""Metadata of a spectrum, or cards of its FITS header, that say what its numbers are."""


def fits_bytes(hdus: Sequence[Any]) -> bytes:
    """HDUs as a FITS file. Compressed images are written plain: compressing them again could round their pixels."""
    copies = [_copy(hdu) for hdu in hdus]
    if not isinstance(copies[0], fits.PrimaryHDU):
        copies.insert(0, fits.PrimaryHDU())
    stream = io.BytesIO()
    fits.HDUList(copies).writeto(stream, output_verify="silentfix+ignore")
    return stream.getvalue()


def _copy(hdu: Any) -> Any:
    if isinstance(hdu, fits.CompImageHDU):
        return fits.ImageHDU(np.array(hdu.data), hdu.header.copy(), name=hdu.name)
    return hdu.copy()


def image_bytes(image: Any) -> bytes:
    """An image with the arrays and the header that it has. BadInput for what FITS cannot state."""
    header = _header(image.meta)
    header.update(_world(image.wcs))
    if image.unit is not None:
        header["BUNIT"] = _text(image.unit)
    pixels = np.asarray(image.data)
    hdus: list[Any] = [fits.PrimaryHDU(_pixels(pixels), header)]
    if image.uncertainty is not None:
        _, name, power = _kind_of(image.uncertainty)
        hdus.append(fits.ImageHDU(_pixels(np.asarray(image.uncertainty.array)), name=name))
        _check_unit(image.uncertainty.unit, image.unit, power)
    if image.mask is not None:
        mask = np.broadcast_to(np.asarray(image.mask), pixels.shape)
        hdus.append(fits.ImageHDU(mask.astype(np.uint8), name="MASK"))
    stream = io.BytesIO()
    fits.HDUList(hdus).writeto(stream)
    return stream.getvalue()


def _pixels(values: Any) -> Any:
    """An array as FITS can hold it, with the same numbers."""
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype == np.float16:
        return values.astype(np.float32)
    return np.array(values)


def _header(meta: Any) -> fits.Header:
    """The cards of some metadata; lists of bands are one text."""
    if isinstance(meta, fits.Header):
        return meta.copy(strip=True)
    entries = dict(meta or {})
    stated = entries.pop("header", None)
    header = stated.copy(strip=True) if isinstance(stated, fits.Header) else fits.Header()
    for name in [name for name in entries if str(name).lower() in ("bands", "filters")]:
        if not isinstance(entries[name], str):
            entries[name] = ",".join(map(str, entries[name]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VerifyWarning)  # long names become HIERARCH cards, as they should
        for key, value in scalars_of(entries).items():
            try:
                header[key.upper()] = value
            except ValueError as error:
                raise BadInput(
                    "option_invalid", f"cannot be a card of a FITS header: {error}", field=f"meta[{key!r}]",
                    fix="take it out of the metadata",
                ) from error  # fmt: skip
    return header


def _world(wcs: Any) -> fits.Header:
    """The cards of world coordinates, of their two axes on the sky."""
    if wcs is None:
        return fits.Header()
    wcs = getattr(wcs, "low_level_wcs", wcs)
    if not isinstance(wcs, WCS):
        raise BadInput(
            "wcs_missing", f"{type(wcs).__name__} has no form in FITS cards", field="wcs",
            fix="give an astropy.wcs.WCS, e.g. WCS(gwcs.to_fits_sip()), or none and the pixel scale",
        )  # fmt: skip
    if not wcs.has_celestial:
        raise BadInput("wcs_missing", "the world coordinates have no sky axes", field="wcs", fix="leave them out")
    header: fits.Header = wcs.celestial.to_header(relax=True)
    return header


def _kind_of(uncertainty: Any) -> tuple[str, str, int]:
    found = next((row for kind, row in KINDS.items() if isinstance(uncertainty, kind)), None)
    if found is None:
        raise BadInput(
            "column_missing", f"a {type(uncertainty).__name__}: is it an error, a variance or an inverse variance?",
            field="uncertainty", fix="give a StdDevUncertainty, VarianceUncertainty or InverseVariance",
        )  # fmt: skip
    return found


def _check_unit(stated: Any, of_flux: Any, power: int) -> None:
    """FITS has no place for an uncertainty in another unit than the image's."""
    if stated is not None and of_flux is not None and units.Unit(stated) != units.Unit(of_flux) ** power:
        raise BadInput(
            "unit_unknown", f"an uncertainty in {stated} of fluxes in {of_flux}", field="uncertainty",
            fix="give it in the unit of the image",
        )  # fmt: skip


def _text(unit: Any) -> str:
    return str(units.Unit(unit).to_string())


# Spectra


def is_spectrum(given: Any) -> bool:
    """True for specutils' Spectrum, Spectrum1D and SpectrumCollection, which need not be installed here."""
    return all(hasattr(given, name) for name in ("spectral_axis", "flux", "uncertainty", "mask", "meta"))


def spectra_of(given: Any) -> list[tuple[Any, int | None]]:
    """The one-dimensional spectra of an object, each with its number if they are several."""
    if given.flux.ndim == 1:
        return [(given, None)]
    if given.flux.ndim > 2:
        raise BadInput(
            "shape_mismatch", f"spectra of shape {given.flux.shape}", field="flux", fix="give (objects, wavelengths)"
        )
    return [(given[i], i) for i in range(given.flux.shape[0])]


def spectrum_table(spectrum: Any, place: int | None = None) -> pa.Table:
    """Wavelength, flux, noise and mask as they are, one row; `place` is its number among spectra of one object.

    The frame, the medium and the survey come from `meta` or its FITS header. Only a redshift other than 0 is carried
    along (as metadata): 0 is what a spectrum has that states none.
    """
    axis, flux = spectrum.spectral_axis, spectrum.flux
    if not axis.unit.is_equivalent(units.Angstrom):
        raise BadInput(
            "wavelength_unit", f"a spectral axis in {axis.unit}", field="spectral_axis",
            fix="give wavelengths: spectrum.with_spectral_axis_unit('Angstrom'), and flux per wavelength",
        )  # fmt: skip
    if spectrum.uncertainty is None:
        raise BadInput(
            "column_missing", "how good the fluxes are is not stated", field="uncertainty",
            fix="give the spectrum an uncertainty",
        )  # fmt: skip
    noise, _, power = _kind_of(spectrum.uncertainty)
    stated = spectrum.uncertainty.unit
    columns = {
        "wavelength": (axis.value, _text(axis.unit)),
        "flux": (flux.value, _text(flux.unit)),
        noise: (spectrum.uncertainty.array, _text(stated if stated is not None else flux.unit**power)),
    }
    if spectrum.mask is not None:
        columns["mask"] = (np.asarray(spectrum.mask).astype(np.int32), "")
    meta = _spectrum_meta(spectrum.meta, place)
    redshift = float(np.asarray(getattr(spectrum, "redshift", 0.0)))
    if redshift:
        meta["redshift"] = redshift
    cells: dict[str, tuple[Any, str]] = {name: ([meta[name]], "") for name in LABELS if name in meta}
    cells |= {name: ([np.asarray(values)], unit) for name, (values, unit) in columns.items()}
    arrays = [pa.array(_native(values)) for values, _ in cells.values()]
    fields = [
        pa.field(name, array.type, metadata={"unit": unit} if unit else None)
        for (name, (_, unit)), array in zip(cells.items(), arrays, strict=True)
    ]
    rest = {name: value for name, value in meta.items() if name not in LABELS}
    return with_meta(pa.table(arrays, schema=pa.schema(fields)), rest)


def _native(cells: list[Any]) -> list[Any]:
    return [cell.astype(cell.dtype.newbyteorder("=")) if isinstance(cell, np.ndarray) else cell for cell in cells]


def _spectrum_meta(meta: Mapping[str, Any], place: int | None) -> dict[str, Any]:
    """What the header and the metadata say, in lower case; the metadata speaks last. Lists are one entry a spectrum."""
    header = {str(key).lower(): value for key, value in dict(meta.get("header") or {}).items()}
    own = {str(key).lower(): value for key, value in meta.items()}
    own = {name: own[name] for name in (*TERMS, *LABELS) if own.get(name) is not None}
    for name in LABELS:
        value: Any = own.get(name)
        if isinstance(value, units.Quantity):
            value = value.to_value(units.deg if name in ("ra", "dec") else units.dimensionless_unscaled)
        if np.ndim(value) == 1 and place is not None:
            own[name] = value[place]
        elif value is not None and place is not None and name not in ("ra", "dec", "redshift"):
            raise BadInput(
                "id_duplicate", f"one {name} {value!r} for several spectra", field=f"meta[{name!r}]",
                fix="give a list, one for each spectrum",
            )  # fmt: skip
        elif value is not None:
            own[name] = value
    return scalars_of({name: header[name] for name in TERMS if name in header}) | scalars_of(own)
