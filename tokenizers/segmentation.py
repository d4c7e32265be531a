"""The segmentation map tokenizer: 96 x 96 fractions to a grid of FSQ codes (arXiv 2510.17960).

A convolutional auto-encoder after VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937). Module names follow AION-1's
published files. File order is data order: encode, quantize, decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from albireo.observations.modalities import IMAGE_SIZE, Modality
from albireo.observations.observation import SegmentationMap
from albireo.observations.segmentation import check_segmentation_map
from albireo.tokenizers.base import Tokenizer, grid_positions
from albireo.tokenizers.quantizers import FiniteScalarQuantizer


class ResidualLayer(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(dim, hidden, 3, padding=1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.net(x)
        return out


class ResidualStack(nn.Module):
    def __init__(self, dim: int, hidden: int, n_layers: int) -> None:
        super().__init__()
        self.net = nn.Sequential(*(ResidualLayer(dim, hidden) for _ in range(n_layers)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class MapEncoder(nn.Module):
    """(B, 1, 96, 96) -> (B, dim, h, w): halved in size `n_halvings` times, channels doubling up to `dim`."""

    def __init__(self, dim: int, hidden: int, n_layers: int, n_halvings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((1, *_widths(dim, n_halvings), dim)):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Conv2d(dim, dim, 3, padding=1), ResidualStack(dim, hidden, n_layers))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class MapDecoder(nn.Module):
    """(B, dim, h, w) -> (B, 1, 96, 96). As in the published files, channels narrow at once and widen again."""

    def __init__(self, dim: int, hidden: int, n_layers: int, n_doublings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((dim, *_widths(dim, n_doublings), 1)):
            layers += [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        self.net = nn.Sequential(
            nn.ConvTranspose2d(dim, dim, 3, padding=1), ResidualStack(dim, hidden, n_layers), *layers
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def _widths(dim: int, n: int) -> tuple[int, ...]:
    """Channels between `n` changes of size, smallest first."""
    return tuple(dim // 2**k for k in range(n - 1, 0, -1))


class SegmentationTokenizer(Tokenizer[SegmentationMap]):
    """Maps of 96 x 96 pixels to h x w tokens, row by row from the first row of the array.

    The file of a codec that was trained with a moving average of its weights (`ema_model_weights`) holds that average
    too. The released package computes with the weights themselves and so does this; the average is left in the file.
    """

    decoder_parts = ("decode_proj.", "decoder.")

    def __init__(self, row: Modality, config: dict[str, Any]) -> None:
        super().__init__(row, config)
        if config.get("variational"):
            raise ValueError("variational: two latents per number, of which the quantizer reads one")
        levels = config.get("levels", (8, 5, 5, 5))
        dim = int(config["encoder_output_dim"])
        latent = int(config.get("embedding_dim") or dim)
        if latent != len(levels):
            raise ValueError(f"embedding_dim is {latent}, the quantizer has {len(levels)} levels")
        dim_out = int(config.get("decoder_input_dim") or dim)
        hidden, n_layers = int(config.get("res_hidden_dims", 64)), int(config.get("num_res_layers", 2))
        halvings = int(config.get("num_downsamples", 3))
        extension = config.get("output_activation_extension")
        self.extension = 0.0 if extension is None else float(extension)
        self.encoder = MapEncoder(dim, hidden, n_layers, halvings)
        self.encode_proj = nn.Conv2d(dim, latent, 1)
        self._quantizer = FiniteScalarQuantizer(levels)
        self.decode_proj = nn.Conv2d(latent, dim_out, 1)
        self.decoder = MapDecoder(dim_out, hidden, n_layers, halvings)
        side = IMAGE_SIZE // 2**halvings
        self.grid = (side, side)
        self.n_tokens = side * side
        self.vocab_size = self._quantizer.vocab_size

    @property
    def quantizer(self) -> FiniteScalarQuantizer:
        return self._quantizer

    def positions(self, region: Sequence[float]) -> NDArray[np.bool_]:
        return grid_positions(self.grid, region, self.row)

    def check(self, payload: SegmentationMap) -> tuple[str, ...]:
        check_segmentation_map(payload)
        return ()

    def latents(self, field: Tensor) -> Tensor:
        """field (B, 96, 96) -> latents (B, d, N) before quantization."""
        out: Tensor = self.encode_proj(self.encoder(field[:, None]))
        return out.flatten(2)

    def reconstruct(self, quantized: Tensor) -> Tensor:
        """Quantized latents (B, d, N) -> field (B, 96, 96), a sigmoid stretched by the extension, within [0, 1]."""
        x = torch.sigmoid(self.decoder(self.decode_proj(quantized.unflatten(2, self.grid))))
        return ((1 + 2 * self.extension) * x - self.extension).clip(0.0, 1.0)[:, 0]

    def _encode(self, payload: SegmentationMap) -> Tensor:
        field = torch.tensor(payload.field, dtype=torch.float32, device=self.device)[None]
        return self._quantizer.encode(self.latents(field))

    def _decode(self, tokens: Tensor, **target: Any) -> Tensor:
        """(B, N) tokens -> field (B, 96, 96) in [0, 1]."""
        return self.reconstruct(self._quantizer.decode(tokens))
