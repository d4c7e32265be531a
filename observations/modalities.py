"""The one table of modalities: what each is physically. Token counts and vocabularies belong to a checkpoint.

Rows with `aion=True` are the 40 token keys of AION-1 (arXiv 2510.17960, and the package polymathic-aion);
the others are what surveys give and AION-1 does not read. Everything else is derived from this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from albireo.observations.errors import BadInput

Kind = Literal["image", "spectrum", "coefficients", "scalar", "segmentation", "catalog", "lightcurve"]


@dataclass(frozen=True)
class Modality:
    """One row: a kind of measurement by one survey.

    key     token key, the name inside checkpoints and of `Observation.data`
    name    public name, `kind.survey` or `survey.quantity`
    kind    which payload class carries it and which kind of tokenizer reads it
    survey  whose convention the numbers follow
    codec   folder under `codecs/` in a checkpoint
    unit    unit of the numbers as tokenized ("" = dimensionless)
    bands   image planes, in AION-1's names
    shape   physical shape of one object; () = one number, None = any length
    pixel_scale  arcsec per pixel of images and maps
    """

    key: str
    name: str
    kind: Kind
    survey: str
    codec: str
    unit: str
    bands: tuple[str, ...] = ()
    shape: tuple[int | None, ...] = ()
    pixel_scale: float | None = None
    aion: bool = True


FLUX_DENSITY = "1e-17 erg / (s cm2 Angstrom)"
DES = ("DES-G", "DES-R", "DES-I", "DES-Z")
HSC = ("HSC-G", "HSC-R", "HSC-I", "HSC-Z", "HSC-Y")
IMAGE_SIZE = 96


def _scalar(key: str, survey: str, codec: str, unit: str) -> Modality:
    return Modality(key, f"{survey}.{codec.lower()}", "scalar", survey, codec, unit)


_ROWS = (
    Modality("tok_image", "image.legacysurvey", "image", "legacysurvey", "image", "nanomaggy", DES,
             (4, IMAGE_SIZE, IMAGE_SIZE), 0.262),
    Modality("tok_image_hsc", "image.hsc", "image", "hsc", "image", "flux at zero point 27.0", HSC,
             (5, IMAGE_SIZE, IMAGE_SIZE), 0.168),
    Modality("tok_spectrum_desi", "spectrum.desi", "spectrum", "desi", "spectrum", FLUX_DENSITY, shape=(None,)),
    Modality("tok_spectrum_sdss", "spectrum.sdss", "spectrum", "sdss", "spectrum", FLUX_DENSITY, shape=(None,)),
    Modality("tok_xp_bp", "gaia.xp_bp", "coefficients", "gaia", "bp_coefficients", "electron / s", shape=(55,)),
    Modality("tok_xp_rp", "gaia.xp_rp", "coefficients", "gaia", "rp_coefficients", "electron / s", shape=(55,)),
    Modality("tok_segmap", "segmentation.legacysurvey", "segmentation", "legacysurvey", "segmentation_map", "",
             (), (IMAGE_SIZE, IMAGE_SIZE), 0.262),
    Modality("catalog", "catalog.legacysurvey", "catalog", "legacysurvey", "catalog", "", shape=(None, 5)),
    *(_scalar(f"tok_flux_{b}", "legacysurvey", f"FLUX_{b.upper()}", "nanomaggy")
      for b in ("g", "r", "i", "z", "w1", "w2", "w3", "w4")),
    _scalar("tok_shape_r", "legacysurvey", "SHAPE_R", "arcsec"),
    _scalar("tok_shape_e1", "legacysurvey", "SHAPE_E1", ""),
    _scalar("tok_shape_e2", "legacysurvey", "SHAPE_E2", ""),
    _scalar("tok_ebv", "legacysurvey", "EBV", "mag"),
    *(_scalar(f"tok_mag_{b}", "hsc", f"{b}_cmodel_mag", "mag") for b in "grizy"),
    *(_scalar(f"tok_a_{b}", "hsc", f"a_{b}", "mag") for b in "grizy"),
    *(_scalar(f"tok_shape{c}", "hsc", f"i_sdssshape_shape{c}", "arcsec2") for c in ("11", "12", "22")),
    *(_scalar(f"tok_flux_{b}_gaia", "gaia", f"phot_{b}_mean_flux", "electron / s") for b in ("g", "bp", "rp")),
    _scalar("tok_parallax", "gaia", "parallax", "mas"),
    Modality("tok_z", "redshift", "scalar", "any", "Z", ""),
    Modality("tok_ra", "ra", "scalar", "any", "ra", "deg"),
    Modality("tok_dec", "dec", "scalar", "any", "dec", "deg"),
    # Rows below are not AION-1's: what surveys give and no published checkpoint reads yet.
    Modality("spectrum_lamost", "spectrum.lamost", "spectrum", "lamost", "spectrum", "relative flux", shape=(None,),
             aion=False),
    Modality("lightcurve", "lightcurve", "lightcurve", "any", "lightcurve", "flux at its zero point", shape=(None,),
             aion=False),
    # Model fluxes, as SDSS publishes them: what colours of galaxies are measured with, not corrected for dust.
    *(Modality(f"flux_{b}_sdss", f"sdss.modelflux_{b}", "scalar", "sdss", f"modelflux_{b}", "nanomaggy", aion=False)
      for b in "ugriz"),
    # Total fluxes: 2MASS publishes Vega magnitudes of a fitted profile, photometry.VEGA_ZERO_POINTS turns them into
    # nanomaggies, the unit of the optical fluxes beside which they are read, so that a colour is a ratio.
    *(Modality(f"flux_{b}_2mass", f"2mass.flux_{b}", "scalar", "2mass", f"2mass_flux_{b}", "nanomaggy", aion=False)
      for b in "jhk"),
)  # fmt: skip

MODALITIES: dict[str, Modality] = {row.key: row for row in _ROWS}
"""Token key -> row, in the table's order, which is also the order of tokens in a sequence."""

AION_KEYS: tuple[str, ...] = tuple(row.key for row in _ROWS if row.aion)

LABEL_KEYS = frozenset({"tok_z", "tok_ra", "tok_dec"})
"""Metadata in files; tokens only when asked for by name."""

_NAMES = {row.name: row for row in _ROWS}


def modality(name: str) -> Modality:
    """The row of a token key (`tok_image`) or a public name (`image.legacysurvey`)."""
    row = MODALITIES.get(name) or _NAMES.get(name)
    if row is None:
        raise BadInput(
            "modality_unknown",
            f"no modality is called {name!r}",
            field=name,
            fix=f"use a name of this list: {', '.join(_NAMES)}",
        )
    return row
