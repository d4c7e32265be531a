"""The image tokenizer: cutouts of any subset of nine bands to a grid of FSQ codes (arXiv 2510.17960).

Module names follow AION-1's published files. File order is data order: scale, project bands, encode, quantize.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from albireo.observations.errors import BadInput
from albireo.observations.modalities import IMAGE_SIZE, MODALITIES, Modality
from albireo.observations.observation import Image
from albireo.tokenizers.base import Tokenizer, grid_positions
from albireo.tokenizers.kernels import compress_and_project
from albireo.tokenizers.preprocessing import AION_1
from albireo.tokenizers.quantizers import FiniteScalarQuantizer

BANDS = (*MODALITIES["tok_image_hsc"].bands, *MODALITIES["tok_image"].bands)
"""The nine channel slots."""

CLAMP = dict(zip(BANDS, (80.0, 110.0, 200.0, 330.0, 500.0, 6.0, 15.0, 20.0, 25.0), strict=True))
"""Largest absolute flux kept per band, in the unit of the band's survey."""

HSC_SCALE = 10.0 ** ((27.0 - 22.5) / 2.5)
"""HSC flux (zero point 27.0) per nanomaggy (zero point 22.5)."""


class BandProjection(nn.Module):
    """A linear map over channel slots that knows which are filled; its output scales as if all were."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        layer = nn.Linear(dim_in, dim_out)
        self.weight = layer.weight
        self.bias = layer.bias

    def project(self, x: Tensor, present: Tensor) -> Tensor:
        """x (B, 9, H, W), present (B, 9) bool -> (B, dim_out, H, W)."""
        x = x.movedim(1, -1) * present[:, None, None, :].float()
        scale = (present.shape[1] / present.sum(dim=1)) ** 0.5
        return (scale[:, None, None, None] * F.linear(x, self.weight, self.bias)).movedim(-1, 1)

    def unproject(self, x: Tensor) -> Tensor:
        """x (B, dim_in, H, W) -> (B, 9, H, W): every slot."""
        return F.linear(x.movedim(1, -1), self.weight, self.bias).movedim(-1, 1)


class SameConv2d(nn.Module):
    """A convolution that keeps height and width."""

    def __init__(self, dim_in: int, dim_out: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class WideConv2d(SameConv2d):
    """The same with a kernel so wide that its weights are laid out for the library once, not in every call.

    On one image the layout of 7 x 7 x 512 x 512 weights takes a third of the time of the convolution. What comes out is
    the same to the last bit. Only weights that are not trained are kept so: others change.
    """

    _laid_out: tuple[int, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        if weight.requires_grad or weight.dtype != torch.float32 or not _lays_out(x):
            return super().forward(x)
        around = list(self.conv.padding), [1, 1], [1, 1], 1
        if self._laid_out is None or self._laid_out[0] != weight.data_ptr():
            laid_out = torch.ops.mkldnn._reorder_convolution_weight(weight, *around, list(x.shape))
            self._laid_out = weight.data_ptr(), laid_out
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._laid_out[1], self.conv.bias, *around, "none", [], ""
        )
        return out

    def __getstate__(self) -> dict[str, Any]:
        """Copies lay out their own: the library's layout cannot be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "_laid_out"}


def _lays_out(x: Tensor) -> bool:
    """Whether the library's convolution of x takes weights that are laid out before."""
    return (
        x.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
    )


class SqueezeExcite(nn.Module):
    """Gates channels by a context that attends over all pixels (Cao et al. 2020, arXiv 2012.13375)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = max(16, dim // 2)
        self.to_k = nn.Conv2d(dim, 1, 1)
        self.net = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.LeakyReLU(0.1), nn.Conv2d(hidden, dim, 1), nn.Sigmoid())
        # Closed gates: at the start a residual unit is the identity.
        last = self.net[2]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, -10.0)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.movedim(1, -1).flatten(1, 2)
        weight = self.to_k(x).flatten(1).softmax(dim=-1)
        context = (weight[:, None] @ pixels).squeeze(1)
        gates: Tensor = self.net(context[..., None, None])
        return gates * x


class ResidualUnit(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            SameConv2d(dim, dim, 3),
            nn.ELU(inplace=True),
            nn.Conv2d(dim, dim, 1),
            nn.ELU(inplace=True),
            SqueezeExcite(dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x) + x
        return out


class Downsample(nn.Module):
    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(dim_in, dim_out * 4, 1), nn.SiLU(), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class MagVitAutoencoder(nn.Module):
    """MagViT-2's convolutional auto-encoder for single images (Yu et al. 2023, arXiv 2310.05737)."""

    def __init__(self, n_bands: int, hidden_dims: int, n_compressions: int, num_consecutive: int) -> None:
        super().__init__()
        dim = hidden_dims // 2**n_compressions
        self.conv_in = SameConv2d(n_bands, dim, 7)
        self.conv_out = SameConv2d(dim, n_bands, 3)
        encoder: list[nn.Module] = [ResidualUnit(dim)]
        decoder: list[nn.Module] = [ResidualUnit(dim)]
        for _ in range(n_compressions):
            encoder += [Downsample(dim, 2 * dim), _units(2 * dim, num_consecutive)]
            decoder += [Upsample(2 * dim, dim), _units(2 * dim, num_consecutive)]
            dim *= 2
        encoder += [WideConv2d(dim, dim, 7), _units(dim, num_consecutive)]
        decoder += [SameConv2d(dim, dim, 3), _units(dim, num_consecutive)]
        # The published files count the norm as the second part of a triple; the identities keep its name.
        encoder.append(nn.Sequential(nn.Identity(), ChannelNorm(dim), nn.Identity()))
        self.encoder_layers = nn.ModuleList(encoder)
        self.decoder_layers = nn.ModuleList(reversed(decoder))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, x: Tensor) -> Tensor:
        """(B, n_bands, 96, 96) -> (B, hidden, h, w)."""
        x = self.conv_in(x)
        for layer in self.encoder_layers:
            x = layer(x)
        return x

    def decode(self, x: Tensor) -> Tensor:
        """(B, hidden, h, w) -> (B, n_bands, 96, 96)."""
        for layer in self.decoder_layers:
            x = layer(x)
        out: Tensor = self.conv_out(x)
        return out


def _units(dim: int, n: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualUnit(dim) for _ in range(n)))


class ImageTokenizer(Tokenizer[Image]):
    """Image cutouts of 96 x 96 pixels to h x w tokens, row by row from the first row of the array."""

    encoder_parts = ("model.conv_in", "model.encoder_layers")
    decoder_parts = ("model.decoder_layers.", "model.conv_out.", "post_quant_proj.", "subsample_out.")

    def __init__(self, row: Modality, config: dict[str, Any]) -> None:
        super().__init__(row, config)
        hidden = int(config.get("hidden_dims", 512))
        n_compressions = int(config.get("n_compressions", 2))
        projection = int(config.get("multisurvey_projection_dims", 54))
        latent = int(config.get("embedding_dim", 5))
        self.softening = float(config.get("range_compression_factor", 0.01))
        self.mult_factor = float(config.get("mult_factor", 10.0))
        self._quantizer = FiniteScalarQuantizer(config["quantizer_levels"])
        self.subsample_in = BandProjection(len(BANDS), projection)
        self.model = MagVitAutoencoder(projection, hidden, n_compressions, int(config.get("num_consecutive", 4)))
        self.pre_quant_proj = nn.Conv2d(hidden, latent, 1)
        self.post_quant_proj = nn.Conv2d(latent, hidden, 1)
        self.subsample_out = BandProjection(projection, len(BANDS))
        side = IMAGE_SIZE // 2**n_compressions
        self.grid = (side, side)
        self.n_tokens = side * side
        self.vocab_size = self._quantizer.vocab_size

    @property
    def quantizer(self) -> FiniteScalarQuantizer:
        return self._quantizer

    def positions(self, region: Sequence[float]) -> NDArray[np.bool_]:
        return grid_positions(self.grid, region, self.row)

    def check(self, payload: Image) -> tuple[str, ...]:
        name = self.row.name
        if payload.flux.shape != (len(payload.bands), IMAGE_SIZE, IMAGE_SIZE):
            raise BadInput(
                "shape_mismatch",
                f"the array has shape {payload.flux.shape}, not ({len(payload.bands)}, {IMAGE_SIZE}, {IMAGE_SIZE})",
                field=name,
            )
        if payload.mask.shape != payload.flux.shape:
            raise BadInput("shape_mismatch", f"the mask has shape {payload.mask.shape}", field=name)
        unknown = set(payload.bands) - set(self.row.bands)
        if unknown or not payload.bands:
            raise BadInput("band_unknown", f"bands {sorted(unknown)} are not {self.row.bands}", field=name)
        if len(set(payload.bands)) < len(payload.bands):
            raise BadInput("band_count", f"a band is named twice: {', '.join(payload.bands)}", field=name)
        flux, bands = self.planes(payload)
        if not np.isfinite(flux).all():
            raise BadInput("not_finite", "a pixel is not finite", field=name, fix="mask it and set it to 0")
        if not bands:
            raise BadInput("image_blank", "every pixel is masked", field=name)
        limits = np.array([CLAMP[band] for band in bands], np.float32)[:, None, None]
        flags = {
            "flux_clipped": (np.abs(flux) > limits).any(),
            "blank_image": not flux.any(),
            "band_left_out": len(bands) < len(payload.bands),
            "masked_pixels_used": self.preprocessing == AION_1 and payload.flux[payload.mask].any(),
        }
        return tuple(flag for flag, raised in flags.items() if raised)

    def planes(self, payload: Image) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        """flux (C, H, W) and the C bands that are read of an image.

        "aion-1" reads masked pixels like any other, as the released code does. "albireo-1" sets them to 0, and a band
        of nothing but masked pixels is absent.
        """
        if self.preprocessing == AION_1 or not payload.mask.any():
            return payload.flux, payload.bands
        seen = [not plane.all() for plane in payload.mask]
        bands = tuple(band for band, there in zip(payload.bands, seen, strict=True) if there)
        return np.where(payload.mask, np.float32(0), payload.flux)[seen], bands

    def network_input(self, flux: Tensor, bands: Sequence[str]) -> tuple[Tensor, Tensor]:
        """flux (B, C, H, W) -> range-compressed channel slots (B, 9, H, W) and their presence (B, 9)."""
        limit = torch.tensor([CLAMP[band] for band in bands], device=flux.device)[:, None, None]
        flux = torch.clamp(flux, -limit, limit)
        if bands[0].startswith("HSC"):
            flux = flux / HSC_SCALE
        flux = torch.arcsinh(flux / self.softening) * self.softening * self.mult_factor
        slots = flux.new_zeros(len(flux), len(BANDS), *flux.shape[2:])
        present = torch.zeros(len(flux), len(BANDS), dtype=torch.bool, device=flux.device)
        index = [BANDS.index(band) for band in bands]
        slots[:, index] = flux
        present[:, index] = True
        return slots, present

    def latents(self, slots: Tensor, present: Tensor) -> Tensor:
        """Channel slots -> latents (B, d, N) before quantization."""
        return self._latents(self.subsample_in.project(slots, present))

    def _latents(self, projected: Tensor) -> Tensor:
        out: Tensor = self.pre_quant_proj(self.model.encode(projected.to(self.dtype)).float())
        return out.flatten(2)

    def reconstruct(self, quantized: Tensor) -> Tensor:
        """Quantized latents (B, d, N) -> range-compressed channel slots (B, 9, H, W)."""
        x = self.post_quant_proj(quantized.unflatten(2, self.grid))
        return self.subsample_out.unproject(self.model.decode(x))

    def _encode(self, payload: Image) -> Tensor:
        flux, bands = self.planes(payload)
        projected = compress_and_project(
            torch.tensor(flux, dtype=torch.float32, device=self.device),
            torch.tensor([CLAMP[band] for band in bands], device=self.device),
            HSC_SCALE if bands[0].startswith("HSC") else 1.0,
            self.softening,
            self.mult_factor,
            torch.tensor([BANDS.index(band) for band in bands], device=self.device),
            self.subsample_in.weight,
            self.subsample_in.bias,
        )
        return self._quantizer.encode(self._latents(projected[None]))

    def _decode(self, tokens: Tensor, bands: Sequence[str] | None = None, **target: Any) -> Tensor:
        """(B, N) tokens -> flux (B, C, 96, 96) in the survey's unit, for `bands` (default: all of the row)."""
        bands = bands or self.row.bands
        slots = self.reconstruct(self._quantizer.decode(tokens))[:, [BANDS.index(band) for band in bands]]
        flux = torch.sinh(slots / self.mult_factor / self.softening) * self.softening
        return flux * HSC_SCALE if bands[0].startswith("HSC") else flux
