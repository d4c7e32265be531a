"""What lies outside AION-1's training domain (arXiv 2510.17960 and the selections of the Multimodal Universe).

A flag is raised only for what an observation states; what it does not say is not held against it. `tok_z` beyond 1 is
flagged by its own tokenizer. Needs no torch.

    survey         selected for training
    Legacy Survey  DR10 south; all of g r i z; TYPE not PSF; clean MASKBITS; z < 21 mag, corrected for extinction
    HSC            PDR3 wide; all of g r i z y; i < 22.5 mag (cmodel)
    Gaia           DR3
    DESI           early data release
    SDSS           any
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Image, Observation, Scalar

RELEASES = {"legacysurvey": 10, "hsc": 3, "gaia": 3, "desi": 0}
"""Survey -> number of its data release; DESI's early release has none, so that every numbered one is another."""

PARTS = {"legacysurvey": re.compile("north"), "hsc": re.compile("deep|dud")}
"""Survey -> words that name a part of a release which was not used: HSC's deep and ultra-deep fields."""

MASKBITS = sum(1 << bit for bit in (0, 1, 2, 3, 4, 5, 6, 7, 11, 14, 15))
"""Bits of which none was set: outside the primary area, bright and medium stars, saturated or all exposures masked."""

FAINTEST_Z, FAINTEST_I = 21.0, 22.5
"""AB magnitudes: Legacy Survey z, HSC i."""

EXTINCTION_Z = 1.211
"""A_z / E(B-V) of DECam, https://www.legacysurvey.org/dr10/catalogs/ (Schlafly & Finkbeiner 2011)."""


def domain_flags(observation: Observation) -> tuple[str, ...]:
    """Names of what an observation states that AION-1 was not trained on, each `outside_aion_1_...`."""
    surveys = {MODALITIES[key].survey for key in observation.data}
    legacy = "legacysurvey" in surveys
    found = {
        "outside_aion_1_release": any(_another_release(survey, observation) for survey in surveys & RELEASES.keys()),
        "outside_aion_1_bands": _lacks_bands(observation),
        "outside_aion_1_point_source": legacy and _stated(observation, "type", "morphtype") == "PSF",
        "outside_aion_1_masked": legacy and _is_masked(_stated(observation, "maskbits")),
        "outside_aion_1_faint": _is_faint(observation),
    }
    return tuple(name for name, outside in found.items() if outside)


def _stated(observation: Observation, *names: str) -> str:
    """What the metadata says under any of the names, in upper case, "" if nothing; 0.0 is 0."""
    values = {str(key).lower(): value for key, value in observation.metadata.items()}
    text = next((str(values[name]) for name in names if values.get(name) is not None), "")
    return text.strip().upper().removesuffix(".0")


def _another_release(survey: str, observation: Observation) -> bool:
    if survey == "legacysurvey" and "northern_filters" in observation.flags:
        return True  # BASS and MzLS have no part in DR10
    texts = [text.lower() for text in _releases(survey, observation)]
    if survey == "legacysurvey" and (code := _stated(observation, "release")).isdecimal():
        texts.append(code)  # the column RELEASE of its catalogues; other surveys write other texts there
    numbers = {number for text in texts if (number := _release_number(text)) is not None}
    part = PARTS.get(survey)
    return bool(numbers - {RELEASES[survey]}) or (part is not None and any(part.search(text) for text in texts))


def _releases(survey: str, observation: Observation) -> Iterator[str]:
    """Every release that is stated of the survey's measurements."""
    for key, payload in observation.data.items():
        if MODALITIES[key].survey != survey:
            continue
        stated: list[Any] = [observation.provenance.get(key)]
        if isinstance(payload, Image):
            stated += payload.conventions
        elif isinstance(payload, Scalar):
            stated.append(payload.convention)
        yield from (one.release for one in stated if one is not None and one.release)


def _release_number(text: str) -> int | None:
    """10 of "dr10", "LS-DR10.1", and of 10001, which is a RELEASE of the Legacy Surveys' catalogues."""
    named = re.search(r"dr[ _-]?(\d+)", text)
    if named:
        return int(named[1])
    return int(text) // 1000 if re.fullmatch(r"\d{4,5}", text) else None


def _lacks_bands(observation: Observation) -> bool:
    """An image without one of its survey's bands or with nothing in it, or a flux that is known to be missing."""
    for key, payload in observation.data.items():
        if isinstance(payload, Image):
            seen = {band for band, bad in zip(payload.bands, payload.mask, strict=True) if not np.all(bad)}
            if set(MODALITIES[key].bands) - seen:
                return True
    return any(f"missing_flux_{band}" in observation.flags for band in "griz")


def _is_masked(maskbits: str) -> bool:
    return maskbits.isdecimal() and bool(int(maskbits) & MASKBITS)


def _is_faint(observation: Observation) -> bool:
    mag_i = _value(observation.data.get("tok_mag_i"))
    if mag_i is not None and mag_i >= FAINTEST_I:
        return True
    corrected = _value(observation.extras.get("legacysurvey.dered_mag_z"))
    if corrected is not None:
        return corrected >= FAINTEST_Z
    flux = _value(observation.extras.get("legacysurvey.dered_flux_z"))
    extinction = 0.0
    if flux is None:
        flux = _value(observation.data.get("tok_flux_z"))
        # Without E(B-V) the flux is taken as it is: extinction could only bring it nearer to the limit.
        extinction = EXTINCTION_Z * (_value(observation.data.get("tok_ebv")) or 0.0)
    if flux is None:
        return False
    return flux <= 0 or 22.5 - 2.5 * math.log10(flux) - extinction >= FAINTEST_Z


def _value(payload: Any) -> float | None:
    """The number of a scalar, None if there is none."""
    return payload.value if isinstance(payload, Scalar) and math.isfinite(payload.value) else None
