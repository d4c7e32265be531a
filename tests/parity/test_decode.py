"""Every token key: what tokens stand for is the same here and in the released package, for codes of the whole range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from albireo.observations.modalities import AION_KEYS, MODALITIES
from tests.parity.asking import decode
from tests.parity.conftest import SEED, Codecs
from tests.parity.objects import band_subsets, survey_grid
from tests.parity.transformers import errors

TOLERANCE = 1e-4
"""Largest rms difference over the rms distance of objects from their mean, each in units of its own rms."""

NUMBERS = tuple(key for key in AION_KEYS if MODALITIES[key].kind == "scalar")
SPECTRA = ("tok_spectrum_desi", "tok_spectrum_sdss")


def codes(codecs: Codecs, key: str, n: int) -> Tensor:
    """n objects' tokens (n, N), drawn from every code; the norms of spectra as well."""
    tokenizer = codecs.bank[key]
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(0, tokenizer.vocab_size, (n, tokenizer.n_tokens), generator=generator)


def agree(codecs: Codecs, key: str, tokens: Tensor, **target: Any) -> str:
    """Decode both ways; fail where that differs. Returns the error in words."""
    ours, theirs = codecs.bank[key].decode(tokens, **target).numpy(), decode(codecs[key], key, tokens, **target)
    assert ours.shape == theirs.shape
    assert np.isfinite(theirs).all()
    unit = np.sqrt((theirs.reshape(len(theirs), -1).astype(np.float64) ** 2).mean(axis=1))
    unit = unit.reshape(-1, *[1] * (theirs.ndim - 1))
    error, largest = errors(ours / unit, theirs / unit)
    assert error <= TOLERANCE
    return f"error {error:.1e}, largest {largest:.1e}"


@pytest.mark.parametrize("key", NUMBERS)
def test_every_code_of_a_number(key: str, codecs: Codecs) -> None:
    tokens = torch.arange(1024)[:, None]
    np.testing.assert_array_equal(codecs.bank[key].decode(tokens).numpy(), decode(codecs[key], key, tokens))


@pytest.mark.parametrize("key", ["tok_xp_bp", "tok_xp_rp"])
def test_every_code_of_every_coefficient(key: str, codecs: Codecs) -> None:
    tokens = torch.arange(1024)[:, None].expand(-1, 55)
    np.testing.assert_array_equal(codecs.bank[key].decode(tokens).numpy(), decode(codecs[key], key, tokens))


@pytest.mark.parametrize("key", ["tok_image", "tok_image_hsc"])
def test_images_in_every_subset_of_bands(key: str, codecs: Codecs, report: Callable[[str], None]) -> None:
    tokens = codes(codecs, key, 3)
    for bands in band_subsets(MODALITIES[key]):
        report(f"{key}: decoded, {' '.join(bands)}: {agree(codecs, key, tokens, bands=list(bands))}")


def test_the_package_still_fails_to_decode_hsc_images(codecs: Codecs) -> None:
    """So what is compared above is put together from its parts. When this fails, ask its `decode` instead."""
    with pytest.raises(AttributeError, match="_reverse_zeropoint"):
        codecs["tok_image_hsc"].decode(codes(codecs, "tok_image_hsc", 1), bands=["HSC-G"])


@pytest.mark.parametrize("key", SPECTRA)
@pytest.mark.parametrize("grid", ["latent", "survey", "beyond"])
def test_spectra_on_any_grid(key: str, grid: str, codecs: Codecs, report: Callable[[str], None]) -> None:
    tokens = codes(codecs, key, 4)
    wavelength = {
        "latent": None,
        "survey": torch.from_numpy(survey_grid(MODALITIES[key])).float(),
        "beyond": torch.arange(3000.0, 11000.0, 1.7),
    }[grid]
    target = {} if wavelength is None else {"wavelength": wavelength.repeat(4, 1)}
    report(f"{key}: decoded on the {grid} grid: {agree(codecs, key, tokens, **target)}")


def test_segmentation_maps(codecs: Codecs, report: Callable[[str], None]) -> None:
    report(f"tok_segmap: decoded: {agree(codecs, 'tok_segmap', codes(codecs, 'tok_segmap', 20))}")


@pytest.mark.parametrize("n", [1, 10])
def test_catalogs_of_any_length(n: int, codecs: Codecs) -> None:
    """Every code of every column; the package has -1 where a code is none of its column, here that is NaN."""
    rng = np.random.default_rng(SEED)
    first = np.cumsum([204, 96, 96, 1024, 1024])
    size = np.array([96, 96, 1024, 1024, 1024])
    tokens = torch.from_numpy(first + rng.integers(0, size, (2000 // n, n, 5))).flatten(1)
    found, expected = codecs.bank["catalog"].decode(tokens).numpy(), decode(codecs["catalog"], "catalog", tokens)
    np.testing.assert_array_equal(found, expected.reshape(found.shape))
    tokens[:, 2] = 204
    found, expected = codecs.bank["catalog"].decode(tokens).numpy(), decode(codecs["catalog"], "catalog", tokens)
    assert (expected.reshape(found.shape)[:, 0, 2] == -1).all()
    np.testing.assert_array_equal(np.isnan(found), expected.reshape(found.shape) == -1)
