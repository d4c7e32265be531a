"""What columns are called, and what exactly a survey's column means: data only. Names are in lower case.

MEASUREMENTS  columns whose meaning a survey documents: unit, band, system, how measured, corrected or not
GENERIC       names that are a band and nothing else; survey and convention must be stated
EPOCH_*       light curves, one row per epoch
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from albireo.observations.bands import System

Form = Literal["flux", "mag", "other"]
Measure = Literal["model", "cmodel", "psf", "aperture", "fibre", "mean"]


@dataclass(frozen=True)
class Photometry:
    """What a photometric column means: band, system, how measured, corrected for Galactic extinction."""

    band: str
    system: System
    measure: Measure
    corrected: bool = False


@dataclass(frozen=True)
class Measurement:
    """One documented column.

    column      its name in the survey's files; an array column of a band each has several rows, by `index`
    name        key of MODALITIES, or the name it gets among the extras
    survey      whose column it is
    unit        unit in the survey's files, unless the file says another
    form        a flux, a magnitude, or neither
    photometry  None for shapes, extinctions, parallaxes
    errors      names of error columns: standard deviations, or inverse variances if they contain "ivar"
    sure        the name alone tells the survey; otherwise the survey must be known
    """

    column: str
    name: str
    survey: str
    unit: str
    form: Form
    photometry: Photometry | None = None
    errors: tuple[str, ...] = ()
    sure: bool = False
    index: int | None = None


LEGACY_BANDS = {"g": "DES-G", "r": "DES-R", "i": "DES-I", "z": "DES-Z"} | {f"w{k}": f"W{k}" for k in (1, 2, 3, 4)}
HSC_BANDS = {b: f"HSC-{b.upper()}" for b in "grizy"}


def _legacy() -> list[Measurement]:
    """Tractor catalogues and sweeps: fluxes are models, in nanomaggies, AB also for WISE, not corrected."""
    rows = []
    for b, band in LEGACY_BANDS.items():
        errors = (f"flux_ivar_{b}", f"flux_err_{b}", f"fluxerr_{b}")
        rows.append(
            Measurement(f"flux_{b}", f"tok_flux_{b}", "legacysurvey", "nanomaggy", "flux",
                        Photometry(band, "AB", "model"), errors)
        )  # fmt: skip
        for form, unit in (("flux", "nanomaggy"), ("mag", "mag")):
            column = f"dered_{form}_{b}"
            rows.append(
                Measurement(column, f"legacysurvey.{column}", "legacysurvey", unit, form,  # type: ignore[arg-type]
                            Photometry(band, "AB", "model", corrected=True), sure=True)
            )  # fmt: skip
    for name, unit in (("shape_r", "arcsec"), ("shape_e1", ""), ("shape_e2", "")):
        rows.append(
            Measurement(name, f"tok_{name}", "legacysurvey", unit, "other", errors=(f"{name}_ivar", f"{name}_err"))
        )
    rows.append(Measurement("ebv", "tok_ebv", "legacysurvey", "mag", "other"))
    return rows


def _hsc() -> list[Measurement]:
    """HSC-SSP database: cmodel AB magnitudes, not corrected; a_<band> is the Galactic extinction."""
    rows = []
    for b, band in HSC_BANDS.items():
        errors = (f"{b}_cmodel_magsigma", f"{b}_cmodel_magerr")
        rows.append(
            Measurement(f"{b}_cmodel_mag", f"tok_mag_{b}", "hsc", "mag", "mag", Photometry(band, "AB", "cmodel"),
                        errors, sure=True)
        )  # fmt: skip
        rows.append(Measurement(f"a_{b}", f"tok_a_{b}", "hsc", "mag", "other"))
    for c in ("11", "12", "22"):
        column = f"i_sdssshape_shape{c}"
        rows.append(
            Measurement(column, f"tok_shape{c}", "hsc", "arcsec2", "other", errors=(f"{column}sigma",), sure=True)
        )
    return rows


def _gaia() -> list[Measurement]:
    """Gaia archive: mean fluxes in electrons per second, magnitudes in Vega."""
    rows = []
    for b, band in (("g", "Gaia-G"), ("bp", "Gaia-BP"), ("rp", "Gaia-RP")):
        photometry = Photometry(band, "Vega", "mean")
        column = f"phot_{b}_mean_flux"
        rows.append(
            Measurement(column, f"tok_flux_{b}_gaia", "gaia", "electron / s", "other", photometry,
                        (f"{column}_error",), sure=True)
        )  # fmt: skip
        column = f"phot_{b}_mean_mag"
        rows.append(Measurement(column, f"gaia.{column}", "gaia", "mag", "mag", photometry, sure=True))
    rows.append(Measurement("parallax", "tok_parallax", "gaia", "mas", "other", errors=("parallax_error",)))
    for name in ("pmra", "pmdec"):
        rows.append(Measurement(name, f"gaia.{name}", "gaia", "mas / yr", "other", errors=(f"{name}_error",)))
    return rows


def _sdss() -> list[Measurement]:
    """SDSS: fluxes in nanomaggies, magnitudes are asinh magnitudes, both AB; arrays of five are u g r i z."""
    measures: tuple[tuple[str, Measure], ...] = (
        ("model", "model"), ("cmodel", "cmodel"), ("psf", "psf"), ("petro", "aperture"), ("fiber", "fibre"),
        ("fiber2", "fibre"),
    )  # fmt: skip
    rows = []
    for k, b in enumerate("ugriz"):
        band = f"SDSS-{b}"
        key = f"flux_{b}_sdss"
        rows.append(Measurement(key, key, "sdss", "nanomaggy", "flux", Photometry(band, "AB", "model"),
                                (f"{key}_ivar", f"{key}_error"), sure=True))  # fmt: skip
        for stem, measure in measures:
            photometry = Photometry(band, "AB", measure)
            name = key if stem == "model" else f"sdss.{stem}flux_{b}"
            rows.append(
                Measurement(
                    f"{stem}flux", name, "sdss", "nanomaggy", "flux", photometry, (f"{stem}flux_ivar",), index=k
                )
            )
            rows.append(
                Measurement(f"{stem}flux_{b}", name, "sdss", "nanomaggy", "flux", photometry, (f"{stem}fluxivar_{b}",))
            )
            rows.append(
                Measurement(f"{stem}mag_{b}", f"sdss.{stem}mag_{b}", "sdss", "asinh mag", "mag", photometry,
                            (f"{stem}magerr_{b}",))
            )  # fmt: skip
        rows.append(Measurement("extinction", f"sdss.extinction_{b}", "sdss", "mag", "other", index=k))
        rows.append(Measurement(f"extinction_{b}", f"sdss.extinction_{b}", "sdss", "mag", "other"))
        rows.append(
            Measurement(f"dered_{b}", f"sdss.dered_{b}", "sdss", "asinh mag", "mag",
                        Photometry(band, "AB", "model", corrected=True), (f"modelmagerr_{b}", f"err_{b}"))
        )  # fmt: skip
    return rows


def _others() -> list[Measurement]:
    rows = []
    for b in "jhk":
        band = f"2MASS-{b.upper()}"
        key = f"flux_{b}_2mass"
        rows.append(Measurement(key, key, "2mass", "nanomaggy", "flux", Photometry(band, "AB", "psf"),
                                (f"{key}_ivar", f"{key}_error"), sure=True))  # fmt: skip
        rows.append(
            Measurement(f"{b}_m", f"2mass.{b}_m", "2mass", "mag", "mag", Photometry(band, "Vega", "psf"),
                        (f"{b}_msigcom", f"{b}_cmsig"))
        )  # fmt: skip
        rows.append(
            Measurement(f"{b}_m_ext", f"2mass.{b}_m_ext", "2mass", "mag", "mag", Photometry(band, "Vega", "aperture"),
                        (f"{b}_msig_ext",), sure=True)
        )  # fmt: skip
    for b in ("nuv", "fuv"):
        rows.append(
            Measurement(f"{b}_mag", f"galex.{b}_mag", "galex", "mag", "mag",
                        Photometry(f"GALEX-{b.upper()}", "AB", "aperture"), (f"{b}_magerr",), sure=True)
        )  # fmt: skip
    for k in "1234":
        rows.append(
            Measurement(f"w{k}mpro", f"wise.w{k}mpro", "wise", "mag", "mag", Photometry(f"W{k}", "Vega", "psf"),
                        (f"w{k}sigmpro",), sure=True)
        )  # fmt: skip
    for b in "grizy":
        for stem, measure in (("psf", "psf"), ("kron", "aperture")):
            column = f"{b}mean{stem}mag"
            rows.append(
                Measurement(column, f"ps1.{column}", "ps1", "mag", "mag",
                            Photometry(f"PS1-{b}", "AB", measure), (f"{column}err",), sure=True)  # type: ignore[arg-type]
            )  # fmt: skip
    return rows


MEASUREMENTS: tuple[Measurement, ...] = (*_legacy(), *_hsc(), *_gaia(), *_sdss(), *_others())

SIGNATURES: dict[str, tuple[frozenset[str], ...]] = {
    "legacysurvey": (
        *(frozenset({f"mw_transmission_{b}"}) for b in LEGACY_BANDS),
        frozenset({"flux_ivar_w1"}),
        frozenset({"brickid", "brickname"}),
    ),
    "hsc": tuple(frozenset({f"{b}_cmodel_mag"}) for b in HSC_BANDS),
    "gaia": (frozenset({"source_id", "parallax"}), frozenset({"phot_g_mean_flux"}), frozenset({"phot_g_mean_mag"})),
    "sdss": (frozenset({"run", "camcol", "field"}),),
    "2mass": (frozenset({"j_m", "j_msigcom"}), frozenset({"j_m", "j_cmsig"})),
}
"""Columns that only one survey's tables have: all of one set present tells the survey of the other columns."""

SURVEY_NAMES: dict[str, str] = {
    "legacysurvey": "legacysurvey", "legacysurveys": "legacysurvey", "legacy": "legacysurvey", "ls": "legacysurvey",
    "decals": "legacysurvey", "desilegacyimagingsurveys": "legacysurvey", "hsc": "hsc", "hscssp": "hsc",
    "gaia": "gaia", "gaiadr3": "gaia", "sdss": "sdss", "2mass": "2mass", "twomass": "2mass",
}  # fmt: skip
"""Spellings of surveys (letters and digits only) -> the name used here. Others stand as they are stated."""

_BAND = r"([ugrizyjhk]|w[1-4]|nuv|fuv)"
GENERIC: tuple[tuple[re.Pattern[str], Form | None, Measure | None, bool | None], ...] = (
    (re.compile(rf"{_BAND}"), None, None, None),
    (re.compile(rf"mag_?{_BAND}"), "mag", None, None),
    (re.compile(rf"{_BAND}_?mag"), "mag", None, None),
    (re.compile(rf"flux_?{_BAND}"), "flux", None, None),
    (re.compile(rf"{_BAND}_?flux"), "flux", None, None),
    (re.compile(rf"mag_auto_{_BAND}"), "mag", "aperture", None),
    (re.compile(rf"flux_auto_{_BAND}"), "flux", "aperture", None),
    (re.compile(rf"(?:psf_?mag|mag_psf)_{_BAND}"), "mag", "psf", None),
    (re.compile(rf"(?:psf_?flux|flux_psf)_{_BAND}"), "flux", "psf", None),
    (re.compile(rf"model_?mag_{_BAND}"), "mag", "model", None),
    (re.compile(rf"model_?flux_{_BAND}"), "flux", "model", None),
    (re.compile(rf"cmodel_?mag_{_BAND}"), "mag", "cmodel", None),
    (re.compile(rf"cmodel_?flux_{_BAND}"), "flux", "cmodel", None),
    (re.compile(rf"dered_mag_{_BAND}"), "mag", None, True),
    (re.compile(rf"dered_flux_{_BAND}"), "flux", None, True),
)
"""(whole column name with the band as group 1, flux or magnitude, how measured, corrected); None = not said."""

BAND_KEY = re.compile(_BAND)
NAMED_BAND_KEY = re.compile(r"[A-Za-z0-9]+-[A-Za-z0-9']+")
"""Keys of ReadOptions.columns that are photometry: a band of the survey stated, or "<camera>-<band>"."""

ID_NAMES = (
    "source_id", "targetid", "objid", "object_id", "objectid", "id", "ls_id", "specobjid", "dr8objid", "name", "snid",
    "oid", "diaobjectid",
)  # fmt: skip
"""In order of preference."""

RA_NAMES = ("ra", "ra_deg", "raj2000", "target_ra", "ra_icrs", "alpha", "alpha_j2000")
DEC_NAMES = ("dec", "decl", "dec_deg", "dej2000", "decj2000", "target_dec", "de_icrs", "delta", "delta_j2000")
REDSHIFT_NAMES = ("redshift", "zspec", "z_spec", "spec_z", "specz", "zpec", "z_helio", "zhelio", "z_best", "true_z")
REDSHIFT_SIBLINGS = frozenset({"zwarn", "zwarning", "spectype", "deltachi2", "zcat_nspec"})
"""Columns that stand only beside a redshift: with one of them and without bare g r i, `z` is a redshift."""

CLASS_NAMES = ("class", "cls", "spectype", "label")
LABEL_NAMES = (*CLASS_NAMES, "subclass", "type", "objtype", "coarse", "target", "morphtype", "maskbits", "release",
               "split")  # fmt: skip

MISSING_VALUES = (-99.0, -99.9, -99.99, -999.0, -999.9, -9999.0, -99999.0, 99999.0)
MISSING_MAGNITUDES = (*MISSING_VALUES, 999.0, 9999.0)
UNDETECTED_MAGNITUDES = (99.0, 99.9, 99.99)
"""SExtractor and BPZ write 99 for "not detected" and -99 for "not observed"; inf and NaN mean the same two."""

FLUX_ZERO_POINTS: dict[str, float] = {
    "nanomaggy": 22.5, "maggy": 0.0, "Jy": 8.9, "mJy": 16.4, "uJy": 23.9, "nJy": 31.4
}  # fmt: skip
"""AB magnitude of flux 1, by the definition AB = -2.5 log10(f / (erg/s/cm2/Hz)) - 48.6."""

_FLUX_SPELLINGS = {
    "nanomaggy": "nanomaggy", "nanomaggies": "nanomaggy", "nmgy": "nanomaggy", "maggy": "maggy", "maggies": "maggy",
    "mgy": "maggy", "jy": "Jy", "mjy": "mJy", "ujy": "uJy", "µjy": "uJy", "μjy": "uJy", "microjy": "uJy",
    "microjansky": "uJy", "njy": "nJy", "nanojansky": "nJy",
}  # fmt: skip
_MAGNITUDE_SPELLINGS = {"mag", "magnitude", "mag(ab)", "abmag", "mag ab", "ab mag", "vegamag", "mag(vega)", "asinh mag",
                        "log mag"}  # fmt: skip
_ELECTRON_SPELLINGS = {"electron / s", "electron/s", "electron s-1", "electrons/s", "e-/s", "e/s", "e- / s",
                       "electron.s**-1", "'electron'.s**-1", "electron s^-1", "electron.s-1"}  # fmt: skip


def flux_unit(text: str | None) -> str | None:
    """A flux unit in the spelling of FLUX_ZERO_POINTS, or None. "MJy" is not mJy."""
    if text is None or text.strip().startswith("MJ"):
        return None
    return _FLUX_SPELLINGS.get(text.strip().lower())


def is_magnitude_unit(text: str | None) -> bool:
    return text is not None and text.strip().lower() in _MAGNITUDE_SPELLINGS


def magnitude_unit(text: str) -> str | None:
    """The kind of magnitude that a unit names: "asinh mag", "log mag", "mag" if it does not say which, else None."""
    plain = text.strip().lower()
    return (plain if plain in ("asinh mag", "log mag") else "mag") if is_magnitude_unit(text) else None


def is_electron_rate(text: str | None) -> bool:
    return text is not None and text.strip().lower() in _ELECTRON_SPELLINGS


def magnitude_system(text: str) -> System | None:
    """AB or Vega, however it is spelt."""
    return {"ab": "AB", "abmag": "AB", "vega": "Vega", "vegamag": "Vega"}.get(text.strip().lower())  # type: ignore[return-value]


# Light curves

PLASTICC_BANDS = {code: f"LSST-{band}" for code, band in enumerate("ugrizy")}

EPOCH_COLUMNS: dict[str, tuple[str, ...]] = {
    "mjd": ("mjd", "time", "mjd_obs", "mjdobs", "obsmjd", "midpointmjdtai"),
    "jd": ("jd",),
    "band": ("band", "filter", "flt", "filtername"),
    "flux": ("flux", "fluxcal", "psfflux", "fluxcal_zp27p5"),
    "flux_err": ("flux_err", "fluxerr", "flux_error", "fluxerror", "fluxcalerr", "fluxcal_err", "psffluxerr", "e_flux"),
    "mag": ("mag", "magnitude", "magpsf", "psfmag"),
    "mag_err": ("magerr", "mag_err", "mag_error", "e_mag", "e_magnitude", "magnitude_error", "sigmapsf"),
    "zp": ("zp", "zpt", "zeropoint", "zero_point", "magzp"),
    "system": ("zpsys", "magsys", "system", "zpmagsys", "mag_system"),
    "limit": ("limit", "diffmaglim", "maglim", "lim_mag", "limiting_mag"),
    "upper_limit": ("upperlimit", "upper_limit", "upperlim"),
    "detected": ("detected", "detected_bool"),
    "survey": ("survey", "tel", "telescope", "instrument"),
    "id": ("object_id", "objectid", "objid", "diaobjectid", "snid", "oid", "id", "name"),
    "ra": ("ra",),
    "dec": ("dec", "decl"),
    "redshift": ("redshift", "zspec", "z"),
    "class": ("class", "type", "sntype", "label"),
    "mwebv": ("mwebv",),
}
"""Our name -> column names. A table with a column of band names has no column per band: its `z` is a redshift."""

EPOCH_PREFERRED = frozenset({"survey", "id", "redshift", "class"})
"""Where several columns fit, the first of the list is taken; for everything else that is an error."""

EPOCH_META: dict[str, tuple[str, ...]] = {
    "survey": ("survey",),
    "system": ("zpsys", "magsys", "system", "zpmagsys"),
    "zp": ("zp", "zpt", "zeropoint", "zero_point", "magzp"),
    "extinction_corrected": ("extinction_corrected", "extcorr"),
    "kind": ("kind",),
    "id": ("object_id", "snid", "name", "id", "object"),
    "ra": ("ra",),
    "dec": ("dec", "decl"),
    "redshift": ("redshift", "z"),
    "class": ("class", "type"),
    "mwebv": ("mwebv",),
}
