"""Layers of the codecs against the plain formulas that they stand for, and the guarantees of how they compute."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Image, Payload, Spectrum
from albireo.observations.reading import read_files
from albireo.observations.source import Source
from albireo.tokenizers.bank import TokenizerBank, build
from albireo.tokenizers.base import Tokenizer
from albireo.tokenizers.checkpoint import MINI, Checkpoint
from albireo.tokenizers.image import ImageTokenizer, SqueezeExcite, WideConv2d
from albireo.tokenizers.spectrum import ConvNextBlock, Depthwise, GlobalResponseNorm, Merge, SpectrumTokenizer, Split

SAMPLES = Path(__file__).parents[2] / "observations" / "samples"
IMAGE = {"quantizer_levels": [7, 5, 5, 5, 5], "hidden_dims": 16, "num_consecutive": 1}
SPECTRUM = {
    "encoder_dims": [8, 8, 8, 16], "decoder_dims": [8, 8, 8, 2], "latent_channels": 16, "embedding_dim": 10,
    "num_pixels": 640,
}  # fmt: skip


def drawn(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4, generator=generator)
    return module.eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
def test_layers_of_sequences_are_the_library_s_with_channels_innermost(batch: int) -> None:
    x = noise(batch, 48, 10)
    turned = x.transpose(1, 2).contiguous()
    depthwise, merge, split = drawn(Depthwise(10, 7)), drawn(Merge(10, 6, 4)), drawn(Split(10, 6, 4))
    for layer, expected in (
        (depthwise, F.conv1d(turned, depthwise.weight, depthwise.bias, padding=3, groups=10)),
        (merge, F.conv1d(turned, merge.weight, merge.bias, stride=4)),
        (split, F.conv_transpose1d(turned, split.weight, split.bias, stride=4)),
    ):
        torch.testing.assert_close(layer(x), expected.transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "channels"), [(5, 8), (300, 4096), (2000, 96)])
def test_response_norm_is_its_formula_with_and_without_autograd(rows: int, channels: int) -> None:
    layer = drawn(GlobalResponseNorm(channels))
    given = noise(2, rows, channels)
    x = F.gelu(given)
    norm = x.pow(2).sum(dim=1, keepdim=True).sqrt()
    expected = layer.gamma * (x * (norm / (norm.mean(dim=-1, keepdim=True) + 1e-6))) + layer.beta + x
    torch.testing.assert_close(layer(given), expected, rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        assert torch.equal(layer(given.clone()), layer(given.clone()))
        torch.testing.assert_close(layer(given.clone()), expected.detach(), rtol=1e-5, atol=1e-5)
        half = layer.to(torch.bfloat16)(given.bfloat16()).float()
        assert (half - expected).abs().max() < 0.03 * expected.abs().max()


def test_a_channel_of_zeros_has_a_gradient() -> None:
    layer = drawn(GlobalResponseNorm(4))
    x = torch.full((1, 9, 4), -50.0, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@torch.no_grad()
def test_weights_laid_out_once_give_the_same_bits_and_follow_the_weights() -> None:
    conv = WideConv2d(32, 16, 7).to(memory_format=torch.channels_last)
    x = noise(2, 32, 24, 24).to(memory_format=torch.channels_last)
    drawn(conv)
    expected = conv(x).detach()
    conv.requires_grad_(False)
    with torch.inference_mode():
        for _ in range(2):
            torch.testing.assert_close(conv(x), expected, rtol=0, atol=0)
        assert conv._laid_out is not None
        torch.testing.assert_close(copy.deepcopy(conv)(x), expected, rtol=0, atol=0)
    # Other weights in their place, and weights that are trained, are not mistaken for those laid out.
    conv.conv.weight = nn.Parameter(2 * conv.conv.weight, requires_grad=False)
    conv.conv.bias = nn.Parameter(2 * conv.conv.bias, requires_grad=False)
    torch.testing.assert_close(conv(x), 2 * expected, rtol=0, atol=0)
    conv.requires_grad_(True)
    with torch.no_grad():
        conv.conv.weight.zero_()
    torch.testing.assert_close(conv(x), conv.conv.bias[:, None, None].expand_as(expected), rtol=0, atol=0)


def test_gates_are_their_formula_in_either_memory_format() -> None:
    layer = drawn(SqueezeExcite(6))
    x = noise(2, 6, 5, 7)
    weight = (torch.einsum("bchw,c->bhw", x, layer.to_k.weight[0, :, 0, 0]) + layer.to_k.bias).flatten(1).softmax(-1)
    context = torch.einsum("bn,bcn->bc", weight, x.flatten(2))
    expected = layer.net(context[..., None, None]) * x
    for given in (x, x.to(memory_format=torch.channels_last)):
        torch.testing.assert_close(layer(given), expected)


@pytest.fixture(scope="module")
def pair() -> tuple[ImageTokenizer, SpectrumTokenizer]:
    image, spectrum = build(MODALITIES["tok_image"], IMAGE), build(MODALITIES["tok_spectrum_desi"], SPECTRUM)
    assert isinstance(image, ImageTokenizer)
    assert isinstance(spectrum, SpectrumTokenizer)
    drawn(image.model.encoder_layers)
    drawn(spectrum.encoder)
    return image.eval(), spectrum.eval()


def test_training_and_encoding_compute_the_same_and_leave_their_input(
    pair: tuple[ImageTokenizer, SpectrumTokenizer],
) -> None:
    """Training and encoding overwrite different things; the numbers and what was given are untouched."""
    image, spectrum = pair
    slots, present = noise(1, 9, 96, 96), torch.ones(1, 9, dtype=torch.bool)
    x = noise(1, 2, 640)
    kept = slots.clone(), x.clone()
    trained = image.latents(slots, present), spectrum.latents(x)
    with torch.inference_mode():
        encoded = image.latents(slots, present), spectrum.latents(x)
    for one, other in zip(trained, encoded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert torch.equal(slots, kept[0])
    assert torch.equal(x, kept[1])
    sum(latents.square().sum() for latents in trained).backward()  # type: ignore[union-attr]
    for part in (image.model.encoder_layers, image.model.conv_in, image.subsample_in, spectrum.encoder):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def test_gradients_are_those_of_the_plain_formula() -> None:
    """The block rewritten with the library's layers, channels outermost."""
    block = drawn(ConvNextBlock(6))
    x = noise(2, 20, 6).requires_grad_()
    block(x).square().sum().backward()
    ours = [x.grad, *(parameter.grad.clone() for parameter in block.parameters())]
    block.zero_grad()
    x.grad = None
    y = F.conv1d(x.transpose(1, 2), block.dwconv.weight, block.dwconv.bias, padding=3, groups=6).transpose(1, 2)
    y = F.gelu(block.pwconv1(block.norm(y)))
    norm = torch.linalg.vector_norm(y, dim=1, keepdim=True)
    y = block.grn.gamma * (y * (norm / (norm.mean(dim=-1, keepdim=True) + 1e-6))) + block.grn.beta + y
    (x + block.pwconv2(y)).square().sum().backward()
    for one, other in zip(ours, [x.grad, *(parameter.grad for parameter in block.parameters())], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("key", ["tok_image", "tok_image_hsc"])
def test_one_pass_into_the_projection_is_the_way_over_channel_slots(key: str) -> None:
    """Encoding projects at once, training keeps the slots: the tokens are the same."""
    row = MODALITIES[key]
    tokenizer = build(row, IMAGE)
    assert isinstance(tokenizer, ImageTokenizer)
    drawn(tokenizer)
    bands = row.bands[1:]
    flux = (noise(len(bands), 96, 96) * 5).numpy()
    given = Image(flux, bands, row.pixel_scale or 0, row.unit, 22.5, np.zeros(flux.shape, bool), ())
    with torch.inference_mode():
        slots = tokenizer.network_input(torch.tensor(flux)[None], bands)
        expected = tokenizer.quantizer.encode(tokenizer.latents(*slots))
    assert torch.equal(tokenizer.encode([given]), expected)
    assert len(expected.unique()) > 50


def sample_payloads() -> dict[str, list[Payload]]:
    """Images and spectra of the bundled samples, by token key."""
    paths = sorted([*SAMPLES.glob("cutout-*"), *SAMPLES.glob("spec-*"), *SAMPLES.glob("coadd-*")])
    found: dict[str, list[Payload]] = {}
    for report in read_files([Source.from_path(path) for path in paths]):
        for observation in report.observations:
            for key, payload in observation.data.items():
                if isinstance(payload, Image | Spectrum):
                    found.setdefault(key, []).append(payload)
    return found


@pytest.fixture(scope="module")
def samples() -> dict[str, list[Payload]]:
    return sample_payloads()


def test_in_bfloat16_nearly_all_tokens_of_trained_codecs_are_the_same(samples: dict[str, list[Payload]]) -> None:
    checkpoint = Checkpoint(MINI)
    exact, reduced = TokenizerBank.open(checkpoint), TokenizerBank.open(checkpoint, dtype=torch.bfloat16)
    assert {"tok_image", "tok_spectrum_desi", "tok_spectrum_sdss"} <= samples.keys()
    for key, payloads in samples.items():
        assert reduced[key].dtype == torch.bfloat16
        same = exact[key].encode(payloads) == reduced[key].encode(payloads)
        # Ten bits for 26 Angstrom each: more of them stand near zero than of those for 51 before.
        assert same.float().mean() >= (0.95 if "spectrum" in key else 0.97), key
        assert not same.all(), f"{key}: the networks did not compute in bfloat16"
        if "spectrum" in key:
            assert same[:, 0].all(), "the token of the norm is no matter of the network"


def test_decoding_stays_in_float32(samples: dict[str, list[Payload]]) -> None:
    checkpoint = Checkpoint(MINI)
    exact, reduced = TokenizerBank.open(checkpoint), TokenizerBank.open(checkpoint, dtype=torch.bfloat16)
    for key in ("tok_image", "tok_spectrum_desi"):
        tokens = exact[key].encode(samples[key][:1])
        assert torch.equal(exact[key].decode(tokens), reduced[key].decode(tokens))


def test_other_types_are_refused() -> None:
    tokenizer: Tokenizer[Spectrum] = build(MODALITIES["tok_spectrum_desi"], SPECTRUM)
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        tokenizer.compute_in(torch.float16)
