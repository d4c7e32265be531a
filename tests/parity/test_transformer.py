"""Encoder states and logits beside the released package: several shapes, any subset and order of modalities, masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from albireo.models.engine import Tokens
from albireo.observations.modalities import AION_KEYS
from tests.parity.conftest import SEED, Pair
from tests.parity.transformers import (
    JUDGED,
    LOOK_ALIKE,
    SHAPES,
    TARGETS,
    answers,
    errors,
    states,
    with_masks,
)

EXACT = 1e-4
"""Largest error in float32: rms difference over the rms distance of objects from their mean."""

FEW = ("tok_z", "tok_segmap", "tok_spectrum_sdss", "tok_xp_rp")
"""Targets asked for where all would take long."""

SIZES = (1, 2, 3, 5, 8, 13, 40)
"""Numbers of modalities in the subsets that are tried."""


def table_order(keys: Sequence[str]) -> list[str]:
    return [key for key in AION_KEYS if key in keys]


def subset(rng: np.random.Generator) -> list[str]:
    """Some of the modalities in some order."""
    return [str(key) for key in rng.permutation(AION_KEYS)[: rng.choice(SIZES)]]


def seen_through(tokens: Tokens, keys: Sequence[str]) -> Tokens:
    """What an object is through some of its modalities, in that order."""
    return Tokens({key: tokens.ids[key] for key in keys}, {key: tokens.mask[key] for key in keys if key in tokens.mask})


def agree(pair: Pair, objects: Sequence[Tokens], keys: Sequence[str]) -> tuple[float, float]:
    """Errors of states and of logits of objects that have the same tokens, seen through `keys`; ours in one call."""
    given = [seen_through(tokens, keys) for tokens in objects]
    expected = [answers(pair.model, tokens, table_order(keys), FEW) for tokens in objects]
    of_states, _ = errors([one.values for one in pair.engine.embed(given, "tokens")], [one for one, _ in expected])
    found = pair.engine.logits(given, FEW)
    of_logits = max(errors([one[key] for one in found], [one[key] for _, one in expected])[0] for key in FEW)
    return of_states, of_logits


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def pair(shape: str, pair_of_shape: Callable[[str], Pair]) -> Pair:
    return pair_of_shape(shape)


def test_objects_do_not_look_alike(pair: Pair, shape: str, report: Callable[[str], None]) -> None:
    report(f"{shape}: mean cosine between objects {', '.join(f'{cosine:.2f}' for cosine in pair.cosines)}")
    assert len(pair.cosines) == len(JUDGED)
    assert max(pair.cosines) < LOOK_ALIKE


@pytest.mark.parametrize("n", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_any_subset_in_any_order(
    n: int, pair: Pair, shape: str, tokens: list[Tokens], report: Callable[[str], None]
) -> None:
    rng = np.random.default_rng(SEED)
    # Catalogs have lengths of their own, so they are compared object by object, below.
    sets = [[key for key in subset(rng) if key != "catalog"] or ["tok_z"] for _ in range(n)]
    found = [agree(pair, tokens[-3:], keys) for keys in [*sets, ["tok_image"], ["tok_ebv"]]]
    of_states, of_logits = np.max(found, axis=0)
    report(f"{shape}: {len(found)} subsets, error of states {of_states:.1e}, of logits {of_logits:.1e}")
    assert of_states <= EXACT
    assert of_logits <= EXACT


def test_each_modality_alone_and_every_target(pair: Pair, tokens: list[Tokens]) -> None:
    """Each of the 40 tables and each of the 39 output layers is read, and its numbers are in their places."""
    for key in AION_KEYS:
        for one in tokens[-2:]:
            (embedding,) = pair.engine.embed([seen_through(one, [key])], "tokens")
            expected = states(pair.model, one, [key])
            assert np.abs(embedding.values - expected).max() <= EXACT * expected.std(), key
    through = ["tok_spectrum_desi", "tok_flux_g"]
    asked = [answers(pair.model, one, through, TARGETS)[1] for one in tokens[-2:]]
    found = pair.engine.logits([seen_through(one, through) for one in tokens[-2:]], TARGETS)
    assert found[0].keys() == set(TARGETS)
    for key in TARGETS:
        assert errors([one[key] for one in found], [one[key] for one in asked])[0] <= EXACT, key


def test_masks(pair: Pair, shape: str, tokens: list[Tokens], report: Callable[[str], None]) -> None:
    """Objects with masks, catalogs and subsets of their own, all in one call, each as the package has it alone."""
    rng = np.random.default_rng(SEED + 1)
    given = [with_masks(seen_through(one, table_order(subset(rng))), rng) for one in tokens]
    expected = [answers(pair.model, one, list(one.ids), FEW) for one in given]
    means = [rows.mean(axis=0) for rows, _ in expected]
    of_means, _ = errors([one.values for one in pair.engine.embed(given)], means)
    # All targets at once, as the package was asked: its queries see each other.
    found = pair.engine.logits(given, FEW)
    of_logits = max(errors([one[key] for one in found], [one[key] for _, one in expected])[0] for key in FEW)
    for one, ours, (rows, _) in zip(given, pair.engine.embed(given, "tokens"), expected, strict=True):
        assert ours.n_tokens == one.n_tokens == len(rows)
        assert np.abs(ours.values - rows).max() <= EXACT * np.std(means, axis=0).max()
    report(f"{shape}: masked objects, error of means {of_means:.1e}, of logits {of_logits:.1e}")
    assert of_means <= EXACT
    assert of_logits <= EXACT
