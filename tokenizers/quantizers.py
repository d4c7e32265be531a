"""Quantizers: numbers to codes and back. The law of all: encode(decode(codes)) == codes for every code in use.

Buffers carry the names of AION-1's published files. Codes are int64.

    FiniteScalarQuantizer    vectors of d numbers, each rounded to a few levels (Mentzer et al. 2023, arXiv 2309.15505)
    LookupFreeQuantizer      vectors of d numbers, the sign bits (Yu et al. 2023, arXiv 2310.05737)
    LinearQuantizer          a regular grid
    ReservoirQuantizer       quantiles of a sample, optionally of its logarithm or of a compressed value
    MultiReservoirQuantizer  one of those per channel
    IdentityQuantizer        whole numbers, which are their own codes
    ComposedQuantizer        a quantizer for each column of a table, codes of different columns kept apart
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


class FiniteScalarQuantizer(nn.Module):
    """Rounds each of d bounded latent numbers to `levels[i]` values; the first varies fastest in the code."""

    levels: Tensor

    def __init__(self, levels: Sequence[int], eps: float = 1e-3) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.int32))
        self._basis = [math.prod(levels[:i]) for i in range(len(levels))]
        self.vocab_size = math.prod(levels)
        self.eps = eps

    @property
    def basis(self) -> Tensor:
        """What a step of each number adds to the code (d,)."""
        return torch.tensor(self._basis, device=self.levels.device)

    def bound(self, z: Tensor) -> Tensor:
        """(..., d) real -> (..., d) within the levels, before rounding."""
        half = (self.levels - 1) * (1 + self.eps) / 2
        offset = torch.where(self.levels % 2 == 1, 0.0, 0.5)
        shift = torch.atanh(offset / half)
        return torch.tanh(z + shift) * half - offset

    def quantize(self, z: Tensor) -> Tensor:
        """(B, d, N) latents -> (B, d, N) rounded, in [-1, 1]; the gradient passes straight through."""
        bounded = self.bound(z.movedim(1, -1))
        rounded = bounded + (bounded.round() - bounded).detach()
        return (rounded / (self.levels // 2)).movedim(-1, 1)

    def encode(self, z: Tensor) -> Tensor:
        """(B, d, N) latents -> (B, N) codes."""
        half_width = self.levels // 2
        digits = self.quantize(z).movedim(1, -1) * half_width + half_width
        return (digits.round().long() * self.basis).sum(-1)

    def decode(self, codes: Tensor) -> Tensor:
        """(B, N) codes -> (B, d, N) values in [-1, 1]."""
        half_width = self.levels // 2
        digits = (codes.unsqueeze(-1) // self.basis) % self.levels
        return ((digits - half_width) / half_width).movedim(-1, 1)


class LookupFreeQuantizer(nn.Module):
    """The signs of d latent numbers as bits, the first one most significant."""

    mask: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mask", 2 ** torch.arange(dim - 1, -1, -1))
        self.vocab_size = 2**dim

    def quantize(self, z: Tensor) -> Tensor:
        """(B, d, N) latents -> (B, d, N) of +-1; the gradient passes straight through."""
        signs = torch.where(z > 0, 1.0, -1.0).to(z.dtype)
        return z + (signs - z).detach()

    def encode(self, z: Tensor) -> Tensor:
        """(B, d, N) latents -> (B, N) codes."""
        return ((z.movedim(1, -1) > 0) * self.mask).sum(-1)

    def decode(self, codes: Tensor) -> Tensor:
        """(B, N) codes -> (B, d, N) of +-1."""
        bits = (codes.unsqueeze(-1) & self.mask) != 0
        return (bits.float() * 2 - 1).movedim(-1, 1)


class LinearQuantizer(nn.Module):
    """A regular grid of `codebook_size` values over a closed range; what lies outside gets the last code."""

    buckets: Tensor

    def __init__(self, codebook_size: int, range: tuple[float, float]) -> None:
        super().__init__()
        self.range = range
        self.register_buffer("buckets", torch.linspace(range[0], range[1], codebook_size))

    @property
    def vocab_size(self) -> int:
        return len(self.buckets)

    def encode(self, x: Tensor) -> Tensor:
        """(...) numbers -> (...) codes: the number of grid values below x."""
        return torch.clamp(torch.bucketize(x, self.buckets), 0, self.vocab_size - 1)

    def decode(self, codes: Tensor, centre: bool = False) -> Tensor:
        """(...) codes -> (...) grid values, or the centres of the cells that end there."""
        return _of_cells(self.buckets, codes, centre)

    def covers(self, x: Tensor) -> Tensor:
        """(...) numbers -> (...) bool: not beyond the ends of the grid."""
        return (self.buckets[0] <= x) & (x <= self.buckets[-1])


class ReservoirQuantizer(nn.Module):
    """Quantiles of a sample as codebook; a code is the number of codebook values strictly below the number.

    scale  "linear", "log" (natural, floored at `min_log_value`) or the name of a compression ("arcsinh")
    The reservoir itself is kept because the published files hold it.
    """

    _reservoir: Tensor
    _index_to_val: Tensor

    def __init__(
        self, codebook_size: int, reservoir_size: int, scale: str = "linear", min_log_value: float = -3.0
    ) -> None:
        super().__init__()
        assert scale in SCALES, scale
        self.scale = scale
        self.floor = math.exp(min_log_value)
        self.register_buffer("_reservoir", torch.zeros(reservoir_size))
        self.register_buffer("_index_to_val", torch.zeros(codebook_size))

    @property
    def vocab_size(self) -> int:
        return len(self._index_to_val)

    def fit(self, sample: Tensor) -> None:
        """Take the quantiles of `sample` (n,) physical values as codebook."""
        compressed = torch.sort(self._compress(sample.float())).values
        at = torch.linspace(0, 1, len(self._reservoir), dtype=torch.float64)
        self._reservoir.copy_(torch.quantile(compressed.double(), at))
        at = torch.linspace(0, 1, self.vocab_size, dtype=torch.float64)
        self._index_to_val.copy_(torch.quantile(self._reservoir.double(), at))

    def encode(self, x: Tensor) -> Tensor:
        """(...) numbers -> (...) codes."""
        return torch.bucketize(self._compress(x), self._index_to_val[:-1])

    def decode(self, codes: Tensor, centre: bool = False) -> Tensor:
        """(...) codes -> (...) numbers: the upper edge of the cell, as in AION-1, or its centre on the scale."""
        return SCALES[self.scale][1](_of_cells(self._index_to_val, codes, centre))

    def covers(self, x: Tensor) -> Tensor:
        """(...) numbers -> (...) bool: not beyond the ends of the codebook."""
        x = self._compress(x)
        return (self._index_to_val[0] <= x) & (x <= self._index_to_val[-1])

    def _compress(self, x: Tensor) -> Tensor:
        if self.scale == "log":
            x = torch.where(x <= self.floor, torch.tensor(self.floor, dtype=x.dtype), x)
        return SCALES[self.scale][0](x)


def _of_cells(edges: Tensor, codes: Tensor, centre: bool) -> Tensor:
    """Upper edges or centres of the cells (edge k - 1, edge k] of codes k; the lowest cell has no other edge."""
    upper = edges[codes]
    return (edges[(codes - 1).clamp(min=0)] + upper) / 2 if centre else upper


SCALES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "linear": (torch.Tensor.clone, torch.Tensor.clone),
    "log": (torch.log, torch.exp),
    "arcsinh": (torch.arcsinh, torch.sinh),
}
"""Scale -> (compression, its inverse)."""


class MultiReservoirQuantizer(nn.Module):
    """One reservoir quantizer per channel."""

    def __init__(self, codebook_size: int, reservoir_size: int, num_quantizers: int, scale: str) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(
            ReservoirQuantizer(codebook_size, reservoir_size, scale) for _ in range(num_quantizers)
        )

    @property
    def channels(self) -> list[ReservoirQuantizer]:
        return [q for q in self.quantizers if isinstance(q, ReservoirQuantizer)]

    @property
    def vocab_size(self) -> int:
        return self.channels[0].vocab_size

    def fit(self, sample: Tensor) -> None:
        """sample (n, K)."""
        for k, quantizer in enumerate(self.channels):
            quantizer.fit(sample[:, k])

    def encode(self, x: Tensor) -> Tensor:
        """(B, K) numbers -> (B, K) codes."""
        return torch.stack([q.encode(x[:, k]) for k, q in enumerate(self.channels)], dim=1)

    def decode(self, codes: Tensor, centre: bool = False) -> Tensor:
        """(B, K) codes -> (B, K) numbers."""
        return torch.stack([q.decode(codes[:, k], centre) for k, q in enumerate(self.channels)], dim=1)

    def covers(self, x: Tensor) -> Tensor:
        """(B, K) numbers -> (B, K) bool: not beyond the ends of the codebook of their channel."""
        return torch.stack([q.covers(x[:, k]) for k, q in enumerate(self.channels)], dim=1)


class IdentityQuantizer(nn.Module):
    """Whole numbers 0 to `codebook_size` - 1 as they are; the published files hold how many there are."""

    _codebook_size: Tensor

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.vocab_size = codebook_size
        self.register_buffer("_codebook_size", torch.tensor(codebook_size))

    def encode(self, x: Tensor) -> Tensor:
        """(...) whole numbers -> (...) codes."""
        return x.long()

    def decode(self, codes: Tensor) -> Tensor:
        """(...) codes -> (...) numbers."""
        return codes.float()


class ComposedQuantizer(nn.Module):
    """One quantizer per column, by name; the codes of a column begin where those of the column before end."""

    def __init__(self, quantizers: Mapping[str, IdentityQuantizer | ReservoirQuantizer]) -> None:
        super().__init__()
        self.quantizers = nn.ModuleDict(dict(quantizers))
        sizes = [quantizer.vocab_size for quantizer in quantizers.values()]
        self.offsets = [sum(sizes[:k]) for k in range(len(sizes))]
        self.vocab_size = sum(sizes)

    @property
    def columns(self) -> list[tuple[int, IdentityQuantizer | ReservoirQuantizer]]:
        """(offset, quantizer) of each column."""
        known = [q for q in self.quantizers.values() if isinstance(q, IdentityQuantizer | ReservoirQuantizer)]
        return list(zip(self.offsets, known, strict=True))

    def encode(self, x: Tensor) -> Tensor:
        """(..., C) numbers -> (..., C) codes."""
        return torch.stack([q.encode(x[..., k]) + offset for k, (offset, q) in enumerate(self.columns)], dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """(..., C) codes -> (..., C) numbers, NaN for a code that is not of its column."""
        values = []
        for k, (offset, quantizer) in enumerate(self.columns):
            own = codes[..., k] - offset
            inside = own.clamp(0, quantizer.vocab_size - 1)
            values.append(torch.where(own == inside, quantizer.decode(inside), torch.nan))
        return torch.stack(values, dim=-1)
