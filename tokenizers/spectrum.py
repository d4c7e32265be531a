"""The spectrum tokenizer: any wavelength grid to one normalisation token and a row of sign-bit codes.

Follows AION-1 (arXiv 2510.17960): normalise, resample to a fixed grid, ConvNeXt-V2 in one dimension
(Woo et al. 2023, arXiv 2301.00808), signs of ten latents. Module names follow the published files.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from albireo.observations.errors import BadCheckpoint, BadInput
from albireo.observations.modalities import Modality
from albireo.observations.observation import Spectrum
from albireo.tokenizers.base import Tokenizer
from albireo.tokenizers.kernels import resample
from albireo.tokenizers.preprocessing import AION_1, ALBIREO_1
from albireo.tokenizers.quantizers import LinearQuantizer, LookupFreeQuantizer

NORM_FLOOR = 0.1
PIECE = 262_144
"""Numbers worked on at a time where passes over memory would cost more than the arithmetic: 1 MiB stays in cache."""

LOW_COVERAGE = 0.5
"""Below this fraction of the model's wavelength range a spectrum is flagged."""

STANDS_OUT = 5.0
"""A masked pixel this many sigma away from its good neighbours is flagged, where the preprocessing reads it."""


class GlobalResponseNorm(nn.Module):
    """GELU, then contrast between channels by their norm over the sequence; x (B, N, C).

    Where autograd is off, on a CPU, x is overwritten piece by piece: fresh memory of this size costs more than the
    arithmetic.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.is_cuda:
            x = F.gelu(x)
            return self.gamma * (x * _contrast(torch.linalg.vector_norm(x, dim=1, keepdim=True))) + self.beta + x
        pieces = x.split(max(1, PIECE // x.shape[2]), dim=1)
        rows = torch.empty(len(x), 1 + pieces[0].shape[1], x.shape[2])  # the first row holds the sum so far
        rows[:, 0] = 0.0
        for piece in pieces:
            torch.ops.aten.gelu_(piece)
            squares = torch.mul(piece, piece, out=rows[:, 1 : 1 + piece.shape[1]])
            rows[:, :1] = _sum_in_order(rows[:, : 1 + squares.shape[1]])
        contrast = _contrast(rows[:, :1].double().sqrt().to(x.dtype))
        for piece in pieces:
            piece += torch.mul(piece, contrast, out=rows[:, : piece.shape[1]]).mul_(self.gamma).add_(self.beta)
        return x


def _contrast(norm: Tensor) -> Tensor:
    """Norms (B, 1, C) over their mean."""
    return norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)


def _sum_in_order(x: Tensor) -> Tensor:
    """Sum over the sequence (B, 1, C) of x (B, N, C), one row after the other.

    So the library's norm adds squares on a CPU, slowly, and codes follow the last digit. A pool over everything does
    the same for many channels at a time; the library's sum adds in another order.
    """
    image = x.transpose(1, 2).unsqueeze(2)
    return F.avg_pool2d(image, (1, x.shape[1]), divisor_override=1).squeeze(3).transpose(1, 2)


class Depthwise(nn.Conv1d):
    """Each channel filtered by itself along the sequence; (B, N, C) -> (B, N, C)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__(dim, dim, width, padding=width // 2, groups=dim)

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() or input.is_cuda or input.dtype != torch.float32:
            # As an image one pixel high: only convolutions of images take the channels innermost.
            image, weight = input.transpose(1, 2).unsqueeze(2), self.weight.unsqueeze(2)
            out = F.conv2d(image, weight, self.bias, padding=(0, *self.padding), groups=self.groups)
            return out.squeeze(2).transpose(1, 2)
        # As fast, and rounded as the library does with the channels outermost: from the bias on, tap by tap.
        assert self.bias is not None
        n, edge = input.shape[1], self.kernel_size[0] // 2
        padded = F.pad(input, (0, 0, edge, edge))
        taps = self.weight[:, 0].T.contiguous()
        out = torch.addcmul(self.bias, padded[:, :n], taps[0])
        for k in range(1, len(taps)):
            out.addcmul_(padded[:, k : k + n], taps[k])
        return out


class Merge(nn.Conv1d):
    """A linear map of n neighbours to one; (B, N n, C) -> (B, N, dim_out)."""

    def __init__(self, dim_in: int, dim_out: int, n: int) -> None:
        super().__init__(dim_in, dim_out, n, stride=n)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2).contiguous()


class Split(nn.ConvTranspose1d):
    """A linear map of one to n neighbours; (B, N, C) -> (B, N n, dim_out)."""

    def __init__(self, dim_in: int, dim_out: int, n: int) -> None:
        super().__init__(dim_in, dim_out, n, stride=n)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        (n,) = self.stride
        neighbours = F.linear(input, self.weight.permute(2, 1, 0).flatten(0, 1))
        out: Tensor = neighbours.unflatten(2, (n, -1)).flatten(1, 2) + self.bias
        return out


class ConvNextBlock(nn.Module):
    """(B, N, C) -> (B, N, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = Depthwise(dim, 7)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.grn = GlobalResponseNorm(4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x))
        out: Tensor = x + self.pwconv2(self.grn(self.pwconv1(y)))
        return out


class ConvNextEncoder(nn.Module):
    """(B, L, 2) -> (B, L / stride, dims[-1]), stride = 4 * 2 ** (stages - 1)."""

    def __init__(self, depths: Sequence[int], dims: Sequence[int]) -> None:
        super().__init__()
        self.downsample_layers = nn.ModuleList([nn.Sequential(Merge(2, dims[0], 4), _norm_of(dims[0]))])
        for narrow, wide in pairwise(dims):
            self.downsample_layers.append(nn.Sequential(_norm_of(narrow), Merge(narrow, wide, 2)))
        self.stages = _stages(depths, dims)
        self.norm = _norm_of(dims[-1])
        self.apply(_init)

    def forward(self, x: Tensor) -> Tensor:
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
        out: Tensor = self.norm(x)
        return out


class ConvNextDecoder(nn.Module):
    """(B, N, latent) -> (B, N * stride, dims[-1]): flux and mask logits."""

    def __init__(self, latent: int, depths: Sequence[int], dims: Sequence[int]) -> None:
        super().__init__()
        self.upsample_layers = nn.ModuleList([nn.Sequential(Split(latent, dims[0], 2), _norm_of(dims[0]))])
        for i, (wide, narrow) in enumerate(pairwise(dims)):
            self.upsample_layers.append(
                nn.Sequential(_norm_of(wide), Split(wide, narrow, 2 if i < len(dims) - 2 else 4))
            )
        self.stages = _stages(depths, dims)
        self.apply(_init)

    def forward(self, x: Tensor) -> Tensor:
        for up, stage in zip(self.upsample_layers, self.stages, strict=True):
            x = stage(up(x))
        return x


def _norm_of(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-6)


def _stages(depths: Sequence[int], dims: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Sequential(*(ConvNextBlock(dim) for _ in range(depth))) for depth, dim in zip(depths, dims, strict=True)
    )


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv1d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class LatentGrid(nn.Module):
    """The fixed wavelength grid of the networks, and linear interpolation to and from it."""

    lambda_min: Tensor
    resolution: Tensor
    length: Tensor
    _wavelength: Tensor

    def __init__(self, lambda_min: float, resolution: float, num_pixels: int) -> None:
        super().__init__()
        self.register_buffer("lambda_min", torch.tensor(lambda_min))
        self.register_buffer("resolution", torch.tensor(resolution))
        self.register_buffer("length", torch.tensor(num_pixels))
        self.register_buffer("_wavelength", (torch.arange(num_pixels) * resolution + lambda_min)[None])

    @property
    def wavelength(self) -> Tensor:
        """(L,) Angstrom."""
        return self._wavelength[0]

    def to_latent(self, curves: Tensor, wavelength: Tensor) -> Tensor:
        """curves (B, C, n) at wavelength (B, n) -> (B, C, L); 0 outside the observed range."""
        grid = self.wavelength
        return torch.stack([resample(x, y, grid) for x, y in zip(wavelength, curves, strict=True)])

    def to_observed(self, curves: Tensor, wavelength: Tensor) -> Tensor:
        """curves (B, C, L) -> (B, C, n) at wavelength (B, n); 0 outside the grid."""
        grid = self.wavelength
        return torch.stack([resample(grid, y, at) for at, y in zip(wavelength, curves, strict=True)])


class SpectrumTokenizer(Tokenizer[Spectrum]):
    """Spectra to 1 + L / stride tokens: the normalisation first, then blue to red."""

    decoder_parts = ("decoder.", "post_quant_conv.")
    encoder_parts = ("encoder",)

    def __init__(self, row: Modality, config: dict[str, Any]) -> None:
        super().__init__(row, config)
        encoder_dims = config.get("encoder_dims", (96, 192, 384, 768))
        latent = int(config.get("latent_channels", 512))
        bits = int(config.get("dim", 10))
        size = int(config.get("codebook_size", 1024))
        if size != 2**bits or int(config.get("embedding_dim", 4)) != bits:
            raise BadCheckpoint("checkpoint_invalid", f"codebook_size {size} is not 2 ** {bits}", field=row.key)
        self.clip_ivar = config.get("clip_ivar", 100)
        self.clip_flux = config.get("clip_flux")
        self.input_scaling = float(config.get("input_scaling", 0.2))
        num_pixels = int(config.get("num_pixels", 8704))
        low, high = config.get("normalization_range", (-1, 5))
        self._quantizer = nn.Module()  # the published files nest the sign quantizer one level deeper
        self._quantizer._quantizer = LookupFreeQuantizer(bits)
        self.encoder = ConvNextEncoder(config.get("encoder_depths", (3, 3, 9, 3)), encoder_dims)
        self.decoder = ConvNextDecoder(
            latent, config.get("decoder_depths", (3, 3, 9, 3)), config.get("decoder_dims", (384, 192, 96, 1))
        )
        self.normalization_quantizer = LinearQuantizer(size, (low, high))
        self.latent_grid = LatentGrid(config.get("lambda_min", 3500.0), config.get("resolution", 0.8), num_pixels)
        self.pre_quant_norm = nn.LayerNorm(latent)
        self.quant_conv = Merge(latent, bits, 1)
        self.post_quant_conv = Merge(bits, latent, 1)
        stride = 4 * 2 ** (len(encoder_dims) - 1)
        if num_pixels % stride:
            raise BadCheckpoint("checkpoint_invalid", f"{num_pixels} pixels are no multiple of {stride}", field=row.key)
        self.n_tokens = 1 + num_pixels // stride
        self.grid = (self.n_tokens, 1)
        self.vocab_size = size

    @property
    def quantizer(self) -> LookupFreeQuantizer:
        inner = self._quantizer._quantizer
        assert isinstance(inner, LookupFreeQuantizer)
        return inner

    @property
    def wavelength(self) -> NDArray[np.float32]:
        grid: NDArray[np.float32] = self.latent_grid.wavelength.cpu().numpy()
        return grid

    def positions(self, region: Sequence[float]) -> NDArray[np.bool_]:
        if len(region) != 2 or not region[0] < region[1]:
            raise BadInput("option_invalid", f"no range of wavelengths: {region}", field=self.row.name, fix="LOW,HIGH")
        n = self.n_tokens - 1
        stride = len(self.wavelength) // n
        first, last = self.wavelength[: n * stride].reshape(n, stride)[:, [0, -1]].T
        # The normalisation, which comes first, is of no wavelength.
        return np.concatenate([[False], (last > region[0]) & (first < region[1])])

    def check(self, payload: Spectrum) -> tuple[str, ...]:
        name, wavelength = self.row.name, payload.wavelength
        if not len(wavelength) == len(payload.flux) == len(payload.ivar) == len(payload.mask):
            raise BadInput("shape_mismatch", "wavelength, flux, ivar and mask differ in length", field=name)
        # As the network reads them: in float32 neighbours closer than about 0.001 Angstrom become one.
        steps = np.diff(wavelength.astype(np.float32))
        if len(wavelength) < 2 or not np.isfinite(wavelength).all() or not (steps > 0).all():
            raise BadInput("wavelength_not_monotonic", "wavelengths do not increase everywhere", field=name)
        good = ~payload.mask
        if not (np.isfinite(payload.flux[good]).all() and np.isfinite(payload.ivar[good]).all()):
            raise BadInput("not_finite", "a pixel that is not masked is not finite", field=name, fix="mask it")
        grid = self.latent_grid.wavelength
        low, high = float(grid[0]), float(grid[-1])
        inside = good & (wavelength >= low) & (wavelength <= high)
        if not inside.any():
            raise BadInput("no_coverage", f"no good pixel between {low:.0f} and {high:.0f} A", field=name)
        covered = min(high, wavelength[inside].max()) - max(low, wavelength[inside].min())
        norm = float(payload.flux[good].sum(dtype=np.float64)) / (good.sum() + 1.0)
        flags = {
            "low_coverage": covered < LOW_COVERAGE * (high - low),
            "blank_spectrum": not payload.flux[inside].any(),
            "norm_floored": norm < NORM_FLOOR,
            "norm_saturated": norm > 10 ** self.normalization_quantizer.range[1] - 1,
            "no_inverse_variance": not (payload.ivar[inside] > 0).any(),
            "negative_inverse_variance": bool((payload.ivar[good] < 0).any()),
            "masked_pixels_used": self.preprocessing == AION_1 and _bad_pixels_stand_out(payload, low, high),
        }
        return tuple(flag for flag, raised in flags.items() if raised)

    def network_input(self, flux: Tensor, ivar: Tensor, mask: Tensor, wavelength: Tensor) -> tuple[Tensor, Tensor]:
        """All (B, n), mask True = bad -> (arcsinh-compressed flux and istd on the grid (B, 2, L), log norm (B,)).

        "aion-1" repeats the released code: bad pixels are left out of the norm but not of the input, and istd is
        divided by the norm. "albireo-1" takes bad pixels out (flux at the norm, istd 0) and multiplies istd.
        """
        flux, ivar = torch.nan_to_num(flux), torch.nan_to_num(ivar)
        if self.clip_flux is not None:
            flux = torch.clamp(flux, -self.clip_flux, self.clip_flux)
        istd = torch.sqrt(torch.clamp(ivar, 0, self.clip_ivar))
        norm = (flux * (1.0 - mask.float())).sum(-1) / (torch.count_nonzero(~mask, dim=-1) + 1.0)
        log_norm = torch.log10(torch.clamp(norm, NORM_FLOOR) + 1.0)
        log_norm = self.normalization_quantizer.decode(self.normalization_quantizer.encode(log_norm))
        n = norm_of_log(log_norm)
        if self.preprocessing == ALBIREO_1:
            flux = torch.where(mask, n, flux)
            istd = torch.where(mask, 0.0, istd * n * n)
        curves = torch.stack([flux / n - 1.0, istd / n], dim=1) * self.input_scaling
        return torch.arcsinh(self.latent_grid.to_latent(curves, wavelength)), log_norm

    def latents(self, x: Tensor) -> Tensor:
        """(B, 2, L) -> latents (B, bits, N) before quantization."""
        out: Tensor = self.quant_conv(self.pre_quant_norm(self.encoder(x.transpose(1, 2).to(self.dtype)).float()))
        return out.transpose(1, 2)

    def reconstruct(self, quantized: Tensor) -> Tensor:
        """Quantized latents (B, bits, N) -> (B, 1 or 2, L): normalised flux (and mask logits) on the grid."""
        out: Tensor = self.decoder(self.post_quant_conv(quantized.transpose(1, 2)))
        return out.transpose(1, 2)

    def _encode(self, payload: Spectrum) -> Tensor:
        flux, ivar, wavelength = (
            torch.tensor(array.astype(np.float32), device=self.device)[None]
            for array in (payload.flux, payload.ivar, payload.wavelength)
        )
        mask = torch.tensor(payload.mask, device=self.device)[None]
        x, log_norm = self.network_input(flux, ivar, mask, wavelength)
        first = self.normalization_quantizer.encode(log_norm)[:, None]
        return torch.cat([first, self.quantizer.encode(self.latents(x))], dim=1).long()

    def _decode(self, tokens: Tensor, wavelength: Tensor | None = None, **target: Any) -> Tensor:
        """(B, N) tokens -> flux (B, n) in the row's unit at `wavelength` (B, n), or on the model's grid."""
        flux = self.reconstruct(self.quantizer.decode(tokens[:, 1:]))[:, 0]
        if wavelength is not None:
            flux = self.latent_grid.to_observed(flux[:, None], wavelength)[:, 0]
        return (flux + 1.0) * norm_of_log(self.normalization_quantizer.decode(tokens[:, 0]))


def _bad_pixels_stand_out(spectrum: Spectrum, low: float, high: float) -> bool:
    """Does a masked pixel between two wavelengths leave the line through its good neighbours, by `STANDS_OUT` sigma?

    Sigma is that of the good pixels: 1.4826 times the median difference between one and the next, over sqrt(2).
    """
    wavelength, good = spectrum.wavelength, ~spectrum.mask
    bad = spectrum.mask & (wavelength >= low) & (wavelength <= high)
    if not bad.any():
        return False
    flux = np.nan_to_num(spectrum.flux.astype(np.float64))
    jumps = np.abs(np.diff(flux[good]))
    sigma = 1.4826 * float(np.median(jumps)) / np.sqrt(2) if jumps.size else 0.0
    expected = np.interp(wavelength[bad], wavelength[good], flux[good])
    return bool((np.abs(flux[bad] - expected) > STANDS_OUT * sigma).any())


def norm_of_log(log_norm: Tensor) -> Tensor:
    """log10(n + 1) (B,) -> n (B, 1), floored."""
    return torch.clamp(10 ** log_norm[:, None] - 1.0, NORM_FLOOR)
