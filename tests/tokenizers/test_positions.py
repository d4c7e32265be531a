"""Which tokens stand for a region: boxes of pixels, ranges of wavelength; and that their numbers are there."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from albireo.models.torch_engine import TorchEngine
from albireo.observations.errors import BadInput
from albireo.observations.modalities import MODALITIES
from albireo.tokenizers.bank import build
from albireo.tokenizers.checkpoint import MINI


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return TorchEngine.open(MINI)


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0, 16, 96, 17), (40, 12, 41, 90), (15, 15, 17, 17), (0, 0, 96, 96)])
def test_tokens_of_a_box_are_those_with_a_pixel_in_it(engine: TorchEngine, box: tuple[int, ...]) -> None:
    x0, y0, x1, y1 = box
    pixels = np.zeros((96, 96), bool)
    pixels[y0:y1, x0:x1] = True
    slow = pixels.reshape(6, 16, 6, 16).any(axis=(1, 3)).ravel()
    np.testing.assert_array_equal(engine.positions("tok_image", box), slow)


def test_a_token_of_an_image_changes_its_box_most(engine: TorchEngine) -> None:
    """Rows of tokens are rows of pixels, counted from the same corner."""
    rng = np.random.default_rng(0)
    for at in (1, 8, 33):
        ids = rng.integers(0, engine.n_codes("tok_image"), (1, 36))
        other = ids.copy()
        other[0, at] = (other[0, at] + 500) % engine.n_codes("tok_image")
        changed = np.abs(engine.values("tok_image", ids) - engine.values("tok_image", other))[0].sum(axis=0)
        y, x = np.unravel_index(changed.reshape(6, 16, 6, 16).mean(axis=(1, 3)).argmax(), (6, 6))
        box = (16 * int(x), 16 * int(y), 16 * int(x) + 16, 16 * int(y) + 16)
        assert np.flatnonzero(engine.positions("tok_image", box)).tolist() == [at]


def test_maps_are_divided_like_images() -> None:
    with torch.device("meta"):
        tokenizer = build(MODALITIES["tok_segmap"], {"encoder_output_dim": 16, "embedding_dim": 4})
    assert np.flatnonzero(tokenizer.positions((8, 0, 24, 8))).tolist() == [1, 2]


def test_tokens_of_wavelengths(engine: TorchEngine) -> None:
    grid = engine.wavelength("tok_spectrum_desi")
    assert grid.shape == (8704,)
    assert grid[[0, 1, -1]] == pytest.approx([3500.0, 3500.8, 3500 + 0.8 * 8703])
    first = grid.reshape(272, 32)[:, 0]
    assert not engine.positions("tok_spectrum_desi", (-math.inf, math.inf))[0], "the normalisation has no place"
    assert engine.positions("tok_spectrum_desi", (-math.inf, math.inf))[1:].all()
    assert np.flatnonzero(engine.positions("tok_spectrum_desi", (5000.0, 5001.0))).tolist() == [
        int(np.searchsorted(first, 5000.0, "right"))
    ]
    edge = float(first[10])
    assert engine.positions("tok_spectrum_desi", (-math.inf, edge))[1:].sum() == 10
    assert engine.positions("tok_spectrum_desi", (edge, math.inf))[1:].sum() == 262
    assert engine.wavelength("tok_image").shape == (0,)


def test_a_token_of_a_spectrum_changes_its_wavelengths_most(engine: TorchEngine) -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 1024, (1, 273))
    ids[0, 0] = 400
    other = ids.copy()
    other[0, 50] ^= 0b1010101010
    key = "tok_spectrum_sdss"
    changed = np.abs(engine.values(key, ids) - engine.values(key, other))[0]
    at = float(engine.wavelength(key)[changed.argmax()])
    assert engine.positions(key, (at - 32 * 0.8, at + 32 * 0.8))[50]


@pytest.mark.parametrize(
    ("key", "region"),
    [
        ("tok_image", (10, 10, 10, 20)),
        ("tok_image", (0, 0, 97, 20)),
        ("tok_image", (-1, 0, 9, 20)),
        ("tok_image", (0.5, 0, 9, 20)),
        ("tok_image", (4000, 5000)),
        ("tok_image", (0, 0, math.nan, 5)),
        ("tok_spectrum_desi", (5000, 4000)),
        ("tok_spectrum_desi", (0, 0, 9, 9)),
        ("tok_spectrum_desi", (math.nan, 4000)),
        ("tok_flux_g", (0, 1)),
    ],
)
def test_no_such_region(engine: TorchEngine, key: str, region: tuple[float, ...]) -> None:
    with pytest.raises(BadInput) as caught:
        engine.positions(key, region)
    assert caught.value.code == "option_invalid"
    assert caught.value.field == MODALITIES[key].name
    assert caught.value.fix
