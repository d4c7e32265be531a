"""Every token key: encoded here and by the released package, the tokens are the same.

An input is one object. A number or a catalog shows few codes at a time, so there are more of those: twenty times as
many numbers and every value of the codebook, and four times as many catalogs.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from aion.codecs.config import MODALITY_CODEC_MAPPING

from albireo.models.engine import Tokens
from albireo.observations.modalities import AION_KEYS, MODALITIES
from albireo.observations.observation import Image, Observation, Payload, Scalar
from tests.parity.asking import CLASSES, as_theirs, decode, distance, encode_all
from tests.parity.conftest import SEED, Codecs, Pair
from tests.parity.objects import payloads

CODES = {"image": 4375, "segmentation": 1000, "catalog": 3264}
"""Codes of a kind of modality; the others have 1024."""

AT_BOUNDARY = 1e-5
"""A pre-quantisation value nearer than this to a boundary may get the code on its other side, ..."""

FORGIVEN = 1e-5
"""... but at most this fraction of tokens, and one where they are fewer than a hundred thousand."""

NETWORKS = tuple(key for key in AION_KEYS if MODALITIES[key].kind in ("image", "spectrum", "segmentation"))


def inputs(key: str, n: int, codecs: Codecs) -> list[Payload]:
    """n objects of a modality or more (see above), extremes first."""
    row = MODALITIES[key]
    if row.kind == "scalar":
        edges = decode(codecs[key], key, torch.arange(1024)[:, None])[:, 0]
        return [*(Scalar(float(edge), row.unit) for edge in edges), *payloads(key, 20 * n, SEED + 2)]
    return payloads(key, 4 * n if row.kind == "catalog" else n, SEED + 2)


def compare(key: str, codecs: Codecs, given: Sequence[Payload]) -> str:
    """Encode both ways; fail where tokens differ away from a boundary, or too often. Returns a line of figures."""
    seen: set[int] = set()
    norms: set[int] = set()
    differing: list[str] = []
    count = 0
    ours = codecs.bank[key]
    # Numbers in one batch, as the package is asked too; objects one at a time.
    tokens = ours.encode(given) if MODALITIES[key].kind == "scalar" else (ours.encode([one])[0] for one in given)
    for i, (payload, row, expected) in enumerate(zip(given, tokens, encode_all(codecs[key], key, given), strict=True)):
        found = row.numpy()
        assert found.shape == expected.shape, (key, i)
        # The first token of a spectrum is its norm, of a codebook of its own.
        first = int(MODALITIES[key].kind == "spectrum")
        norms.update(expected[:first].tolist())
        seen.update(expected[first:].tolist())
        count += len(expected)
        if (wrong := np.flatnonzero(found != expected)).size:
            away = distance(codecs[key], key, payload)
            differing += [f"object {i}, token {at}, {away[at]:.1e} from a boundary" for at in wrong]
            assert (away[wrong] <= AT_BOUNDARY).all(), f"{key}: {differing}"
    codes = CODES.get(MODALITIES[key].kind, 1024)
    assert len(differing) <= max(1, FORGIVEN * count), f"{key}: {differing}"
    assert len(seen) >= codes / 2, f"{key}: only {len(seen)} of {codes} codes occur"
    line = f"{key}: {len(given)} objects, {count} tokens, {len(seen)} of {codes} codes, {len(differing)} tokens differ"
    line += f", {len(norms)} norms" if norms else ""
    return ": ".join([line, *differing])


def test_every_key_of_the_package_is_compared() -> None:
    assert CLASSES.keys() == set(AION_KEYS)
    assert len(CLASSES) == 40
    assert {MODALITY_CODEC_MAPPING[cls] for cls in CLASSES.values()} == set(MODALITY_CODEC_MAPPING.values())


@pytest.mark.parametrize("n", [50, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("key", AION_KEYS)
def test_tokens(key: str, n: int, codecs: Codecs, report: Callable[[str], None]) -> None:
    report(compare(key, codecs, inputs(key, n, codecs)))


@pytest.mark.slow
@pytest.mark.parametrize("key", NETWORKS)
def test_tokens_of_networks_of_the_size_of_aion_1(
    key: str, codecs_of_size: Callable[[str], Codecs], report: Callable[[str], None]
) -> None:
    codecs = codecs_of_size("aion")
    report("size of AION-1, " + compare(key, codecs, inputs(key, 100, codecs)))


def test_tokens_through_the_engine(
    observations: list[Observation], tokens: list[Tokens], pair_of_shape: Callable[[str], Pair]
) -> None:
    """All modalities of an object at once: nothing is lost or moved between tokenizers and engine."""
    for ours, theirs in zip(pair_of_shape("aion").engine.tokenize(observations), tokens, strict=True):
        assert isinstance(ours, Tokens), ours
        assert list(ours.ids) == list(AION_KEYS)
        for key in AION_KEYS:
            np.testing.assert_array_equal(ours.ids[key], theirs.ids[key], err_msg=key)


@pytest.mark.parametrize("key", ["tok_image", "tok_spectrum_sdss", "tok_segmap", "catalog", "tok_xp_rp", "tok_flux_g",
                                 "tok_ebv", "tok_z"])  # fmt: skip
def test_weights_that_are_slightly_off_are_seen(key: str, codecs: Codecs) -> None:
    """The comparison itself, for every kind of codec: half a percent is not taken for rounding."""
    other = copy.deepcopy(codecs[key])
    for tensor in other.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(1.005)
    off = dataclasses.replace(codecs, by_folder={**codecs.by_folder, CLASSES[key].name: other})
    with pytest.raises(AssertionError, match="from a boundary"):
        compare(key, off, payloads(key, 60, SEED + 2)[-20:])


def test_the_package_spoils_its_input_and_ours_does_not(codecs: Codecs) -> None:
    """The released codec divides the caller's HSC image in place, so its second answer differs from its first."""
    (payload,) = payloads("tok_image_hsc", 1, SEED)
    assert isinstance(payload, Image)
    payload = dataclasses.replace(payload, flux=payload.flux + np.float32(30))
    before = payload.flux.copy()
    first, second = (codecs.bank["tok_image_hsc"].encode([payload]).tolist() for _ in range(2))
    assert first == second
    np.testing.assert_array_equal(payload.flux, before)
    given = as_theirs("tok_image_hsc", payload)
    with torch.inference_mode():
        one, two = (codecs["tok_image_hsc"].encode(given).tolist() for _ in range(2))
    assert one == first
    assert two != one
