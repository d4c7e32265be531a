"""The image HDUs of a FITS file: their pixels, their readable cards, and what each one holds."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyError
from numpy.typing import NDArray

from albireo.observations.errors import BadInput
from albireo.observations.source import Source

SURVEY_CARDS = ("SURVEY", "INSTRUME", "TELESCOP", "ORIGIN")
RELEASE_CARDS = ("SURVEYDR", "RELEASE", "VERSION")
ZERO_POINT_CARDS = ("MAGZERO", "MAGZPT", "MAGZP", "MAG_ZP", "ZP", "ZPT")
PIXEL_SCALE_CARDS = ("PIXSCALE", "PIXSCAL", "PIXSCL")
BAND_CARDS = ("BAND", "FILTER", "FILTNAM")

ROLES = {
    "ivar": {"INVVAR", "IVAR"},
    "variance": {"VARIANCE", "VAR"},
    "error": {"ERR", "ERROR", "SIGMA", "RMS", "STDDEV", "UNCERT"},
    "mask": {"MASK", "MASKBITS", "DQ", "FLAGS"},
    "other": {
        *("PSF", "MODEL", "RESID", "CHI2", "NEXP", "DEPTH", "PSFDEPTH", "GALDEPTH", "PSFSIZE", "SKY", "BACKGROUND"),
        *("SEGM", "SEGMAP", "SEGMENTATION", "WEIGHT", "WHT", "EXPTIME", "EXPMAP", "CTX", "BLOBMAP", "BLOBS"),
    },
}
UNCERTAINTIES = {"StdDevUncertainty": "error", "VarianceUncertainty": "variance", "InverseVariance": "ivar"}
"""How astropy's CCDData says in UTYPE what its extension UNCERT holds."""

FLUX_WORDS = {"IMAGE", "SCI", "FLUX", "PRIMARY", "COADD", "DATA", "COMPRESSED"}
_SPECTRAL_AXIS = re.compile(r"WAVE|AWAV|FREQ|VELO|LINEAR|LAMBDA|LOGLAM|ENER|WAVN", re.IGNORECASE)
_SPECTRAL_HDU = re.compile(r"(^|_)(WAVE|WAVELENGTH|LAMBDA|LOGLAM)$", re.IGNORECASE)


_READ_CARDS = re.compile(
    "|".join(
        [
            *(*SURVEY_CARDS, *RELEASE_CARDS, *ZERO_POINT_CARDS, *PIXEL_SCALE_CARDS),
            *("LEGPIPEV", "BUNIT", "FLUXMAG0", "BANDS", "FILTERS", "FILTNAM", r"BAND\d*", r"FILTER\d*", "EXTNAME"),
            *("IMAGETYP", "UTYPE", "OBJID", "TARGETID", "ID", "OBJECT", "RA", "DEC", "RADESYS", "EQUINOX", r"MP_\w+"),
            *(r"(CTYPE|CRVAL|CRPIX|CDELT|CROTA|CUNIT)\d", r"(CD|PC|PV)\d+_\d+", "L(ON|AT)POLE", r"[AB]P?_\w+"),
        ]
    )
)


@dataclass(frozen=True)
class Hdu:
    """An image HDU: its number and name for messages, cards, pixels (H, W) or (C, H, W), and what they are."""

    number: int
    name: str
    header: fits.Header
    pixels: NDArray[Any]
    role: str

    @property
    def planes(self) -> NDArray[Any]:
        """Pixels as (C, H, W)."""
        return self.pixels if self.pixels.ndim == 3 else self.pixels[np.newaxis]

    @property
    def label(self) -> str:
        return self.name or f"HDU {self.number}"


def load_hdus(source: Source) -> tuple[fits.Header, list[Hdu]]:
    """The primary header, and every image HDU with its pixels as they are in the file."""
    hdus = []
    with source.fits() as opened:
        primary = _readable(opened[0].header)
        for number, hdu in enumerate(opened):
            if not hdu.is_image or len(hdu.shape) < 2:
                continue
            pixels = hdu.data
            while pixels.ndim > 3 and pixels.shape[0] == 1:
                pixels = pixels[0]
            header = _readable(hdu.header)
            if pixels.ndim > 3:
                raise BadInput(
                    "shape_mismatch", f"{pixels.ndim} axes {pixels.shape}", field=hdu.name, fix="give [band, y, x]"
                )
            hdus.append(Hdu(number, hdu.name, header, pixels, _role(header)))
    return primary, hdus


def _readable(header: fits.Header) -> fits.Header:
    """A copy without the cards that break the FITS standard, which are common in comments on instruments.

    One that is read here must not go missing: a broken zero point is no absent zero point.
    """
    copy = fits.Header()
    for card in header.cards:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                copy.append((card.keyword, card.value, card.comment), end=True)
        except (VerifyError, ValueError) as error:
            if _READ_CARDS.fullmatch(card.keyword):
                raise BadInput(
                    "damaged_file", f"the card {card.keyword} cannot be read: {error}", field=card.keyword
                ) from error
    return copy


def words(header: fits.Header, *cards: str) -> list[str]:
    """Upper-case words of the texts of some cards."""
    return [word for card in cards for word in re.split(r"[^A-Za-z0-9]+", str(header.get(card, "")).upper()) if word]


def _role(header: fits.Header) -> str:
    named = set(words(header, "EXTNAME", "IMAGETYP"))
    role = next((role for role, names in ROLES.items() if named & names), "flux")
    if role == "error" and "UTYPE" in header:
        kind = str(header["UTYPE"]).strip()
        if kind not in UNCERTAINTIES:
            raise BadInput(
                "convention_missing",
                f"what kind of uncertainty it is: {kind!r}",
                field="UTYPE",
                fix=f"one of {', '.join(UNCERTAINTIES)}",
            )
        return UNCERTAINTIES[kind]
    return role


def is_spectral(header: fits.Header) -> bool:
    """True for cards of a spectrum, or of many, stored as an image."""
    if any(key in header for key in ("COEFF0", "COEFF1", "DC-FLAG", "WAT0_001")):
        return True
    if _SPECTRAL_HDU.search(str(header.get("EXTNAME", ""))):
        return True
    return any(_SPECTRAL_AXIS.match(str(header.get(f"CTYPE{axis}", ""))) for axis in (1, 2, 3))
