"""What a reader may be told that a file does not say. Every field is optional and nothing is guessed for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class ReadOptions:
    """Statements about a file, given by the user; a statement that contradicts the file is an error.

    at          (ra, dec) in degrees ICRS: cut images here instead of at their centre
    positions   name of a table file (id, ra, dec) given along: one object per row from a mosaic
    resample    allow images of another pixel scale to be resampled
    survey      whose data it is: "legacysurvey", "hsc", "sdss", "desi", "lamost", "gaia", ...
    release     data release, e.g. "dr10"
    bands       image planes in order, in AION-1's names ("DES-G") or with `survey` as "g,r,z"
    pixel_scale arcsec per pixel
    unit        flux unit (astropy notation, or "nanomaggy")
    zero_point  AB magnitude of flux 1
    medium      wavelengths in "vacuum" or "air"
    frame       velocity frame of spectra: "heliocentric", "barycentric", "observed", "rest"
    system      "AB" or "Vega"
    kind        "model", "cmodel", "psf", "aperture", "fibre"
    extinction_corrected  photometry corrected for Galactic extinction
    columns     alias overrides for tables: our name -> the file's column
    tokens      metadata that shall become tokens: any of "redshift", "ra", "dec"
    nearest     keep only so many objects of the catalog of a cutout, nearest to its centre (AION-1 reads 10)
    """

    at: tuple[float, float] | None = None
    positions: str | None = None
    resample: bool = False
    survey: str | None = None
    release: str | None = None
    bands: tuple[str, ...] | None = None
    pixel_scale: float | None = None
    unit: str | None = None
    zero_point: float | None = None
    medium: Literal["vacuum", "air"] | None = None
    frame: str | None = None
    system: Literal["AB", "Vega"] | None = None
    kind: Literal["model", "cmodel", "psf", "aperture", "fibre"] | None = None
    extinction_corrected: bool | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    nearest: int | None = None
