"""Laws and golden numbers of the quantizers. The goldens came from running the released code (METHODS of AION-1)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from albireo.tokenizers.quantizers import (
    FiniteScalarQuantizer,
    LinearQuantizer,
    LookupFreeQuantizer,
    MultiReservoirQuantizer,
    ReservoirQuantizer,
)


def reservoir(scale: str = "linear", size: int = 64) -> ReservoirQuantizer:
    quantizer = ReservoirQuantizer(size, 500, scale)
    quantizer.fit(torch.exp(torch.randn(3000, generator=torch.Generator().manual_seed(1))))
    return quantizer


def test_fsq_golden() -> None:
    z = torch.tensor([[0.3, -1.2, 0.7, 2.0, -0.1], [0] * 5, [3] * 5, [-3] * 5]).float()[..., None]
    quantizer = FiniteScalarQuantizer([7, 5, 5, 5, 5])
    assert quantizer.vocab_size == 4375
    assert quantizer.encode(z)[:, 0].tolist() == [2559, 2187, 4374, 0]
    np.testing.assert_allclose(quantizer.quantize(z)[0, :, 0], [1 / 3, -1, 0.5, 1, 0], atol=1e-7)
    assert FiniteScalarQuantizer([8, 5, 5, 5]).encode(z[:, :4])[:, 0].tolist() == [925, 500, 999, 0]


def test_sign_quantizer_golden() -> None:
    signs = torch.tensor([[1, 1, -1, -1, -1, 1, 1, 1, -1, -1], [-1, -1, -1, -1, -1, -1, -1, 1, -1, -1]]).float()
    assert LookupFreeQuantizer(10).encode(signs[..., None])[:, 0].tolist() == [796, 4]


def test_linear_golden() -> None:
    quantizer = LinearQuantizer(1024, (0.0, 1.0))
    values = torch.tensor([0, 0.1, 0.5, 0.999, 1, 1.7, -0.2])
    assert quantizer.encode(values).tolist() == [0, 103, 512, 1022, 1023, 1023, 0]
    np.testing.assert_allclose(quantizer.decode(torch.tensor([103, 512])), [0.1006843, 0.5004888], atol=1e-7)
    logs = torch.log10(torch.tensor([0.1, 1, 10, 100]) + 1)
    assert LinearQuantizer(1024, (-1.0, 5.0)).encode(logs).tolist() == [178, 222, 349, 513]


def test_reservoir_golden() -> None:
    quantizer = ReservoirQuantizer(8, 100)
    quantizer.fit(torch.arange(100.0))
    expected = [0, 14.1429, 28.2857, 42.4286, 56.5714, 70.7143, 84.8571, 99]
    np.testing.assert_allclose(quantizer._index_to_val, expected, atol=1e-4)
    assert quantizer.encode(torch.tensor([-5, 0, 0.1, 14.15, 50, 98.9, 150])).tolist() == [0, 0, 1, 2, 4, 7, 7]
    logs = ReservoirQuantizer(8, 100, "log")
    logs.fit(torch.arange(100) + 0.01)
    assert logs.encode(torch.tensor([-5, 0, 1, 10, 99, 1e4])).tolist() == [0, 0, 1, 1, 7, 7]


@pytest.mark.parametrize(
    "quantizer",
    [
        FiniteScalarQuantizer([7, 5, 5, 5, 5]),
        FiniteScalarQuantizer([8, 5, 5, 5]),
        LookupFreeQuantizer(10),
        LinearQuantizer(1024, (0.0, 1.0)),
        reservoir(),
        reservoir("log"),
        reservoir("arcsinh"),
    ],
    ids=lambda q: f"{type(q).__name__}-{q.vocab_size}-{getattr(q, 'scale', '')}",
)
def test_encode_inverts_decode(quantizer: torch.nn.Module) -> None:
    codes = torch.arange(quantizer.vocab_size)[None]
    decoded = quantizer.decode(codes)
    again = quantizer.encode(decoded)
    if isinstance(quantizer, ReservoirQuantizer) and quantizer.scale != "linear":
        # exp(log x) rounds: a value may fall on either side of its own boundary, never further.
        assert (again - codes).abs().max() <= 1
        torch.testing.assert_close(quantizer.decode(again), decoded, rtol=0.2, atol=0)
    elif isinstance(quantizer, FiniteScalarQuantizer):
        # Latents pass through tanh: give the one that lands on the value.
        half, level = quantizer.levels // 2, decoded.movedim(1, -1) * (quantizer.levels // 2)
        bound = (quantizer.levels - 1) * (1 + quantizer.eps) / 2
        offset = torch.where(quantizer.levels % 2 == 1, 0.0, 0.5)
        z = torch.atanh((level + offset) / bound) - torch.atanh(offset / bound)
        assert half.min() > 0
        assert torch.equal(quantizer.encode(z.movedim(-1, 1)), codes)
    else:
        assert torch.equal(again, codes)


def test_channels_have_their_own_codebooks() -> None:
    quantizer = MultiReservoirQuantizer(16, 200, 3, "arcsinh")
    sample = torch.randn(1000, 3, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 10.0, 100.0])
    quantizer.fit(sample)
    codes = quantizer.encode(sample)
    for k, channel in enumerate(quantizer.channels):
        assert torch.equal(codes[:, k], channel.encode(sample[:, k]))
        assert len(codes[:, k].unique()) == 16


def test_fit_does_not_touch_its_sample() -> None:
    sample = torch.tensor([3.0, 1.0, 2.0])
    ReservoirQuantizer(4, 10, "log").fit(sample)
    assert sample.tolist() == [3.0, 1.0, 2.0]
