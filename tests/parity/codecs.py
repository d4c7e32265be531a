"""Codecs of the released package `polymathic-aion` on random weights.

Default initialisation would prove nothing: gates are shut, norms are one, biases zero, and all objects get a few
codes. Here every parameter is drawn, and the last layer before a quantizer is set so that the latents of a sample
are uncorrelated, of variance near one and median zero; then all signs and levels occur (`test_tokens` counts them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aion.codecs.base import Codec
from aion.codecs.catalog import CatalogCodec
from aion.codecs.config import MODALITY_CODEC_MAPPING
from aion.codecs.image import ImageCodec
from aion.codecs.scalar import GridScalarCodec, LogScalarCodec, MultiScalarCodec, ScalarCodec
from aion.codecs.scalar_field import ScalarFieldCodec
from aion.codecs.spectrum import SpectrumCodec
from torch import Tensor, nn

from albireo.observations.modalities import AION_KEYS, MODALITIES
from tests.parity.asking import CLASSES, encode
from tests.parity.objects import catalog_shapes, coefficient_values, ordinary, scalar_values

RESERVOIR = 20_000
"""Numbers on which the quantizer of a scalar is fitted."""

SMALL: dict[type[Codec], dict[str, Any]] = {
    ImageCodec: {"hidden_dims": 32, "num_consecutive": 1},
    SpectrumCodec: {"encoder_dims": (8, 16, 24, 32), "decoder_dims": (24, 16, 8, 2), "latent_channels": 32},
    ScalarFieldCodec: {"encoder_output_dim": 32, "res_hidden_dims": 16},
}
"""Codec class -> sizes of its networks."""

AION_SIZE: dict[type[Codec], dict[str, Any]] = {
    ImageCodec: {},
    ScalarFieldCodec: {"encoder_output_dim": 512},
    SpectrumCodec: {"encoder_dims": (96, 192, 384, 512), "decoder_dims": (384, 192, 96, 2)},
}
"""The same for networks as large as AION-1's."""

FIT_OBJECTS = 16
"""Objects of each modality on whose latents the last layer is set."""


def make_codecs(sizes: Mapping[type[Codec], Mapping[str, Any]], seed: int) -> dict[str, Codec]:
    """Codec folder -> a codec of drawn weights and fitted reservoirs, for all token keys."""
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    codecs: dict[str, Codec] = {}
    for key in AION_KEYS:
        kind, name = MODALITY_CODEC_MAPPING[CLASSES[key]], CLASSES[key].name
        if name not in codecs:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                codecs[name] = MAKERS[kind](key, sizes.get(kind, {})).eval()
            draw(codecs[name], generator)
            FITS[kind](codecs[name], [k for k in AION_KEYS if CLASSES[k].name == name], rng, generator)
    return codecs


def _image_codec(key: str, sizes: Mapping[str, Any]) -> Codec:
    return ImageCodec(quantizer_levels=[7, 5, 5, 5, 5], **sizes)


def _spectrum_codec(key: str, sizes: Mapping[str, Any]) -> Codec:
    return SpectrumCodec(embedding_dim=10, **sizes)


def _multi_codec(key: str, sizes: Mapping[str, Any]) -> Codec:
    return MultiScalarCodec(CLASSES[key].name, ["arcsinh"], ["sinh"], 1024, 4000, 55)


def _map_codec(key: str, sizes: Mapping[str, Any]) -> Codec:
    return ScalarFieldCodec(embedding_dim=4, levels=[8, 5, 5, 5], **sizes)


MAKERS: dict[type[Codec], Callable[[str, Mapping[str, Any]], Codec]] = {
    ImageCodec: _image_codec,
    SpectrumCodec: _spectrum_codec,
    MultiScalarCodec: _multi_codec,
    ScalarCodec: lambda key, sizes: ScalarCodec(CLASSES[key].name, 1024, RESERVOIR),
    LogScalarCodec: lambda key, sizes: LogScalarCodec(CLASSES[key].name, 1024, RESERVOIR),
    GridScalarCodec: lambda key, sizes: GridScalarCodec(CLASSES[key].name, 1024),
    ScalarFieldCodec: _map_codec,
    CatalogCodec: lambda key, sizes: CatalogCodec(),
}
"""Codec class -> how one is made, with AION-1's vocabulary."""


@torch.no_grad()
def draw(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every parameter and statistic; weights keep the variance of what they multiply."""
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2 and "grn" not in name:
            std = parameter[0].numel() ** -0.5
            parameter.normal_(std=1.4 * std, generator=generator)
        else:
            parameter.normal_(std=0.2, generator=generator)
            if name.endswith("weight"):
                parameter.add_(1.0)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.2, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0, generator=generator)


def _fit_image(codec: Any, keys: Sequence[str], rng: np.random.Generator, generator: torch.Generator) -> None:
    spread(codec.pre_quant_proj, lambda: encode_samples(codec, keys, rng), 1.1, generator)
    codes = torch.randint(0, codec.quantizer.codebook_size, (2, 576), generator=generator)
    # Decoded images are range-compressed by an arcsinh: its inverse of what is not small overflows.
    rescale(codec.subsample_out, lambda: codec.decode(codes, bands=["DES-G"]), 0.3)


def _fit_spectrum(codec: Any, keys: Sequence[str], rng: np.random.Generator, generator: torch.Generator) -> None:
    spread(codec.quant_conv, lambda: encode_samples(codec, keys, rng), 1.0, generator)
    # The decoder ends in norms over two channels, which is a sign function: at full weight, rounding would show.
    for block in codec.decoder.stages[-1]:
        block.pwconv2.weight.data.mul_(0.1)


def _fit_map(codec: Any, keys: Sequence[str], rng: np.random.Generator, generator: torch.Generator) -> None:
    spread(codec.encode_proj, lambda: encode_samples(codec, keys, rng), 1.1, generator)
    codes = torch.randint(0, codec.quantizer.codebook_size, (2, 144), generator=generator)
    rescale(codec.decoder.net[-1], lambda: codec.decode(codes), 1.0)


def _fit_multi(codec: Any, keys: Sequence[str], rng: np.random.Generator, generator: torch.Generator) -> None:
    codec.quantizer._update_reservoirs(torch.from_numpy(coefficient_values(4000, rng)))


def _fit_catalog(codec: Any, keys: Sequence[str], rng: np.random.Generator, generator: torch.Generator) -> None:
    for column, sample in catalog_shapes(100_000, rng).items():
        codec.quantizer.quantizers[column]._update_reservoirs(torch.from_numpy(sample))


def _fit_reservoir(codec: Any, keys: Sequence[str], rng: np.random.Generator, generator: torch.Generator) -> None:
    codec.quantizer._update_reservoirs(torch.from_numpy(scalar_values(keys[0], RESERVOIR, rng)))


FITS: dict[type[Codec], Callable[[Any, Sequence[str], np.random.Generator, torch.Generator], None]] = {
    ImageCodec: _fit_image,
    SpectrumCodec: _fit_spectrum,
    MultiScalarCodec: _fit_multi,
    ScalarCodec: _fit_reservoir,
    LogScalarCodec: _fit_reservoir,
    GridScalarCodec: lambda *_: None,
    ScalarFieldCodec: _fit_map,
    CatalogCodec: _fit_catalog,
}


def encode_samples(codec: Codec, keys: Sequence[str], rng: np.random.Generator) -> None:
    """Encode a few ordinary objects of each modality, for hooks to look on."""
    for key in keys:
        for _ in range(FIT_OBJECTS):
            encode(codec, key, ordinary(MODALITIES[key], rng))


@torch.no_grad()
def spread(projection: Any, run: Callable[[], None], std: float, generator: torch.Generator) -> None:
    """Set a 1 x 1 convolution so that its outputs over all that `run` sends through it are uncorrelated, of
    standard deviation `std` and median 0: a random rotation of the leading principal components of its input."""
    seen: list[Tensor] = []
    hook = projection.register_forward_pre_hook(lambda _, given: seen.append(given[0].movedim(1, -1).flatten(0, -2)))
    run()
    hook.remove()
    x = torch.cat(seen).double()
    x = x[torch.isfinite(x).all(dim=1)]
    values, vectors = torch.linalg.eigh(torch.cov(x.T))
    n = len(projection.weight)
    turn, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    weight = std * turn @ (vectors[:, -n:] / values[-n:].sqrt()).T
    projection.weight.copy_(weight.reshape(projection.weight.shape))
    projection.bias.copy_(-(x @ weight.T).median(dim=0).values)


@torch.no_grad()
def rescale(module: Any, run: Callable[[], object], std: float) -> None:
    """Scale weight and bias so that the outputs in `run` have standard deviation `std`."""
    seen: list[Tensor] = []
    hook = module.register_forward_hook(lambda _, given, out: seen.append(out))
    run()
    hook.remove()
    factor = std / torch.cat([out.flatten() for out in seen]).std()
    module.weight.mul_(factor)
    module.bias.mul_(factor)


def save_codecs(codecs: Mapping[str, Any], folder: Path) -> None:
    """Write them as the package does: `codecs/<name>/{config.json,model.safetensors}`."""
    for key in AION_KEYS:
        name = CLASSES[key].name
        if not (folder / "codecs" / name).exists():
            codecs[name].save_pretrained(folder, CLASSES[key])
