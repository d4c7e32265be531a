"""What is known of one object: measurements by modality, and where each came from.

Payload classes are frozen and hold numpy arrays in native byte order that nobody writes to.
Conversions happened before: a payload is already in the unit, medium and orientation it states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from albireo.observations.errors import BadInput
from albireo.observations.modalities import MODALITIES

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]
Strings = NDArray[np.str_]


@dataclass(frozen=True)
class Provenance:
    """Where a measurement came from: survey, release, file name, sha256 of the file, HDU or row (0-based)."""

    format: str
    survey: str | None = None
    release: str | None = None
    file: str | None = None
    sha256: str | None = None
    hdu: str | None = None
    row: int | None = None


@dataclass(frozen=True)
class Convention:
    """What a photometric number means; nothing here is ever guessed.

    band    filter, e.g. "DES-G", "SDSS-u", "W1"
    system  "AB" or "Vega"
    kind    how it was measured
    extinction_corrected  for Galactic extinction
    """

    survey: str
    band: str
    system: Literal["AB", "Vega"]
    kind: Literal["model", "cmodel", "psf", "aperture", "fibre", "mean", "difference", "image"]
    extinction_corrected: bool
    release: str | None = None


@dataclass(frozen=True)
class Image:
    """flux (C, H, W) in `unit`, row 0 = bottom as in FITS; mask (C, H, W) True = bad; bands in AION-1's names."""

    flux: Floats
    bands: tuple[str, ...]
    pixel_scale: float
    unit: str
    zero_point: float
    mask: Bools
    conventions: tuple[Convention, ...]
    ivar: Floats | None = None
    kept_fraction: float = 1.0


@dataclass(frozen=True)
class Spectrum:
    """wavelength, flux, ivar, mask, all (L,); wavelength in Angstrom, vacuum, increasing; mask True = bad.

    flux in `unit`, ivar in 1/unit^2, 0 = no information; `medium` is what the *file* had, before conversion.
    """

    wavelength: Doubles
    flux: Floats
    ivar: Floats
    mask: Bools
    unit: str
    frame: str
    medium: Literal["vacuum", "air"] = "vacuum"


@dataclass(frozen=True)
class Coefficients:
    """values (K,) in `unit` and their errors (K,) or None: Gaia XP basis coefficients of one photometer."""

    values: Floats
    unit: str
    errors: Floats | None = None


@dataclass(frozen=True)
class Scalar:
    """One number in `unit`, its error if stated, and its photometric convention if it is photometry."""

    value: float
    unit: str
    error: float | None = None
    convention: Convention | None = None


@dataclass(frozen=True)
class LightCurve:
    """time (T,) MJD, increasing; band (T,); flux, flux_err (T,) at zero_point (T,) mag; detected (T,).

    A non-detection is a row with detected = False: flux NaN and `limit` (T,) mag if only a limit is known.
    """

    time: Doubles
    band: Strings
    flux: Doubles
    flux_err: Doubles
    zero_point: Doubles
    system: Strings
    detected: Bools
    limit: Doubles
    extinction_corrected: bool
    kind: str = "psf"


@dataclass(frozen=True)
class SegmentationMap:
    """field (H, W) without unit, in [0, 1], row 0 = bottom: 0 = background, else the class of the object there.

    AION-1's maps hold 0.2, 0.4, 0.6, 0.8 and 1 on objects.
    """

    field: Floats
    pixel_scale: float
    kept_fraction: float = 1.0


@dataclass(frozen=True)
class Catalog:
    """Objects in a cutout of 96 x 96 pixels, nearest to its centre first; every array is (n,).

    x, y    column and row in pixels, whole numbers 0 to 95, row 0 = bottom
    e1, e2  ellipticity components, without unit, -1 to 1
    r       half-light radius in arcsec, 0 for a point source
    """

    x: Integers
    y: Integers
    e1: Floats
    e2: Floats
    r: Floats

    @property
    def n_objects(self) -> int:
        return len(self.x)


Payload = Image | Spectrum | Coefficients | Scalar | LightCurve | SegmentationMap | Catalog


@dataclass(frozen=True)
class Observation:
    """One object.

    id          a string, always (survey ids pass 2^53)
    ra, dec     degrees ICRS, or None
    data        token key -> payload; only keys of MODALITIES
    extras      measurements no row of MODALITIES describes (an SDSS u magnitude), by name
    metadata    labels and the rest: redshift, class, header cards; never tokens
    provenance  token key -> where it came from
    flags       QA flags by name, e.g. "cropped", "masked_pixels"
    """

    id: str
    data: Mapping[str, Payload]
    ra: float | None = None
    dec: float | None = None
    extras: Mapping[str, Scalar] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Provenance] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert isinstance(self.id, str), type(self.id)
        for key in self.data:
            assert key in MODALITIES, key
        for name in ("data", "extras", "metadata", "provenance"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))


def merge(*parts: Observation) -> Observation:
    """One object from several files: the parts must share the id and no modality may come twice."""
    first = parts[0]
    data: dict[str, Payload] = {}
    for part in parts:
        if part.id != first.id:
            raise BadInput("request_invalid", f"cannot merge objects {first.id!r} and {part.id!r}", field="id")
        twice = data.keys() & part.data.keys()
        if twice:
            raise BadInput(
                "request_invalid",
                f"object {first.id!r} has {', '.join(sorted(twice))} twice",
                field="id",
                fix="give each modality of an object once",
            )
        data |= part.data
    flags = tuple(dict.fromkeys(flag for part in parts for flag in part.flags))
    return Observation(
        id=first.id,
        data=data,
        ra=next((p.ra for p in parts if p.ra is not None), None),
        dec=next((p.dec for p in parts if p.dec is not None), None),
        extras={k: v for p in parts for k, v in p.extras.items()},
        metadata={k: v for p in parts for k, v in p.metadata.items()},
        provenance={k: v for p in parts for k, v in p.provenance.items()},
        flags=flags,
    )
