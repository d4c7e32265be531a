"""What the numbers of an image mean: whose survey, which bands, which flux unit, how many arcsec a pixel.

A file and the user's options both make statements. They must agree, and what nobody states is a typed error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from astropy import units

from albireo.observations.errors import BadInput
from albireo.observations.modalities import MODALITIES, Modality
from albireo.observations.options import ReadOptions

T = TypeVar("T")

ZERO_POINTS = {"legacysurvey": 22.5, "hsc": 27.0}
"""AB magnitude of flux 1 in the unit of the survey's image modality: nanomaggy is 22.5 by definition; HSC coadds
are scaled to 27.0 (Aihara et al. 2019, PASJ 71, 114, FLUXMAG0 = 10**(0.4 * 27))."""

PIXEL_SCALE_TOLERANCE = 0.02
ZERO_POINT_TOLERANCE = 1e-6
"""Magnitudes; FLUXMAG0 is printed with 15 digits, so a true 27 comes out within 1e-12."""

_IMAGE_ROWS = {row.survey: row for row in MODALITIES.values() if row.kind == "image"}

# Pattern -> survey, first match wins: "DESI Legacy Imaging Surveys" is neither DES nor DESI spectra.
_SURVEYS = tuple(
    (name, re.compile(pattern, re.IGNORECASE))
    for name, pattern in (
        ("legacysurvey", r"legacy[ _-]?(imaging[ _-]?)?surveys?|decals|\bbass\b|mzls|\bls[_-]?dr\d+"),
        ("hsc", r"\bhsc\b|hyper[ -]?suprime"),
        ("sdss", r"sdss|sloan"),
        ("panstarrs", r"pan-?starrs|\bps1\b"),
        ("des", r"\bdes\b|dark energy survey"),
        ("unwise", r"unwise|\bwise\b"),
        ("ztf", r"\bztf\b"),
        ("lsst", r"\blsst|rubin"),
        ("kids", r"\bkids\b"),
        ("galex", r"galex"),
        ("hst", r"\bhst\b|hubble"),
        ("jwst", r"\bjwst\b"),
        ("euclid", r"euclid"),
        ("cfht", r"\bcfht"),
    )
)
_NORTHERN = re.compile(r"bass|mzls|90prime", re.IGNORECASE)
_BAND_PREFIXES = {"legacysurvey": "des|decam|decals|ls|bass|mzls|90prime", "hsc": "hsc|subaru"}


def agree(field: str, statements: Iterable[tuple[str, T]], same: Callable[[T, T], bool]) -> T | None:
    """The one value of all (where, value) statements, None if there are none; those that differ are an error."""
    first: tuple[str, T] | None = None
    for where, value in statements:
        if first is None:
            first = where, value
        elif not same(first[1], value):
            raise BadInput(
                "statement_conflict",
                f"{first[0]} says {first[1]!r} and {where} says {value!r}",
                field=field,
                fix="correct the statement that is wrong, or leave the option out",
            )
    return first[1] if first else None


def known_survey(text: str) -> str | None:
    """The survey that a card or an option names, None if it is none of those known here."""
    return next((name for name, pattern in _SURVEYS if pattern.search(text)), None)


def image_row(stated: Sequence[tuple[str, str]], band_labels: Sequence[str], options: ReadOptions) -> Modality:
    """The image modality of a file.

    stated       (card, text) statements of the file that may name a survey; texts that name none are passed over
    band_labels  band names of the file; full AION-1 names ("HSC-G") name the survey too
    """
    named = [(where, survey) for where, text in stated if (survey := known_survey(text)) is not None]
    if options.survey is not None:
        named.append(("the option survey", known_survey(options.survey) or options.survey.strip().lower()))
    for where, texts in (("the band names", band_labels), ("the option bands", options.bands or ())):
        labels = [part for text in texts for part in _parts(text)]
        for row in _IMAGE_ROWS.values():
            if labels and all(label in row.bands for label in labels):
                named.append((where, row.survey))
    survey = agree("survey", named, lambda a, b: a == b)
    if survey is None:
        seen = ", ".join(f"{where} = {text!r}" for where, text in stated) or "nothing names it"
        raise BadInput(
            "survey_missing",
            f"whose image this is is not stated ({seen})",
            field="survey",
            fix=f"give the option survey: {' or '.join(_IMAGE_ROWS)}",
        )
    if survey not in _IMAGE_ROWS:
        raise BadInput(
            "modality_unknown",
            f"no image modality for images of {survey!r}",
            field="survey",
            fix=f"image modalities: {', '.join(row.name for row in _IMAGE_ROWS.values())}",
        )
    return _IMAGE_ROWS[survey]


def filter_flags(row: Modality, labels: Sequence[str], surveys: Sequence[str]) -> tuple[str, ...]:
    """`northern_filters`: bands of BASS or MzLS, which are not DECam's; `second_filters`: HSC-R2 or HSC-I2."""
    if row.survey == "legacysurvey":
        southern = re.compile("decals|legacy|decam", re.IGNORECASE)
        north = any(_NORTHERN.search(text) and not southern.search(text) for text in (*labels, *surveys))
        return ("northern_filters",) if north else ()
    second = any(re.search(r"[ri]2$", text.strip(), re.IGNORECASE) for text in labels)
    return ("second_filters",) if second else ()


def canonical_band(label: str, row: Modality) -> str | None:
    """AION-1's name of a band of this survey, None if the label names none of its bands.

    Read: "g", "G", "DES-G", "decam_g", "g DECam SDSS c0001 4720.0 1520.0", "BASS-g"; "HSC-G", and the HSC
    filters of 2016, "HSC-R2" and "HSC-I2", which the survey's releases combine with "HSC-R" and "HSC-I".
    """
    text = label.strip()
    if row.survey == "legacysurvey" and (long := re.fullmatch(r"([a-z]) DECam .*", text, re.IGNORECASE)):
        text = long[1]
    match = re.fullmatch(rf"(?:(?:{_BAND_PREFIXES[row.survey]})[-_. ]?)?([a-z])(2?)", text, re.IGNORECASE)
    if match is None or (match[2] and not (row.survey == "hsc" and match[1].lower() in "ri")):
        return None
    return next((band for band in row.bands if band[-1] == match[1].upper()), None)


def split_bands(text: str, row: Modality) -> tuple[str, ...]:
    """Band labels of a list such as "grz", "g,r,z", "g r z" or "HSC-G HSC-R", as written."""
    if canonical_band(text, row):
        return (text.strip(),)
    labels = _parts(text)
    if len(labels) == 1 and labels[0].isalpha():
        return tuple(labels[0])
    return labels


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part for part in re.split(r"[,;\s/+]+", text.strip()) if part)


def canonical_bands(labels: Sequence[str], row: Modality, where: str) -> tuple[str, ...]:
    """AION-1's names of labels, in the given order; an unknown or repeated one is an error."""
    bands = []
    for label in labels:
        band = canonical_band(label, row)
        if band is None:
            raise BadInput(
                "band_unknown",
                f"{where} names {label!r}, which is no band of {row.name}",
                field=where,
                fix=f"bands of {row.name}: {', '.join(row.bands)}",
            )
        if band in bands:
            raise BadInput("band_count", f"{where} names {band} twice", field=where, fix="name each plane once")
        bands.append(band)
    return tuple(bands)


def option_bands(row: Modality, options: ReadOptions) -> tuple[str, ...] | None:
    """AION-1's names of `options.bands`, None if not given."""
    if options.bands is None:
        return None
    labels = [label for text in options.bands for label in split_bands(text, row)]
    return canonical_bands(labels, row, "the option bands")


def unit_zero_point(text: str) -> float | None:
    """AB magnitude of one `text`, None for a relative unit (counts, electrons) that has none by itself.

    Raises unit_unknown for what is no flux: unreadable text, magnitudes, surface brightness.
    """
    plain = re.sub(r"[\s_-]+", "", text).lower()
    if re.fullmatch(r"(nanomagg(y|ies|ie|ys?)|nmgy|nmgys)", plain):
        return 22.5
    if re.fullmatch(r"(magg(y|ies)|mgy)", plain):
        return 0.0
    if stated := re.fullmatch(r"flux at zero point (\d+(?:\.\d+)?)", text.strip(), re.IGNORECASE):
        return float(stated[1])
    if re.fullmatch(r"(adu|dn|counts?|electrons?|e-?|photons?|photoelectrons?)(/s|s-1|/sec)?", plain):
        return None
    try:
        unit = units.Unit(text)
        return float(-2.5 * np.log10(unit.to(units.AB)))
    except (ValueError, TypeError) as error:  # unreadable, or not convertible to a flux density
        raise BadInput(
            "unit_unknown",
            f"{text!r} is no flux per pixel that has an AB zero point",
            field="unit",
            fix="give the option unit, e.g. nanomaggy or nJy, for what the pixels really hold",
        ) from error


def zero_point(
    row: Modality,
    units_stated: Sequence[tuple[str, str]],
    points_stated: Sequence[tuple[str, float]],
    options: ReadOptions,
) -> float:
    """AB magnitude of flux 1 as the file and the options state it, by unit or by zero point."""
    texts = [*units_stated, *([("the option unit", options.unit)] if options.unit is not None else [])]
    given = [("the option zero_point", options.zero_point)] if options.zero_point is not None else []
    points = [*points_stated, *given]
    for where, value in points:
        if not np.isfinite(value):
            raise BadInput("not_finite", f"{where} = {value}", field=where, fix="give the AB zero point in mag")
    by_unit = [(where, point) for where, text in texts if (point := unit_zero_point(text)) is not None]
    found = agree("zero point", [*points, *by_unit], lambda a, b: abs(a - b) < ZERO_POINT_TOLERANCE)
    if found is None:
        if texts:
            raise BadInput(
                "zero_point_missing",
                f"the unit {texts[0][1]!r} of {texts[0][0]} has no magnitude by itself",
                field="zero_point",
                fix="give the option zero_point: the AB magnitude of flux 1",
            )
        raise BadInput(
            "unit_missing",
            "neither a flux unit nor a zero point is stated",
            field="unit",
            fix=f"give the option unit or zero_point ({ZERO_POINTS[row.survey]} for {row.name} as published)",
        )
    return found


def flux_factor(file_zero_point: float, row: Modality) -> float:
    """What the file's fluxes are multiplied with to be in `row.unit`; exactly 1 when they are in it already."""
    difference = ZERO_POINTS[row.survey] - file_zero_point
    return 1.0 if abs(difference) < ZERO_POINT_TOLERANCE else float(10 ** (0.4 * difference))


def pixel_scale(
    stated: Sequence[tuple[str, tuple[float, float]]], options: ReadOptions, row: Modality
) -> tuple[float, float]:
    """(y, x) arcsec per pixel as the file and the options state it."""
    statements = list(stated)
    if options.pixel_scale is not None:
        statements.append(("the option pixel_scale", (options.pixel_scale, options.pixel_scale)))
    for where, scales in statements:
        if not all(np.isfinite(scale) and scale > 0 for scale in scales):
            raise BadInput("value_out_of_range", f"{where} gives {scales} arcsec per pixel", field="pixel_scale")
    found = agree(
        "pixel_scale",
        statements,
        lambda a, b: all(abs(p / q - 1) <= PIXEL_SCALE_TOLERANCE for p, q in zip(a, b, strict=True)),
    )
    if found is None:
        raise BadInput(
            "pixel_scale_missing",
            "no world coordinates and no PIXSCALE",
            field="pixel_scale",
            fix=f"give the option pixel_scale ({row.pixel_scale} arcsec for {row.name} as published)",
        )
    return found
