"""Names of photometric bands: one table of surveys, and one spelling, "<survey>-<band>" ("PS1-g", "LSST-y")."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from albireo.observations.errors import BadInput

System = Literal["AB", "Vega"]


@dataclass(frozen=True)
class Filters:
    """The filters of one survey or camera.

    name     prefix of its bands
    bands    band as written in files -> band as written here
    system   the magnitude system in which the survey publishes, None if it publishes in several
    aliases  what files call the survey, lower case, letters and digits only
    prefixes the aliases that files also glue to a band name ("ztfg", "PS1-g")
    """

    name: str
    bands: dict[str, str]
    system: System | None
    aliases: tuple[str, ...]
    prefixes: tuple[str, ...]


def _same(letters: str) -> dict[str, str]:
    return {letter: letter for letter in letters}


FILTERS: tuple[Filters, ...] = (
    Filters("PS1", _same("grizyw"), "AB",
            ("ps1", "ps1md", "panstarrs", "panstarrs1", "foundation"), ("ps1", "panstarrs1", "panstarrs")),
    Filters("DES", _same("ugrizY") | {"y": "Y"}, "AB", ("des", "decam", "dessn", "dessn5yr"), ("des", "decam")),
    Filters("SDSS", _same("ugriz"), "AB", ("sdss", "sdssii", "sdsssn"), ("sdss",)),
    Filters("LSST", _same("ugrizy") | {"Y": "y"}, "AB", ("lsst", "rubin", "plasticc", "elasticc"), ("lsst",)),
    Filters("ZTF", _same("gri"), "AB", ("ztf",), ("ztf",)),
    Filters("HSC", _same("grizy") | {"Y": "y"}, "AB", ("hsc", "hypersuprimecam"), ("hsc",)),
    Filters("ATLAS", _same("co") | {"cyan": "c", "orange": "o"}, "AB", ("atlas",), ("atlas",)),
    Filters("Bessell", _same("UBVRI"), None, ("bessell", "johnson", "cousins", "johnsoncousins"), ("bessell",)),
    Filters("2MASS", _same("JHK") | {"Ks": "K"}, "Vega", ("2mass", "twomass"), ("2mass", "twomass")),
    Filters("WISE", {"W1": "W1", "W2": "W2", "W3": "W3", "W4": "W4"}, None, ("wise", "unwise", "neowise"), ("wise",)),
    Filters("Gaia", {"G": "G", "BP": "BP", "RP": "RP"}, None, ("gaia", "gaiadr2", "gaiadr3"), ("gaia",)),
    Filters("GALEX", {"NUV": "NUV", "FUV": "FUV"}, "AB", ("galex",), ("galex",)),
    Filters("Swift", _same("UBV") | {b: b for b in ("UVW1", "UVW2", "UVM2")}, None,
            ("swift", "uvot"), ("swift", "uvot")),
)  # fmt: skip

_BY_ALIAS = {alias: row for row in FILTERS for alias in row.aliases}
_BY_NAME = {row.name: row for row in FILTERS}
_ANY_BAND = {band for row in FILTERS for band in row.bands}


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def known_survey(survey: str | None) -> Filters | None:
    """The row of a survey, however it is spelt ("Pan-STARRS1"), or None."""
    return _BY_ALIAS.get(_plain(survey)) if survey else None


@lru_cache(maxsize=4096)
def band_name(text: str, survey: str | None = None) -> str:
    """The band `text` of a file as "<survey>-<band>".

    A name that says its survey ("DES-g", "ztfr", "ps1::g") needs nothing else. A bare "g" is a band of `survey`.
    Raises band_missing, survey_missing or band_unknown.
    """
    text = text.strip()
    if not text:
        raise BadInput("band_missing", "a row names no band", field="band")
    for row in FILTERS:
        for prefix in row.prefixes:
            match = re.fullmatch(rf"{prefix}[^A-Za-z0-9]*([A-Za-z0-9]+)", text, re.IGNORECASE)
            if match and (found := _glued(row, match[1])):
                return f"{row.name}-{found}"
    filters = known_survey(survey)
    if filters is not None and text in filters.bands:
        return f"{filters.name}-{filters.bands[text]}"
    if survey is None and text in _ANY_BAND:
        raise BadInput(
            "survey_missing",
            f"band {text!r} of which survey is not stated",
            field="band",
            fix='state survey, or write the band as "PS1-g"',
        )
    of = f" of survey {survey!r}" if survey else ""
    raise BadInput(
        "band_unknown",
        f"band {text!r}{of} is in no row of the band table",
        field="band",
        fix='write bands as "<survey>-<band>" with a survey of ' + ", ".join(row.name for row in FILTERS),
    )


def _glued(row: Filters, letters: str) -> str | None:
    """A band after its survey's name; there "bessellb" can only mean B, if upper and lower case are one band."""
    if letters in row.bands:
        return row.bands[letters]
    alike = {band for name, band in row.bands.items() if name.lower() == letters.lower()}
    return alike.pop() if len(alike) == 1 else None


def band_system(band: str) -> System | None:
    """The magnitude system in which the survey of a canonical band publishes, if there is only one."""
    row = _BY_NAME.get(band.split("-", 1)[0])
    return row.system if row else None
