"""Flags say what is outside of the training objects, and typicality is a share of held-out objects."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from albireo.models.applicability import ENOUGH, Coverage, Facts, Typicality
from albireo.observations.observation import Observation, Provenance, Scalar
from tests.models.toys import picture

KEYS = ("tok_image", "tok_flux_g", "tok_flux_i", "tok_mag_r")


def observed(
    flux: float = 10.0, mag: float = 20.0, bands: tuple[str, ...] = ("DES-G", "DES-I"), **more: float
) -> Facts:
    data = {
        "tok_image": picture(*bands),
        "tok_flux_g": Scalar(flux, "nanomaggy"),
        "tok_flux_i": Scalar(flux, "nanomaggy"),
        "tok_mag_r": Scalar(mag, "mag"),
        **{key: Scalar(value, "") for key, value in more.items()},
    }
    return Facts.of(Observation("a", data))


@pytest.fixture(scope="module")
def coverage() -> Coverage:
    rng = np.random.default_rng(5)
    facts = [
        observed(float(f), float(m)) for f, m in zip(rng.uniform(1, 100, 200), rng.uniform(17, 22, 200), strict=True)
    ]
    keys = [KEYS if i < 198 else KEYS[1:] for i in range(200)]
    return Coverage.of(facts, keys, 0.999)


def test_what_training_objects_had_is_not_flagged(coverage: Coverage) -> None:
    assert coverage.flags(observed(), KEYS) == []
    assert coverage.flags(observed(), KEYS[1:]) == []
    assert coverage.modalities == {"tok_image": 0.99, "tok_flux_g": 1.0, "tok_flux_i": 1.0, "tok_mag_r": 1.0}


@pytest.mark.parametrize(
    ("facts", "keys", "flags"),
    [
        (observed(), ("tok_flux_g", "tok_mag_r"), ["modality_set_not_in_training", "no_i_band"]),
        (observed(), (*KEYS, "tok_flux_w1"), ["modality_set_not_in_training"]),
        (observed(bands=("DES-G",)), KEYS, ["no_i_band"]),
        (observed(0.01, 25.0), KEYS, ["fainter_than_training"]),
        (observed(1e4, 12.0), KEYS, ["brighter_than_training"]),
        (observed(10.0, 25.0), KEYS, []),
        (observed(0.01, 12.0), KEYS, ["fainter_than_training"]),
    ],
)
def test_flags_by_name(coverage: Coverage, facts: Facts, keys: tuple[str, ...], flags: list[str]) -> None:
    assert coverage.flags(facts, keys) == flags


def test_a_redshift_at_the_end_of_its_codes() -> None:
    keys = (*KEYS, "tok_z")
    coverage = Coverage.of([observed(tok_z=0.3)] * 3, [keys] * 3, 0.999)
    assert coverage.flags(observed(tok_z=0.5), keys) == []
    assert coverage.flags(observed(tok_z=1.7), keys) == ["z_token_saturated"]
    assert "z_token_saturated" not in coverage.flags(observed(tok_z=1.7), KEYS)


def test_surveys_are_those_that_are_stated_or_the_modalities_own() -> None:
    data = {"tok_flux_g": Scalar(1.0, "nanomaggy"), "tok_mag_r": Scalar(20.0, "mag")}
    assert Facts.of(Observation("a", data)).surveys == "hsc+legacysurvey"
    stated = {"tok_mag_r": Provenance("table", survey="pdr3")}
    assert Facts.of(Observation("a", data, provenance=stated)).surveys == "legacysurvey+pdr3"


@pytest.fixture(scope="module")
def typicality() -> Typicality:
    return Typicality.fit(features(2_000, 6), features(1_000, 7), ["1"] * 500 + ["2"] * (500 - 3) + ["3"] * 3)


def features(n: int, seed: int) -> np.ndarray:
    """70 numbers of which 60 are strongly correlated."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(8).normal(size=(5, 60))
    return np.concatenate(
        [rng.normal(size=(n, 5)) @ mixing + 0.1 * rng.normal(size=(n, 60)), rng.normal(size=(n, 10))], 1
    )


def test_typicality_of_the_same_kind_is_uniform(typicality: Typicality) -> None:
    found = typicality.of(features(2_000, 9), ["1"] * 2_000)
    assert stats.kstest(found, "uniform").statistic < 0.1


def test_what_is_unlike_is_found_also_in_small_directions(typicality: Typicality) -> None:
    usual = features(1, 10)
    across = np.zeros((1, 70))
    across[0, :60] = np.linalg.svd(np.random.default_rng(8).normal(size=(5, 60)))[2][-1] * 3
    assert typicality.of(usual, ["1"])[0] > 0.01
    # 3 is little beside the spread of the first 60 numbers, but not in this direction.
    assert typicality.of(usual + across, ["1"])[0] < 0.01


def test_few_of_a_modality_set_are_compared_with_all(typicality: Typicality) -> None:
    assert ENOUGH > 3
    assert set(typicality.reference) == {"all", "1", "2"}
    one = features(1, 11)
    assert typicality.of(one, ["3"]) == typicality.of(one, ["never seen"])


def test_what_is_kept_is_enough(typicality: Typicality) -> None:
    again = Typicality.restore(typicality.arrays())
    some = features(50, 12)
    np.testing.assert_array_equal(again.of(some, ["2"] * 50), typicality.of(some, ["2"] * 50))
