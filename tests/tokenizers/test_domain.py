"""What lies outside AION-1's training domain is named if an observation states it, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Convention, Image, Observation, Payload, Provenance, Scalar, Spectrum
from albireo.observations.options import ReadOptions
from albireo.observations.reading import read_files
from albireo.observations.source import Source
from albireo.tokenizers.domain import domain_flags

LEGACY = {"brickname": "0001m002", "brickid": 330368, "objid": 7, "release": 10000, "type": "SER", "maskbits": 0,
          "flux_g": 10.0, "flux_r": 20.0, "flux_i": 25.0, "flux_z": 30.0, "ebv": 0.05}  # fmt: skip


def image(key: str, bands: tuple[str, ...], release: str | None = None, empty: int | None = None) -> Image:
    mask = np.zeros((len(bands), 96, 96), bool)
    if empty is not None:
        mask[empty] = True
    row = MODALITIES[key]
    conventions = tuple(Convention(row.survey, band, "AB", "image", False, release) for band in bands)
    return Image(np.ones(mask.shape, np.float32), bands, row.pixel_scale or 0, row.unit, 22.5, mask, conventions)


def flux(value: float, band: str = "DES-Z", release: str | None = None) -> Scalar:
    return Scalar(value, "nanomaggy", convention=Convention("legacysurvey", band, "AB", "model", False, release))


def spectrum(key: str) -> Spectrum:
    n = 10
    ones = np.ones(n, np.float32)
    return Spectrum(np.arange(n) + 5000.0, ones, ones, np.zeros(n, bool), MODALITIES[key].unit, "barycentric")


def flags_of(data: dict[str, Payload], **more: Any) -> tuple[str, ...]:
    return tuple(flag.removeprefix("outside_aion_1_") for flag in domain_flags(Observation("a", data, **more)))


def table_row(**changes: object) -> Observation:
    """A row of a Tractor catalogue, through the reader."""
    row = {name: value for name, value in (LEGACY | changes).items() if value is not None}
    text = ",".join(row) + "\n" + ",".join(str(value) for value in row.values()) + "\n"
    (report,) = read_files([Source("sweep.csv", text.encode())], ReadOptions(survey="legacysurvey"))
    (item,) = report.items
    assert isinstance(item, Observation), item
    return item


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, ()),
        ({"type": None, "maskbits": None, "ebv": None}, ()),
        ({"type": "PSF"}, ("point_source",)),
        ({"type": "REX"}, ()),
        ({"release": 9010}, ("release",)),
        ({"release": 9011}, ("release",)),
        ({"release": 10001}, ()),
        ({"maskbits": 1 << 11}, ("masked",)),
        ({"maskbits": 2048.0}, ("masked",)),
        ({"maskbits": 1 << 14 | 1 << 8}, ("masked",)),
        ({"maskbits": 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 13}, ()),
        ({"flux_z": 3.0}, ("faint",)),
        ({"flux_z": 3.9, "ebv": 0.001}, ("faint",)),
        ({"flux_z": 3.9, "ebv": 0.1}, ()),
        ({"flux_z": -0.5}, ("faint",)),
        ({"flux_i": 0.0}, ("bands",)),
    ],
)
def test_rows_of_the_legacy_surveys_catalogues(changes: dict[str, object], flags: tuple[str, ...]) -> None:
    found = domain_flags(table_row(**changes))
    assert found == tuple(f"outside_aion_1_{flag}" for flag in flags)


def test_the_magnitude_limit_is_of_the_corrected_flux() -> None:
    at_limit = 10 ** (0.4 * 1.5)
    assert flags_of({"tok_flux_z": flux(at_limit)}) == ("faint",)
    assert flags_of({"tok_flux_z": flux(at_limit * 1.0001)}) == ()
    corrected = {"legacysurvey.dered_mag_z": Scalar(20.9, "mag")}
    assert flags_of({"tok_flux_z": flux(3.0)}, extras=corrected) == ()
    assert flags_of({"tok_flux_z": flux(9.0)}, extras={"legacysurvey.dered_flux_z": Scalar(3.9, "nanomaggy")}) == (
        "faint",
    )
    assert flags_of({"tok_mag_i": Scalar(22.5, "mag")}) == ("faint",)
    assert flags_of({"tok_mag_i": Scalar(22.4, "mag")}) == ()


def test_images_need_every_band_of_their_survey_with_something_in_it() -> None:
    legacy, hsc = MODALITIES["tok_image"].bands, MODALITIES["tok_image_hsc"].bands
    assert flags_of({"tok_image": image("tok_image", legacy)}) == ()
    assert flags_of({"tok_image": image("tok_image", legacy[::-1])}) == ()
    assert flags_of({"tok_image": image("tok_image", ("DES-G", "DES-R", "DES-Z"))}) == ("bands",)
    assert flags_of({"tok_image": image("tok_image", legacy, empty=2)}) == ("bands",)
    assert flags_of({"tok_image_hsc": image("tok_image_hsc", hsc)}) == ()
    assert flags_of({"tok_image_hsc": image("tok_image_hsc", hsc[:4])}) == ("bands",)


@pytest.mark.parametrize(
    ("key", "release", "outside"),
    [
        ("tok_image", "dr10", False),
        ("tok_image", "LS-DR10.1", False),
        ("tok_image", "ls-dr10-south", False),
        ("tok_image", "DR9", True),
        ("tok_image", "ls-dr9-north", True),
        ("tok_image", "dr10-north", True),
        ("tok_image", "of last week", False),
        ("tok_image_hsc", "pdr3_wide", False),
        ("tok_image_hsc", "pdr3_dud", True),
        ("tok_image_hsc", "PDR2", True),
    ],
)
def test_releases_of_images(key: str, release: str, outside: bool) -> None:
    given = {key: image(key, MODALITIES[key].bands, release)}
    assert flags_of(given) == (("release",) if outside else ())


@pytest.mark.parametrize(
    ("key", "release", "outside"),
    [("tok_spectrum_desi", "edr", False), ("tok_spectrum_desi", "dr1", True), ("tok_spectrum_sdss", "dr7", False)],
)
def test_releases_of_spectra_are_in_their_provenance(key: str, release: str, outside: bool) -> None:
    where = {key: Provenance("npz", release=release)}
    assert flags_of({key: spectrum(key)}, provenance=where) == (("release",) if outside else ())


def test_the_north_of_the_legacy_surveys_is_another_release() -> None:
    legacy = {"tok_image": image("tok_image", MODALITIES["tok_image"].bands)}
    assert flags_of(legacy, flags=("northern_filters",)) == ("release",)


def test_what_is_stated_of_other_surveys_is_not_held_against_them() -> None:
    """A supernova of TYPE psf, a release number and mask bits of somebody else; unknown is not outside."""
    metadata = {"TYPE": "PSF", "maskbits": 1, "release": 9010}
    assert flags_of({"tok_spectrum_sdss": spectrum("tok_spectrum_sdss")}, metadata=metadata) == ()
    assert flags_of({"tok_flux_z": flux(30.0)}) == ()
    assert flags_of({}) == ()
    both = {"tok_spectrum_sdss": spectrum("tok_spectrum_sdss"), "tok_flux_z": flux(30.0)}
    assert flags_of(both, metadata=metadata) == ("release", "point_source", "masked")


def test_a_redshift_beyond_the_grid_is_flagged_by_its_tokenizer_alone() -> None:
    assert flags_of({"tok_z": Scalar(3.0, "")}) == ()
