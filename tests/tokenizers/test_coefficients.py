"""Coefficients over the first one: the shape of a spectrum has tokens of its own, however bright the source."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from albireo.observations.errors import BadInput
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Coefficients
from albireo.tokenizers.bank import build
from albireo.tokenizers.scalar import CoefficientsTokenizer

UNIT = "electron / s"


def stars(n: int, seed: int) -> np.ndarray:
    """(n, 55): shapes that vary by a tenth, brightness by a factor of 1,000."""
    rng = np.random.default_rng(seed)
    shape = rng.normal(size=55) * np.exp(-np.arange(55) / 8.0)
    shape[0] = 1.0
    varied = shape * (1 + 0.1 * rng.normal(size=(n, 55)))
    return (varied * 10 ** rng.uniform(1, 4, (n, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def tokenizer() -> CoefficientsTokenizer:
    config = {
        "codebook_size": 256,
        "reservoir_size": 256,
        "num_quantizers": 55,
        "compression_fns": ["arcsinh"],
        "relative_to_first": True,
        "preprocessing": "albireo-1",
    }
    made = build(MODALITIES["tok_xp_bp"], config)
    assert isinstance(made, CoefficientsTokenizer)
    made.fit(stars(4000, 0))
    return made


def test_a_brighter_star_of_the_same_shape_has_the_same_shape(tokenizer: CoefficientsTokenizer) -> None:
    sample = stars(50, 0)
    sample *= 30.0 / sample[:, :1]
    faint, bright = (tokenizer.encode([Coefficients(row * f, UNIT) for row in sample]).numpy() for f in (1.0, 30.0))
    assert (bright[:, 0] - faint[:, 0] > 80).all()
    apart = np.abs(bright[:, 1:] - faint[:, 1:])
    # What is divided by is what the first token stands for: right to the width of its cell.
    assert np.median(apart) <= 5
    assert np.percentile(apart, 99) < 40


def test_tokens_come_back_and_numbers_nearly(tokenizer: CoefficientsTokenizer) -> None:
    sample = stars(200, 0)
    tokens = tokenizer.encode([Coefficients(row, UNIT) for row in sample])
    values = tokenizer.decode(tokens)
    again = tokenizer.encode([Coefficients(row, UNIT) for row in values.numpy()])
    assert torch.equal(again, tokens)
    error = np.abs(values.numpy() / sample - 1)
    assert np.median(error) < 0.02


def test_a_source_without_flux_is_refused(tokenizer: CoefficientsTokenizer) -> None:
    values = stars(1, 0)[0]
    values[0] = -3.0
    with pytest.raises(BadInput) as raised:
        tokenizer.encode([Coefficients(values, UNIT)])
    assert raised.value.code == "value_out_of_range"
    assert raised.value.field == "gaia.xp_bp"
